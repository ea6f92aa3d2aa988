"""Functions for one checkpoint: save a tree, read it, and read its description."""

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any, Literal

from .._common.errors import FuncconvError
from .._common.paths import checked_path
from .folder import Checkpoints
from .step_folders import checked_step, checked_which
from .stored import StoredCheckpoints

_PASS_A_FOLDER = "pass a folder to which `fit` or `save` has written"


def save(folder: str | os.PathLike[str], state: Any, step: int = 0) -> None:
    """Write a tree of arrays, such as a `State`, to a folder.

    The checkpoint is written completely before it replaces an earlier one of the same step. If writing fails or the
    process is killed, the earlier one is still there.

    Args:
        folder: the folder for checkpoints; it is created if it is missing. Checkpoints of other steps in it are kept.
        state: the tree. JAX arrays, NumPy arrays and Python numbers are stored exactly, each in its dtype. Random keys
            and trees without arrays can be saved too.
        step: the number of the checkpoint, at least 0. An earlier checkpoint with this number is replaced. Default: 0.

    Raises:
        FuncconvError: if orbax is not installed, if the folder cannot be written or another process writes to it, or if
            the state contains anything but arrays and numbers, such as an array that was donated.

    Returns:
        None.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)})
        ...     fc.train.restore(folder, {"w": jnp.zeros(2)})["w"].tolist()
        [1.0, 1.0]
    """
    step = checked_step("train.save", step)
    checked_path("train.save", folder, wants="folder")
    # The checkpoint is there when the call returns.
    with closing(Checkpoints(folder, keep=None, asynchronous=False)) as checkpoints:
        checkpoints.save(step, state)


def restore(folder: str | os.PathLike[str], like: Any, which: int | Literal["best", "last"] = "last") -> Any:
    """Read a checkpoint that `save` or `fit` wrote. The folder is not changed; a running `fit` may use it meanwhile.

    Args:
        folder: the folder of checkpoints.
        like: a tree of arrays, or of their types (`jax.ShapeDtypeStruct`), with the names, shapes and dtypes that you
            expect.
        which: which checkpoint to read. `"last"`: the last one that is complete; a warning names each later one that is
            damaged. `"best"`: the one of the best evaluation of a `fit` with `monitor=`. A whole number: the one of
            this step. Default: `"last"`.

    Returns:
        A tree like `like`: JAX arrays on the devices of its arrays, and NumPy arrays and numbers where it has those.

    Raises:
        FuncconvError: if orbax is not installed; if there is no such checkpoint, or the one of a step or the best one
            is damaged, with a list of the steps that exist; or if names, shapes or dtypes differ, with a list of each
            difference.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for step in (10, 20):
        ...         fc.train.save(folder, {"w": jnp.full(2, float(step))}, step)
        ...     [fc.train.restore(folder, {"w": jnp.zeros(2)}, which)["w"].tolist() for which in ("last", 10)]
        [[20.0, 20.0], [10.0, 10.0]]
    """
    stored = _stored("train.restore", folder)
    for step in _steps(stored, folder, checked_which("train.restore", which)):
        if (result := stored.restore(like, step)) is not None:
            return result[1]
    raise _none(stored, folder, step)


def about(folder: str | os.PathLike[str], which: int | Literal["best", "last"] = "last") -> dict[str, Any]:
    """Read the description of a checkpoint, without its arrays. The folder is not changed.

    Args:
        folder: the folder of checkpoints.
        which: which checkpoint to describe. `"last"`: the last one whose description can be read. `"best"`: the one of
            the best evaluation of a `fit` with `monitor=`. A whole number: the one of this step. Default: `"last"`.

    Returns:
        `{"step": ..., "arrays": {path: "float32[3, 3, 1, 8]"}, "digest": ..., "versions": {"jax": ...}, "about": ...}`.
        The last entry is the dict that you passed to `fit` as `about`.

    Raises:
        FuncconvError: if orbax is not installed; or if there is no such checkpoint, or the one of a step or the best
            one is damaged, with a list of the steps that exist.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)}, step=7)
        ...     fc.train.about(folder)["step"], fc.train.about(folder)["arrays"]
        (7, {'w': 'float32[2]'})
    """
    stored = _stored("train.about", folder)
    for step in _steps(stored, folder, checked_which("train.about", which)):
        if (result := stored.about(step)) is not None:
            number, record = result
            return {"step": number} | {name: record[name] for name in ("arrays", "digest", "versions", "about")}
    raise _none(stored, folder, step)


def _steps(
    stored: StoredCheckpoints, folder: str | os.PathLike[str], which: int | Literal["best", "last"]
) -> Iterator[int | None]:
    """Yield the step to read, None for the last one; if it is gone, also the one that has become the best meanwhile."""
    if which == "last":
        yield None
        return
    step = _best_step(stored, folder) if which == "best" else which
    yield step
    while which == "best" and (best := _best_step(stored, folder)) != step:
        step = best
        yield step


def _best_step(stored: StoredCheckpoints, folder: str | os.PathLike[str]) -> int:
    """Return the step of the best evaluation, as the last checkpoint records it."""
    last = stored.about()
    if last is None:
        raise _none(stored, folder, None)
    number, record = last
    step: int | None = record["run"].get("best_at")
    if step is None:
        msg = (
            f"train: the last checkpoint in {folder}, of step {number}, does not say which one is the best: `fit` had "
            f"no monitor=, or no evaluation yet, or an older version wrote it. The last are {stored.listed()}. Pass "
            'one of these, or "last"'
        )
        raise FuncconvError(msg)
    return step


def _stored(op: str, folder: str | os.PathLike[str]) -> StoredCheckpoints:
    path = checked_path(op, folder, wants="folder")
    try:
        exists = path.is_dir()
    except OSError as error:
        msg = f"train: the folder {folder} cannot be read: {error}. Check the path and its permissions"
        raise FuncconvError(msg) from error
    if not exists:
        msg = f"train: there is no folder {folder}; {_PASS_A_FOLDER}"
        raise FuncconvError(msg)
    return StoredCheckpoints(path.absolute())


def _none(stored: StoredCheckpoints, folder: str | os.PathLike[str], step: int | None) -> FuncconvError:
    if step is None:
        return FuncconvError(f"train: {folder} has no checkpoint that can be read; {_PASS_A_FOLDER}")
    msg = (
        f"train: {folder} has no checkpoint of step {step} that can be read; the last are {stored.listed()}. Pass one "
        'of these, or "last"'
    )
    return FuncconvError(msg)

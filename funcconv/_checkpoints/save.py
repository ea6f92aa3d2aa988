"""Functions for one checkpoint: save a tree, read it, and read its description."""

import os
from contextlib import closing
from typing import Any

from .._common.errors import FuncconvError
from .._common.paths import checked_path
from .folder import Checkpoints
from .step_folders import checked_step
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


def restore(folder: str | os.PathLike[str], like: Any, step: int | None = None) -> Any:
    """Read a checkpoint that `save` or `fit` wrote. The folder is not changed; a running `fit` may use it meanwhile.

    Args:
        folder: the folder of checkpoints.
        like: a tree of arrays, or of their types (`jax.ShapeDtypeStruct`), with the names, shapes and dtypes that you
            expect.
        step: the number of the checkpoint. Default: the last one that is complete; a warning names each later one that
            is damaged.

    Returns:
        A tree like `like`: JAX arrays on the devices of its arrays, and NumPy arrays and numbers where it has those.

    Raises:
        FuncconvError: if orbax is not installed, if there is no checkpoint, if the one of `step` is damaged, or if
            names, shapes or dtypes differ; the message lists each difference.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> try:
        ...     fc.train.restore("nowhere", {"w": jnp.zeros(2)})
        ... except fc.FuncconvError as error:
        ...     print(error)
        train: there is no folder nowhere; pass a folder to which `fit` or `save` has written
    """
    stored = _stored("train.restore", folder)
    result = stored.restore(like, None if step is None else checked_step("train.restore", step))
    if result is None:
        raise _none(stored, folder, step)
    return result[1]


def about(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """Read the description of a checkpoint, without its arrays. The folder is not changed.

    Args:
        folder: the folder of checkpoints.
        step: the number of the checkpoint. Default: the last one that can be read.

    Returns:
        `{"step": ..., "arrays": {path: "float32[3, 3, 1, 8]"}, "digest": ..., "versions": {"jax": ...}, "about": ...}`.
        The last entry is the dict that you passed to `fit` as `about`.

    Raises:
        FuncconvError: if orbax is not installed, if there is no checkpoint, or if the one of `step` is damaged.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)}, step=7)
        ...     fc.train.about(folder)["step"], fc.train.about(folder)["arrays"]
        (7, {'w': 'float32[2]'})
    """
    stored = _stored("train.about", folder)
    result = stored.about(None if step is None else checked_step("train.about", step))
    if result is None:
        raise _none(stored, folder, step)
    number, record = result
    return {"step": number} | {name: record[name] for name in ("arrays", "digest", "versions", "about")}


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
    steps = ", ".join(map(str, stored.steps[-10:])) or "none"
    msg = (
        f"train: {folder} has no checkpoint of step {step} that can be read; the last are {steps}. Pass one of "
        "these, or None for the last one"
    )
    return FuncconvError(msg)

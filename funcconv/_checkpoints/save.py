"""One checkpoint by hand: save a tree, read it, and read what it says about itself."""

import os
from contextlib import closing
from typing import Any

from .._common.errors import FuncconvError
from .._common.paths import checked_path
from .folder import Checkpoints
from .step_folders import checked_step
from .stored import StoredCheckpoints


def save(folder: str | os.PathLike[str], state: Any, step: int = 0) -> None:
    """Write a tree of arrays, such as a `State`, to a folder.

    The checkpoint is written completely before it replaces one of the same step. If writing fails or the process is
    killed, the earlier one is still there.

    Args:
        folder: it is created if it is missing. Checkpoints of other steps in it are kept.
        state: the tree. JAX arrays, NumPy arrays and Python's numbers are stored exactly, each in its dtype; random
            keys and trees without arrays, too.
        step: the number of the checkpoint, at least 0; an earlier checkpoint of this number is replaced. Default: 0.

    Raises:
        FuncconvError: if orbax is not installed, the folder cannot be written to or another process writes to it, or
            the state has something else than arrays and numbers, such as an array that was donated.

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
    with closing(Checkpoints(folder, keep=None, asynchronous=False)) as checkpoints:
        checkpoints.save(step, state)


def restore(folder: str | os.PathLike[str], like: Any, step: int | None = None) -> Any:
    """Read what `save` or `fit` wrote. Nothing is written to the folder, which a running `fit` may use meanwhile.

    Args:
        folder: of checkpoints.
        like: a tree of arrays or of their types, with the names, shapes and dtypes that are expected.
        step: the number of the checkpoint; None is the last one that is whole. A warning names each one that is damaged
            and left out. Default: None.

    Returns:
        A tree like `like`: JAX arrays on the devices of its arrays, NumPy arrays and numbers where it has those.

    Raises:
        FuncconvError: if there is no checkpoint, the one of `step` is damaged, or what is there has other names, shapes
            or dtypes; each is named.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> try:
        ...     fc.train.restore("nowhere", {"w": jnp.zeros(2)})
        ... except fc.FuncconvError as error:
        ...     print(error)
        train: there is no folder nowhere
    """
    stored = _stored("train.restore", folder)
    found = stored.restore(like, None if step is None else checked_step("train.restore", step))
    if found is None:
        raise _none(stored, folder, step)
    return found[1]


def about(folder: str | os.PathLike[str], step: int | None = None) -> dict[str, Any]:
    """Read what a checkpoint says about itself, without its arrays. Nothing is written to the folder.

    Args:
        folder: of checkpoints.
        step: the number of the checkpoint; None is the last one that can be read. Default: None.

    Returns:
        `{"step": ..., "arrays": {path: "float32[3, 3, 1, 8]"}, "digest": ..., "versions": {"jax": ...}, "about": ...}`,
        where the last is what was given to `fit`.

    Raises:
        FuncconvError: if there is no checkpoint, or the one of `step` is damaged.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fc.train.save(folder, {"w": jnp.ones(2)}, step=7)
        ...     fc.train.about(folder)["step"], fc.train.about(folder)["arrays"]
        (7, {'w': 'float32[2]'})
    """
    stored = _stored("train.about", folder)
    found = stored.about(None if step is None else checked_step("train.about", step))
    if found is None:
        raise _none(stored, folder, step)
    number, record = found
    return {"step": number} | {name: record[name] for name in ("arrays", "digest", "versions", "about")}


def _stored(op: str, folder: str | os.PathLike[str]) -> StoredCheckpoints:
    path = checked_path(op, folder, wants="folder")
    try:
        there = path.is_dir()
    except OSError as error:
        msg = f"train: the folder {folder} cannot be read: {error}"
        raise FuncconvError(msg) from error
    if not there:
        msg = f"train: there is no folder {folder}"
        raise FuncconvError(msg)
    return StoredCheckpoints(path.absolute())


def _none(stored: StoredCheckpoints, folder: str | os.PathLike[str], step: int | None) -> FuncconvError:
    if step is None:
        return FuncconvError(f"train: {folder} has no checkpoint that can be read")
    steps = ", ".join(map(str, stored.steps[-10:])) or "none"
    return FuncconvError(f"train: {folder} has no checkpoint of step {step} that can be read; the last are {steps}")

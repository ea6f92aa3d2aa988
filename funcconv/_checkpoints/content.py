"""The content of a file or folder of weights: of other libraries, or of a run."""

import os
from collections.abc import Mapping
from pathlib import Path

from .._common.errors import FuncconvError
from .._weight_files.content import Content, file_content, orbax_content
from .step_folders import step_folders
from .stored import StoredCheckpoints


def read_content(op: str, path: str | os.PathLike[str], step: int | None = None) -> Content:
    """Read a file or folder of weights, in the format that its content shows.

    Args:
        op: the name of the called function, for messages.
        path: path of the file, or of a folder of orbax or fc.train.
        step: the step of a checkpoint of fc.train. Default: the last one that is complete.

    Returns:
        The content.

    Raises:
        FuncconvError: if the path is not valid, the file is of another kind, damaged or refused, there is no checkpoint
            of this step, or a package is missing that reads it.
    """
    is_folder = isinstance(path, str | os.PathLike) and os.path.isdir(path)
    if is_folder and _has_steps(folder := Path(path).absolute()):
        return _of_run(op, os.fspath(path), folder, step)
    if step is not None:
        msg = f"{op}: which={step} needs a folder to which `fit` or `save` has written; {path} is none"
        raise FuncconvError(msg)
    return orbax_content(op, os.fspath(path)) if is_folder else file_content(op, path)


def _has_steps(folder: Path) -> bool:
    try:
        return bool(step_folders(folder))
    except OSError:  # the error of reading it as a checkpoint of orbax says more
        return False


def _of_run(op: str, path: str, folder: Path, step: int | None) -> Content:
    """Return a complete checkpoint in a folder of fc.train."""
    state = StoredCheckpoints(folder).arrays(step, typed_keys=True)
    if state is None:
        of_step = "" if step is None else f" of step {step}"
        msg = f"{op}: {path} has no checkpoint{of_step} that can be read"
        raise FuncconvError(msg)
    is_run = isinstance(state, Mapping) and {"params", "optimizer", "model"} <= set(state)
    return Content("run" if is_run else "flax", state)  # `fc.train.save` writes any tree

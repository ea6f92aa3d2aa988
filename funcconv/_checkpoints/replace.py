"""Changes in a folder of checkpoints. The folder can be read at every moment, even after the process is killed."""

import os
import shutil
import sys
from pathlib import Path

from .step_folders import REMOVED, REPLACED, WRITING, step_of


def put_in_place(folder: Path, step: int) -> None:
    """Rename a written checkpoint to its step, in place of an earlier one.

    Args:
        folder: the folder of checkpoints.
        step: the step of the checkpoint.

    Raises:
        OSError: if this is not possible. Then the earlier checkpoint is still there.
    """
    written, target, earlier = (folder / f"{step}{ending}" for ending in (WRITING, "", REPLACED))
    # Otherwise, after a power failure, the disk could have the new name without the files.
    _flush(written)
    if target.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        target.rename(earlier)
    try:
        written.rename(target)
        _flush_entry(folder)
    except OSError:
        if target.exists():
            target.rename(written)
        if earlier.exists():
            earlier.rename(target)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def remove(folder: Path, step: int) -> None:
    """Delete a checkpoint. It is renamed first, so that a reader never finds half of it."""
    checkpoint, removed = folder / str(step), folder / f"{step}{REMOVED}"
    if checkpoint.is_symlink():  # the user has moved the checkpoint to another disk
        return
    shutil.rmtree(removed, ignore_errors=True)
    checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def discard(folder: Path, step: int) -> None:
    """Delete the files that were written for a step, but not put in place."""
    shutil.rmtree(folder / f"{step}{WRITING}", ignore_errors=True)


def clean(folder: Path) -> None:
    """Delete the files that a killed writer has left, and bring back the checkpoint that it was replacing.

    Call this only while you hold the lock of the folder. Nothing else in the folder is changed.
    """
    for path in list(folder.iterdir()):
        step, ending = step_of(path.name, (WRITING, REPLACED, REMOVED))
        if step is None or path.is_symlink() or not path.is_dir():
            continue
        if ending == REPLACED and not (folder / str(step)).exists():
            path.rename(folder / str(step))
        else:
            shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Wait until all files in a folder are on the disk."""
    for subfolder, _, files in os.walk(folder):
        for file in files:
            _flush_entry(Path(subfolder) / file)
        _flush_entry(Path(subfolder))


def _flush_entry(path: Path) -> None:
    if sys.platform == "win32":  # Windows cannot open a folder, and writes the names of files at once
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

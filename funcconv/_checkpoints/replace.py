"""Changes in a folder of checkpoints that leave it whole at every moment, whatever ends the process."""

import os
import shutil
import sys
from pathlib import Path

from .step_folders import REMOVED, REPLACED, WRITING, step_of


def put_in_place(folder: Path, step: int) -> None:
    """Make the checkpoint that was written the one of its step, in place of an earlier one.

    Args:
        folder: the folder of checkpoints.
        step: which one.

    Raises:
        OSError: if this is not possible; then the earlier checkpoint is still there.
    """
    written, place, earlier = (folder / f"{step}{ending}" for ending in (WRITING, "", REPLACED))
    _flush(written)
    if place.exists():
        shutil.rmtree(earlier, ignore_errors=True)
        place.rename(earlier)
    try:
        written.rename(place)
        _flush_entry(folder)
    except OSError:
        if place.exists():
            place.rename(written)
        if earlier.exists():
            earlier.rename(place)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


def remove(folder: Path, step: int) -> None:
    """Delete a checkpoint: first its name, so that no half of it is ever taken for one."""
    place, removed = folder / str(step), folder / f"{step}{REMOVED}"
    if place.is_symlink():  # it leads to what a user has put elsewhere
        return
    shutil.rmtree(removed, ignore_errors=True)
    place.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def discard(folder: Path, step: int) -> None:
    """Delete what was written for a step and not put in place."""
    shutil.rmtree(folder / f"{step}{WRITING}", ignore_errors=True)


def clean(folder: Path) -> None:
    """Delete what a killed writer has left, and bring back the checkpoint that it was about to replace.

    Only the one who holds the lock of the folder may call this. Nothing else in the folder is touched.
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
    """Wait until all that is in a folder is on the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            _flush_entry(Path(place) / name)
        _flush_entry(Path(place))


def _flush_entry(path: Path) -> None:
    if sys.platform == "win32":  # which cannot open a folder, and writes the names of files at once
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

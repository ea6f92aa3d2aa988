"""The names in a folder of checkpoints. Each checkpoint is a folder that is named after its step.

A new checkpoint is written to `5.funcconv-writing` and then renamed to `5`. If there is a `5` already, that one is
renamed to `5.funcconv-replaced` first, because a folder cannot be renamed onto another one that has files. So a
complete checkpoint exists at every moment. Before a checkpoint is deleted, it is renamed to `5.funcconv-removed`.
"""

import operator
import os
import re
from pathlib import Path
from typing import Literal

from .._common.errors import FuncconvError

WRITING, REPLACED, REMOVED = ".funcconv-writing", ".funcconv-replaced", ".funcconv-removed"
RECORD = "record.jsonl"  # the description of a checkpoint
OLD_RECORD = "told"  # the same in checkpoints of funcconv 0.1


def step_folders(folder: Path) -> dict[int, Path]:
    """Return the folder of each complete checkpoint by its step, in ascending order.

    Nothing is written. Files and folders that are not checkpoints are ignored.

    Args:
        folder: the folder of checkpoints.

    Returns:
        The folders by their steps.

    Raises:
        OSError: if the folder cannot be read.
    """
    names, last_names = _folders_in(folder), None
    while names != last_names:  # a rename while a folder is listed can hide an entry, so list until nothing changes
        last_names, names = names, _folders_in(folder)
    folders = {}
    for name in names:
        step, replaced = step_of(name, ("", REPLACED))
        if step is not None and not (replaced and str(step) in names) and is_checkpoint(folder / name):
            folders[step] = folder / name
    return dict(sorted(folders.items()))


def _folders_in(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()}


def step_of(name: str, endings: tuple[str, ...]) -> tuple[int | None, str]:
    """Return the step and the ending of a name such as `5` or `5.funcconv-writing`; no step if it is another name."""
    match = re.fullmatch(
        r"(0|[1-9][0-9]*)(.*)", name, re.DOTALL
    )  # without leading zeros, so that each step has a single name
    if match is None or match[2] not in endings:
        return None, ""
    return int(match[1]), match[2]


def is_checkpoint(path: Path) -> bool:
    """Return whether a folder is a checkpoint, perhaps a damaged one, and not a folder of the user."""
    return any((path / name).exists() for name in (RECORD, OLD_RECORD, "state"))


def checked_which(op: str, which: object) -> int | Literal["best", "last"]:
    """Return which checkpoint to read: `"best"`, `"last"`, or its step as an int.

    Args:
        op: the name of the calling function, for messages.
        which: the argument of the caller.

    Raises:
        FuncconvError: if it is anything else.
    """
    if isinstance(which, str) and which in ("best", "last"):
        return which  # type: ignore[return-value]
    if which is None or isinstance(which, str):
        msg = f'{op}: which must be "best", "last" or the step of a checkpoint; got {which!r:.100}'
        raise FuncconvError(msg)
    return checked_step(op, which)


def checked_step(op: str, step: object) -> int:
    """Return the number of a step as an int, from 0 to 2**63 - 1.

    Args:
        op: the name of the calling function, for messages.
        step: the argument of the caller.

    Returns:
        The number.

    Raises:
        FuncconvError: if it is not a whole number, or is outside of this range.
    """
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:  # the counter of steps in a state is an int64
        msg = f"{op}: step must be a whole number from 0 to 2**63 - 1; got {step!r:.100}"
        raise FuncconvError(msg)
    return number

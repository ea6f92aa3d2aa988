"""The names in a folder of checkpoints: each checkpoint has a folder that is named by its step.

A new checkpoint is written to `5.funcconv-writing` and then renamed to `5`. If there is a `5` already, this one is
renamed to `5.funcconv-replaced` first, because no system can rename a folder onto another one. So a complete checkpoint
exists at every moment. Before a checkpoint is deleted, it is renamed to `5.funcconv-removed`.
"""

import operator
import os
import re
from pathlib import Path

from .._common.errors import FuncconvError

WRITING, REPLACED, REMOVED = ".funcconv-writing", ".funcconv-replaced", ".funcconv-removed"
RECORD = "record.jsonl"  # what a checkpoint says about itself
OLD_RECORD = "told"  # the same in checkpoints of funcconv 0.1


def step_folders(folder: Path) -> dict[int, Path]:
    """Return the folder of each complete checkpoint by its step, the last step last.

    Nothing is written. Files and folders that are no checkpoints are left out.

    Args:
        folder: the folder of checkpoints.

    Returns:
        The folders by their steps.

    Raises:
        OSError: if the folder cannot be read.
    """
    names, seen = _folders_in(folder), None
    while names != seen:  # a list is right only if nothing was renamed while it was read
        seen, names = names, _folders_in(folder)
    found = {}
    for name in names:
        step, replaced = step_of(name, ("", REPLACED))
        if step is not None and not (replaced and str(step) in names) and is_checkpoint(folder / name):
            found[step] = folder / name
    return dict(sorted(found.items()))


def _folders_in(folder: Path) -> set[str]:
    return {entry.name for entry in os.scandir(folder) if entry.is_dir()}


def step_of(name: str, endings: tuple[str, ...]) -> tuple[int | None, str]:
    """Return the step and the ending of a name such as `5` or `5.funcconv-writing`; no step if it is another name."""
    match = re.fullmatch(r"(0|[1-9][0-9]*)(.*)", name, re.DOTALL)
    if match is None or match[2] not in endings:
        return None, ""
    return int(match[1]), match[2]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, perhaps a damaged one, and not a user's own folder."""
    return any((path / name).exists() for name in (RECORD, OLD_RECORD, "state"))


def checked_step(op: str, step: object) -> int:
    """Return the number of a step as an int; it must be a whole number of at least 0.

    Args:
        op: what messages begin with.
        step: what the caller passed.

    Returns:
        The number.

    Raises:
        FuncconvError: if it is something else.
    """
    try:
        number = -1 if isinstance(step, bool) else operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        msg = f"{op}: step must be a whole number from 0 to 2**63 - 1; got {step!r:.100}"
        raise FuncconvError(msg)
    return number

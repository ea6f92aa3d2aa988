"""The record of a checkpoint, which describes it: one line of JSON, and a line with the SHA-256 of the first."""

import hashlib
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .._common.errors import FuncconvError
from .step_folders import OLD_RECORD, RECORD

_FORMAT = 2  # the version that is written; funcconv 0.1 wrote version 1, in a file called `told`
_FIELDS = ("arrays", "digest", "run", "about", "versions")  # in both formats


def as_json(value: Any) -> Any:
    """Return a value as JSON returns it: tuples become lists, and keys become strings.

    Args:
        value: a value that JSON can hold.

    Returns:
        A copy.

    Raises:
        FuncconvError: if JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError) as error:
        msg = (
            f"train: the description of a checkpoint (about=) must be JSON: {error}. Use dicts, lists, strings, "
            "numbers, True, False and None"
        )
        raise FuncconvError(msg) from error


def text_of(record: Mapping[str, Any]) -> str:
    """Return the text of a record: the line of JSON, and the line with its checksum."""
    line = json.dumps({"format": _FORMAT, **record})
    return f"{line}\n{json.dumps({'sha256': _sha256(line)})}\n"


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a checkpoint.

    Args:
        path: the folder of the checkpoint.

    Returns:
        Its fields; `"paths"`, `"keys"` and `"metrics"` are empty if an earlier version of funcconv wrote it.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged.
    """
    if not (path / RECORD).exists() and (path / OLD_RECORD).exists():
        record = json.loads((path / OLD_RECORD / "metadata").read_bytes())
        return {"paths": {}, "keys": {}, "metrics": {}} | {name: record[name] for name in _FIELDS}
    line, checksum_line, *further_lines = (path / RECORD).read_bytes().decode().split("\n")
    if further_lines != [""] or checksum_line != json.dumps({"sha256": _sha256(line)}):
        msg = f"{RECORD} does not match its checksum"
        raise ValueError(msg)
    record = json.loads(line)
    if record["format"] != _FORMAT:
        msg = f"{RECORD} must have format {_FORMAT}; it has format {record['format']}. Install a newer funcconv"
        raise ValueError(msg)
    return {name: record[name] for name in (*_FIELDS, "paths", "keys", "metrics")}


def check_alike(stored: Mapping[str, Any], expected: Mapping[str, Any], location: str) -> None:
    """Raise an error for a checkpoint with other entries than expected.

    Args:
        stored: its entries, by name.
        expected: the expected entries, by name.
        location: the folder and the step, for the message.

    Raises:
        FuncconvError: if there is a difference; the message lists all of them.
    """
    stored_texts, wanted_texts = (
        {name: json.dumps(value, sort_keys=True) for name, value in values.items()} for values in (stored, expected)
    )
    differences = [
        f"{name}: {_shown(stored, name, 'missing')} in the checkpoint, {_shown(expected, name, 'nothing')} expected"
        for name in sorted({*stored_texts, *wanted_texts})
        if stored_texts.get(name) != wanted_texts.get(name)
    ]
    if differences:
        msg = f"train: the checkpoint in {location} does not fit:\n  " + "\n  ".join(differences)
        if any("64[" in line or "128[" in line for line in differences):
            msg += "\nWithout jax_enable_x64, only NumPy arrays have 64 bits. Pass NumPy arrays as like"
        raise FuncconvError(msg)


def _shown(values: Mapping[str, Any], name: str, otherwise: str) -> str:
    if name not in values:
        return otherwise
    return values[name] if isinstance(values[name], str) else json.dumps(values[name], sort_keys=True)


@cache
def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers depend on."""
    packages = ("jax", "jaxlib", "optax", "flax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def warn_of_versions(step: int, written_with: Mapping[str, str]) -> None:
    """Warn if a checkpoint was written with other versions."""
    current = versions()
    changes = ", ".join(
        f"{name} was {written_with.get(name)}, is {current[name]}"
        for name in current
        if written_with.get(name) != current[name]
    )
    if changes:
        msg = (
            f"the checkpoint of step {step} was written with other versions, so later results may differ in their last "
            f"bits: {changes}"
        )
        warnings.warn(msg, stacklevel=4)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

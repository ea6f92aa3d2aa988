"""Strict JSON: no entry twice, and finite numbers only."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import FuncconvError

_MOST_CHARACTERS = 600  # of a message, which can quote parts of the JSON


def parsed(text: str | bytes) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_each_once)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FuncconvError):
            raise
        refuse(f"it is not JSON: {str(error)[:100]}")


def digest(entries: Mapping[str, Any]) -> str:
    """Return a SHA-256 of entries, which depends neither on their order nor on spaces in the JSON."""
    text = json.dumps(entries, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse(why: str) -> NoReturn:
    """Raise the error of `from_json`."""
    msg = f"from_json: {why if len(why) <= _MOST_CHARACTERS else why[:_MOST_CHARACTERS] + '...'}"
    raise FuncconvError(msg)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):  # the json module would silently keep the last of equal keys
        keys = [key for key, _ in pairs]
        refuse(f"it has the entry {next(key for key in keys if keys.count(key) > 1)[:100]!a} twice")
    return entries


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        refuse(f"it has the number {text[:100]}, which is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    refuse(f"it has the number {name}")

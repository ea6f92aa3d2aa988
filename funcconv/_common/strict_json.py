"""JSON that is read strictly: each entry once, and finite numbers."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import FuncconvError

_LONG = 600  # characters of a message, which may repeat what is in the text


def parsed(text: str | bytes) -> Any:
    """Return what JSON says."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=_finite, object_pairs_hook=_each_once)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, FuncconvError):
            raise
        refuse(f"it is not JSON: {str(error)[:100]}")


def digest(told: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON, which depends neither on the order of entries nor on spaces."""
    text = json.dumps(told, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def refuse(why: str) -> NoReturn:
    """Raise the error of `from_json`."""
    msg = f"from_json: {why if len(why) <= _LONG else why[:_LONG] + '...'}"
    raise FuncconvError(msg)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        refuse(f"it has the entry {next(key for key in keys if keys.count(key) > 1)[:100]!a} twice")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        refuse(f"it has the number {text[:100]}, which is too large")
    return number


def _no_constant(name: str) -> NoReturn:
    refuse(f"it has the number {name}")

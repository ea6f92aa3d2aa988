"""The value of a metric in a record: a number, or a list of numbers for an array."""

import math
from typing import Any, TypeAlias

from ..._common.types import Number

Value: TypeAlias = Number | list[Any]  # the lists of an array: nested, one level for each axis

_MAX_SHOWN = 4  # of the numbers of an array
_NOT_FINITE = ("nan", "inf", "-inf")  # as strings, because JSON has no numbers for them


def short(value: Value) -> str:
    """Return a number with four digits, or the first numbers of a list."""
    if not isinstance(value, list):
        return f"{value:.4g}"
    texts = [short(item) for item in value[:_MAX_SHOWN]]
    return f"[{', '.join(texts)}{', ...' if len(value) > _MAX_SHOWN else ''}]"


def to_json(value: Value) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become strings."""
    if isinstance(value, list):
        return [to_json(item) for item in value]
    return value if math.isfinite(value) else str(value)


def from_json(value: Any) -> Value:
    """Return the value that `to_json` wrote.

    Raises:
        ValueError: if it did not write it.
    """
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if value in _NOT_FINITE:
        return float(value)
    if type(value) not in (int, float):
        msg = f"{type(value).__name__} is not a number"
        raise ValueError(msg)
    return value  # type: ignore[no-any-return]

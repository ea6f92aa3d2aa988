"""The options of `images`, checked before the folder is read."""

import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ..._common.errors import FuncconvError, suggest

Resize = Literal["crop", "stretch", "pad"]
Dtype = Literal["float32", "uint8"]
OnDamage = Literal["raise", "skip"]
OnAnimation = Literal["raise", "first"]
_CHOICES = {
    "resize": get_args(Resize),
    "channels": (1, 3, 4),
    "dtype": get_args(Dtype),
    "corrupt": get_args(OnDamage),
    "animated": get_args(OnAnimation),
}


def check_choices(**options: Any) -> None:
    """Refuse an option that is none of its choices."""
    for name, value in options.items():
        choices = _CHOICES[name]
        if type(value) not in {type(choice) for choice in choices} or value not in choices:
            hint = suggest(value, choices) if isinstance(value, str) else ""
            msg = f"images: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}{hint}"
            raise FuncconvError(msg)


def checked_size(size: Any) -> tuple[int, int]:
    """Return the height and the width."""
    pair = _integers(size, 2)
    if pair is None or min(pair) < 1:
        msg = f"images: size must be an int of at least 1, or a pair (height, width) of them; got {size!r}"
        raise FuncconvError(msg)
    return pair[0], pair[1]


def checked_color(color: Any) -> tuple[int, int, int] | None:
    """Return red, green and blue; None if there is no color."""
    if color is None:
        return None
    values = _integers(color, 3)
    if values is None or not all(0 <= value <= 255 for value in values):
        msg = f"images: background must be an int from 0 to 255, or (red, green, blue) of them; got {color!r}"
        raise FuncconvError(msg)
    return values[0], values[1], values[2]


def checked_split(split: Any) -> tuple[float, float] | None:
    """Return the lower and upper end of a part; None if there are no parts."""
    if split is None:
        return None
    try:
        low, high = map(float, split)
    except (TypeError, ValueError):
        low, high = 0.0, -1.0
    if isinstance(split, str) or not 0 <= low < high <= 1:
        msg = (
            f"images: split must be a pair (low, high) with 0 <= low < high <= 1; got {split!r}. Pass (0, 0.8) for "
            "training and (0.8, 1) for testing"
        )
        raise FuncconvError(msg)
    return low, high


def checked_workers(workers: Any) -> int | None:
    """Return the number of threads; None for the default."""
    counts = None if workers is None else _integers(workers, 1)
    if workers is not None and (counts is None or counts[0] < 1):
        msg = f"images: workers must be an integer of at least 1; got {workers!r}"
        raise FuncconvError(msg)
    return counts[0] if counts else None


def checked_classes(classes: Any) -> tuple[str, ...] | None:
    """Return the names of the classes; None if the folder decides."""
    if classes is None:
        return None
    names = _texts("classes", classes)
    if isinstance(classes, str) or not names or len(set(names)) < len(names):
        msg = f"images: classes must be a list of different names of subfolders; got {classes!r}"
        raise FuncconvError(msg)
    return names


def checked_patterns(ignore: Any) -> tuple[str, ...]:
    """Return the patterns of names that are left out."""
    return (ignore,) if isinstance(ignore, str) else _texts("ignore", ignore)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, Sequence) or not all(isinstance(value, str) for value in values):
        msg = f"images: {name} must be a list of texts; got {values!r}"
        raise FuncconvError(msg)
    return tuple(values)


def _integers(values: Any, count: int) -> tuple[int, ...] | None:
    """Return `count` integers, from one integer or a sequence of them; None if it is anything else."""
    values = tuple(values) if isinstance(values, list | tuple) else (values,) * count
    try:
        integers = tuple(operator.index(value) for value in values)
    except TypeError:
        return None
    return integers if len(integers) == count and not any(isinstance(value, bool) for value in values) else None

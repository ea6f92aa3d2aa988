"""Axes of an example as axes of a batch."""

from typing import Any


def axis_of(axis: int, x: Any, lead: int) -> int:
    """Return an axis of an example as an axis of a batch."""
    return axis + lead if axis >= 0 else axis + int(x.ndim)


def axes_of(axis: Any, x: Any, lead: int) -> tuple[int, ...]:
    """Return axes of an example, None for all of them, as axes of a batch."""
    if axis is None:
        return tuple(range(lead, x.ndim))
    return tuple(axis_of(i, x, lead) for i in (axis if isinstance(axis, tuple | list) else (axis,)))


def of_rank(x: Any, rank: int, lead: int) -> Any:
    """Return a tensor with axes of size 1 after its batch axes, so that it has this many axes."""
    return x if x.ndim == rank else x.reshape(*x.shape[:lead], *[1] * (rank - x.ndim), *x.shape[lead:])

"""Which places along one axis of an input the elements of an array depend on, as pairs of integer arrays.

A pair is `(lo, hi)`: element `i` depends on the places from `lo[i]` to `hi[i]` at most, and on none where
`lo[i] > hi[i]`. The pair spreads over the array's shape, so that an axis along which nothing changes has size 1. None
stands for an array that does not depend on the axis at all.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from .._common.types import Shape
from .._windows.geometry import Axis
from .._windows.reach import LARGE, NOWHERE

Interval: TypeAlias = tuple[np.ndarray, np.ndarray]
Seen: TypeAlias = Interval | None

_MOST_NUMBERS = 32 * LARGE  # in each array of a pair: a larger one would be made for a map of a few large axes


def along(shape: Shape, axis: int) -> Interval:
    """Return the pair of an array that is itself the input: along its axis, each place depends on itself."""
    spread = [1] * len(shape)
    spread[axis] = -1
    numbers = np.arange(shape[axis]).reshape(spread)
    return numbers, numbers


def union(seen: Sequence[Seen]) -> Seen:
    """Return the pair of an array that depends on what any of these does."""
    lows, highs = [operand[0] for operand in seen if operand], [operand[1] for operand in seen if operand]
    if not lows:
        return None
    if len(lows) > 1 and math.prod(np.broadcast_shapes(*(low.shape for low in lows))) > _MOST_NUMBERS:
        lows, highs = zip(*(over(operand, range(operand[0].ndim)) for operand in seen if operand), strict=True)
    low, high = lows[0], highs[0]
    for other_low, other_high in zip(lows[1:], highs[1:], strict=True):
        low, high = np.minimum(low, other_low), np.maximum(high, other_high)
    return low, high


def over(seen: Seen, axes: int | Sequence[int]) -> Seen:
    """Let everything along some axes depend on what anything there does."""
    axes = tuple(axes) if isinstance(axes, Sequence) else (int(axes),)  # JAX has integers of NumPy among them
    if seen is None:
        return None
    low, high = seen
    return low.min(axes, keepdims=True, initial=NOWHERE), high.max(axes, keepdims=True, initial=-NOWHERE)


def taken(seen: Seen, axis: int, at: np.ndarray) -> Seen:
    """Take places along an axis; beyond it lies nothing."""
    if seen is None:
        return None
    low, high = seen
    if low.shape[axis] == 0:
        nowhere = np.full((*low.shape[:axis], len(at), *low.shape[axis + 1 :]), NOWHERE)
        return nowhere, -nowhere
    if low.shape[axis] == 1:
        if (at >= 0).all():
            return seen
        at = np.minimum(at, 0)
    shape = [1] * low.ndim
    shape[axis] = -1
    inside = (at >= 0).reshape(shape)
    return np.where(inside, low.take(at, axis), NOWHERE), np.where(inside, high.take(at, axis), -NOWHERE)


def stacked(parts: Sequence[Seen], axis: int) -> Seen:
    """Join arrays along a new axis, each place of which is one of them."""
    places = np.arange(len(parts))
    found: list[Seen] = []
    for i, part in enumerate(parts):
        if part is not None:
            low, high = (np.expand_dims(array, axis) for array in part)
            found.append(taken((low, high), axis, np.where(places == i, 0, -1)))
    return union(found)


def sums(seen: Seen, axis: int, table: Sequence[Sequence[int]]) -> Seen:
    """Let each result along an axis, counted from the last, depend on the places in its row; -1 stands for none."""
    if seen is None or len(table) > LARGE:
        return over(seen, axis)
    axis += seen[0].ndim
    return union([taken(seen, axis, np.array(places)) for places in zip(*table, strict=True)])


def places_or_none(places: np.ndarray, size: int) -> np.ndarray:
    return np.where((places >= 0) & (places < size), places, -1)


def _ranges(seen: Seen, axis: int, first: np.ndarray, spacing: int, count: np.ndarray) -> Seen:
    """Take along an axis, for each result, what `count` places from `first` on see that lie `spacing` apart."""
    if seen is None or max(seen[0].shape[axis], len(first)) > LARGE:
        return over(seen, axis)
    size = seen[0].shape[axis]
    if size == 1:
        return taken(seen, axis, np.where(count > 0, 0, -1))
    found: list[Seen] = []
    # The sparse table of range-minimum queries takes log2(count) steps. One for each tap is slow for long windows.
    table, places = union([seen]), 1  # of 1, 2, 4, ... places; two of these that overlap are a range
    while not found or places <= count.max(initial=0):
        of_them = (count >= places) & (count < 2 * places)
        for start in (first, first + (count - places) * spacing):
            found.append(taken(table, axis, np.where(of_them, start, -1)))
        further = taken(table, axis, places_or_none(np.arange(size) + places * spacing, size))
        table, places = union([table, further]), 2 * places
    return union(found)


def windows(seen: Seen, axis: int, window: Axis) -> Seen:
    """Let each window along an axis depend on what its taps do."""
    if window.outputs > LARGE:
        return over(seen, axis)
    starts = np.arange(window.outputs) * window.stride - window.lo
    first = np.maximum(-(starts // window.dilation), 0)  # of its taps on the axis
    last = np.minimum((window.size - 1 - starts) // window.dilation, window.window - 1)
    return _ranges(seen, axis, starts + first * window.dilation, window.dilation, np.maximum(last - first + 1, 0))


def windows_back(seen: Seen, axis: int, window: Axis) -> Seen:
    """Let each place along an axis depend on what the windows do that it is in."""
    if window.size > LARGE:
        return over(seen, axis)
    # Place `at` lies in window `w` by tap `t` if `w * stride + t * dilation == at`. The solutions of this equation in
    # integers are `period` taps and `spacing` windows apart.
    common = math.gcd(window.dilation, window.stride)
    period, spacing = window.stride // common, window.dilation // common  # of taps on one place, and of their windows
    at = np.arange(window.size) + window.lo
    tap = at // common % period * pow(spacing, -1, period) % period
    last = (at - tap * window.dilation) // window.stride  # the window that has the first such tap there
    most = np.minimum((window.window - 1 - tap) // period, last // spacing)
    least = np.maximum(-((window.outputs - 1 - last) // spacing), 0)
    count = np.where((at % common == 0) & (tap < window.window), np.maximum(most - least + 1, 0), 0)
    return _ranges(seen, axis, last - most * spacing, spacing, count)

"""The order of the axes of arrays that PyTorch wrote, as far as shapes decide it."""

from collections.abc import Sequence
from typing import Any

from ..._common.types import Shape


def readings(shape: Shape, expected: Shape) -> list[tuple[int, ...]]:
    """Return the ways to read an array of PyTorch as one of an expected shape, as orders of its axes.

    The array may be used as it is; it may be a kernel, `(out, in, *window)` for `(*window, in, out)`; or it may have
    its channels first, `(channels, *spatial)` for `(*spatial, channels)`. Ways with the same result count once.

    Args:
        shape: of the array in the file.
        expected: of the array that is needed.
    """
    axes = tuple(range(len(shape)))
    orders = [axes]
    if len(shape) > 1:
        orders += [(*axes[2:], 1, 0), (*axes[1:], 0)]
    fitting = [order for order in orders if tuple(shape[axis] for axis in order) == expected]
    by_result = {tuple(axis for axis in order if shape[axis] > 1): order for order in reversed(fitting)}
    return list(by_result.values())


def is_certain(ways: Sequence[tuple[int, ...]]) -> bool:
    """Return whether shapes decide how an array of PyTorch is read.

    A dense kernel that only fits as `(out, in)` is not certain: after a flattened image, its inputs are in another
    order, which no shape shows.
    """
    return len(ways) == 1 and ways[0] != (1, 0)


def in_order(array: Any, way: tuple[int, ...]) -> Any:
    """Return an array with its axes in another order."""
    return array if way == tuple(range(array.ndim)) else array.transpose(way)

"""Resizing of one axis: which inputs each position of the new axis reads, and with which weights.

The axes before and after have the same ends, so position `i` of the new axis has its centre at

    (i + 0.5) * step - 0.5,      step = size / outputs,

counted in inputs. With `align_corners`, the centres of the first and of the last positions are the same instead: the
centre is at `i * step`, and the step is `(size - 1) / (outputs - 1)`.
"""

import math
from collections.abc import Sequence
from typing import TypeAlias

Row: TypeAlias = tuple[tuple[int, float], ...]  # the inputs that a position reads, and their weights

SELECTIONS = ("nearest", "nearest-exact")  # each position is one input
INTERPOLATIONS = ("linear", "cubic")  # each position is a weighted sum of the inputs around its centre

_CUBIC = -0.75  # the parameter a of the cubic kernel (Keys, 1981) in PyTorch
_CUBIC_ANTIALIASED = -0.5  # PyTorch's for antialiased images, as in Pillow
_HALF_WIDTH = {"linear": 1, "cubic": 2}  # of the kernels, in inputs


def selected(size: int, outputs: int, method: str, scale: float | None) -> list[int]:
    """Return the input that each position selects, by one of `SELECTIONS`.

    Args:
        size: number of inputs.
        outputs: number of positions.
        method: `"nearest"` rounds `i * step` down; `"nearest-exact"` selects the input that the centre is in.
        scale: positions for each input, whose reciprocal is the step. Default: None, `outputs / size`.

    Returns:
        The inputs.
    """
    half = method == "nearest-exact"  # twice the shift of the centre, so that the numbers are integers
    if scale is None or (not half and outputs in (size, 2 * size)):  # as in PyTorch, such an axis ignores the scale
        return [(2 * i + half) * size // (2 * outputs) for i in range(outputs)]
    return [min(int((i + half / 2) / scale), size - 1) for i in range(outputs)]


def interpolated(
    size: int, outputs: int, method: str, scale: float | None, *, align_corners: bool, antialias: bool
) -> list[Row]:
    """Return the inputs that each position reads, by one of `INTERPOLATIONS`.

    Args:
        size: number of inputs.
        outputs: number of positions.
        method: the kernel.
        scale: positions for each input, whose reciprocal is the step. Default: None, `outputs / size`.
        align_corners: whether the centres at the ends are the same, so that `scale` has no effect.
        antialias: whether the kernel is as wide as the step, if that is above 1, so that every input is read.

    Returns:
        For each position pairs of an input and its weight, which is not 0. The weights of a position have the sum 1.
    """
    if outputs == size and (method == "linear" or antialias):
        return [((i, 1.0),) for i in range(size)]  # as in PyTorch, such an axis ignores the scale
    if align_corners:
        step = (size - 1) / (outputs - 1) if outputs > 1 else 0.0
    else:
        step = size / outputs if scale is None else 1 / scale
    if antialias:
        return [_antialiased((i + 0.5) * step, size, method, max(step, 1.0)) for i in range(outputs)]
    centres = [i * step if align_corners else (i + 0.5) * step - 0.5 for i in range(outputs)]
    return [_interpolated(centre, size, method) for centre in centres]


def is_identity(rows: Sequence[Row], size: int) -> bool:
    """Return whether each position of an axis of this size is its input."""
    return len(rows) == size and all(row == ((i, 1.0),) for i, row in enumerate(rows))


def _interpolated(centre: float, size: int, method: str) -> Row:
    """Return the inputs around a centre. Beyond the ends of the axis, the inputs at the ends are repeated."""
    if method == "linear":
        centre = min(max(centre, 0.0), size - 1.0)
    first = math.floor(centre)
    reach = _HALF_WIDTH[method]
    weights: dict[int, float] = {}
    for place in range(first - reach + 1, first + reach + 1):
        inside = min(max(place, 0), size - 1)
        weights[inside] = weights.get(inside, 0.0) + _kernel(method, centre - place, _CUBIC)
    return tuple((place, weight) for place, weight in weights.items() if weight)


def _antialiased(end: float, size: int, method: str, width: float) -> Row:
    """Return the inputs under a kernel of this width; `end` is the centre, counted from the end of the axis."""
    half = _HALF_WIDTH[method] * width
    places = range(max(int(end - half + 0.5), 0), min(int(end + half + 0.5), size))
    weights = [_kernel(method, (place + 0.5 - end) / width, _CUBIC_ANTIALIASED) for place in places]
    total = sum(weights)
    return tuple((place, weight / total) for place, weight in zip(places, weights, strict=True) if weight)


def _kernel(method: str, distance: float, a: float) -> float:
    """Return the weight of an input at a distance from the centre."""
    d = abs(distance)
    if method == "linear":
        return max(1 - d, 0.0)
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if d < 2 else 0.0

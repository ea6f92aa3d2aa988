"""Resizing of one axis: which inputs each position of the new axis reads, and with which weights.

Each position of the new axis has a centre, counted in inputs. The axes before and after have the same ends, so the
centre of position `i` is at

    (i + 0.5) * step - 0.5,      step = size / outputs,

unless the coordinates are others: `i * step`, or evenly spaced centres from a first to a last one.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from .._common.errors import FuncconvError, suggest
from .._common.types import Number, Shape

Row: TypeAlias = tuple[tuple[int, float], ...]  # the inputs that a position reads, and their weights
Coordinates: TypeAlias = str | tuple[Number, Number]  # a name, or the centres of the first and the last positions

SELECTIONS = ("nearest", "nearest-exact")  # each position is one input
INTERPOLATIONS = ("linear", "cubic")  # each position is a weighted sum of the inputs around its centre
METHODS = (*SELECTIONS, *INTERPOLATIONS, "area")
_NAMED_COORDINATES = ("half_pixel", "asymmetric")

_CUBIC = -0.75  # the parameter a of the cubic kernel (Keys, 1981) in PyTorch
_CUBIC_ANTIALIASED = -0.5  # PyTorch's for antialiased images, as in Pillow
_HALF_WIDTH = {"linear": 1, "cubic": 2}  # of the kernels, in inputs


class Sampling(NamedTuple):
    """How one axis is resized.

    Attributes:
        size: number of inputs.
        outputs: number of positions.
        method: one of `SELECTIONS` and `INTERPOLATIONS`.
        scale: positions for each input, whose reciprocal is the step. Default: None, `outputs / size`.
        coordinates: where the centres are: one of `_NAMED_COORDINATES`, a first and a last centre, or
            `"align_corners"`, which are the first and the last inputs. Default: None, those of PyTorch.
        antialias: whether the kernel is as wide as the step, if that is above 1, so that every input is read.
        cubic_coefficient: the parameter `a` of the cubic kernel.
        exclude_outside: whether inputs beyond the ends of the axis are left out, instead of those at the ends repeated.
    """

    size: int
    outputs: int
    method: str
    scale: float | None = None
    coordinates: Coordinates | None = None
    antialias: bool = False
    cubic_coefficient: float = _CUBIC
    exclude_outside: bool = False


def samplings(
    op: str,
    sizes: Shape,
    outputs: Shape,
    scales: Sequence[float | None],
    *,
    method: str,
    align_corners: bool,
    antialias: bool,
    coordinates: Coordinates | Sequence[Coordinates] | None,
    cubic_coefficient: Number | None,
    exclude_outside: bool | None,
) -> list[Sampling]:
    """Return how each axis is resized by the options of `resize`. Raise an error if they contradict each other."""
    if align_corners and coordinates is not None:
        msg = f"{op}: align_corners=True sets the coordinates; got coordinates={coordinates!r} too"
        raise FuncconvError(msg)
    if exclude_outside is None:
        exclude_outside = antialias
    if cubic_coefficient is None:
        cubic_coefficient = _CUBIC_ANTIALIASED if antialias else _CUBIC
    elif not _is_finite(cubic_coefficient):
        msg = f"{op}: cubic_coefficient must be a finite number; got {cubic_coefficient!r}"
        raise FuncconvError(msg)
    of_axes: Sequence[Coordinates | None]
    of_axes = ["align_corners"] * len(sizes) if align_corners else _of_axes(op, coordinates, len(sizes))
    for axis, (size, pair) in enumerate(zip(sizes, of_axes, strict=True)):
        outside = isinstance(pair, tuple) and not all(-0.5 <= centre <= size - 0.5 for centre in pair)
        if exclude_outside and outside:
            msg = (
                f"{op}: without the inputs outside, the centres on spatial axis {axis} must be from -0.5 to "
                f"{size - 0.5}; got {pair}. Pass exclude_outside=False to repeat the inputs at the ends"
            )
            raise FuncconvError(msg)
    return [
        Sampling(size, count, method, scale, where, antialias, float(cubic_coefficient), exclude_outside)
        for size, count, scale, where in zip(sizes, outputs, scales, of_axes, strict=True)
    ]


def check_options(op: str, method: str, **options: object) -> None:
    """Raise an error if the method is unknown, or if an option that is not None or False does not apply to it."""
    if method not in METHODS:
        msg = f"{op}: unknown method {method!r}{suggest(method, METHODS)}"
        raise FuncconvError(msg)
    applies = {"coordinates": (*SELECTIONS, *INTERPOLATIONS), "cubic_coefficient": ("cubic",)}
    for name, value in options.items():
        methods = applies.get(name, INTERPOLATIONS)
        if value is not None and value is not False and method not in methods:
            texts = list(map(repr, methods))
            listed = f"methods {', '.join(texts[:-1])} and {texts[-1]}" if len(texts) > 1 else f"method {texts[0]}"
            msg = f"{op}: {name} applies to the {listed}; got {name}={value!r} with {method!r}"
            raise FuncconvError(msg)


def _of_axes(op: str, coordinates: Coordinates | Sequence[Coordinates] | None, n: int) -> Sequence[Coordinates | None]:
    """Return the coordinates of each axis: one for all axes, or one for each."""
    if coordinates is None:
        return [None] * n
    if isinstance(coordinates, str) or _is_pair(coordinates):
        entries: Sequence[object] = [coordinates] * n
    else:
        entries = coordinates if isinstance(coordinates, Sequence) else ()
    if unknown := [name for name in entries if isinstance(name, str) and name not in _NAMED_COORDINATES]:
        msg = f"{op}: unknown coordinates {unknown[0]!r}{suggest(unknown[0], _NAMED_COORDINATES)}"
        raise FuncconvError(msg)
    if len(entries) != n or not all(isinstance(entry, str) or _is_pair(entry) for entry in entries):
        msg = (
            f"{op}: coordinates must be {' or '.join(map(repr, _NAMED_COORDINATES))}, the centres (first, last), or "
            f"{n} of them, one for each spatial axis; got {coordinates!r}"
        )
        raise FuncconvError(msg)
    return [entry if isinstance(entry, str) else tuple(entry) for entry in entries]  # type: ignore[arg-type, misc]


def _is_pair(value: object) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_is_finite, value))


def _is_finite(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def selected(sampling: Sampling) -> list[int]:
    """Return the input that each position selects, by one of `SELECTIONS`.

    `"nearest"` rounds the centre down, and `"nearest-exact"` to the nearest input, halves up.
    """
    size, outputs, method, scale, coordinates, *_ = sampling
    exact = method == "nearest-exact"
    if coordinates is None:
        coordinates = "half_pixel" if exact else "asymmetric"
        if not exact and outputs in (size, 2 * size):  # as in PyTorch, such an axis ignores the scale
            scale = None
    centres, _ = _centres(size, outputs, scale, coordinates, shift=Fraction(exact, 2))
    return [min(max(math.floor(centre), 0), size - 1) for centre in centres]


def interpolated(sampling: Sampling) -> list[Row]:
    """Return the inputs that each position reads, by one of `INTERPOLATIONS`.

    Returns:
        For each position pairs of an input and its weight, which is not 0. The weights of a position have the sum 1.
    """
    size, outputs, method, scale, coordinates, antialias, *_ = sampling
    if outputs == size and coordinates in (None, "align_corners") and (method == "linear" or antialias):
        return [((i, 1.0),) for i in range(size)]  # as in PyTorch, such an axis ignores the scale
    centres, step = _centres(size, outputs, scale, coordinates or "half_pixel")
    if antialias and coordinates == "align_corners":  # PyTorch's centres of antialiased images
        centres = [(i + 0.5) * step - 0.5 for i in range(outputs)]
    width = max(abs(float(step)), 1.0) if antialias else 1.0
    return [_row(float(centre), width, sampling) for centre in centres]


def is_identity(rows: Sequence[Row], size: int) -> bool:
    """Return whether each position of an axis of this size is its input."""
    return len(rows) == size and all(row == ((i, 1.0),) for i, row in enumerate(rows))


def _centres(
    size: int, outputs: int, scale: float | None, coordinates: Coordinates, shift: Fraction = Fraction(0)
) -> tuple[Sequence[Fraction | float], Fraction | float]:
    """Return the centres of all positions plus `shift`, and the step. They are exact if no scale is given."""
    if coordinates in _NAMED_COORDINATES:
        half = Fraction(coordinates == "half_pixel", 2)
        factor = Fraction(outputs, size) if scale is None else scale
        return [(i + half) / factor + (shift - half) for i in range(outputs)], 1 / factor
    first, last = (0, size - 1) if coordinates == "align_corners" else map(Fraction, coordinates)
    if outputs == 1:
        return [(0 if coordinates == "align_corners" else (first + last) / 2) + shift], Fraction(0)
    step = Fraction(last - first) / (outputs - 1)
    return [first + i * step + shift for i in range(outputs)], step


def _row(centre: float, width: float, sampling: Sampling) -> Row:
    """Return the inputs under a kernel of this width, and their weights."""
    half = _HALF_WIDTH[sampling.method] * width
    weights: dict[int, float] = {}
    for place in range(math.floor(centre - half) + 1, math.ceil(centre + half)):
        inside = min(max(place, 0), sampling.size - 1)
        if inside == place or not sampling.exclude_outside:
            weight = _kernel(sampling.method, (place - centre) / width, sampling.cubic_coefficient)
            weights[inside] = weights.get(inside, 0.0) + weight
    total = sum(weights.values())
    return tuple((place, weight / total) for place, weight in weights.items() if weight)


def _kernel(method: str, distance: float, a: float) -> float:
    """Return the weight of an input at a distance from the centre."""
    d = abs(distance)
    if method == "linear":
        return max(1 - d, 0.0)
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a if d < 2 else 0.0

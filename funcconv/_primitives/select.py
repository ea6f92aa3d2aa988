"""Windows that select one of their taps, and their derivatives: a closed family of two linear maps.

The derivative of a window that selects its largest tap is that of this one tap, whose number depends on nothing
smoothly. It is found once; then the result is read from the image, and cotangents are put back:

    extreme(x) -> y          y[i] = the first largest or smallest x[i * stride + tap * dilation]
    pick(x, number) -> y     y[i] = x[i * stride + tap number[i] * dilation]
    place(y, number) -> x    x[j] = the sum of all y[i] that pick reads from x[j]

The last two are linear, and each is the transpose of the other, so derivatives of every order are made of these two.
An input adds up the windows that have selected it, in a fixed order: nothing is scattered.

Padding has the value that no other one loses to, so it never changes `y`. But it ties with infinities, and only of the
real places may one be selected: derivatives that went to padding would be lost.

Shapes, with any axes in front:

    x (*batch, *spatial, channels)    y, number (*batch, *positions, channels)
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.jet import jet, jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad

from .._common.dtypes import wide
from .._common.mesh_axes import varying_alike
from .._common.types import Array, Shape
from .._windows.geometry import Axis
from .._windows.taps import fold, merge
from .folds import farthest, first, first_real, later_wins
from .rules import define, define_transposes

extreme_p = Primitive("extreme")
pick_p = Primitive("pick")
place_p = Primitive("place")

FORMS = {  # in which each is computed, and why
    extreme_p: ("fold", "one axis after another; no tap is numbered"),
    pick_p: ("numbers", "the tap of each window is known by its number"),
    place_p: ("numbers", "each input adds up the windows that have picked it"),
}

Real: TypeAlias = tuple[range, ...] | None  # the places of each axis that take part

_NUMBERED = 16  # taps, at most
_NONE, _MISSING = 254, 255  # the number of no tap, and that of no window


def select(x: Array, axes: Sequence[Axis], reduce: str, real: Sequence[range] | None = None) -> Array:
    """Return the first extreme tap of each window.

    Args:
        x: `(batch, *spatial, channels)`, padded.
        axes: the windows.
        reduce: `"max"` or `"min"`.
        real: the places of each axis that take part, of which every window reads one. None means all places.

    Returns:
        `(batch, *positions, channels)`. Its derivative is that of the one tap.
    """
    inside = tuple(axis._replace(size=size, lo=0, hi=0) for axis, size in zip(axes, x.shape[1:-1], strict=True))
    return extreme_p.bind(x, axes=inside, reduce=reduce, real=None if real is None else tuple(real))


def _extreme(x: Array, *, axes: tuple[Axis, ...], reduce: str, real: Real) -> Array:
    """Fold windows axis by axis, the last one first; no number is found."""
    del real  # which the value does not depend on
    return _fold(partial(first, reduce), x, axes)


def _selected(x: Array, *, axes: tuple[Axis, ...], reduce: str, real: Real) -> Array:
    """Fold windows as `_extreme` does, in a way that may be differentiated: nothing depends on padding."""
    dtype = x.dtype
    if _overlap(axes):
        x = x.astype(wide(dtype))  # cotangents are summed
    if real is None:
        return _fold(partial(first, reduce), x, axes).astype(dtype)
    is_real = np.ones((1,) * x.ndim, bool)
    for i, (axis, part) in enumerate(zip(axes, real, strict=True), start=x.ndim - 1 - len(axes)):
        place = np.arange(axis.size).reshape(-1, *(1,) * (x.ndim - 1 - i))
        is_real = is_real & (place >= part.start) & (place < part.stop)
    return _fold(partial(first_real, reduce), (x, jnp.asarray(is_real)), axes)[0].astype(dtype)


def _fold(op: Callable[[Any, Any], Any], tree: Any, axes: Sequence[Axis]) -> Any:
    ndim = jax.tree.leaves(tree)[0].ndim
    for i, axis in enumerate(reversed(axes), start=2):
        tree = fold(op, tree, ndim - i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return tree


def _number(x: Array, axes: tuple[Axis, ...], reduce: str, real: Real) -> Array:
    """Return the number of the first extreme tap of each window."""
    best, *others = _taps(lax.stop_gradient(x), axes)
    number = jnp.zeros_like(best, jnp.uint8)
    for n, tap in enumerate(others, start=1):
        later = later_wins(reduce, best, tap)
        best, number = lax.select(later, tap, best), jnp.where(later, np.uint8(n), number)
    if real is None:
        return number
    # A window in which padding is extreme has only such values: its first real tap is the one.
    return jnp.where(best == farthest(reduce, x.dtype), _first_real_tap(axes, real, x.ndim), number)


def _first_real_tap(axes: Sequence[Axis], real: Sequence[range], ndim: int) -> np.ndarray:
    """Return the number of the first real tap of each window, `(1, *positions, 1)`."""
    number = np.zeros((1,) * ndim, int)
    for i, (axis, part) in enumerate(zip(axes, real, strict=True), start=ndim - 1 - len(axes)):
        start = np.arange(axis.outputs).reshape(-1, *(1,) * (ndim - 1 - i)) * axis.stride
        number = number * axis.window + np.maximum(-((start - part.start) // axis.dilation), 0)
    return number.astype(np.uint8)


def _pick(x: Array, number: Array, *, axes: tuple[Axis, ...]) -> Array:
    number = lax.optimization_barrier(number)  # found once, and not wherever it is read
    y, *others = _taps(x, axes)
    for n, tap in enumerate(others, start=1):
        y = lax.select(number == n, tap, y)
    return y


def _taps(x: Array, axes: Sequence[Axis]) -> Iterator[Array]:
    """Return each tap of all windows, in row-major order."""
    front = x.shape[: -len(axes) - 1]
    strides = (*(1 for _ in front), *(axis.stride for axis in axes), 1)
    for tap in np.ndindex(_window(axes)):
        starts = [t * axis.dilation for t, axis in zip(tap, axes, strict=True)]
        stops = [start + (axis.outputs - 1) * axis.stride + 1 for start, axis in zip(starts, axes, strict=True)]
        yield lax.slice(x, (*(0 for _ in front), *starts, 0), (*front, *stops, x.shape[-1]), strides)


def _place(y: Array, number: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Add up, at input `m * stride + phase`, the windows `m - back` that have selected it, for all phases at once."""
    dtype = y.dtype
    y = y.astype(wide(dtype))
    front = y.shape[: -len(axes) - 1]
    backs = [sorted({tap * axis.dilation // axis.stride for tap in range(axis.window)}) for axis in axes]
    counts = [-(-axis.size // axis.stride) for axis in axes]
    edges = [(back[-1], max(m - axis.outputs, 0), 0) for axis, back, m in zip(axes, backs, counts, strict=True)]
    if any(edge != (0, 0, 0) for edge in edges):
        edges = [(0, 0, 0)] * len(front) + edges + [(0, 0, 0)]
        y, number = lax.pad(y, jnp.zeros((), y.dtype), edges), lax.pad(number, np.uint8(_MISSING), edges)
        y, number = lax.optimization_barrier((y, number))
    found = []
    for back in product(*backs):
        taps = _taps_of_phases(axes, back).reshape(
            *(1 for _ in front), *(n for axis in axes for n in (1, axis.stride)), 1
        )
        starts = [each[-1] - b for each, b in zip(backs, back, strict=True)]
        window = [*map(slice, front), *(slice(i, i + m) for i, m in zip(starts, counts, strict=True))]
        phases = [len(front) + 2 * i + 1 for i in range(len(axes))]
        theirs, values = (lax.expand_dims(each[tuple(window)], phases) for each in (number, y))
        found.append(jnp.where(theirs == taps, values, 0))
    x = functools.reduce(jnp.add, found)
    for i in range(len(axes)):
        x = merge(x, len(front) + i, 2)
    return x[(*map(slice, front), *(slice(axis.size) for axis in axes))].astype(dtype)


def _taps_of_phases(axes: Sequence[Axis], back: Shape) -> np.ndarray:
    """Return which tap of the window so many places back lies on each phase: `(1, stride, 1, stride, ..., 1)`."""
    number, lies = np.zeros((), int), np.ones((), bool)
    for axis, b in zip(axes, back, strict=True):
        place = b * axis.stride + np.arange(axis.stride)
        tap = place // axis.dilation
        number = number[..., None, None] * axis.window + tap
        lies = lies[..., None, None] & (place == tap * axis.dilation) & (tap < axis.window)
    return np.where(lies, number, _NONE).astype(np.uint8)


def _window(axes: Sequence[Axis]) -> Shape:
    return tuple(axis.window for axis in axes)


# Rules ---------------------------------------------------------------------------------------------------


def _numbered(axes: Sequence[Axis]) -> bool:
    """Return whether taps are numbered: where windows overlap, and are not so wide that folding them costs less."""
    return _overlap(axes) and math.prod(_window(axes)) <= _NUMBERED


def _overlap(axes: Sequence[Axis]) -> bool:
    return any(axis.extent > axis.stride for axis in axes)


def _derivative(primals: Any, tangents: Any, *, axes: tuple[Axis, ...], reduce: str, real: Real) -> tuple[Array, Array]:
    if not _numbered(axes):
        return jax.jvp(partial(_selected, axes=axes, reduce=reduce, real=real), primals, tangents)
    (x,), (t,) = primals, tangents
    number = _number(x, axes, reduce, real)
    y = pick_p.bind(x, number, axes=axes)
    return y, pick_p.bind(*varying_alike(t, number), axes=axes)


def _taylor(primals: Any, series: Any, **params: Any) -> Any:
    return jet(partial(_selected, **params), primals, series)


define(extreme_p, _extreme, lambda axis: axis.outputs)
ad.primitive_jvps[extreme_p] = _derivative
jet_rules[extreme_p] = _taylor  # type: ignore[assignment]
define_transposes(pick_p, _pick, place_p, _place)

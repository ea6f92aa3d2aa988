"""Max and min selection of windows. The derivatives are a closed family of two linear maps.

A window selects its largest tap, so its derivative is the one of this tap. The number of the tap is piecewise constant,
so it is computed once. `pick` then reads values from the image, and `place` puts cotangents back:

    extreme(x) -> y          y[i] = the first largest or smallest x[i * stride + tap * dilation]
    pick(x, number) -> y     y[i] = x[i * stride + tap number[i] * dilation]
    place(y, number) -> x    x[j] = the sum of all y[i] that pick reads from x[j]

`pick` and `place` are linear, and each is the transpose of the other. So derivatives of every order consist of these
two. An input adds the windows that have selected it in a fixed order, without a scatter, whose order is not
deterministic on a GPU.

Padding has the value of the identity, so it does not change `y`. But it can be equal to infinities in the image. Only
real positions may be selected, since derivatives that went to padding would be lost.

Shapes, with any number of batch axes:

    x (*batch, *spatial, channels)    y, number (*batch, *positions, channels)
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.jet import jet, jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from .._common.dtypes import wide
from .._common.mesh_axes import varying_alike
from .._common.types import Array, Shape
from .._windows.geometry import Axis
from .._windows.taps import fold, merge
from .conv import devices_of
from .extreme import DEFAULT, extreme, taps_of
from .folds import extreme_identity, first, first_real, later_wins
from .forms import PLATFORMS, MeasuredForms
from .rules import define, define_transposes
from .tuning import current_tuning_forms

extreme_p = Primitive("extreme")
pick_p = Primitive("pick")
place_p = Primitive("place")

FORMS = {  # how each is computed, and why
    extreme_p: DEFAULT,
    pick_p: ("numbers", "the number of the selected tap of each window is known"),
    place_p: ("numbers", "each input adds the windows that have selected it"),
}

Real: TypeAlias = tuple[range, ...] | None  # the positions of each axis that are not padding, None if all are

# Taps are numbered in uint8, so at most 254 are possible, and each costs a comparison. For larger windows the
# derivative of the fold is faster.
_MOST_NUMBERED_TAPS = 16
_NO_TAP, _NO_WINDOW = 254, 255  # numbers that no tap has: of a position without a tap, and of a missing window


def select(
    x: Array, axes: Sequence[Axis], reduce: str, real: Sequence[range] | None = None, *, keeps_nans: bool = True
) -> Array:
    """Return the largest or smallest tap of each window, and the first of equal taps.

    Args:
        x: `(batch, *spatial, channels)`, padded.
        axes: the windows.
        reduce: `"max"` or `"min"`.
        real: the positions of each axis that are not padding; every window must read one of them. None: all positions.
        keeps_nans: whether a window with a NaN gives NaN. Otherwise it gives NaN or the result of its other taps.

    Returns:
        `(batch, *positions, channels)`. Its derivative is the one of the selected tap.
    """
    padded_axes = tuple(axis._replace(size=size, lo=0, hi=0) for axis, size in zip(axes, x.shape[1:-1], strict=True))
    real = None if real is None else tuple(real)
    return extreme_p.bind(
        x, axes=padded_axes, reduce=reduce, real=real, measured=current_tuning_forms(), keeps_nans=keeps_nans
    )


def _extreme(
    x: Array,
    *,
    axes: tuple[Axis, ...],
    reduce: str,
    real: Real,
    measured: MeasuredForms | None,
    keeps_nans: bool,
    platform: str | None = None,
) -> Array:
    del real  # the value does not depend on it
    return extreme(x, axes, reduce, measured, platform, keeps_nans=keeps_nans)


def _selected(x: Array, *, axes: tuple[Axis, ...], reduce: str, real: Real, **form: Any) -> Array:
    """Fold windows axis by axis, for differentiation by JAX: padding is never selected, and NaNs are kept."""
    del form  # a derivative has its own
    dtype = x.dtype
    if _overlap(axes):
        x = x.astype(wide(dtype))  # the gradient of an input is a sum over windows
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
    best, *other_taps = taps_of(lax.stop_gradient(x), axes)
    number = jnp.zeros_like(best, jnp.uint8)
    for n, tap in enumerate(other_taps, start=1):
        later = later_wins(reduce, best, tap)
        best, number = lax.select(later, tap, best), jnp.where(later, np.uint8(n), number)
    if real is None:
        return number
    # If the result equals the value of the padding, all real taps have this value, and the first real one is selected.
    return jnp.where(best == extreme_identity(reduce, x.dtype), _first_real_tap(axes, real, x.ndim), number)


def _first_real_tap(axes: Sequence[Axis], real: Sequence[range], ndim: int) -> np.ndarray:
    """Return the number of the first real tap of each window, `(1, *positions, 1)`."""
    number = np.zeros((1,) * ndim, int)
    for i, (axis, part) in enumerate(zip(axes, real, strict=True), start=ndim - 1 - len(axes)):
        start = np.arange(axis.outputs).reshape(-1, *(1,) * (ndim - 1 - i)) * axis.stride
        number = number * axis.window + np.maximum(-((start - part.start) // axis.dilation), 0)
    return number.astype(np.uint8)


def _pick(x: Array, number: Array, *, axes: tuple[Axis, ...]) -> Array:
    # Without the barrier, XLA computes the number again in each operation that reads it (an HVP: once per tap).
    number = lax.optimization_barrier(number)
    y, *other_taps = taps_of(x, axes)
    for n, tap in enumerate(other_taps, start=1):
        y = lax.select(number == n, tap, y)
    return y


def _place(y: Array, number: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Add, at input `m * stride + phase`, the windows `m - back` that have selected it, for all phases at once."""
    dtype = y.dtype
    y = y.astype(wide(dtype))
    front = y.shape[: -len(axes) - 1]
    backs = [sorted({tap * axis.dilation // axis.stride for tap in range(axis.window)}) for axis in axes]
    counts = [-(-axis.size // axis.stride) for axis in axes]
    edges = [(back[-1], max(m - axis.outputs, 0), 0) for axis, back, m in zip(axes, backs, counts, strict=True)]
    if any(edge != (0, 0, 0) for edge in edges):
        edges = [(0, 0, 0)] * len(front) + edges + [(0, 0, 0)]
        y, number = lax.pad(y, jnp.zeros((), y.dtype), edges), lax.pad(number, np.uint8(_NO_WINDOW), edges)
        y, number = lax.optimization_barrier((y, number))  # padded once, not for each term below
    terms = []
    for back in product(*backs):
        taps = _taps_of_phases(axes, back).reshape(
            *(1 for _ in front), *(n for axis in axes for n in (1, axis.stride)), 1
        )
        starts = [axis_backs[-1] - b for axis_backs, b in zip(backs, back, strict=True)]
        window = [*map(slice, front), *(slice(i, i + m) for i, m in zip(starts, counts, strict=True))]
        phases = [len(front) + 2 * i + 1 for i in range(len(axes))]
        selected, values = (lax.expand_dims(array[tuple(window)], phases) for array in (number, y))
        terms.append(jnp.where(selected == taps, values, 0))
    x = functools.reduce(jnp.add, terms)
    for i in range(len(axes)):
        x = merge(x, len(front) + i, 2)
    return x[(*map(slice, front), *(slice(axis.size) for axis in axes))].astype(dtype)


def _taps_of_phases(axes: Sequence[Axis], back: Shape) -> np.ndarray:
    """Return the number of the tap with which the windows `m - back` read each phase, `(1, stride, 1, stride, ...)`."""
    number, has_tap = np.zeros((), int), np.ones((), bool)
    for axis, b in zip(axes, back, strict=True):
        offset = b * axis.stride + np.arange(axis.stride)  # from the first tap of the window
        tap = offset // axis.dilation
        number = number[..., None, None] * axis.window + tap
        has_tap = has_tap[..., None, None] & (offset == tap * axis.dilation) & (tap < axis.window)
    return np.where(has_tap, number, _NO_TAP).astype(np.uint8)


# Rules ---------------------------------------------------------------------------------------------------


def _numbered(axes: Sequence[Axis]) -> bool:
    """Return whether derivatives use the number of the selected tap: windows overlap, but have few taps."""
    return _overlap(axes) and math.prod(axis.window for axis in axes) <= _MOST_NUMBERED_TAPS


def _overlap(axes: Sequence[Axis]) -> bool:
    return any(axis.extent > axis.stride for axis in axes)


def _derivative(
    primals: Any, tangents: Any, *, axes: tuple[Axis, ...], reduce: str, real: Real, **form: Any
) -> tuple[Array, Array]:
    del form
    if not _numbered(axes):
        return jax.jvp(partial(_selected, axes=axes, reduce=reduce, real=real), primals, tangents)
    (x,), (t,) = primals, tangents
    number = _number(x, axes, reduce, real)
    y = pick_p.bind(x, number, axes=axes)
    return y, pick_p.bind(*varying_alike(t, number), axes=axes)


def _taylor(primals: Any, series: Any, **params: Any) -> Any:
    return jet(partial(_selected, **params), primals, series)


def _lower_extreme(platform: str, context: Any, *operands: Any, measured: MeasuredForms | None, **params: Any) -> Any:
    """Lower the forward pass. Measured forms apply only to programs for one device."""
    if devices_of(context) != (1, 1):
        measured = None
    compute = partial(_extreme, platform=platform, measured=measured, **params)
    return mlir.lower_fun(compute, multiple_results=False)(context, *operands)


define(extreme_p, _extreme, lambda axis: axis.outputs)
for name, platform in PLATFORMS.items():
    mlir.register_lowering(extreme_p, partial(_lower_extreme, platform), platform=name)
ad.primitive_jvps[extreme_p] = _derivative
jet_rules[extreme_p] = _taylor  # type: ignore[assignment]
define_transposes(pick_p, _pick, place_p, _place)

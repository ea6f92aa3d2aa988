"""The forward pass of max and min pools, and its forms. It does not compute the number of the selected tap.

Shapes, with any number of batch axes:

    x (*batch, *spatial, channels)    result (*batch, *positions, channels)
"""

import functools
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from jax import lax

from .._common.types import Array
from .._windows.geometry import Axis
from .._windows.taps import fold
from .folds import extreme_identity, first
from .forms import Key, MeasuredForms

Axes = tuple[Axis, ...]

# The form, and the reason for it.
DEFAULT = "fold", "one axis after another, without the number of the tap"
_ON_GPU = "reduce_window", "XLA's own form, with which networks with pools were faster on a GPU"
_WITHOUT_NANS = (
    "reduce_window",
    "XLA's own form, which it can compute together with other operations if NaNs may be lost",
)


def extreme(
    x: Array, axes: Axes, reduce: str, measured: MeasuredForms | None, platform: str | None, *, keeps_nans: bool
) -> Array:
    """Return the largest or smallest tap of each window, in the form that is chosen."""
    form, _ = chosen_form(x, axes, measured, platform, keeps_nans=keeps_nans)
    return FORMS[form](x, axes, reduce) if keeps_nans else _by_reduce_window(x, axes, reduce, keeps_nans=False)


def chosen_form(
    x: Any, axes: Axes, measured: MeasuredForms | None, platform: str | None, *, keeps_nans: bool
) -> tuple[str, str]:
    """Return the form for an array, and the reason for it."""
    if not keeps_nans:
        return _WITHOUT_NANS
    if measured is not None and platform == measured.platform:
        form = measured.form(key_of(x, axes))
        if form in FORMS:
            return form, "measured to be the fastest"
    return _ON_GPU if platform == "gpu" else DEFAULT


def key_of(x: Any, axes: Axes) -> Key:
    """Return what identifies the pool in a tuning."""
    batch, channels = math.prod(x.shape[: -len(axes) - 1]), x.shape[-1]
    return Key("extreme", batch, 1, 1, channels, x.dtype.name, axes)


def taps_of(x: Array, axes: Axes) -> Iterator[Array]:
    """Return each tap of all windows, in row-major order."""
    front = x.shape[: -len(axes) - 1]
    strides = (*(1 for _ in front), *(axis.stride for axis in axes), 1)
    for tap in np.ndindex(*(axis.window for axis in axes)):
        starts = [t * axis.dilation for t, axis in zip(tap, axes, strict=True)]
        stops = [start + (axis.outputs - 1) * axis.stride + 1 for start, axis in zip(starts, axes, strict=True)]
        yield lax.slice(x, (*(0 for _ in front), *starts, 0), (*front, *stops, x.shape[-1]), strides)


def _by_axes(x: Array, axes: Axes, reduce: str) -> Array:
    """Fold the windows axis by axis, the last one first."""
    for i, axis in enumerate(reversed(axes), start=2):
        op = partial(first, reduce)
        x = fold(op, x, x.ndim - i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return x


def _by_taps(x: Array, axes: Axes, reduce: str) -> Array:
    """Compare all taps of a window, each of which is a slice."""
    return functools.reduce(partial(first, reduce), taps_of(x, axes))


def _by_reduce_window(x: Array, axes: Axes, reduce: str, *, keeps_nans: bool = True) -> Array:
    """Use XLA's operation, with a comparison that keeps NaNs, or with XLA's own, of which a library may lose them."""
    for i, axis in enumerate(axes, start=x.ndim - 1 - len(axes)):  # without inputs that no window reads
        x = lax.slice_in_dim(x, 0, axis.size + axis.hi_used, axis=i)
    ones = (1,) * (x.ndim - len(axes) - 1)
    y: Array = lax.reduce_window(
        x,
        x.dtype.type(extreme_identity(reduce, x.dtype)),
        partial(first, reduce) if keeps_nans else (lax.max if reduce == "max" else lax.min),
        window_dimensions=(*ones, *(axis.window for axis in axes), 1),
        window_strides=(*ones, *(axis.stride for axis in axes), 1),
        padding=((0, 0),) * x.ndim,
        window_dilation=(*ones, *(axis.dilation for axis in axes), 1),
    )
    return y


FORMS: dict[str, Callable[[Array, Axes, str], Array]] = {
    "fold": _by_axes,
    "taps": _by_taps,
    "reduce_window": _by_reduce_window,
}

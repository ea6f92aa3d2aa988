"""Three and more axes, of which XLA for the CPU has a fast path for two only.

The planes that a window reads along the first axis are put side by side, as channels of one convolution over the other
axes; or each tap along the first axis is a convolution of its own, and these are added up, which holds fewer numbers.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax

from .._padding import pad
from .._taps import patches
from .._typing import Array
from ._form import Form

Map: TypeAlias = Callable[[Array, Array, Form], Array]


def conv(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation, which has no groups; `dense` computes the one over one axis less."""
    rest = form.axes[1:]
    planes = patches(_padded(image, form), form.axes[:1])  # (batch, positions, *rest, window, in)
    planes = planes.reshape(-1, *planes.shape[2:-2], planes.shape[-2] * planes.shape[-1])
    taps = jnp.moveaxis(kernel, 0, -3)
    taps = taps.reshape(*taps.shape[: len(rest)], -1, taps.shape[-1])
    return dense(planes, taps, form._replace(axes=rest)).reshape(form.result(image, kernel))


def conv_by_taps(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation; `dense` computes those over one axis less."""
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)
    parts = []
    for tap in range(first.window):
        begin = tap * first.dilation
        planes = lax.slice_in_dim(x, begin, begin + (first.outputs - 1) * first.stride + 1, first.stride, axis=1)
        planes = planes.reshape(-1, *planes.shape[2:])
        parts.append(dense(planes, kernel[tap], form._replace(axes=rest)))
    return functools.reduce(jnp.add, parts).reshape(form.result(image, kernel))


def _padded(image: Array, form: Form) -> Array:
    """Return the image, padded along the first axis."""
    first, *rest = form.axes
    return pad(image, (first, *(axis.plain for axis in rest)), ("zeros",) * len(form.axes))

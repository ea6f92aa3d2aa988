"""Three and more axes, of which XLA for the CPU has a fast path for two only.

The planes that a window reads along the first axis are put side by side, as channels of one convolution over the other
axes; or each tap along the first axis is a convolution of its own, and these are added up one after another, which
holds fewer numbers.
"""

import functools

import jax.numpy as jnp
from jax import lax

from .._padding import pad
from .._taps import patches
from .._typing import Array
from ._form import Form, Map


def conv(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation, which has no groups; `dense` computes the one over one axis less."""
    rest = form.axes[1:]
    planes = patches(_padded(image, form), form.axes[:1])  # (batch, positions, *rest, window, in)
    planes = planes.reshape(-1, *planes.shape[2:-2], planes.shape[-2] * planes.shape[-1])
    taps = jnp.moveaxis(kernel, 0, -3)
    taps = taps.reshape(*taps.shape[: len(rest)], -1, taps.shape[-1])
    return dense(planes, taps, form._replace(axes=rest)).reshape(form.result(image, kernel))


def conv_by_taps(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool = True) -> Array:
    """Return the correlation; `dense` computes those over one axis less, `loop` says whether in a loop over them."""
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)

    def add(tap: Array | int, y: Array) -> Array:
        read = (first.outputs - 1) * first.stride + 1
        planes = lax.dynamic_slice_in_dim(x, tap * first.dilation, read, axis=1)[:, :: first.stride]
        weights = lax.dynamic_index_in_dim(kernel, tap, keepdims=False)
        return y + dense(planes.reshape(-1, *planes.shape[2:]), weights, form._replace(axes=rest)).reshape(y.shape)

    y = jnp.zeros(form.result(image, kernel), image.dtype)
    if loop:
        return lax.fori_loop(0, first.window, add, y)  # type: ignore[no-any-return]
    return functools.reduce(lambda y, tap: add(tap, y), range(first.window), y)


def _padded(image: Array, form: Form) -> Array:
    """Return the image, padded along the first axis."""
    first, *rest = form.axes
    return pad(image, (first, *(axis.plain for axis in rest)), ("zeros",) * len(form.axes))

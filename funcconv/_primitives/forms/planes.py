"""Three and more axes, of which XLA for the CPU has a fast path for two only.

The planes that a window reads along the first axis are put side by side, as channels of a convolution over the other
axes, for some windows after the others. Or, where images may not be cut, each tap along the first axis is a convolution
of its own, and these are added up.
"""

import functools
import math
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.types import Array
from ..._windows.geometry import Axis
from ..._windows.padding import pad
from ..._windows.pieces import Cut, cuts, each, piece
from ..._windows.taps import patches
from .form import Form, Map

_HELD = 2**20  # numbers in planes side by side that are held at once, unless one window has more


def conv(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation, which has no groups; `dense` computes those over one axis less.

    Some images are taken after the others, or some windows along the first axis.
    """
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)
    line = first.window * math.prod(axis.size for axis in rest) * image.shape[-1]
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    others = [0] * (image.ndim - 2)
    for images in cuts(len(image), _HELD // (line * first.outputs)):
        for lines in cuts(first.outputs, _HELD // line):
            read = (lines.size - 1) * first.stride + first.extent
            axis = Axis(read, first.window, first.stride, first.dilation, 0, 0, lines.size)

            def put(begins: list[Any], y: Array, images: Cut = images, axis: Axis = axis) -> Array:
                begin, at = begins
                place, sizes = (begin, at * axis.stride, *others), (images.size, axis.size, *x.shape[2:])
                slab = lax.dynamic_slice(x, place, sizes, allow_negative_indices=False)
                found = _planes(slab, kernel, form._replace(axes=(axis, *rest)), dense)
                return lax.dynamic_update_slice(y, found, (begin, at, *others), allow_negative_indices=False)

            y = each((images, lines), put, y)
    return y


def _planes(slab: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation as one over an axis less, of the planes that a window reads side by side."""
    rest = form.axes[1:]
    planes = patches(slab, form.axes[:1])  # (batch, positions, *rest, window, in)
    planes = planes.reshape(-1, *planes.shape[2:-2], planes.shape[-2] * planes.shape[-1])
    taps = jnp.moveaxis(kernel, 0, -3)
    taps = taps.reshape(*taps.shape[: len(rest)], -1, taps.shape[-1])
    return dense(planes, taps, form._replace(axes=rest)).reshape(form.result(slab, kernel))


def conv_by_taps(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool = True) -> Array:
    """Return the correlation; `dense` computes those over one axis less, `loop` says whether in a loop over them."""
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)

    def add(tap: Array | int, y: Array) -> Array:
        read = (first.outputs - 1) * first.stride + 1
        planes = piece(x, tap * first.dilation, read, axis=1)[:, :: first.stride]
        weights = lax.dynamic_index_in_dim(kernel, tap, keepdims=False)
        found = dense(planes.reshape(-1, *planes.shape[2:]), weights, form._replace(axes=rest))
        return y + found.reshape(y.shape).astype(y.dtype)

    y = jnp.zeros(form.result(image, kernel), wide(image.dtype))
    if loop:
        return lax.fori_loop(0, first.window, add, y)  # type: ignore[no-any-return]
    return functools.reduce(lambda y, tap: add(tap, y), range(first.window), y)


def _padded(image: Array, form: Form) -> Array:
    """Return the image, padded along the first axis."""
    first, *rest = form.axes
    return pad(image, (first, *(axis.plain for axis in rest)), ("zeros",) * len(form.axes))

"""Convolutions along three and more axes, as convolutions over one axis less.

XLA for the CPU has a fast path for two axes only. `conv` puts the planes that a window reads along the first axis side
by side, as channels of a convolution over the other axes, block by block of the windows. `conv_by_taps` computes one
convolution for each tap along the first axis and adds them; it needs no blocks of the batch.
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
from ..._windows.pieces import Cut, cuts, loop_over, piece
from ..._windows.taps import patches
from .form import Form, Map

_BLOCK_NUMBERS = 2**20  # numbers in the planes of a block (4 MB in float32), unless one window has more


def conv(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the convolution, which has no groups. `dense` computes convolutions over one axis less.

    A loop computes several images at a time, or some windows along the first axis of one image.
    """
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)
    window_numbers = first.window * math.prod(axis.size for axis in rest) * image.shape[-1]
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    others = [0] * (image.ndim - 2)
    for images in cuts(len(image), _BLOCK_NUMBERS // (window_numbers * first.outputs)):
        for lines in cuts(first.outputs, _BLOCK_NUMBERS // window_numbers):
            read = (lines.size - 1) * first.stride + first.extent
            axis = Axis(read, first.window, first.stride, first.dilation, 0, 0, lines.size)

            def put(begins: list[Any], y: Array, images: Cut = images, axis: Axis = axis) -> Array:
                begin, line = begins
                starts, sizes = (begin, line * axis.stride, *others), (images.size, axis.size, *x.shape[2:])
                block = lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False)
                result = _planes(block, kernel, form._replace(axes=(axis, *rest)), dense)
                return lax.dynamic_update_slice(y, result, (begin, line, *others), allow_negative_indices=False)

            y = loop_over((images, lines), put, y)
    return y


def _planes(block: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the convolution as one over an axis less, with the planes that a window reads as channels."""
    rest = form.axes[1:]
    planes = patches(block, form.axes[:1])  # (batch, positions, *rest, window, in)
    planes = planes.reshape(-1, *planes.shape[2:-2], planes.shape[-2] * planes.shape[-1])
    taps = jnp.moveaxis(kernel, 0, -3)
    taps = taps.reshape(*taps.shape[: len(rest)], -1, taps.shape[-1])
    return dense(planes, taps, form._replace(axes=rest)).reshape(form.result(block, kernel))


def conv_by_taps(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool = True) -> Array:
    """Return the convolution as a sum over the taps of the first axis, in a loop or unrolled.

    `dense` computes convolutions over one axis less.
    """
    first, rest = form.axes[0], form.axes[1:]
    x = _padded(image, form)

    def add(tap: Array | int, y: Array) -> Array:
        read = (first.outputs - 1) * first.stride + 1
        planes = piece(x, tap * first.dilation, read, axis=1)[:, :: first.stride]
        weights = lax.dynamic_index_in_dim(kernel, tap, keepdims=False)
        result = dense(planes.reshape(-1, *planes.shape[2:]), weights, form._replace(axes=rest))
        return y + result.reshape(y.shape).astype(y.dtype)

    y = jnp.zeros(form.result(image, kernel), wide(image.dtype))
    if loop:
        return lax.fori_loop(0, first.window, add, y)  # type: ignore[no-any-return]
    return functools.reduce(lambda y, tap: add(tap, y), range(first.window), y)


def _padded(image: Array, form: Form) -> Array:
    """Return the image, padded along the first axis only; `dense` pads the others."""
    first, *rest = form.axes
    return pad(image, (first, *(axis.pointwise for axis in rest)), ("zeros",) * len(form.axes))

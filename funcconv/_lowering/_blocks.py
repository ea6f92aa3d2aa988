"""The kernel gradient as products of matrices, block by block, so that what is gathered stays in the cache.

A block is some images of the batch or, where one is too large, a band of its positions. The taps of a block are put
side by side as the columns of one matrix, and the transposed cotangents of the block are multiplied with it.
"""

import math

import jax.numpy as jnp
from jax import lax

from .._geometry import Axis
from .._padding import pad
from .._taps import patches, shifted
from .._typing import Array, Precision
from ._form import Form

_GATHERED = 2**19  # numbers that are gathered at once, unless one row of positions has more
_LARGE = 64  # taps; a larger kernel is found a line at a time
_TOGETHER = 9  # taps that are gathered at once; more take an axis at a time, which is much less to compile


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose of the convolution by its kernel."""
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    if math.prod(form.window) <= _LARGE:
        return _sum_of_blocks(x, g, form.axes, form.precision)
    first = form.axes[0]._replace(window=1)
    reads = (first.outputs - 1) * first.stride + 1

    def line(tap: Array) -> Array:
        read = lax.dynamic_slice_in_dim(x, tap * first.dilation, reads, axis=1)
        return _sum_of_blocks(read, g, (first, *form.axes[1:]), form.precision)[0]

    lines: Array = lax.map(line, jnp.arange(form.window[0]))
    return lines


def _sum_of_blocks(x: Array, g: Array, axes: tuple[Axis, ...], precision: Precision) -> Array:
    """Return the kernel gradient for a padded image."""
    window, inputs, outputs = tuple(axis.window for axis in axes), x.shape[-1], g.shape[-1]
    columns = math.prod(window) * inputs
    size, lines = _block(len(g), axes, columns)
    first = axes[0]._replace(outputs=lines)
    span, bands = (lines - 1) * first.stride + first.extent, axes[0].outputs // lines

    def add_block(i: Array, total: Array) -> Array:
        begin, line = i // bands * size, i % bands * lines
        part = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(x, begin, size), line * first.stride, span, axis=1)
        right = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(g, begin, size), line, lines, axis=1)
        left = _gathered(part, (first, *axes[1:])).reshape(-1, columns)
        return total + lax.dot_general(right.reshape(-1, outputs), left, (((0,), (0,)), ((), ())), precision=precision)

    zero = jnp.zeros((outputs, columns), g.dtype)
    total: Array = lax.fori_loop(0, len(g) // size * bands, add_block, zero)
    return total.T.reshape(*window, inputs, outputs)


def _gathered(x: Array, axes: tuple[Axis, ...]) -> Array:
    """Return the taps of each window side by side, with the channels last."""
    few = math.prod(axis.window for axis in axes) <= _TOGETHER
    return jnp.concatenate(shifted(x, axes), axis=-1) if few else patches(x, axes)


def _block(batch: int, axes: tuple[Axis, ...], width: int) -> tuple[int, int]:
    """Return how many images, and how many lines of positions along the first axis, are in a block."""
    line = width * math.prod(axis.outputs for axis in axes[1:])
    lines = _divisor(axes[0].outputs, _GATHERED // line)
    return (_divisor(batch, _GATHERED // (line * lines)) if lines == axes[0].outputs else 1), lines


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is not above `most`, or 1."""
    return next((size for size in range(min(most, number), 1, -1) if number % size == 0), 1)

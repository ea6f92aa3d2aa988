"""The kernel gradient as products of matrices, block by block, so that what is gathered stays in the cache.

A block is some images of the batch or, where one is too large, a band of its positions. For each block the taps of a
row of the kernel are put side by side as the columns of one matrix, and the transposed cotangents of the block are
multiplied with it.
"""

import math

import jax.numpy as jnp
from jax import lax

from .._geometry import Axis
from .._padding import pad
from .._taps import shifted
from .._typing import Array
from ._form import Form

_GATHERED = 2**19  # numbers that are gathered at once, unless one row of positions has more
_COLUMNS = 256  # of a matrix; with fewer it takes in several rows of taps
_PRODUCTS = 16  # for a block, at most


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose of the convolution by its kernel."""
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    outputs, heads = g.shape[-1], _heads(form, image.shape[-1])
    row = math.prod(form.window) // heads  # taps
    size, lines = _block(len(g), form.axes, row * image.shape[-1])
    first = form.axes[0]._replace(outputs=lines)
    axes, span = (first, *form.axes[1:]), (lines - 1) * first.stride + first.extent
    bands = form.axes[0].outputs // lines

    def add_block(i: Array, sums: list[Array]) -> list[Array]:
        begin, line = i // bands * size, i % bands * lines
        part = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(x, begin, size), line * first.stride, span, axis=1)
        right = lax.dynamic_slice_in_dim(lax.dynamic_slice_in_dim(g, begin, size), line, lines, axis=1)
        right = right.reshape(-1, outputs)
        taps = shifted(part, axes)
        found = []
        for j, total in enumerate(sums):
            left = jnp.concatenate(taps[j * row : (j + 1) * row], axis=-1).reshape(len(right), -1)
            product = lax.dot_general(right, left, (((0,), (0,)), ((), ())), precision=form.precision)
            found.append(total + product)
        return found

    zero = jnp.zeros((outputs, row * image.shape[-1]), g.dtype)
    sums = lax.fori_loop(0, len(g) // size * bands, add_block, [zero] * heads)
    return jnp.stack([total.T for total in sums]).reshape(form.kernel(image, g))


def _heads(form: Form, inputs: int) -> int:
    """Return into how many rows the taps are parted, each over one or more of the last axes."""
    window = form.window
    parted = [math.prod(window[:i]) for i in range(len(window))]
    narrow = (heads for heads in parted if math.prod(window) // heads * inputs <= _COLUMNS)
    return next(narrow, max(heads for heads in parted if heads <= _PRODUCTS))


def _block(batch: int, axes: tuple[Axis, ...], width: int) -> tuple[int, int]:
    """Return how many images, and how many lines of positions along the first axis, are in a block."""
    line = width * math.prod(axis.outputs for axis in axes[1:])
    lines = _divisor(axes[0].outputs, _GATHERED // line)
    return (_divisor(batch, _GATHERED // (line * lines)) if lines == axes[0].outputs else 1), lines


def _divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is not above `most`, or 1."""
    return next((size for size in range(min(most, number), 1, -1) if number % size == 0), 1)

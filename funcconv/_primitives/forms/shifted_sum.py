"""Shifted sum: a depthwise convolution as a sum over taps of shifted slices of the image times weights.

Large kernels are computed block by block of their taps, and images that are mostly padding in parts of the batch. In
the kernel gradient, positions and taps change places: each cotangent scales the window of its position.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array, Shape
from ..._windows.geometry import Axis
from ..._windows.padding import pad
from ..._windows.pieces import Cut, cuts, loop_over, piece
from ..._windows.taps import shifted
from .form import Form, Map

# Measured limits, so that what a block reads stays in the cache (see docs/lowerings.md).
_READ_NUMBERS = 2**18  # numbers of the image that a block of a kernel gradient reads (1 MB in float32)
_PADDED_NUMBERS = 2**20  # numbers of padded images that exist at once (4 MB in float32)
_BLOCK_TAPS = 32  # taps of a large kernel that are added in one pass of the loop
# Images are padded in parts of the batch if they have more than this many times the numbers of images and results.
_MOST_PADDING_FACTOR = 2
_BLOCK_POSITIONS = 8  # positions of a kernel gradient that are added in one pass of the loop
_BLOCK_POSITIONS_OLD_XLA = 32  # the same for XLA of jax 0.10, whose loops are slow for fewer positions


def conv(image: Array, kernel: Array, form: Form, *, old: bool, blocks: bool) -> Array:
    """Return the convolution. Images that are much larger with their padding are computed in parts of the batch.

    Args:
        image: `(batch, *spatial, groups)`.
        kernel: `(*window, 1, out)`.
        form: the convolution.
        old: whether XLA is of jax 0.10, which ignores optimization barriers.
        blocks: whether the batch may be cut into parts.
    """
    if blocks and _is_mostly_padding(image, kernel, form):
        return _over_images(_conv, image, kernel, form)
    # XLA fuses a sum of slices into each operation that uses it, and so computes it several times. A barrier prevents
    # this, or in old versions a branch whose condition is always true but depends on a value.
    y: Array
    if old and blocks:
        is_zero = jnp.ravel(kernel)[0] == 0
        always = is_zero | ~is_zero
        shape = form.result(image, kernel)
        y = lax.cond(always, partial(_conv, form=form), lambda *_: jnp.zeros(shape, image.dtype), image, kernel)
    else:
        y = lax.optimization_barrier(_conv(image, kernel, form))  # type: ignore[no-untyped-call]
    return y


def conv_by_blocks(image: Array, kernel: Array, form: Form, *, blocks: bool) -> Array:
    """Return the convolution with a loop over blocks of taps, so that the program does not grow with the kernel."""
    if blocks and _is_mostly_padding(image, kernel, form):
        return _over_images(_conv_by_blocks, image, kernel, form)
    return _conv_by_blocks(image, kernel, form)


def _is_mostly_padding(image: Array, kernel: Array, form: Form) -> bool:
    """Return whether the padded image, whose channels are repeated for each output, is too large to make at once."""
    outputs = kernel.shape[-1]
    operands = math.prod(form.spatial) * image.shape[-1] + math.prod(form.positions) * outputs
    return form.extended * outputs > _MOST_PADDING_FACTOR * operands


def _over_images(conv: Map, image: Array, kernel: Array, form: Form) -> Array:
    """Return the convolution in a loop over parts of the batch whose padded images stay in the cache."""
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    for images in cuts(len(image), _PADDED_NUMBERS // (form.extended * kernel.shape[-1])):

        def put(begins: list[Any], y: Array, size: int = images.size) -> Array:
            result = conv(piece(image, begins[0], size), kernel, form)
            return lax.dynamic_update_slice_in_dim(y, result, begins[0], 0, allow_negative_indices=False)

        y = loop_over([images], put, y)
    return y


def _conv(image: Array, kernel: Array, form: Form) -> Array:
    taps = shifted(_repeated(image, kernel.shape[-1], form), form.axes)
    weights = kernel.reshape(len(taps), *(1,) * (image.ndim - 1), kernel.shape[-1])
    y: Array = reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))
    return y


def _conv_by_blocks(image: Array, kernel: Array, form: Form) -> Array:
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    for block in itertools.product(*_blocks(form.window, _BLOCK_TAPS)):
        sizes = tuple(cut.size for cut in block)

        def add_taps(begins: list[Any], y: Array, sizes: Shape = sizes) -> Array:
            pairs = tuple(zip(form.axes, sizes, strict=True))
            starts = [begin * axis.dilation for begin, axis in zip(begins, form.axes, strict=True)]
            reads = [(axis.outputs - 1) * axis.stride + 1 + (size - 1) * axis.dilation for axis, size in pairs]
            axes = (
                axis._replace(size=read, window=size, lo=0, hi=0)
                for (axis, size), read in zip(pairs, reads, strict=True)
            )
            shape = (*sizes, *kernel.shape[-2:])
            taps = lax.dynamic_slice(kernel, (*begins, 0, 0), shape, allow_negative_indices=False)
            return y + _conv(_cropped(x, starts, reads), taps, form._replace(axes=tuple(axes)))

        y = loop_over(block, add_taps, y)
    return y


def kernel_grad(image: Array, g: Array, form: Form, *, old: bool, blocks: bool) -> Array:
    """Return the kernel gradient, block by block of the positions.

    The cotangents of a block are the kernel of a convolution that has one position for each tap. So the same shifted
    sum adds a block of positions to all taps.

    Args:
        image: `(batch, *spatial, groups)`.
        g: the cotangents, `(batch, *positions, out)`.
        form: the convolution.
        old: whether XLA is of jax 0.10, which is slow for loops over few positions.
        blocks: whether the batch may be cut into parts that stay in the cache.
    """
    outputs = g.shape[-1]
    position_cuts = _blocks(form.positions, _BLOCK_POSITIONS_OLD_XLA if old else _BLOCK_POSITIONS)
    read = math.prod(_span(axis, pieces[0].size) for axis, pieces in zip(form.axes, position_cuts, strict=True))
    image_numbers = (read + math.prod(form.window)) * outputs  # that a block reads and adds to, for one image
    most_images = min(_READ_NUMBERS // image_numbers, _PADDED_NUMBERS // form.extended // outputs)
    total = jnp.zeros((*form.window, outputs), g.dtype)
    for images in cuts(len(image), most_images) if blocks else [Cut(0, 1, image.shape[0])]:

        def add_images(begins: list[Any], total: Array, size: int = images.size) -> Array:
            x = _repeated(piece(image, begins[0], size), outputs, form)
            part_g = piece(g, begins[0], size)
            for block in itertools.product(*position_cuts):
                # One sum per image, added up at the end: the loop then carries an elementwise sum.
                sums = jnp.zeros((size, *total.shape), g.dtype)
                add = partial(_add_block, x, part_g, form.axes, tuple(cut.size for cut in block))
                total += loop_over(block, add, sums).sum(0)
            return total

        total = loop_over([images], add_images, total)
    return total.reshape(form.kernel(image, g))


def _add_block(x: Array, g: Array, axes: Sequence[Axis], sizes: Shape, begins: list[Any], sums: Array) -> Array:
    """Add a block of `sizes` positions, which starts at `begins`, to the sum of each image."""
    pairs = tuple(zip(axes, sizes, strict=True))
    starts = [begin * axis.stride for begin, axis in zip(begins, axes, strict=True)]
    spans = [_span(axis, size) for axis, size in pairs]
    windows = _cropped(x, starts, spans)
    cotangents = _cropped(g, begins, sizes)
    cotangents = cotangents.reshape(g.shape[0], -1, *[1] * len(axes), g.shape[-1])
    # Positions are the taps of this convolution, and taps its positions, so stride and dilation change places.
    exchanged = [Axis(axis.size, size, axis.dilation, axis.stride, 0, 0, axis.window) for axis, size in pairs]
    parts = [part * cotangents[:, i] for i, part in enumerate(shifted(windows, exchanged))]
    return sums + reduce(jnp.add, parts)


def _cropped(array: Array, starts: Sequence[Any], sizes: Sequence[int]) -> Array:
    """Return the part of an array from `starts` on with these sizes of its spatial axes."""
    sizes = (array.shape[0], *sizes, array.shape[-1])
    return lax.dynamic_slice(array, (0, *starts, 0), sizes, allow_negative_indices=False)


def _blocks(sizes: Shape, most: int) -> list[list[Cut]]:
    """Return cuts of each axis such that a block has at most `most` entries. The last axis is cut least."""
    axis_cuts: list[list[Cut]] = []
    for size in reversed(sizes):
        axis_cuts.insert(0, cuts(size, most))
        most //= axis_cuts[0][0].size
    return axis_cuts


def _span(axis: Axis, positions: int) -> int:
    """Return the number of inputs from the first to the last that neighbouring windows read."""
    return (positions - 1) * axis.stride + axis.extent


def _repeated(image: Array, outputs: int, form: Form) -> Array:
    """Return the padded image with each channel repeated for each of its outputs."""
    return pad(jnp.repeat(image, outputs // form.groups, axis=-1), form.axes, ("zeros",) * len(form.axes))

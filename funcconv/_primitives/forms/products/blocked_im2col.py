"""Blocked im2col: matrix products of gathered windows, block by block, so that a gathered block stays in the cache.

A block is several images of the batch or, if one image is too large, some lines of its positions. Its windows become
the rows of a matrix. The product of this matrix with the kernel gives results, and the product of the transposed
cotangents with it gives a kernel gradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from ...._common.types import Array
from ...._windows.geometry import Axis
from ...._windows.padding import pad
from ...._windows.pieces import Cut, cuts, loop_over, piece
from ..form import Form

Axes: TypeAlias = tuple[Axis, ...]

# Measured limits. Without a loop over blocks, gathered windows of more than about 32 MB are new memory at each call.
# Mapping its pages then takes most of the time (109 MB of windows: 47 of 63 ms with jax 0.10.2).
_BLOCK_NUMBERS = 2**19  # numbers gathered at once (2 MB in float32), unless one line of positions has more
_PADDED_NUMBERS = 2**22  # numbers of images padded at once (16 MB in float32)
_MOST_GATHERED_TAPS = 16  # taps along the first axis up to which each is read by a separate gather


class Block(NamedTuple):
    """Several images, and some lines of positions along their first axis."""

    images: Cut
    lines: Cut
    begin: tuple[Array | int, Array | int]  # the first image and the first line
    windows: Array  # (images * positions, taps * channels)


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the convolution."""
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(y: Array, block: Block) -> Array:
        result = jnp.dot(block.windows, matrix, precision=form.precision)
        shape = (block.images.size, block.lines.size, *y.shape[2:])
        begins = (*block.begin, *[0] * (y.ndim - 2))
        return lax.dynamic_update_slice(y, result.reshape(shape), begins, allow_negative_indices=False)

    return _over_blocks(product, jnp.zeros(form.result(image, kernel), image.dtype), image, form)


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient, as products of cotangents with windows of the image."""

    def add_product(total: Array, block: Block) -> Array:
        image, line = block.begin
        cotangents = piece(piece(g, image, block.images.size), line, block.lines.size, axis=1).reshape(-1, g.shape[-1])
        return total + lax.dot_general(cotangents, block.windows, (((0,), (0,)), ((), ())), precision=form.precision)

    zero = jnp.zeros((g.shape[-1], math.prod(form.window) * image.shape[-1]), g.dtype)
    return _over_blocks(add_product, zero, image, form).T.reshape(form.kernel(image, g))


def kernel_grad_by_cotangent_windows(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient for stride 1, as products of the image with windows of the cotangents.

    This gathers fewer numbers if the cotangents have fewer channels than the image.
    """
    axes = []
    for axis in form.axes:
        windows = Axis(axis.outputs, axis.window, 1, axis.dilation, axis.extent - 1 - axis.lo, 0, axis.size)
        axes.append(windows._replace(hi=windows.hi_used))
    w = kernel_grad(g, image, form._replace(axes=tuple(axes)))
    # Cotangent windows run backwards along the kernel, and image and cotangents have changed places.
    return lax.rev(w.swapaxes(-1, -2), range(len(axes)))


def kernel_grad_by_both_windows(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient for stride 1 along the first axis, as products of windows of both operands.

    Windows of the image are gathered along all axes but the first, and windows of the cotangents along the first axis.
    Together these are fewer numbers, and neither operand is padded along the first axis.
    """
    first, *rest = form.axes
    span = first.extent - 1
    lines = Axis(first.size, 1, 1, 1, 0, 0, first.size)  # each line of the image is read once
    inputs, outputs = math.prod(form.window[1:]) * image.shape[-1], first.window * g.shape[-1]

    def add_product(total: Array, block: Block) -> Array:
        image, line = block.begin
        block_g = piece(g, image, block.images.size)
        first_windows = line + first.lo - span + jnp.arange(block.lines.size)  # the first that reads each line

        def read(positions: Array) -> Array:
            return block_g.at[:, positions].get(mode="fill", fill_value=0, wrap_negative_indices=False)

        # The first window that reads a line reads it with its last tap. XLA 0.10 is faster with one gather per tap.
        taps = range(span, -1, -first.dilation)
        if first.window <= _MOST_GATHERED_TAPS:
            g_windows = jnp.stack([read(first_windows + tap) for tap in taps], -2)
        else:
            positions = jnp.add.outer(first_windows, jnp.asarray(taps, first_windows.dtype))
            g_windows = jnp.moveaxis(read(positions), 2, -2)
        g_windows = g_windows.reshape(-1, outputs)
        # XLA is faster if the wider operand is on the right.
        pair = (block.windows, g_windows) if inputs < outputs else (g_windows, block.windows)
        return total + lax.dot_general(*pair, (((0,), (0,)), ((), ())), precision=form.precision)

    zero = jnp.zeros(sorted((inputs, outputs)), g.dtype)
    w = _over_blocks(add_product, zero, image, form._replace(axes=(lines, *rest)), extra=outputs)
    w = w if inputs < outputs else w.T
    w = w.reshape(*form.window[1:], image.shape[-1], first.window, g.shape[-1])
    return jnp.moveaxis(w, -2, 0)


def _over_blocks(
    step: Callable[[Array, Block], Array], start: Array, image: Array, form: Form, extra: int = 0
) -> Array:
    """Return the result of `carry = step(carry, block)` for all blocks, beginning with `start`.

    Blocks are computed in two nested loops: the outer one pads a share of the images, the inner one gathers windows
    from it. `extra` is the number of numbers that `step` gathers per position in addition to the windows.

    Returns:
        The last carry.
    """
    columns = math.prod(form.window) * image.shape[-1]
    first, *rest = form.axes
    line_numbers = (columns + extra) * math.prod(axis.outputs for axis in rest)
    padded_numbers = form.extended * image.shape[-1]
    most_padded_images = min(_PADDED_NUMBERS, max(2 * image.size, _BLOCK_NUMBERS)) // padded_numbers
    line_cuts = cuts(first.outputs, _BLOCK_NUMBERS // line_numbers)

    def over_share(begins: list[Any], carry: Array, images: Cut, share: Cut) -> Array:
        blocks = Cut(0, share.size, images.size)
        start = images.begin + begins[0] * images.size
        x = _flat(piece(image, start, blocks.pieces * blocks.size), form.axes)
        for lines in line_cuts:
            axes = (first._replace(outputs=lines.size), *rest)

            def over_block(begins: list[Any], carry: Array, lines: Cut = lines, axes: Axes = axes) -> Array:
                begin, line = begins
                windows = _gathered(x, axes, image.shape[-1], images.size, begin, line * first.stride)
                return step(carry, Block(images, lines, (start + begin, line), windows.reshape(-1, columns)))

            carry = loop_over((blocks, lines), over_block, carry)
        return carry

    carry = start
    for images in cuts(len(image), _BLOCK_NUMBERS // (line_numbers * first.outputs)):
        for share in cuts(images.pieces, most_padded_images // images.size):
            carry = loop_over([share], functools.partial(over_share, images=images, share=share), carry)
    return carry


def _flat(image: Array, axes: Axes) -> Array:
    """Return the padded image with the last spatial axis and the channels merged.

    A pad of the two axes separately takes long to compile.
    """
    *others, last = axes
    channels = image.shape[-1]
    padded = last.lo + last.size + last.hi_used
    whole = Axis(last.size * channels, 1, 1, 1, last.lo * channels, last.hi_used * channels, padded * channels)
    x = pad(image.reshape(*image.shape[:-2], -1, 1), (*others, whole), ("zeros",) * len(axes))
    return x[..., 0]


def _gathered(x: Array, axes: Axes, channels: int, size: int, begin: Array | int, place: Array | int) -> Array:
    """Return the windows of `size` images.

    A window is gathered as one slice; along axes with a dilation, tap by tap.

    Args:
        x: `(batch, *padded, padded * channels)`.
        axes: one for each spatial axis.
        channels: number of channels, which are merged with the last axis.
        size: number of images.
        begin: the first image.
        place: where the first window starts on the first axis.

    Returns:
        `(size, *positions, *window, channels)`. The last two axes may be merged.
    """
    n = len(axes)
    dilated = [i for i, axis in enumerate(axes) if axis.dilation > 1]
    # The gather has an index for each position and for each tap of a dilated axis.
    index_shape = (*(axis.outputs for axis in axes), *(axes[i].window for i in dilated))
    starts: list[Any] = [begin, place, *[0] * (n - 1)]
    for i, axis in enumerate(axes):
        starts[1 + i] += lax.broadcasted_iota(jnp.int32, index_shape, i) * axis.stride
    for i, tap in zip(dilated, range(n, len(index_shape)), strict=True):
        starts[1 + i] += lax.broadcasted_iota(jnp.int32, index_shape, tap) * axes[i].dilation
    slice_sizes = [1 if i in dilated else axis.window for i, axis in enumerate(axes)]
    starts[n] *= channels
    slice_sizes[n - 1] *= channels
    kept = [i for i in range(n) if i not in dilated or i == n - 1]  # axes of a slice that remain in the result
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(0, *(1 + n + i + (i in dilated) for i in kept)),
        collapsed_slice_dims=tuple(1 + i for i in dilated if i not in kept),
        start_index_map=tuple(range(1 + n)),
    )
    indices = jnp.stack([jnp.broadcast_to(start, index_shape) for start in starts], -1)
    return lax.gather(x, indices, numbers, (size, *slice_sizes), mode="promise_in_bounds")

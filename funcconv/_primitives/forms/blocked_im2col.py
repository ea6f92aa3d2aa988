"""Products of matrices, block by block, so that what is gathered stays in the cache.

A block is some images of the batch or, where one is too large, a band of its positions. Its windows are gathered as the
rows of one matrix, which is multiplied with the kernel; or the transposed cotangents of the block, or windows of these,
with it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..._windows.geometry import Axis
from ..._windows.padding import pad
from ..._windows.pieces import Cut, cuts, each, piece
from .form import Form

Axes: TypeAlias = tuple[Axis, ...]

_GATHERED = 2**19  # numbers that are gathered at once, unless one line of positions has more
_UNROLLED = 16  # taps along the first axis that are read by a gather each, at most
_PADDED = 2**22  # numbers of images that are padded at once


class Block(NamedTuple):
    """Some images, and some lines of positions along their first axis."""

    images: Cut
    lines: Cut
    place: tuple[Array | int, Array | int]  # the first image, and the first line
    windows: Array  # (images * positions, taps * channels)


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation."""
    matrix = kernel.reshape(-1, kernel.shape[-1])

    def product(y: Array, block: Block) -> Array:
        found = jnp.dot(block.windows, matrix, precision=form.precision)
        shape = (block.images.size, block.lines.size, *y.shape[2:])
        place = (*block.place, *[0] * (y.ndim - 2))
        return lax.dynamic_update_slice(y, found.reshape(shape), place, allow_negative_indices=False)

    return _over_blocks(product, jnp.zeros(form.result(image, kernel), image.dtype), image, form)


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose of the convolution by its kernel."""

    def add_product(total: Array, block: Block) -> Array:
        image, line = block.place
        right = piece(piece(g, image, block.images.size), line, block.lines.size, axis=1).reshape(-1, g.shape[-1])
        return total + lax.dot_general(right, block.windows, (((0,), (0,)), ((), ())), precision=form.precision)

    zero = jnp.zeros((g.shape[-1], math.prod(form.window) * image.shape[-1]), g.dtype)
    return _over_blocks(add_product, zero, image, form).T.reshape(form.kernel(image, g))


def exchanged(image: Array, g: Array, form: Form) -> Array:
    """Return the same for a stride of one, but with windows of the cotangents, where these have fewer channels."""
    axes = []
    for axis in form.axes:
        windows = Axis(axis.outputs, axis.window, 1, axis.dilation, axis.extent - 1 - axis.lo, 0, axis.size)
        axes.append(windows._replace(hi=windows.reach))
    w = kernel_grad(g, image, form._replace(axes=tuple(axes)))
    return lax.rev(w.swapaxes(-1, -2), range(len(axes)))


def mixed(image: Array, g: Array, form: Form) -> Array:
    """Return the same for a stride of one along the first axis, whose taps are read from the cotangents.

    Of the image windows along the other axes are gathered, of the cotangents those along the first: fewer in all, and
    neither is copied to be padded along it. The wider of the two is multiplied from the right, which XLA is faster
    with.
    """
    first, *rest = form.axes
    reach = first.extent - 1
    lines = Axis(first.size, 1, 1, 1, 0, 0, first.size)  # of the image, each read once
    inputs, outputs = math.prod(form.window[1:]) * image.shape[-1], first.window * g.shape[-1]

    def add_product(total: Array, block: Block) -> Array:
        image, line = block.place
        of_images = piece(g, image, block.images.size)
        readers = line + first.lo - reach + jnp.arange(block.lines.size)

        def read(places: Array) -> Array:
            return of_images.at[:, places].get(mode="fill", fill_value=0, wrap_negative_indices=False)

        # A plane's last tap is that of the first window that reads it. XLA 0.10 is faster with one gather for each tap.
        taps = range(reach, -1, -first.dilation)
        if first.window <= _UNROLLED:
            right = jnp.stack([read(readers + tap) for tap in taps], -2)
        else:
            right = jnp.moveaxis(read(jnp.add.outer(readers, jnp.asarray(taps, readers.dtype))), 2, -2)
        right = right.reshape(-1, outputs)
        pair = (block.windows, right) if inputs < outputs else (right, block.windows)
        return total + lax.dot_general(*pair, (((0,), (0,)), ((), ())), precision=form.precision)

    zero = jnp.zeros(sorted((inputs, outputs)), g.dtype)
    w = _over_blocks(add_product, zero, image, form._replace(axes=(lines, *rest)), beside=outputs)
    w = w if inputs < outputs else w.T
    w = w.reshape(*form.window[1:], image.shape[-1], first.window, g.shape[-1])
    return jnp.moveaxis(w, -2, 0)


def _over_blocks(
    step: Callable[[Array, Block], Array], start: Array, image: Array, form: Form, beside: int = 0
) -> Array:
    """Return what `step` makes of `start` block by block; it gathers `beside` numbers more for each position."""
    columns = math.prod(form.window) * image.shape[-1]
    first, *rest = form.axes
    line = (columns + beside) * math.prod(axis.outputs for axis in rest)
    padded = form.extended * image.shape[-1]
    most = min(_PADDED, max(2 * image.size, _GATHERED)) // padded
    of_lines = cuts(first.outputs, _GATHERED // line)

    def over_share(place: list[Any], found: Array, images: Cut, share: Cut) -> Array:
        blocks = Cut(0, share.size, images.size)
        start = images.begin + place[0] * images.size
        x = _flat(piece(image, start, blocks.pieces * blocks.size), form.axes)
        for lines in of_lines:
            axes = (first._replace(outputs=lines.size), *rest)

            def over_block(place: list[Any], found: Array, lines: Cut = lines, axes: Axes = axes) -> Array:
                begin, line = place
                windows = _gathered(x, axes, image.shape[-1], images.size, begin, line * first.stride)
                return step(found, Block(images, lines, (start + begin, line), windows.reshape(-1, columns)))

            found = each((blocks, lines), over_block, found)
        return found

    found = start
    for images in cuts(len(image), _GATHERED // (line * first.outputs)):
        for share in cuts(images.pieces, most // images.size):
            found = each([share], functools.partial(over_share, images=images, share=share), found)
    return found


def _flat(image: Array, axes: Axes) -> Array:
    """Return the padded image with the last axis and the channels as one; padding them apart takes long to compile."""
    *others, last = axes
    channels = image.shape[-1]
    padded = last.lo + last.size + last.reach
    whole = Axis(last.size * channels, 1, 1, 1, last.lo * channels, last.reach * channels, padded * channels)
    x = pad(image.reshape(*image.shape[:-2], -1, 1), (*others, whole), ("zeros",) * len(axes))
    return x[..., 0]


def _gathered(x: Array, axes: Axes, channels: int, size: int, begin: Array | int, place: Array | int) -> Array:
    """Return the windows of some images from `begin` on, the first of them at `place` of the first axis.

    A window is read as one piece; along axes with a dilation, tap by tap.

    Args:
        x: `(batch, *padded, padded * channels)`.
        axes: one for each spatial axis.
        channels: how many are one with the last axis.
        size: how many images.
        begin: the first image.
        place: the first place.

    Returns:
        `(size, *positions, *window, channels)`, but that the last two may be one.
    """
    n = len(axes)
    dilated = [i for i, axis in enumerate(axes) if axis.dilation > 1]
    found = (*(axis.outputs for axis in axes), *(axes[i].window for i in dilated))
    starts: list[Any] = [begin, place, *[0] * (n - 1)]
    for i, axis in enumerate(axes):
        starts[1 + i] += lax.broadcasted_iota(jnp.int32, found, i) * axis.stride
    for i, tap in zip(dilated, range(n, len(found)), strict=True):
        starts[1 + i] += lax.broadcasted_iota(jnp.int32, found, tap) * axes[i].dilation
    read = [1 if i in dilated else axis.window for i, axis in enumerate(axes)]
    starts[n] *= channels
    read[n - 1] *= channels
    whole = [i for i in range(n) if i not in dilated or i == n - 1]
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(0, *(1 + n + i + (i in dilated) for i in whole)),
        collapsed_slice_dims=tuple(1 + i for i in dilated if i not in whole),
        start_index_map=tuple(range(1 + n)),
    )
    indices = jnp.stack([jnp.broadcast_to(start, found) for start in starts], -1)
    return lax.gather(x, indices, numbers, (size, *read), mode="promise_in_bounds")

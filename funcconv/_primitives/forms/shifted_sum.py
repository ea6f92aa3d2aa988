"""Groups of one input channel: sums over taps, each a slice of the image that is scaled channel by channel.

A large kernel is taken block by block of its taps, and images that are mostly padding one after another. For the
kernel gradient positions and taps change places: each cotangent scales the window that it belongs to.
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
from ..._windows.pieces import Cut, cuts, each, piece
from ..._windows.taps import shifted
from .form import Form, Map

_READ = 2**18  # numbers of the image that are read at once
_HELD = 2**20  # numbers of padded images that are held at once
_TAPS = 32  # of a large kernel that are added at once
_SPARE = 2  # times as many numbers as images and results have, which padded ones may have without that
_POSITIONS = 8  # so many cotangents are added at once,
_POSITIONS_OLD = 32  # or with an old XLA, which has slow loops for fewer


def conv(image: Array, kernel: Array, form: Form, *, old: bool, blocks: bool) -> Array:
    """Return the correlation, some images after the others where all would be much larger with their padding.

    Args:
        image: `(batch, *spatial, groups)`.
        kernel: `(*window, 1, out)`.
        form: the convolution.
        old: whether XLA is of a version that knows no barriers.
        blocks: whether the batch may be cut, so that what is padded at once stays in the cache.
    """
    if blocks and _sprawls(image, kernel, form):
        return _over_images(_conv, image, kernel, form)
    # XLA computes a sum of slices again in each operation that uses it, unless there is a barrier or a branch between.
    y: Array
    if old and blocks:
        unknown = jnp.ravel(kernel)[0] == 0
        true = unknown | ~unknown  # which XLA does not know
        shape = form.result(image, kernel)
        y = lax.cond(true, partial(_conv, form=form), lambda *_: jnp.zeros(shape, image.dtype), image, kernel)
    else:
        y = lax.optimization_barrier(_conv(image, kernel, form))  # type: ignore[no-untyped-call]
    return y


def conv_by_blocks(image: Array, kernel: Array, form: Form, *, blocks: bool) -> Array:
    """Return the same as a sum over blocks of taps, in a loop, so that the program does not grow with the kernel."""
    if blocks and _sprawls(image, kernel, form):
        return _over_images(_conv_by_blocks, image, kernel, form)
    return _conv_by_blocks(image, kernel, form)


def _sprawls(image: Array, kernel: Array, form: Form) -> bool:
    """Return whether an image, each channel as often as it has outputs, is large with its padding."""
    outputs = kernel.shape[-1]
    held = math.prod(form.spatial) * image.shape[-1] + math.prod(form.positions) * outputs
    return form.extended * outputs > _SPARE * held


def _over_images(conv: Map, image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation, as many images at once as the cache holds with their padding."""
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    for images in cuts(len(image), _HELD // (form.extended * kernel.shape[-1])):

        def put(begins: list[Any], y: Array, size: int = images.size) -> Array:
            found = conv(piece(image, begins[0], size), kernel, form)
            return lax.dynamic_update_slice_in_dim(y, found, begins[0], 0, allow_negative_indices=False)

        y = each([images], put, y)
    return y


def _conv(image: Array, kernel: Array, form: Form) -> Array:
    taps = shifted(_repeated(image, kernel.shape[-1], form), form.axes)
    weights = kernel.reshape(len(taps), *(1,) * (image.ndim - 1), kernel.shape[-1])
    y: Array = reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))
    return y


def _conv_by_blocks(image: Array, kernel: Array, form: Form) -> Array:
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    y = jnp.zeros(form.result(image, kernel), image.dtype)
    for block in itertools.product(*_blocks(form.window, _TAPS)):
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

        y = each(block, add_taps, y)
    return y


def kernel_grad(image: Array, g: Array, form: Form, *, old: bool, blocks: bool) -> Array:
    """Return the transpose by the kernel: block by block of the positions, each added to all taps of the kernel.

    The cotangents of a block are the kernel of a convolution which has a position for each of these taps.

    Args:
        image: `(batch, *spatial, groups)`.
        g: the cotangents, `(batch, *positions, out)`.
        form: the convolution.
        old: whether XLA is of a version that has slow loops for few positions.
        blocks: whether a block has only so many images that what it reads stays in the cache.
    """
    positions = _blocks(form.positions, _POSITIONS_OLD if old else _POSITIONS)
    read = math.prod(_reach(axis, found[0].size) for axis, found in zip(form.axes, positions, strict=True))
    most = min(_READ // ((read + math.prod(form.window)) * g.shape[-1]), _HELD // form.extended // g.shape[-1])
    total = jnp.zeros((*form.window, g.shape[-1]), g.dtype)
    for images in cuts(len(image), most) if blocks else [Cut(0, 1, image.shape[0])]:

        def add_images(begins: list[Any], total: Array, size: int = images.size) -> Array:
            x = _repeated(piece(image, begins[0], size), g.shape[-1], form)
            taps = piece(g, begins[0], size)
            for block in itertools.product(*positions):
                sums = jnp.zeros((size, *total.shape), g.dtype)
                total += each(block, partial(_add, x, taps, form.axes, tuple(cut.size for cut in block)), sums).sum(0)
            return total

        total = each([images], add_images, total)
    return total.reshape(form.kernel(image, g))


def _add(x: Array, g: Array, axes: Sequence[Axis], sizes: Shape, places: list[Any], sums: Array) -> Array:
    """Add what so many positions from some places on give to the sums for each image."""
    pairs = tuple(zip(axes, sizes, strict=True))
    starts = [place * axis.stride for place, axis in zip(places, axes, strict=True)]
    reach = [_reach(axis, size) for axis, size in pairs]
    windows = _cropped(x, starts, reach)
    taps = _cropped(g, places, sizes)
    taps = taps.reshape(g.shape[0], -1, *[1] * len(axes), g.shape[-1])
    turned = [Axis(axis.size, size, axis.dilation, axis.stride, 0, 0, axis.window) for axis, size in pairs]
    parts = [part * taps[:, i] for i, part in enumerate(shifted(windows, turned))]
    return sums + reduce(jnp.add, parts)


def _cropped(array: Array, starts: Sequence[Any], sizes: Sequence[int]) -> Array:
    """Return so many places along each spatial axis."""
    sizes = (array.shape[0], *sizes, array.shape[-1])
    return lax.dynamic_slice(array, (0, *starts, 0), sizes, allow_negative_indices=False)


def _blocks(sizes: Shape, most: int) -> list[list[Cut]]:
    """Return how each axis is cut so that a block has at most so many places, the last axis first."""
    found: list[list[Cut]] = []
    for size in reversed(sizes):
        found.insert(0, cuts(size, most))
        most //= found[0][0].size
    return found


def _reach(axis: Axis, positions: int) -> int:
    """Return how many places are read by the windows at so many positions side by side."""
    return (positions - 1) * axis.stride + axis.extent


def _repeated(image: Array, outputs: int, form: Form) -> Array:
    """Return the padded image with each channel as often as it has outputs."""
    return pad(jnp.repeat(image, outputs // form.groups, axis=-1), form.axes, ("zeros",) * len(form.axes))

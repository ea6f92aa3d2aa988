"""Putting what a max or min pool selected back to where it was."""

import functools
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._dtypes import in_wide
from ._errors import FuncconvError
from ._geometry import Axis, per_axis, resolve, transposed_sizes
from ._layout import as_array, image, spatial_axes
from ._typing import Array, ArrayLike, Padding, Shape, Sizes


def max_unpool(
    y: ArrayLike,
    indices: ArrayLike,
    window: Sizes = 2,
    *,
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    size: Sizes | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Put each value to its index in an image of zeros: the transpose of what a max or min pool selects.

    $$x_{j,c} = \sum_{i:\, indices_{i,c} = j} y_{i,c}$$

    With `z, indices = max_pool(x, return_indices=True, ...)` and the same options,
    `<max_unpool(y, indices), x> == <y, z>`. Values that overlapping windows took from one input are added; PyTorch
    keeps one of them.

    Args:
        y: `(*batch, *positions, channels)`, or as `layout` says.
        indices: integers of the shape of `y`, as `pool` returns them: the place in the row-major order of the spatial
            axes of the result. -1 is no place, and its value is dropped.
        window: taps of the pool's window, like the options that follow. A tuple also says how many spatial axes there
            are.
        stride: see `pool`; None means the window.
        padding: see `pool`.
        dilation: see `pool`.
        size: of the result, for all spatial axes or for each, where the stride folds several into one. By default the
            smallest that the pool takes to these positions without `ceil_mode`, or `positions * stride` for the
            paddings that keep the size.
        spatial: the number of spatial axes, where an integer window leaves it open.
        layout: see `conv`; its letters also say how many spatial axes there are.

    Returns:
        `(*batch, *size, channels)` of the dtype of `y`. It is linear in `y`; nothing is scattered, so the order of sums
        is always the same.

    Raises:
        FuncconvError: if the indices are no integers of the shape of `y`, if no image of this `size` has so many
            windows, or if an index is not among the places its window reads, as those are that a `pad_mode` brought in
            from elsewhere. Under `jax.jit` and the like, where indices are not known, such values are dropped.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901; PyTorch's
    `MaxUnpool2d`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([1.0, 4.0, -1.0, 0.0, 2.0, -2.0]).reshape(1, 6, 1)
        >>> fc.max_unpool(*fc.max_pool(x, return_indices=True)).ravel().tolist()
        [0.0, 4.0, 0.0, 0.0, 2.0, 0.0]
    """
    op = "max_unpool"
    known: Any = None if isinstance(indices, jax.core.Tracer) else np.asarray(indices)
    y, indices = as_array(op, "y", y), as_array(op, "indices", indices)
    if indices.shape != y.shape or not jnp.issubdtype(indices.dtype, jnp.integer):
        msg = (
            f"{op}: the indices must be integers of the shape of y, {y.shape}, one for each value; "
            f"got {indices.dtype} of shape {indices.shape}"
        )
        raise FuncconvError(msg)
    said = spatial_axes(op, "window", window, spatial)
    inside = image(op, y, *said, layout)
    axes = _axes(op, inside.spatial, window, window if stride is None else stride, padding, dilation, size)
    if known is not None:
        _check_indices(op, np.asarray(image(op, known, *said, layout).array), axes)
    where = image(op, indices.astype(jnp.int32), *said, layout).array
    return inside.restore(in_wide(lambda y: _placed(y, where, axes), inside.array))


def _axes(
    op: str, outputs: Shape, window: Sizes, stride: Sizes, padding: Padding, dilation: Sizes, size: Sizes | None
) -> list[Axis]:
    """Return the axes of the pool that is undone; with a given `size` it may have had `ceil_mode` or not."""
    n = len(outputs)
    if size is None:
        windows = per_axis(op, "window", window, n, least=1)
        sizes = transposed_sizes(
            op, outputs, windows, size=None, output_padding=None, stride=stride, padding=padding, dilation=dilation
        )
    else:
        sizes = per_axis(op, "size", size, n, least=1)
    axes = resolve(op, sizes, window, stride=stride, padding=padding, dilation=dilation, ceil_mode=True)
    for i, (axis, count) in enumerate(zip(axes, outputs, strict=True)):
        whole = 1 + (axis.size + axis.lo + axis.hi - axis.extent) // axis.stride
        if count not in (whole, axis.outputs):
            possible = " or ".join(str(number) for number in sorted({max(whole, 0), axis.outputs}))
            msg = f"{op}: a size of {axis.size} on spatial axis {i} has {possible} windows, but y has {count}"
            raise FuncconvError(msg)
    return [axis._replace(outputs=count) for axis, count in zip(axes, outputs, strict=True)]


def _check_indices(op: str, indices: np.ndarray, axes: Sequence[Axis]) -> None:
    """Refuse indices that are not among the places that their window reads."""
    sizes = tuple(axis.size for axis in axes)
    wrong = (indices < -1) | (indices >= math.prod(sizes))
    places = np.unravel_index(np.where(wrong | (indices < 0), 0, indices), sizes)
    for i, (axis, place) in enumerate(zip(axes, places, strict=True)):
        starts = np.arange(axis.outputs) * axis.stride - axis.lo
        tap = place - starts.reshape([-1 if i + 1 == j else 1 for j in range(place.ndim)])
        wrong |= (indices >= 0) & ((tap < 0) | (tap >= axis.extent) | (tap % axis.dilation != 0))
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0][1:-1])
        reads = [
            [first + tap * axis.dilation for tap in range(axis.window)]
            for first, axis in ((o * axis.stride - axis.lo, axis) for o, axis in zip(at, axes, strict=True))
        ]
        msg = (
            f"{op}: the index {indices[wrong][0]} is not a place of its window, number {at}, which reads "
            f"{' x '.join(map(str, reads))} of an image of {sizes}; window, stride, padding, dilation and size must be "
            f"those of the pool"
        )
        raise FuncconvError(msg)


def _placed(y: Array, indices: Array, axes: Sequence[Axis]) -> Array:
    """Add up the values at their indices.

    The places that windows read are cut into blocks as long as the stride. One block of each window then makes tiles
    that do not overlap, in which each place takes the value or zero, and the blocks' images are shifted and added.

    Returns:
        `(batch, *size, channels)`.
    """
    spread = (y.shape[0], *(each for axis in axes for each in (axis.outputs, 1)), y.shape[-1])
    y, indices = y.reshape(spread), indices.reshape(spread)
    total = math.prod(axis.size for axis in axes)
    images = []
    with_taps = [sorted({tap * axis.dilation // axis.stride for tap in range(axis.window)}) for axis in axes]
    for blocks in product(*with_taps):
        places = [_block(axis, block) for axis, block in zip(axes, blocks, strict=True)]
        number = jnp.zeros((1,) * len(spread), jnp.int32)
        for i, place in enumerate(places):
            rows = math.prod(after.size for after in axes[i + 1 :])
            terms = np.where(place >= 0, place * rows, -total - 1).astype(np.int32)  # the sum is then below zero
            number = number + terms.reshape(1, *(1, 1) * i, *terms.shape, *(1, 1) * (len(axes) - i - 1), 1)
        tiles = jnp.where((indices == number) & (number >= 0), y, jnp.zeros_like(y))
        tiles = tiles.reshape(y.shape[0], *(axis.outputs * axis.stride for axis in axes), y.shape[-1])
        images.append(_shifted(tiles, axes, blocks))
    return functools.reduce(jnp.add, images)


def _block(axis: Axis, block: int) -> np.ndarray:
    """Return the place at each offset within a block of each window, -1 where no tap reads the image."""
    offset = block * axis.stride + np.arange(axis.stride)
    place = np.arange(axis.outputs)[:, None] * axis.stride - axis.lo + offset
    reads = (offset < axis.extent) & (offset % axis.dilation == 0) & (place < axis.size)
    return np.where(reads, place, -1).clip(-1)


def _shifted(tiles: Array, axes: Sequence[Axis], blocks: Sequence[int]) -> Array:
    """Shift one block's tiles to where they lie on the image, which cuts off what lies beside it."""
    starts = [block * axis.stride - axis.lo for block, axis in zip(blocks, axes, strict=True)]
    stops = [start + axis.outputs * axis.stride for start, axis in zip(starts, axes, strict=True)]
    sizes = [axis.size for axis in axes]
    margins = [(max(a, 0), max(n - b, 0), 0) for a, b, n in zip(starts, stops, sizes, strict=True)]
    image = lax.pad(tiles, jnp.zeros((), tiles.dtype), [(0, 0, 0), *margins, (0, 0, 0)])
    for i, (start, size) in enumerate(zip(starts, sizes, strict=True), start=1):
        image = lax.slice_in_dim(image, max(-start, 0), max(-start, 0) + size, axis=i)
    return image

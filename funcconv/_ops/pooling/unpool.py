"""Max unpooling: the transpose of the selection that a max or min pool makes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import in_wide
from ..._common.errors import FuncconvError
from ..._common.mesh_axes import sharded_like
from ..._common.types import Array, ArrayLike, Padding, Shape, Sizes
from ..._primitives.folds import check_places
from ..._primitives.place import put
from ..._windows.geometry import Axis, per_axis, resolve
from ..._windows.layout import as_array, image, spatial_axes
from ..._windows.transposed import transposed_sizes


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
    r"""Put each value at its index in an image of zeros: the transpose of the selection that a max or min pool makes.

    $$x_{j,c} = \sum_{i:\, indices_{i,c} = j} y_{i,c}$$

    With `z, indices = max_pool(x, return_indices=True, ...)` and the same options,
    `<max_unpool(y, indices), x> == <y, z>`. If several windows have the same index, their values are added (PyTorch
    keeps one of them).

    Args:
        y: `(*batch, *positions, channels)`: the values. Pass `layout` for another order.
        indices: integers of the shape of `y`, as `pool` returns them with `return_indices=True`: for each value its
            place in the row-major order of the spatial axes of the result. -1 means no place, and the value is dropped.
        window: taps of a window of the pool (PyTorch's `kernel_size`). One integer for all spatial axes, or one per
            axis; a tuple also sets the number of spatial axes. Default: 2.
        stride: stride of the pool: the step from one window to the next, in positions. One integer for all spatial
            axes, or one per axis. Default: None, the window.
        padding: padding of the pool: positions added before and after each spatial axis; negative numbers crop. One
            integer, one integer per axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding.
            `"SAME"`: the pool gives `ceil(size / stride)` positions; if the total is odd, the extra position comes
            after. `"SAME_LOWER"`: the same, but the extra position comes before. `"HALF"`:
            `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides. `"CAUSAL"`:
            `dilation * (window - 1)` before, none after. Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        size: spatial sizes of the result, one integer or one per axis. A stride above 1 maps images of several sizes to
            the same positions, and this selects one of them. Default: None, the smallest that the pool maps to these
            positions without `ceil_mode`, or `positions * stride` for the paddings `"SAME"`, `"SAME_LOWER"` and
            `"CAUSAL"`.
        spatial: number of spatial axes. Give it if `window` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `y` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. The letters also set the number of spatial axes.
            Default: None, channels last.

    Returns:
        `(*batch, *size, channels)`, with the dtype of `y`. It is linear in `y`. The implementation has no scatter, so
        values are added in the same order on every run.

    Raises:
        FuncconvError: if the indices are not integers of the shape of `y`, if no image of this `size` has that many
            windows, or if an index is not among the positions that its window reads, as after a pool with a `pad_mode`
            that repeats inputs. Under `jax.jit` and other transformations the indices are not known; a value with such
            an index is dropped there.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901; PyTorch's
    `MaxUnpool2d`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([1.0, 4.0, -1.0, 0.0, 2.0, -2.0]).reshape(1, 6, 1)
        >>> fc.max_unpool(*fc.max_pool(x, return_indices=True)).ravel().tolist()
        [0.0, 4.0, 0.0, 0.0, 2.0, 0.0]
    """
    op = "max_unpool"
    known_indices: Any = None if isinstance(indices, jax.core.Tracer) else np.asarray(indices)
    y, indices = as_array(op, "y", y), as_array(op, "indices", indices)
    if indices.shape != y.shape or not jnp.issubdtype(indices.dtype, jnp.integer):
        msg = (
            f"{op}: the indices must be integers of the shape of y, {y.shape}, one for each value; "
            f"got {indices.dtype} of shape {indices.shape}"
        )
        raise FuncconvError(msg)
    axes_and_source = spatial_axes(op, "window", window, spatial)
    inside = image(op, y, *axes_and_source, layout).whole()
    axes = _axes(op, inside.spatial, window, window if stride is None else stride, padding, dilation, size)
    check_places("max_unpool", tuple(axis.size for axis in axes))
    if known_indices is not None:
        _check_indices(op, np.asarray(image(op, known_indices, *axes_and_source, layout).array), axes)
    places = image(op, indices.astype(jnp.int32), *axes_and_source, layout).array
    places = sharded_like(places, inside.array)
    # Values of overlapping windows are added, in float32 for 16-bit values.
    return inside.restore(in_wide(lambda y: put(y, places, axes), inside.array))


def _axes(
    op: str, outputs: Shape, window: Sizes, stride: Sizes, padding: Padding, dilation: Sizes, size: Sizes | None
) -> tuple[Axis, ...]:
    """Return the axes of the pool whose selection is transposed. With a given `size` it may have used `ceil_mode`."""
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
        # `axis.outputs` is the number of windows with ceil_mode, this the number without.
        floor_outputs = 1 + (axis.size + axis.lo + axis.hi - axis.extent) // axis.stride
        if count not in (floor_outputs, axis.outputs):
            possible = " or ".join(str(number) for number in sorted({max(floor_outputs, 0), axis.outputs}))
            msg = (
                f"{op}: a size of {axis.size} on spatial axis {i} has {possible} windows, but y has {count}"
                "; pass the size of the image that was pooled"
            )
            raise FuncconvError(msg)
    return tuple(axis._replace(outputs=count) for axis, count in zip(axes, outputs, strict=True))


def _check_indices(op: str, indices: np.ndarray, axes: Sequence[Axis]) -> None:
    """Raise an error for indices that are not among the positions that their window reads."""
    sizes = tuple(axis.size for axis in axes)
    wrong = (indices < -1) | (indices >= math.prod(sizes))
    places = np.unravel_index(np.where(wrong | (indices < 0), 0, indices), sizes)
    for i, (axis, place) in enumerate(zip(axes, places, strict=True)):
        starts = np.arange(axis.outputs) * axis.stride - axis.lo
        tap = place - starts.reshape([-1 if i + 1 == j else 1 for j in range(place.ndim)])
        wrong |= (indices >= 0) & ((tap < 0) | (tap >= axis.extent) | (tap % axis.dilation != 0))
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0][1:-1])
        firsts = [i * axis.stride - axis.lo for i, axis in zip(position, axes, strict=True)]
        reads = [
            [first + tap * axis.dilation for tap in range(axis.window)]
            for first, axis in zip(firsts, axes, strict=True)
        ]
        msg = (
            f"{op}: the index {indices[wrong][0]} is not a place of its window, number {position}, which reads "
            f"{' x '.join(map(str, reads))} of an image of {sizes}; window, stride, padding, dilation and size must be "
            f"those of the pool"
        )
        raise FuncconvError(msg)

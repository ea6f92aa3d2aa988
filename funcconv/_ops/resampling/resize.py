"""Resizing of images, and downsampling by a blur."""

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._common.dtypes import in_wide
from ..._common.eager import one_program
from ..._common.errors import FuncconvError
from ..._common.types import Array, ArrayLike, Number, Padding, PadMode, Shape, Sizes
from ..._primitives.take import take, weighted_sums
from ..._windows.geometry import pad_modes, per_axis, resolve
from ..._windows.layout import as_array, image, spatial_axes
from ..._windows.sampling import (
    SELECTIONS,
    Coordinates,
    check_options,
    interpolated,
    is_identity,
    samplings,
    selected,
)
from ..._windows.taps import merge
from ..conv import conv
from ..pooling.adaptive import adaptive_pool


@one_program
def resize(
    x: ArrayLike,
    size: Sizes | None = None,
    *,
    scale: Number | Sequence[Number] | None = None,
    method: str = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
    coordinates: Coordinates | Sequence[Coordinates] | None = None,
    cubic_coefficient: Number | None = None,
    exclude_outside: bool | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Resize the spatial axes: upsampling, or downsampling, by interpolation.

    $$y_{i,c} = \sum_j w(i, j)\; x_{j,c}$$

    Each spatial axis is resized by itself, so an image has the product of the weights of its axes. Position `i` of an
    axis has its centre at `(i + 0.5) * step - 0.5`, counted in inputs, where `step` is the old size divided by the new
    one. Inputs beyond the ends of an axis are those at the ends. The defaults are those of PyTorch.

    Args:
        x: `(*batch, *spatial, channels)`. `"nearest"` and `"nearest-exact"` accept integers too. Pass `layout` for
            another order.
        size: spatial sizes of the result. One integer for all spatial axes, or one per axis; a tuple also sets the
            number of spatial axes. Pass either `size` or `scale`. Default: None.
        scale: instead of `size`, the factors by which the sizes are multiplied, above 0. One number for all spatial
            axes, or one per axis; a tuple also sets the number of spatial axes. Sizes are rounded down, and `step` is
            `1 / scale`, as in PyTorch with its default `recompute_scale_factor=None`. As there, an axis whose size does
            not change stays as it is for `"nearest"`, `"linear"` and with `antialias`. Default: None.
        method: how a position is computed. Default: `"nearest"`. One of

            - `"nearest"`: the input at `floor(i * step)`;
            - `"nearest-exact"`: the input nearest to the centre, `floor((i + 0.5) * step)`;
            - `"linear"`: the two inputs on either side of the centre on each axis (bilinear, trilinear);
            - `"cubic"`: the four inputs around the centre on each axis (bicubic), with Keys' kernel and `a = -0.75`;
            - `"area"`: the mean of the inputs from `floor(i * step)` to `ceil((i + 1) * step)`, as `adaptive_pool`.
        align_corners: whether the first and the last positions have their centres at the first and the last inputs, so
            that the centre is at `i * (old - 1) / (new - 1)`. For `"linear"` and `"cubic"`. `scale` then sets the size
            only. Default: False.
        antialias: whether the kernel of `"linear"` and `"cubic"` is stretched by `step` where an axis becomes smaller,
            so that every input has an influence. The cubic kernel then has `a = -0.5`, and inputs beyond the ends have
            no influence, as in PyTorch and Pillow. Default: False.
        coordinates: other centres of the positions, counted in inputs, for all methods but `"area"`; `"nearest"` rounds
            them down, and `"nearest-exact"` to the nearest input. One for all spatial axes, or one per axis:
            `"half_pixel"`: `(i + 0.5) * step - 0.5`. `"asymmetric"`: `i * step`, as TensorFlow 1 without
            `half_pixel_centers`. A pair of numbers `(first, last)`: evenly spaced centres from the first position to
            the last one, which resize a part of the axis; a single position is in the middle. `scale` then sets the
            size only. No axis is left as it is because its size does not change. Default: None, the centres that are
            described above.
        cubic_coefficient: the coefficient `a` of the kernel of `"cubic"`. TensorFlow and `jax.image` have -0.5.
            Default: None, -0.75, and -0.5 with `antialias`.
        exclude_outside: for `"linear"` and `"cubic"`, whether inputs beyond the ends of an axis have the weight 0 and
            the other weights are divided by their sum, as in TensorFlow and `jax.image`. Otherwise they are those at
            the ends. Default: None, the value of `antialias`.
        spatial: number of spatial axes. Give it if `size` or `scale` is one number and there is not exactly one batch
            axis. Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        `(*batch, *size, channels)`, with the dtype of `x`. It is linear in `x`. Floats of 16 bits and fewer are summed
        in float32, in the result and in its derivatives. The implementation has no scatter.

    Raises:
        FuncconvError: if neither or both of `size` and `scale` are given, if an option has another value than listed
            above or does not apply to the method, if `align_corners` and `coordinates` are given, if a pair of
            coordinates is outside of the axis with `exclude_outside`, if a size of the result is below 1, or if `x` has
            integers that the method would have to round.

    Source: PyTorch's documentation of `torch.nn.functional.interpolate`; Keys, "Cubic convolution interpolation for
    digital image processing", 1981; ONNX's `Resize` for the other coordinates, whose `nearest_mode` is `floor` for
    `"nearest"` and `round_prefer_ceil` for `"nearest-exact"`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([0.0, 4.0, 8.0]).reshape(1, 3, 1)
        >>> fc.resize(x, 6).ravel().tolist(), fc.resize(x, 6, method="linear").ravel().tolist()
        ([0.0, 0.0, 4.0, 4.0, 8.0, 8.0], [0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
        >>> fc.resize(x, scale=5 / 3, method="linear", align_corners=True).ravel().tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
        >>> fc.resize(x, 3, method="linear", coordinates=(0.5, 1.5)).ravel().tolist()
        [2.0, 4.0, 6.0]
    """
    op = "resize"
    x = as_array(op, "the input", x)
    if (size is None) == (scale is None):
        msg = f"{op}: pass either size= or scale=; got size={size!r} and scale={scale!r}"
        raise FuncconvError(msg)
    options: dict[str, Any] = {
        "align_corners": align_corners,
        "antialias": antialias,
        "coordinates": coordinates,
        "cubic_coefficient": cubic_coefficient,
        "exclude_outside": exclude_outside,
    }
    check_options(op, method, **options)
    if method not in SELECTIONS:
        _check_floats(op, f"the method {method!r}", x)
    name, given = ("size", size) if scale is None else ("scale", scale)
    inside = image(op, x, *spatial_axes(op, name, given, spatial), layout).whole()
    old = inside.spatial
    resolve(op, old, 1)  # raises an error for empty axes
    scales: Sequence[float | None] = [None] * len(old)
    if scale is None:
        new = per_axis(op, "size", size, len(old), least=1)  # type: ignore[arg-type]
    else:
        scales, new = scaled_sizes(op, old, scale)
    if method == "area":
        return inside.restore(adaptive_pool(inside.array, new))

    axes = samplings(op, old, new, scales, method=method, **options)

    def resized(array: Array) -> Array:
        for i, axis in enumerate(axes, start=1):
            if method in SELECTIONS:
                array = _selected_places(array, i, selected(axis))
                continue
            rows = interpolated(axis)
            array = array if is_identity(rows, axis.size) else weighted_sums(array, i, rows)
        return array

    return inside.restore(in_wide(resized, inside.array))


@one_program
def blur_pool(
    x: ArrayLike,
    window: Sizes = 3,
    *,
    stride: Sizes = 2,
    padding: Padding | None = None,
    pad_mode: PadMode = "reflect",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Blur each channel and keep every `stride`-th position: downsampling that is almost shift-equivariant.

    $$y_{i,c} = \sum_{t} \binom{window - 1}{t}\, 2^{1 - window}\; x_{i \cdot stride - lo + t,\, c}$$

    on one axis, where `lo` is the padding before the axis; on several axes the weights are multiplied. It is a
    depthwise convolution with a binomial filter. To replace a max pool with stride 2, use
    `blur_pool(max_pool(x, 2, stride=1))`; to replace a convolution with stride 2, use the convolution with stride 1
    first.

    Args:
        x: `(*batch, *spatial, channels)`, floating or complex. Pass `layout` for another order.
        window: length of the filter. One integer for all spatial axes, or one per axis; a tuple also sets the number of
            spatial axes. Default: 3, the filter `(1, 2, 1) / 4`.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 2.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the result has
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `(window - 1) // 2` on both sides. `"FULL"`:
            `window - 1` on both sides. `"CAUSAL"`: `window - 1` before, none after. Default: None, `(window - 1) // 2`
            before and `window // 2` after, as in the paper, which gives `ceil(size / stride)` positions.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"reflect"`.
        spatial: number of spatial axes. Give it if `window` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        `(*batch, *positions, channels)`, with the dtype of `x`. It is linear in `x`. Floats of 16 bits and fewer are
        summed in float32.

    Raises:
        FuncconvError: if `x` has integers, if an option has another value than listed above, or if a window does not
            fit.

    Source: Zhang, "Making convolutional networks shift-invariant again", 2019, arXiv:1904.11486.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.blur_pool(jnp.array([0.0, 4.0, 0.0, 0.0]).reshape(1, 4, 1)).ravel().tolist()
        [2.0, 1.0]
    """
    op = "blur_pool"
    x = as_array(op, "the input", x)
    _check_floats(op, "a blur", x)
    inside = image(op, x, *spatial_axes(op, "window", window, spatial), layout)
    n = len(inside.spatial)
    windows = per_axis(op, "window", window, n, least=1)
    if padding is None:
        padding = tuple(((k - 1) // 2, k // 2) for k in windows)
    # These raise errors in the name of this op.
    resolve(op, inside.spatial, windows, stride=stride, padding=padding)
    pad_modes(op, pad_mode, n)
    channels = inside.array.shape[-1]
    weights = reduce(np.multiply.outer, map(binomial, windows))

    def blurred(array: Array) -> Array:
        kernel = jnp.broadcast_to(jnp.asarray(weights, array.dtype)[..., None, None], (*windows, 1, channels))
        return conv({"kernel": kernel}, array, stride=stride, padding=padding, pad_mode=pad_mode, groups=channels)

    return inside.restore(in_wide(blurred, inside.array))


def _selected_places(x: Array, axis: int, places: Sequence[int]) -> Array:
    """Return the inputs at increasing places of an axis: by a broadcast or a slice where possible, which are fast."""
    size, times = x.shape[axis], max(len(places) // x.shape[axis], 1)
    if places == [i // times for i in range(size * times)]:
        if times == 1:
            return x
        copies = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), (*x.shape[: axis + 1], times, *x.shape[axis + 1 :]))
        return merge(copies, axis, 2)
    first, last = places[0], places[-1]
    step = places[1] - first if len(places) > 1 else 1
    if step and places == list(range(first, last + 1, step)):
        return lax.slice_in_dim(x, first, last + 1, step, axis=axis)
    return take(x, axis, places)


def binomial(window: int) -> np.ndarray:
    """Return the binomial filter of this length, whose sum is 1."""
    return np.array([math.comb(window - 1, tap) / 2 ** (window - 1) for tap in range(window)])


def _check_floats(op: str, what: str, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        msg = f"{op}: {what} gives fractions, which {x.dtype} would round; cast first, as in x.astype(jnp.float32)"
        raise FuncconvError(msg)


def scaled_sizes(op: str, sizes: Shape, scale: Number | Sequence[Number]) -> tuple[tuple[float, ...], Shape]:
    """Return the scale of each axis, and the sizes that it gives."""
    n = len(sizes)
    scales = tuple(scale) if isinstance(scale, Sequence) else (scale,) * n
    numbers = [value for value in scales if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(scales) != n or len(numbers) != n or not all(0 < value < math.inf for value in numbers):
        msg = f"{op}: scale must be a number above 0 or {n} of them, one for each spatial axis; got {scale!r}"
        raise FuncconvError(msg)
    new = tuple(math.floor(size * factor) for size, factor in zip(sizes, scales, strict=True))
    if 0 in new:
        axis = new.index(0)
        msg = (
            f"{op}: a scale of {scales[axis]} leaves none of the {sizes[axis]} positions of spatial axis {axis}; the "
            f"scale must be at least 1/{sizes[axis]}"
        )
        raise FuncconvError(msg)
    return tuple(map(float, scales)), new

"""Convolution."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from .._common.dtypes import wide
from .._common.types import Array, ArrayLike, DTypeLike, Padding, PadMode, Params, Precision, Sizes
from .._windows.geometry import Axis, resolve, split_padding
from .._windows.layout import Image, image
from .._windows.masks import (
    any_tap,
    check_padding_modes,
    count_taps,
    image_mask,
    padded_real,
    windows_mask,
    zero_masked,
)
from .._windows.padding import pad
from .conv_options import MAPS, conv_options, flipped
from .parameters import add_bias, check_bias, check_channels, hint_added, kernel_and_bias, other_order


def conv(
    params: Params,
    x: ArrayLike,
    /,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    mask: ArrayLike | None = None,
    renormalize: bool = False,
    layout: str | None = None,
    flip: bool = False,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> Array:
    r"""Convolve the spatial axes of `x` with a kernel (cross-correlation, as in PyTorch and Flax).

    $$y_{i,d} = b_d + \sum_{t} \sum_{c} x_{i \cdot stride - lo + t \cdot dilation,\, c}\; w_{t,c,d}$$

    for every position `i`, output channel `d` and tap `t` of the window. The sum is over the input channels `c` of the
    group of `d`, and `lo` is the padding before the axis.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`. Omit the bias, or set it to None, for none.
            The number of spatial axes is the number of axes of the kernel minus two.
        x: `(*batch, *spatial, in)`, floating or complex, with any number of batch axes. Pass `layout` for another
            order.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the result has
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others count as padding, and may contain anything. The result is zero at positions that
            are not real in it, which `conv_mask` tells. Default: None, all.
        renormalize: whether to multiply each sum, without the bias, by the number of taps of the window divided by the
            number of taps on real positions, as in partial convolution. Padding does not count as real, with `mask` and
            without. A result is then real, and not zero, if any tap of its window is on a real position.
            Default: False.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold `x.dtype`.
            The result always has the dtype of `x`. Default: None, the platform's choice, at least float32 for 16-bit
            inputs.
        implementation: how the result is computed. None: funcconv chooses a form that is fast for the shape and the
            platform (`funcconv.explain` shows which). `"fft"`: fast Fourier transforms, whose rounding errors are
            relative to the norms of the operands; infinities and NaNs spread. `"lax"`: the traced program contains only
            operations of `jax.lax`, for tools that know no others. Default: None.

    Returns:
        `(*batch, *positions, out)`, with the dtype of `x`. Each spatial axis has
        `1 + (size + before + after - extent) // stride` positions, where `extent = 1 + (window - 1) * dilation` is the
        number of positions that a window spans.

    Raises:
        FuncconvError: if `params` has no kernel or an unknown entry, if `x`, kernel and bias differ in dtype or are
            integers, if channels, groups or bias do not match the kernel, if an option has another value than listed
            above, or if a window does not fit.
        ValueError: from JAX, if `precision` is unknown.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [2.0], [3.0], [4.0]])  # four positions, one channel, no batch axis
        >>> kernel = jnp.array([3.0, 2.0]).reshape(2, 1, 1)
        >>> fc.conv({"kernel": kernel}, x)[:, 0].tolist()
        [7.0, 12.0, 17.0]
    """
    kernel, bias, x = kernel_and_bias("conv", params, x)
    options = conv_options("conv", kernel, groups, pad_mode, precision, accumulate_dtype, implementation, x.dtype)
    window = kernel.shape[:-2]
    inside = image("conv", x, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends or mask is not None or renormalize:
        inside = inside.whole()
    hint = other_order(kernel.shape, groups, inside.array.shape[-1])
    check_channels("conv", inside, kernel.shape[-2] * groups, "takes", hint)
    check_bias("conv", bias, kernel.shape[-1:])
    first = inside.spatial[0]  # a PyTorch kernel (out, in, *window) seems to have a window of `out`, which may not fit
    with hint_added(hint if isinstance(first, int) and window[0] > first else ""):
        axes = resolve("conv", inside.spatial, window, stride=stride, padding=padding, dilation=dilation)
    real = _real("conv", mask, x, inside, layout, axes, options.modes) if mask is not None or renormalize else None
    array, whole_axes = zero_masked(inside.array, real), axes
    if options.extends:  # other modes than zeros are padded here; each form adds the zeros in the way that suits it
        filled, axes = split_padding(axes, options.modes)
        array = pad(array, filled, options.modes)
    forward, _ = MAPS[options.implementation]
    y = forward(array, flipped(kernel, flip), options.form(axes))
    if real is None:
        return inside.restore(add_bias(y, bias).astype(x.dtype))
    if renormalize:
        padded = padded_real(real, whole_axes)
        y = y.astype(wide(y.dtype))
        y = y * (math.prod(window) / jnp.maximum(count_taps(padded, whole_axes), 1).astype(y.dtype))
        real = any_tap(padded, whole_axes)
    else:
        real = windows_mask("conv", real, whole_axes, padding)
    return inside.restore(zero_masked(add_bias(y, bias).astype(x.dtype), real))


def _real(
    op: str,
    mask: ArrayLike | None,
    x: Array,
    inside: Image,
    layout: str | None,
    axes: Sequence[Axis],
    modes: Sequence[str | None],
) -> Array:
    """Return which positions of an image are real: those of the mask, or all without one."""
    check_padding_modes(op, axes, modes)
    if mask is None:
        return jnp.ones((1, *inside.spatial, 1), bool)
    return image_mask(op, mask, x.shape, len(inside.spatial), layout)

"""Transposed convolution."""

from typing import Any

import jax

from .._common.types import Array, ArrayLike, DTypeLike, Padding, PadMode, Params, Precision, Sizes
from .._windows.geometry import resolve, split_padding
from .._windows.layout import image
from .._windows.masks import check_padding_modes, image_mask, transposed_mask, zero_masked
from .._windows.padding import pad
from .._windows.transposed import transposed_sizes
from .conv_options import MAPS, conv_options, flipped
from .parameters import add_bias, check_bias, check_channels, kernel_and_bias, other_order_transposed


def conv_transpose(
    params: Params,
    y: ArrayLike,
    /,
    *,
    size: Sizes | None = None,
    output_padding: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    mask: ArrayLike | None = None,
    layout: str | None = None,
    flip: bool = False,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> Array:
    r"""Apply the transpose of a convolution: the linear map from its outputs back to its inputs.

    For every `x` and `y`, with the same kernel and the same options,

    $$\langle conv(x), y \rangle = \langle x, conv\_transpose(y) \rangle$$

    where `conv` has no bias, and complex numbers are not conjugated. This map is the gradient of `conv` with respect to
    its input.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (in,)}`, where `in` and `out` are the channels of the
            convolution that is transposed, and the kernel is its kernel. The bias is added to the result. Omit it, or
            set it to None, for none.
        y: `(*batch, *positions, out)`, floating or complex, with any number of batch axes. Pass `layout` for another
            order.
        size: spatial sizes of the result, one integer or one per axis. A stride above 1 maps images of several sizes to
            the same positions, and this selects one of them. Default: None, the smallest, or `positions * stride` for
            the paddings `"SAME"`, `"SAME_LOWER"` and `"CAUSAL"`.
        output_padding: PyTorch's way to select the size: the difference between the size and the smallest one, below
            the larger of `stride` and `dilation` (below `stride` for `"SAME"` and `"SAME_LOWER"`). One integer or one
            per axis; do not combine it with `size`. From `stride` on, the convolution maps the result to more positions
            than `y` has, and the equation above holds for the positions of `y`. Default: None.
        stride: stride of the convolution that is transposed: the step from one window to the next, in positions. One
            integer for all spatial axes, or one per axis. Default: 1.
        padding: padding of the convolution that is transposed: positions added before and after each spatial axis;
            negative numbers crop. One integer, one integer per axis, one pair `(before, after)` per axis, or a name.
            `"VALID"`: no padding. `"SAME"`: that convolution gives `ceil(size / stride)` positions; if the total is
            odd, the extra position comes after. `"SAME_LOWER"`: the same, but the extra position comes before.
            `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides.
            `"CAUSAL"`: `dilation * (window - 1)` before, none after. Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each channel of the result reads only the `out // groups` channels of `y`
            in its group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`. Here a
            position whose value the padding repeats receives the sum of all its copies. Default: `"zeros"`.
        mask: which positions of `y` are real, `(*batch, *positions)`, boolean; for images or sequences of different
            sizes in one batch. The others may contain anything. The result is zero at positions that are not real in
            it, which `conv_mask` tells with `transpose=True`. Default: None, all.
        layout: order of the axes of `y` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold `y.dtype`.
            The result always has the dtype of `y`. Default: None, the platform's choice, at least float32 for 16-bit
            inputs.
        implementation: how the result is computed. None: funcconv chooses a form that is fast for the shape and the
            platform (`funcconv.explain` shows which). `"fft"`: fast Fourier transforms, whose rounding errors are
            relative to the norms of the operands; infinities and NaNs spread. `"lax"`: the traced program contains only
            operations of `jax.lax`, for tools that know no others. Default: None.

    Returns:
        `(*batch, *size, in)`, with the dtype of `y`. The smallest size on each axis is
        `(positions - 1) * stride + extent - before - after`, where `extent = 1 + (window - 1) * dilation`.

    Raises:
        FuncconvError: if `params` has no kernel or an unknown entry, if `y`, kernel and bias differ in dtype or are
            integers, if channels, groups or bias do not match the kernel, if an option has another value than listed
            above, or if the convolution does not map any image of the given size to the positions of `y`.
        ValueError: from JAX, if `precision` is unknown.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> y = fc.conv({"kernel": kernel}, jnp.ones((1, 5, 5, 1)), stride=2)
        >>> y.shape, fc.conv_transpose({"kernel": kernel}, y, stride=2).shape
        ((1, 2, 2, 1), (1, 5, 5, 1))
    """
    op = "conv_transpose"
    kernel, bias, y = kernel_and_bias(op, params, y)
    options = conv_options(op, kernel, groups, pad_mode, precision, accumulate_dtype, implementation, y.dtype)
    window = kernel.shape[:-2]
    inside = image(op, y, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends or mask is not None:
        inside = inside.whole()
    hint = other_order_transposed(kernel.shape, groups, inside.array.shape[-1])
    check_channels(op, inside, kernel.shape[-1], "gives", hint)
    channels = kernel.shape[-2] * groups
    check_bias(op, bias, (channels,))
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    sizes = transposed_sizes(op, inside.spatial, window, size=size, output_padding=output_padding, **geometry)
    axes = resolve(op, sizes, window, **geometry)
    # With an output_padding of at least the stride, the convolution has more windows than y has positions.
    axes = tuple(axis._replace(outputs=count) for axis, count in zip(axes, inside.spatial, strict=True))
    real = None
    if mask is not None:
        check_padding_modes(op, axes, options.modes)
        real = image_mask(op, mask, y.shape, len(window), layout)
        inside = inside._replace(array=zero_masked(inside.array, real))
        real = transposed_mask(real, axes)
    filled, axes = split_padding(axes, options.modes)
    _, backward = MAPS[options.implementation]
    dtype = options.accumulate_dtype or y.dtype
    x = backward(flipped(kernel, flip).astype(dtype), inside.array.astype(dtype), options.form(axes))
    if options.extends:
        image_type = jax.typeof(x).update(shape=(x.shape[0], *sizes, channels))
        (x,) = jax.linear_transpose(lambda x: pad(x, filled, options.modes), image_type)(x)
    return inside.restore(zero_masked(add_bias(x, bias).astype(y.dtype), real))

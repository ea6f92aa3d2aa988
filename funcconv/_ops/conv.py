"""Convolution and its transpose."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array, ArrayLike, DTypeLike, Padding, PadMode, Params, Precision, Sizes
from .._primitives import conv as _primitives
from .._primitives.forms import Form, library, reference, reference_input_grad
from .._primitives.tuning import current_tuning_forms
from .._windows.geometry import Axis, pad_modes, resolve, split_padding
from .._windows.layout import image
from .._windows.padding import pad
from .._windows.transposed import transposed_sizes
from .parameters import (
    add_bias,
    check_accumulate,
    check_bias,
    check_channels,
    check_groups,
    check_kernel,
    hint_added,
    kernel_and_bias,
    other_order,
    other_order_transposed,
)

Map: TypeAlias = Callable[[Array, Array, Form], Array]


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
    options = _options("conv", kernel, groups, pad_mode, precision, accumulate_dtype, implementation, x.dtype)
    window = kernel.shape[:-2]
    inside = image("conv", x, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends:
        inside = inside.whole()
    hint = other_order(kernel.shape, groups, inside.array.shape[-1])
    check_channels("conv", inside, kernel.shape[-2] * groups, "takes", hint)
    check_bias("conv", bias, kernel.shape[-1:])
    first = inside.spatial[0]  # a PyTorch kernel (out, in, *window) seems to have a window of `out`, which may not fit
    with hint_added(hint if isinstance(first, int) and window[0] > first else ""):
        axes = resolve("conv", inside.spatial, window, stride=stride, padding=padding, dilation=dilation)
    array = inside.array
    if options.extends:  # other modes than zeros are padded here; each form adds the zeros in the way that suits it
        filled, axes = split_padding(axes, options.modes)
        array = pad(array, filled, options.modes)
    forward, _ = _MAPS[options.implementation]
    y = forward(array, _flipped(kernel, flip), options.form(axes))
    return inside.restore(add_bias(y, bias).astype(x.dtype))


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
    options = _options(op, kernel, groups, pad_mode, precision, accumulate_dtype, implementation, y.dtype)
    window = kernel.shape[:-2]
    inside = image(op, y, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends:
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
    filled, axes = split_padding(axes, options.modes)
    _, backward = _MAPS[options.implementation]
    dtype = options.accumulate_dtype or y.dtype
    x = backward(_flipped(kernel, flip).astype(dtype), inside.array.astype(dtype), options.form(axes))
    if options.extends:
        image_type = jax.typeof(x).update(shape=(x.shape[0], *sizes, channels))
        (x,) = jax.linear_transpose(lambda x: pad(x, filled, options.modes), image_type)(x)
    return inside.restore(add_bias(x, bias).astype(y.dtype))


class _Options(NamedTuple):
    """The options that do not depend on the sizes of the image."""

    modes: tuple[str | None, ...]
    groups: int
    precision: Precision
    accumulate_dtype: DTypeLike | None
    implementation: str | None

    @property
    def extends(self) -> bool:
        """Whether the padding of an axis contains inputs."""
        return any(mode != "zeros" for mode in self.modes)

    def form(self, axes: tuple[Axis, ...]) -> Form:
        """Return the static description of the convolution over these axes."""
        *_, groups, precision, accumulate, implementation = self
        return Form(axes, groups, precision, accumulate, library.value, current_tuning_forms(), implementation)


def _options(
    op: str,
    kernel: Array,
    groups: int,
    pad_mode: PadMode,
    precision: Precision,
    accumulate_dtype: DTypeLike | None,
    implementation: str | None,
    dtype: DTypeLike,
) -> _Options:
    """Check the options that `conv` and `conv_transpose` share."""
    check_kernel(op, kernel)
    check_groups(op, groups, kernel.shape)
    if implementation not in _MAPS:
        hint = suggest(implementation, [name for name in _MAPS if name is not None])
        msg = f"{op}: unknown implementation {implementation!r}{hint}"
        raise FuncconvError(msg)
    check_accumulate(op, accumulate_dtype, dtype)
    accumulate = None if accumulate_dtype is None else jnp.dtype(accumulate_dtype)
    return _Options(pad_modes(op, pad_mode, kernel.ndim - 2), groups, precision, accumulate, implementation)


def _flipped(kernel: Array, flip: bool) -> Array:  # noqa: FBT001
    return lax.rev(kernel, range(kernel.ndim - 2)) if flip else kernel


_MAPS: dict[str | None, tuple[Map, Map]] = {  # the convolution, and its input gradient
    None: (_primitives.conv, _primitives.conv_input_grad),
    "fft": (_primitives.conv, _primitives.conv_input_grad),
    "lax": (reference, reference_input_grad),
}

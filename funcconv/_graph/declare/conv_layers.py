"""Convolutions as layers that draw their kernel for the channels of their input."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.types import Array, Shape, Sizes
from ..._ops.conv import conv
from ..._ops.conv_transpose import conv_transpose
from ..._ops.init import init_conv, init_conv_transpose, init_local_conv
from ..._ops.local_conv import local_conv
from ..._windows.geometry import Axis, per_axis
from ..._windows.reach import of_transpose
from ..._windows.transposed import transposed_sizes
from .windowed import _ConvolutionLayer


@dataclass(frozen=True, repr=False)
class Conv(_ConvolutionLayer):
    """Convolution as a layer: `fc.conv` with a kernel that is drawn for the channels of its input.

    Call it on a node `(*spatial, in)`; it returns a node `(*positions, out_channels)`. Its parameters are
    `{"kernel": (*window, in // groups, out_channels), "bias": (out_channels,)}`. If you call one layer object several
    times, its uses share these parameters. If `window` is one integer, all axes of the input except the channels are
    spatial axes.

    Args:
        out_channels: number of channels of the result.
        window: taps of the kernel (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
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
        groups: number of groups of channels, which must divide the input channels and `out_channels`. Each output
            channel reads only the input channels of its group; as many groups as input channels give a depthwise
            convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        renormalize: whether to multiply each sum, without the bias, by the number of taps of the window divided by the
            number of taps on real positions, as in partial convolution. Padding, and what an `fc.Masked` input hides,
            is not real. Default: False.
        layout: order of the axes of the input and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for
            all batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold the dtype of
            the input. The result always has the dtype of the input. Default: None, the platform's choice, at least
            float32 for 16-bit inputs.
        implementation: how the result is computed. None: funcconv chooses a form that is fast for the shape and the
            platform (`funcconv.explain` shows which). `"fft"`: fast Fourier transforms, whose rounding errors are
            relative to the norms of the operands; infinities and NaNs spread. `"lax"`: the traced program contains only
            operations of `jax.lax`, for tools that know no others. Default: None.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups` and `fan_out = taps * out_channels`.
            Except for `"torch"` the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `conv1`, `conv2`, ... in
            order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if `out_channels` or `window` is not positive. Other options are checked at the latest by
            `graph.init`; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (32, 32, 3))
        >>> graph = fc.Graph(x, fc.Conv(16, 3, padding="SAME", stride=2)(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((4, 32, 32, 3))).shape
        (4, 16, 16, 16)
    """

    renormalize: bool = field(default=False, kw_only=True)
    implementation: str | None = field(default=None, kw_only=True)

    _options: ClassVar[tuple[str, ...]] = (*_ConvolutionLayer._options, "renormalize", "implementation")

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        sizes, channels = self.image(shape)
        return init_conv(key, channels, self.out_channels, self.window, spatial=len(sizes), **self.drawn())

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Convolve."""
        del batch  # the kernel says how many axes are spatial
        (x,) = xs
        return conv(params, x, **self.options())


@dataclass(frozen=True, repr=False)
class ConvTranspose(_ConvolutionLayer):
    """Transposed convolution as a layer: `fc.conv_transpose`, the transpose of `fc.conv` with the same options.

    Call it on a node `(*positions, in)`; it returns a node `(*size, out_channels)`. Its parameters are
    `{"kernel": (*window, out_channels // groups, in), "bias": (out_channels,)}`, the kernel of the convolution that is
    transposed. If you call one layer object several times, its uses share these parameters. If `window` is one integer,
    all axes of the input except the channels are spatial axes.

    Args:
        out_channels: number of channels of the result.
        window: taps of the kernel (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
        size: spatial sizes of the result, one integer or one per axis. A stride above 1 maps images of several sizes to
            the same positions, and this selects one of them. Default: None, the smallest, or `positions * stride` for
            the paddings `"SAME"`, `"SAME_LOWER"` and `"CAUSAL"`.
        output_padding: PyTorch's way to select the size: the difference between the size and the smallest one, below
            the larger of `stride` and `dilation` (below `stride` for `"SAME"` and `"SAME_LOWER"`). One integer or one
            per axis; do not combine it with `size`. Default: None.
        stride: stride of the convolution that is transposed: the step from one window to the next, in positions. One
            integer for all spatial axes, or one per axis. Default: 1.
        padding: padding of the convolution that is transposed: positions added before and after each spatial axis;
            negative numbers crop. One integer, one integer per axis, one pair `(before, after)` per axis, or a name.
            `"VALID"`: no padding. `"SAME"`: the result of that convolution has `ceil(size / stride)` positions; if the
            total is odd, the extra position comes after. `"SAME_LOWER"`: the same, but the extra position comes before.
            `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides.
            `"CAUSAL"`: `dilation * (window - 1)` before, none after. Default: 0.
        dilation: dilation of the convolution that is transposed: the step from one tap of a window to the next, in
            positions. One integer for all spatial axes, or one per axis. Default: 1.
        groups: number of groups of channels, which must divide the input channels and `out_channels`. Each output
            channel reads only the input channels of its group. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`. Here a
            position whose value the padding repeats receives the sum of all its copies. Default: `"zeros"`.
        layout: order of the axes of the input and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for
            all batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold the dtype of
            the input. The result always has the dtype of the input. Default: None, the platform's choice, at least
            float32 for 16-bit inputs.
        implementation: how the result is computed. None: funcconv chooses a form that is fast for the shape and the
            platform (`funcconv.explain` shows which). `"fft"`: fast Fourier transforms, whose rounding errors are
            relative to the norms of the operands; infinities and NaNs spread. `"lax"`: the traced program contains only
            operations of `jax.lax`, for tools that know no others. Default: None.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups`, but for `"torch"` it is
            `taps * out_channels // groups`, as PyTorch counts; `fan_out = taps * out_channels`. Except for `"torch"`
            the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `conv_transpose1`,
            `conv_transpose2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if `out_channels` or `window` is not positive. Other options are checked at the latest by
            `graph.init`; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 4))
        >>> graph = fc.Graph(x, fc.ConvTranspose(2, 4, stride=2, padding=1)(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((1, 8, 8, 4))).shape
        (1, 16, 16, 2)
    """

    size: Sizes | None = field(default=None, kw_only=True)
    output_padding: Sizes | None = field(default=None, kw_only=True)
    implementation: str | None = field(default=None, kw_only=True)

    _options: ClassVar[tuple[str, ...]] = (*_ConvolutionLayer._options, "size", "output_padding", "implementation")

    def axes(self, sizes: Shape) -> tuple[Axis, ...]:
        """Return how the windows lie on the image that is the result."""
        window = per_axis(self.label, "window", self.window, len(sizes), least=1)
        image = transposed_sizes(
            self.label,
            sizes,
            window,
            size=self.size,
            output_padding=self.output_padding,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        axes = super().axes(image)  # which a large output_padding gives further windows
        return tuple(axis._replace(outputs=count) for axis, count in zip(axes, sizes, strict=True))

    seen = staticmethod(of_transpose)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        sizes, channels = self.image(shape)
        return init_conv_transpose(key, channels, self.out_channels, self.window, spatial=len(sizes), **self.drawn())

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Convolve backwards."""
        del batch
        (x,) = xs
        return conv_transpose(params, x, **self.options())


@dataclass(frozen=True, repr=False)
class LocalConv(_ConvolutionLayer):
    """Locally connected layer: `fc.local_conv`, a convolution with a separate kernel at each position.

    Call it on a node `(*spatial, in)`; it returns a node `(*positions, out_channels)`. Its parameters are
    `{"kernel": (*positions, *window, in // groups, out_channels), "bias": (*positions, out_channels)}`. If you call one
    layer object several times, its uses share these parameters. If `window` is one integer, all axes of the input
    except the channels are spatial axes.

    Args:
        out_channels: number of channels of the result.
        window: taps of each kernel (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
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
        groups: number of groups of channels, which must divide the input channels and `out_channels`. Each output
            channel reads only the input channels of its group; as many groups as input channels give a depthwise
            convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        layout: order of the axes of the input and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for
            all batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse each kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold the dtype of
            the input. The result always has the dtype of the input. Default: None, the platform's choice, at least
            float32 for 16-bit inputs.
        bias: whether to add a bias, a separate one at every position. Default: True.
        init: how to draw the kernel of each position: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance
            `2 / fan_in`), `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform
            within `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups` and `fan_out = taps * out_channels`.
            Except for `"torch"` the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `local_conv1`,
            `local_conv2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if `out_channels` or `window` is not positive. Other options are checked at the latest by
            `graph.init`; the message names the node.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (6, 6, 1))
        >>> graph = fc.Graph(x, fc.LocalConv(2, 3)(x))
        >>> graph.init(jax.random.key(0))["local_conv1"]["kernel"].shape
        (4, 4, 3, 3, 1, 2)
    """

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        sizes, channels = self.image(shape)
        positions = tuple(axis.outputs for axis in self.axes(sizes))
        return init_local_conv(key, channels, self.out_channels, self.window, positions, **self.drawn())

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Convolve with the weights of each position."""
        del batch
        (x,) = xs
        return local_conv(params, x, **self.options())

"""Convolutions as layers that draw their kernel for the channels of their input."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.types import Array, Shape, Sizes
from ..._ops.conv import conv, conv_transpose
from ..._ops.init import init_conv, init_conv_transpose, init_local_conv
from ..._ops.local_conv import local_conv
from ..._windows.geometry import Axis, per_axis
from ..._windows.reach import of_transpose
from ..._windows.transposed import transposed_sizes
from .windowed import _ConvolutionLayer


@dataclass(frozen=True, repr=False)
class Conv(_ConvolutionLayer):
    """A convolution as a layer: `conv`, with a kernel that is drawn for the channels of the input.

    Args:
        out_channels: the number of channels of the result.
        window: taps of the kernel: an integer for all spatial axes, or one for each.
        stride: places from one window to the next: an integer, or one for each spatial axis. Default: 1.
        padding: places added before and after each spatial axis: an integer, one for each axis, one pair
            `(before, after)` for each axis, or a name: `"VALID"` (none), `"SAME"` (`ceil(size / stride)` windows, the
            odd place after), `"SAME_LOWER"` (the odd place before), `"HALF"`, `"FULL"` or `"CAUSAL"` (before only).
            Negative numbers crop. Default: 0.
        dilation: places from one tap of a window to the next: an integer, or one for each spatial axis. Default: 1.
        groups: into how many groups the channels are divided, which do not see each other. It must divide the input
            channels and `out_channels`; as many groups as input channels make a depthwise convolution. Default: 1.
        pad_mode: what the padding shows: `"zeros"`, `"reflect"` (without the edge), `"symmetric"` (with the edge),
            `"replicate"` or `"circular"`; one for all spatial axes, or one for each. Default: `"zeros"`.
        layout: the order of the axes of input and result, such as `"NCHW"`; `N` stands for all batch axes. Default:
            None, channels last.
        flip: True reverses the kernel along its window axes: the convolution of mathematics. Default: False, the
            cross-correlation.
        precision: of the products: None, `"high"`, `"highest"` or a `jax.lax.Precision`. Default: None, the platform's.
        accumulate_dtype: the dtype in which products are summed and the bias is added; the result has the dtype of the
            input. Default: None, the platform's.
        implementation: None for the form that fits the shape and the platform, `"fft"` for fast Fourier transforms, or
            `"lax"` for the operations of `jax.lax`. Default: None.
        bias: whether a bias is added. Default: True.
        init: how the kernel is drawn: `"lecun_normal"`, `"he_normal"`, `"glorot_uniform"`, `"torch"` (kernel and bias
            uniform, as PyTorch's layers), or a function of `(key, shape, dtype)`. Default: `"lecun_normal"`.
        dtype: the dtype of the parameters. Default: None, JAX's default float.
        name: of its nodes and of its entry in the parameters. Default:
            None, `conv1`, `conv2`, ... in order of first use.
        params: the name of its entry, where it is another one; layers with the same `params` share the entry. Default:
            None.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (32, 32, 3))
        >>> graph = fc.Graph(x, fc.Conv(16, 3, padding="SAME", stride=2)(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((4, 32, 32, 3))).shape
        (4, 16, 16, 16)
    """

    implementation: str | None = field(default=None, kw_only=True)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        sizes, channels = self.image(shape)
        return init_conv(key, channels, self.out_channels, self.window, spatial=len(sizes), **self.drawn())

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Convolve."""
        del batch  # the kernel says how many axes are spatial
        (x,) = xs
        return conv(params, x, implementation=self.implementation, **self.options())


@dataclass(frozen=True, repr=False)
class ConvTranspose(_ConvolutionLayer):
    """A transposed convolution as a layer: `conv_transpose`, the transpose of `conv` with the same options.

    Args:
        out_channels: the number of channels of the result.
        window: taps of the kernel: an integer for all spatial axes, or one for each.
        size: the spatial sizes of the result. A stride above 1 takes images of several sizes to the same positions;
            this says which one is meant. Default: None, the smallest, or `positions * stride` for the paddings
            `"SAME"`, `"SAME_LOWER"` and `"CAUSAL"`.
        output_padding: PyTorch's way to choose the size: by how much the result exceeds the smallest. Default: None.
        stride: of the convolution that is transposed, like the options that follow: places from one window to the
            next: an integer, or one for each spatial axis. Default: 1.
        padding: places added before and after each spatial axis: an integer, one for each axis, one pair
            `(before, after)` for each axis, or a name: `"VALID"` (none), `"SAME"` (`ceil(size / stride)` windows, the
            odd place after), `"SAME_LOWER"` (the odd place before), `"HALF"`, `"FULL"` or `"CAUSAL"` (before only).
            Negative numbers crop. Default: 0.
        dilation: places from one tap of a window to the next: an integer, or one for each spatial axis. Default: 1.
        groups: into how many groups the channels are divided, which do not see each other. It must divide the input
            channels and `out_channels`. Default: 1.
        pad_mode: what the padding shows: `"zeros"`, `"reflect"` (without the edge), `"symmetric"` (with the edge),
            `"replicate"` or `"circular"`; one for all spatial axes, or one for each. Default: `"zeros"`.
        layout: the order of the axes of input and result, such as `"NCHW"`; `N` stands for all batch axes. Default:
            None, channels last.
        flip: True reverses the kernel along its window axes: the convolution of mathematics. Default: False, the
            cross-correlation.
        precision: of the products: None, `"high"`, `"highest"` or a `jax.lax.Precision`. Default: None, the platform's.
        accumulate_dtype: the dtype in which products are summed and the bias is added; the result has the dtype of the
            input. Default: None, the platform's.
        implementation: None for the form that fits the shape and the platform, `"fft"` for fast Fourier transforms, or
            `"lax"` for the operations of `jax.lax`. Default: None.
        bias: whether a bias is added. Default: True.
        init: how the kernel is drawn: `"lecun_normal"`, `"he_normal"`, `"glorot_uniform"`, `"torch"` (kernel and bias
            uniform, as PyTorch's layers), or a function of `(key, shape, dtype)`. Default: `"lecun_normal"`.
        dtype: the dtype of the parameters. Default: None, JAX's default float.
        name: of its nodes and of its entry in the parameters. Default:
            None, `conv_transpose1`, `conv_transpose2`, ... in order of first use.
        params: the name of its entry, where it is another one; layers with the same `params` share the entry. Default:
            None.

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
    """A convolution with another kernel at every position as a layer: `local_conv`.

    Args:
        out_channels: the number of channels of the result.
        window: taps of the kernel: an integer for all spatial axes, or one for each.
        stride: places from one window to the next: an integer, or one for each spatial axis. Default: 1.
        padding: places added before and after each spatial axis: an integer, one for each axis, one pair
            `(before, after)` for each axis, or a name: `"VALID"` (none), `"SAME"` (`ceil(size / stride)` windows, the
            odd place after), `"SAME_LOWER"` (the odd place before), `"HALF"`, `"FULL"` or `"CAUSAL"` (before only).
            Negative numbers crop. Default: 0.
        dilation: places from one tap of a window to the next: an integer, or one for each spatial axis. Default: 1.
        groups: into how many groups the channels are divided, which do not see each other. It must divide the input
            channels and `out_channels`; as many groups as input channels make a depthwise convolution. Default: 1.
        pad_mode: what the padding shows: `"zeros"`, `"reflect"` (without the edge), `"symmetric"` (with the edge),
            `"replicate"` or `"circular"`; one for all spatial axes, or one for each. Default: `"zeros"`.
        layout: the order of the axes of input and result, such as `"NCHW"`; `N` stands for all batch axes. Default:
            None, channels last.
        flip: True reverses the kernel along its window axes: the convolution of mathematics. Default: False, the
            cross-correlation.
        precision: of the products: None, `"high"`, `"highest"` or a `jax.lax.Precision`. Default: None, the platform's.
        accumulate_dtype: the dtype in which products are summed and the bias is added; the result has the dtype of the
            input. Default: None, the platform's.
        bias: whether a bias is added, another one at every position. Default: True.
        init: how the kernel is drawn: `"lecun_normal"`, `"he_normal"`, `"glorot_uniform"`, `"torch"` (kernel and bias
            uniform, as PyTorch's layers), or a function of `(key, shape, dtype)`. Default: `"lecun_normal"`.
        dtype: the dtype of the parameters. Default: None, JAX's default float.
        name: of its nodes and of its entry in the parameters. Default:
            None, `local_conv1`, `local_conv2`, ... in order of first use.
        params: the name of its entry, where it is another one; layers with the same `params` share the entry. Default:
            None.

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

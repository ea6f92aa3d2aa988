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
from .windowed import ConvolutionLayer


@dataclass(frozen=True, repr=False)
class Conv(ConvolutionLayer):
    """`conv` as a layer that draws its kernel for the channels that come.

    Args:
        out_channels: channels of the result.
        window: taps on each spatial axis, or on all.
        stride: see `conv`, like those that follow.
        padding: see `conv`.
        dilation: see `conv`.
        groups: see `conv`.
        pad_mode: see `conv`.
        layout: see `conv`.
        flip: see `conv`.
        precision: see `conv`.
        accumulate_dtype: see `conv`.
        implementation: see `conv`.
        bias: whether there is one.
        init: see `init_conv`.
        dtype: of the parameters; None is JAX's default float.
        name: of its nodes and its entry in the parameters; by default `conv1`, `conv2`, ... in order of first use.
        params: the name of its entry; layers that give the same share it.

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
class ConvTranspose(ConvolutionLayer):
    """`conv_transpose` as a layer.

    Args:
        out_channels: channels of the result.
        window: taps on each spatial axis, or on all.
        size: see `conv_transpose`.
        output_padding: see `conv_transpose`.
        stride: see `conv`, like those that follow: they are the options of the convolution that is transposed.
        padding: see `conv`.
        dilation: see `conv`.
        groups: see `conv`.
        pad_mode: see `conv`.
        layout: see `conv`.
        flip: see `conv`.
        precision: see `conv`.
        accumulate_dtype: see `conv`.
        implementation: see `conv`.
        bias: whether there is one.
        init: see `init_conv_transpose`.
        dtype: see `Conv`.
        name: see `Conv`; by default `conv_transpose1` and so on.
        params: see `Conv`.

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

    _options: ClassVar[tuple[str, ...]] = (*ConvolutionLayer._options, "size", "output_padding", "implementation")

    def axes(self, sizes: Shape) -> tuple[Axis, ...]:
        """Return how the windows lie on the image that is the result."""
        window = per_axis(self.label, "window", self.window, len(sizes), least=1)
        image = transposed_sizes(
            self.label, sizes, window, size=self.size, output_padding=self.output_padding, stride=self.stride,
            padding=self.padding, dilation=self.dilation,
        )  # fmt: skip
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
class LocalConv(ConvolutionLayer):
    """`local_conv` as a layer.

    Args:
        out_channels: channels of the result.
        window: taps on each spatial axis, or on all.
        stride: see `conv`, like those that follow.
        padding: see `conv`.
        dilation: see `conv`.
        groups: see `conv`.
        pad_mode: see `conv`.
        layout: see `conv`.
        flip: see `conv`.
        precision: see `conv`.
        accumulate_dtype: see `conv`.
        bias: whether there is one, of its own at every position.
        init: see `init_conv`.
        dtype: see `Conv`.
        name: see `Conv`; by default `local_conv1` and so on.
        params: see `Conv`.

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

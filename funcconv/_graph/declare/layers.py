"""The ops with parameters or options as layers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Initializer, Number, Padding, PadMode, Precision, Reduce, Shape, Sizes
from ..._ops.conv import conv, conv_transpose
from ..._ops.dense import dense, flatten
from ..._ops.init import init_conv, init_conv_transpose, init_dense, init_local_conv
from ..._ops.local_conv import local_conv
from ..._ops.pool import pool
from ..._windows.geometry import Axis, pad_modes, per_axis, resolve
from ..._windows.layout import channels_last_order
from ..._windows.reach import IDENTITY, Reach, of_transpose, of_window
from ..._windows.transposed import transposed_sizes
from .node import Layer, by_value, check_hash


def check_count(layer: Layer, name: str, value: Any) -> None:
    """Refuse a number of channels that is no positive integer, such as a window that was passed first."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        first, second = ("features", "") if name == "features" else ("out_channels", ", window")
        msg = (
            f"{layer.label}: {name} must be a positive integer; got {value!r}. "
            f"Write {type(layer).__name__}({first}{second})"
        )
        raise FuncconvError(msg)


@dataclass(frozen=True, repr=False)
class _Windowed(Layer):
    """What the convolutional layers have in common."""

    out_channels: int
    window: Sizes
    stride: Sizes = field(default=1, kw_only=True)
    padding: Padding = field(default=0, kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    pad_mode: PadMode = field(default="zeros", kw_only=True)
    layout: str | None = field(default=None, kw_only=True)
    flip: bool = field(default=False, kw_only=True)
    precision: Precision = field(default=None, kw_only=True)
    accumulate_dtype: DTypeLike | None = field(default=None, kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    init: Initializer = field(default="lecun_normal", kw_only=True)
    dtype: DTypeLike | None = field(default=None, kw_only=True)

    parametric: ClassVar[bool] = True
    _options: ClassVar[tuple[str, ...]] = (
        "stride", "padding", "dilation", "groups", "pad_mode", "layout", "flip", "precision", "accumulate_dtype",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "out_channels", self.out_channels)
        n = len(self.window) if isinstance(self.window, Sequence) else 1
        if n == 0 or isinstance(self.window, str):
            msg = f"{self!r}: window must be an integer or one for each spatial axis; got {self.window!r}"
            raise FuncconvError(msg)
        per_axis(self.label, "window", self.window, n, least=1)

    def options(self) -> dict[str, Any]:
        """Return the options of the op."""
        return {name: getattr(self, name) for name in self._options}

    def image(self, shape: Shape) -> tuple[Shape, int]:
        """Return the spatial sizes and the channels of an input of this shape."""
        order = channels_last_order(self.label, self.layout, len(shape)) if self.layout else range(len(shape))
        *sizes, channels = (shape[i] for i in order) if shape else (0,)
        n = len(self.window) if isinstance(self.window, Sequence) else len(sizes)
        if not 1 <= n <= len(sizes):
            msg = f"{self!r} needs {max(n, 1)} spatial axes and the channels; its input has shape {tuple(shape)}"
            raise FuncconvError(msg)
        return tuple(sizes[-n:]), channels

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return what the windows see: all channels, and of the other axes what lies in them."""
        (shape,) = shapes
        sizes, _ = self.image(shape)
        axes = self.axes(sizes)
        found = [self.seen(axis, wraps=wraps) for axis, wraps in _wrapping(self, axes)]
        return _placed(self, len(shape), found, None)

    def axes(self, sizes: Shape) -> tuple[Axis, ...]:
        """Return how the windows lie on an image of these sizes."""
        return resolve(self.label, sizes, self.window, stride=self.stride, padding=self.padding, dilation=self.dilation)

    seen = staticmethod(of_window)

    def drawn(self) -> dict[str, Any]:
        """Return the options of drawing."""
        return {"groups": self.groups, "bias": self.bias, "init": self.init, "dtype": self.dtype}


@dataclass(frozen=True, repr=False)
class Conv(_Windowed):
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
class ConvTranspose(_Windowed):
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

    _options: ClassVar[tuple[str, ...]] = (*_Windowed._options, "size", "output_padding", "implementation")

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
class LocalConv(_Windowed):
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


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """`dense` as a layer, on the last axis of what comes.

    Args:
        features: of the result.
        precision: see `dense`.
        accumulate_dtype: see `dense`.
        bias: whether there is one.
        init: see `init_conv`.
        dtype: see `Conv`.
        name: see `Conv`.
        params: see `Conv`.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (10,))
        >>> fc.Graph(x, fc.Dense(2)(x)).init(jax.random.key(0))["dense1"]["kernel"].shape
        (10, 2)
    """

    features: int
    precision: Precision = field(default=None, kw_only=True)
    accumulate_dtype: DTypeLike | None = field(default=None, kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    init: Initializer = field(default="lecun_normal", kw_only=True)
    dtype: DTypeLike | None = field(default=None, kw_only=True)

    parametric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "features", self.features)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        if not shape:
            msg = f"{self!r} needs an axis of features; its input is one number for each example"
            raise FuncconvError(msg)
        return init_dense(key, shape[-1], self.features, bias=self.bias, init=self.init, dtype=self.dtype)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Multiply by the kernel."""
        del batch
        (x,) = xs
        return dense(params, x, precision=self.precision, accumulate_dtype=self.accumulate_dtype)


@dataclass(frozen=True, repr=False)
class Pool(Layer):
    """`pool` as a layer.

    Args:
        window: taps on each spatial axis, or on all.
        reduce: see `pool`, like those that follow.
        stride: see `pool`.
        padding: see `pool`.
        dilation: see `pool`.
        pad_mode: see `pool`.
        ties: see `pool`.
        p: see `pool`.
        temperature: see `pool`, here a plain number.
        count_include_pad: see `pool`.
        ceil_mode: see `pool`.
        return_indices: see `pool`; the node's value is then a pair, of which `node[0]` and `node[1]` are the entries.
        layout: see `pool`.
        name: of its nodes; by default `pool1` and so on.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.Pool(2, reduce="mean")(x))({}, jnp.ones((5, 8, 8, 3))).shape
        (5, 4, 4, 3)
    """

    window: Sizes = 2
    reduce: Reduce = field(default="max", kw_only=True, compare=False)
    stride: Sizes | None = field(default=None, kw_only=True)
    padding: Padding = field(default=0, kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)
    pad_mode: PadMode | None = field(default=None, kw_only=True)
    ties: str = field(default="first", kw_only=True)
    p: Number = field(default=2, kw_only=True)
    temperature: Number = field(default=1.0, kw_only=True)
    count_include_pad: bool = field(default=False, kw_only=True)
    ceil_mode: bool = field(default=False, kw_only=True)
    return_indices: bool = field(default=False, kw_only=True)
    layout: str | None = field(default=None, kw_only=True)
    value: Hashable = field(init=False, kw_only=True)  # what `reduce` is compared by

    def __post_init__(self) -> None:
        """Freeze the options."""
        super().__post_init__()
        object.__setattr__(self, "value", by_value(self.reduce))
        check_hash(self, "the options of a layer must be hashable, numbers rather than arrays")

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return what the windows see."""
        (shape,) = shapes
        order = channels_last_order(self.label, self.layout, len(shape)) if self.layout else range(len(shape))
        sizes = [shape[i] for i in order][:-1]
        n = len(self.window) if isinstance(self.window, Sequence) else len(sizes)
        stride = self.window if self.stride is None else self.stride
        axes = resolve(
            self.label, tuple(sizes[-n:]), self.window, stride=stride, padding=self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip
        found = [of_window(axis, wraps=wraps) for axis, wraps in _wrapping(self, axes)]
        return _placed(self, len(shape), found, IDENTITY)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Reduce the windows."""
        del params
        (x,) = xs
        spatial = len(self.window) if isinstance(self.window, Sequence) else x.ndim - len(batch) - 1
        return pool(
            x, self.window, reduce=self.reduce, stride=self.stride, padding=self.padding, dilation=self.dilation,
            pad_mode=self.pad_mode, ties=self.ties, p=self.p, temperature=self.temperature,
            count_include_pad=self.count_include_pad, ceil_mode=self.ceil_mode,
            return_indices=self.return_indices, spatial=spatial, layout=self.layout,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """`flatten` as a layer: everything but the batch axes becomes one axis of features.

    Args:
        order: see `flatten`.
        layout: see `flatten`.
        name: of its nodes; by default `flatten1` and so on.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.Flatten()(x))({}, jnp.ones((5, 8, 8, 3))).shape
        (5, 192)
    """

    order: str = field(default="channels_last", kw_only=True)
    layout: str | None = field(default=None, kw_only=True)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Flatten."""
        del params
        (x,) = xs
        return flatten(x, spatial=x.ndim - len(batch) - 1, order=self.order, layout=self.layout)


def _wrapping(layer: _Windowed | Pool, axes: Sequence[Axis]) -> list[tuple[Axis, bool]]:
    """Return each axis with whether its padding shows the other end."""
    modes = pad_modes(layer.label, layer.pad_mode, len(axes), optional=True)
    return [(axis, mode == "circular" and (axis.lo, axis.hi) != (0, 0)) for axis, mode in zip(axes, modes, strict=True)]


def _placed(
    layer: _Windowed | Pool, ndim: int, spatial: Sequence[Reach], channels: Reach | None
) -> tuple[Reach | None, ...]:
    """Return what is seen of each axis of an array of the layer's layout; of axes of the batch each sees itself."""
    order = channels_last_order(layer.label, layer.layout, ndim) if layer.layout else range(ndim)
    last = (*[IDENTITY] * (ndim - 1 - len(spatial)), *spatial, channels)
    return tuple(each for _, each in sorted(zip(order, last, strict=True), key=lambda pair: pair[0]))

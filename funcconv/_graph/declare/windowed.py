"""What the layers with windows have in common: their options, and which pixels their windows see."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.errors import FuncconvError
from ..._common.types import DTypeLike, Initializer, Padding, PadMode, Precision, Shape, Sizes
from ..._windows.geometry import Axis, pad_modes, per_axis, resolve
from ..._windows.layout import channels_last_order
from ..._windows.reach import IDENTITY, Reach, of_window
from .layer import Layer


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
class _ConvolutionLayer(Layer):
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
        "stride",
        "padding",
        "dilation",
        "groups",
        "pad_mode",
        "layout",
        "flip",
        "precision",
        "accumulate_dtype",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "out_channels", self.out_channels)
        # How many axes the input has is known only when the layer is applied, so a number is checked for one.
        n = len(self.window) if isinstance(self.window, Sequence) else 1
        if n == 0 or isinstance(self.window, str):
            msg = (
                f"{self!r}: window must be an integer or one for each spatial axis, such as 3 or (3, 3); "
                f"got {self.window!r}"
            )
            raise FuncconvError(msg)
        per_axis(self.label, "window", self.window, n, least=1)

    def options(self) -> dict[str, Any]:
        """Return the options of the op."""
        return {name: getattr(self, name) for name in self._options}

    def image(self, shape: Shape) -> tuple[Shape, int]:
        """Return the spatial sizes and the channels of an input of this shape."""
        order = channels_last_order(self.label, self.layout, len(shape)) if self.layout else range(len(shape))
        # An input without axes has no channels; the check below refuses it.
        *sizes, channels = (shape[i] for i in order) if shape else (0,)
        n = len(self.window) if isinstance(self.window, Sequence) else len(sizes)
        if not 1 <= n <= len(sizes):
            msg = (
                f"{self!r} needs {max(n, 1)} spatial axes and the channels; its input has shape {tuple(shape)}. "
                "Declare the input as (*spatial, channels), or give window one size for each of its spatial axes"
            )
            raise FuncconvError(msg)
        return tuple(sizes[-n:]), channels

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return what the windows see: all channels, and of the other axes what lies in them."""
        (shape,) = shapes
        sizes, _ = self.image(shape)
        axes = self.axes(sizes)
        reaches = [self.seen(axis, wraps=wraps) for axis, wraps in wrapping(self, axes)]
        return along_axes(self, len(shape), reaches, None)

    def axes(self, sizes: Shape) -> tuple[Axis, ...]:
        """Return how the windows lie on an image of these sizes."""
        return resolve(self.label, sizes, self.window, stride=self.stride, padding=self.padding, dilation=self.dilation)

    seen = staticmethod(of_window)

    def drawn(self) -> dict[str, Any]:
        """Return the options of drawing."""
        return {"groups": self.groups, "bias": self.bias, "init": self.init, "dtype": self.dtype}


def wrapping(layer: Any, axes: Sequence[Axis]) -> list[tuple[Axis, bool]]:
    """Return each axis with whether its padding shows the other end."""
    modes = pad_modes(layer.label, layer.pad_mode, len(axes), optional=True)
    return [(axis, mode == "circular" and (axis.lo, axis.hi) != (0, 0)) for axis, mode in zip(axes, modes, strict=True)]


def along_axes(layer: Any, ndim: int, spatial: Sequence[Reach], channels: Reach | None) -> tuple[Reach | None, ...]:
    """Return what is seen of each axis of an array of the layer's layout; of axes of the batch each sees itself."""
    order = channels_last_order(layer.label, layer.layout, ndim) if layer.layout else range(ndim)
    last = (*[IDENTITY] * (ndim - 1 - len(spatial)), *spatial, channels)
    return tuple(reach for _, reach in sorted(zip(order, last, strict=True), key=lambda pair: pair[0]))

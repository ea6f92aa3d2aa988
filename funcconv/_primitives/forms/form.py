"""What every form of a convolution is given beside its operands."""

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

from ..._common.types import Array, DTypeLike, Precision, Shape
from ..._windows.geometry import Axis

Type: TypeAlias = Any  # what jax.typeof returns: shape, dtype, sharding, varying axes


# The library that options for the compiler turn on for convolutions: "onednn", or None.
library: ContextVar[str | None] = ContextVar("library", default=None)


class Form(NamedTuple):
    """A convolution but for its batch and its channels.

    The image is `(batch, *spatial, in)`, the kernel `(*window, in // groups, out)`, the result `(batch, *positions,
    out)`; what lies beyond the image is zero.
    """

    axes: tuple[Axis, ...]
    groups: int = 1
    precision: Precision = None
    accumulate_dtype: DTypeLike | None = None
    library: str | None = None  # that is to compute what is left to XLA, where options turn one on

    @property
    def spatial(self) -> Shape:
        """The sizes of the image."""
        return tuple(axis.size for axis in self.axes)

    @property
    def extended(self) -> int:
        """How many places an image has with its padding."""
        return math.prod(axis.lo + axis.size + axis.reach for axis in self.axes)

    @property
    def window(self) -> Shape:
        """The taps of the kernel."""
        return tuple(axis.window for axis in self.axes)

    @property
    def positions(self) -> Shape:
        """The sizes of the result."""
        return tuple(axis.outputs for axis in self.axes)

    @property
    def padded(self) -> bool:
        """Whether some window reaches beyond the image."""
        return any(max(axis.lo, axis.reach) > 0 for axis in self.axes)

    @property
    def strided(self) -> bool:
        """Whether there is a stride."""
        return any(axis.stride > 1 for axis in self.axes)

    @property
    def overlapping(self) -> int | None:
        """The first axis along which windows overlap."""
        return next((i for i, axis in enumerate(self.axes) if axis.extent > axis.stride), None)

    @property
    def seen(self) -> tuple[slice, ...]:
        """The taps along each axis that some window has on the image; of the others, all read zeros."""
        return tuple(axis.seen for axis in self.axes)

    @property
    def trimmed(self) -> "Form":
        """The same convolution with the taps that are `seen`."""
        return self._replace(axes=tuple(axis.trimmed for axis in self.axes))

    def image(self, result: Array, kernel: Array) -> Shape:
        """The shape of the image that this kernel takes to this result."""
        return (result.shape[0], *self.spatial, kernel.shape[-2] * self.groups)

    def result(self, image: Array, kernel: Array) -> Shape:
        """The shape of the result that this kernel takes this image to."""
        return (image.shape[0], *self.positions, kernel.shape[-1])

    def kernel(self, image: Array, result: Array) -> Shape:
        """The shape of the kernel that takes this image to this result."""
        return (*self.window, image.shape[-1] // self.groups, result.shape[-1])


Map: TypeAlias = Callable[[Array, Array, Form], Array]  # one of the three of a convolution, which are bilinear

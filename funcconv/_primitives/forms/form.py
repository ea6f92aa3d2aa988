"""The static description of a convolution, which every form gets with its operands."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax

from ..._common.types import Array, DTypeLike, Precision, Shape
from ..._windows.geometry import Axis

Type: TypeAlias = Any  # what jax.typeof returns: shape, dtype, sharding, varying axes


# The libraries that the compiler options turn on for convolutions: "onednn" (nearly all convolutions are left to it),
# "onednn and ynn" (it gets what YNNPACK does not take), or None. Options cannot be read during lowering, so
# `compiled_with` sets this while a function is traced. JAX traces a function again if it changes.
library: Any = jax.make_user_context(default_value=None)  # type: ignore[no-untyped-call]


class Form(NamedTuple):
    """A convolution without its batch size and its numbers of channels.

    The image is `(batch, *spatial, in)`, the kernel `(*window, in // groups, out)` and the result
    `(batch, *positions, out)`. Beyond the image there are zeros.
    """

    axes: tuple[Axis, ...]
    groups: int = 1
    precision: Precision = None
    accumulate_dtype: DTypeLike | None = None
    library: str | None = None  # the libraries that compute XLA's own form, if options turn some on
    measured: Any = None  # the forms that a tuning chooses (`MeasuredForms`); None: the tables choose
    implementation: str | None = None  # the choice of the caller: "fft" for this form of all three maps, or None

    @property
    def spatial(self) -> Shape:
        """The sizes of the image."""
        return tuple(axis.size for axis in self.axes)

    @property
    def extended(self) -> int:
        """The number of positions of an image with its padding."""
        return math.prod(axis.lo + axis.size + axis.hi_used for axis in self.axes)

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
        """Whether some window reads padding."""
        return any(max(axis.lo, axis.hi_used) > 0 for axis in self.axes)

    @property
    def strided(self) -> bool:
        """Whether some axis has a stride above 1."""
        return any(axis.stride > 1 for axis in self.axes)

    @property
    def overlapping(self) -> int | None:
        """The first axis along which windows overlap."""
        return next((i for i, axis in enumerate(self.axes) if axis.extent > axis.stride), None)

    @property
    def active_taps(self) -> tuple[slice, ...]:
        """The taps along each axis that are on the image in some window; all others read only zeros."""
        return tuple(axis.active_taps for axis in self.axes)

    @property
    def trimmed(self) -> "Form":
        """The same convolution with only the active taps."""
        return self._replace(axes=tuple(axis.trimmed for axis in self.axes))

    def image(self, result: Array, kernel: Array) -> Shape:
        """The shape of the image that this kernel maps to this result."""
        return (result.shape[0], *self.spatial, kernel.shape[-2] * self.groups)

    def result(self, image: Array, kernel: Array) -> Shape:
        """The shape of the result to which this kernel maps this image."""
        return (image.shape[0], *self.positions, kernel.shape[-1])

    def kernel(self, image: Array, result: Array) -> Shape:
        """The shape of the kernel that maps this image to this result."""
        return (*self.window, image.shape[-1] // self.groups, result.shape[-1])


Map: TypeAlias = Callable[[Array, Array, Form], Array]  # a convolution, its input gradient or its kernel gradient

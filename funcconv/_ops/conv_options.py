"""What a convolution and its transpose share: options that do not depend on the sizes of the image."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array, DTypeLike, PadMode, Precision
from .._primitives import conv as _primitives
from .._primitives.forms import Form, library, reference, reference_input_grad
from .._primitives.tuning import current_tuning_forms
from .._windows.geometry import Axis, pad_modes
from .parameters import check_accumulate, check_groups, check_kernel

Map: TypeAlias = Callable[[Array, Array, Form], Array]


class ConvOptions(NamedTuple):
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


def conv_options(
    op: str,
    kernel: Array,
    groups: int,
    pad_mode: PadMode,
    precision: Precision,
    accumulate_dtype: DTypeLike | None,
    implementation: str | None,
    dtype: DTypeLike,
) -> ConvOptions:
    """Check the options that `conv` and `conv_transpose` share."""
    check_kernel(op, kernel)
    check_groups(op, groups, kernel.shape)
    if implementation not in MAPS:
        hint = suggest(implementation, [name for name in MAPS if name is not None])
        msg = f"{op}: unknown implementation {implementation!r}{hint}"
        raise FuncconvError(msg)
    check_accumulate(op, accumulate_dtype, dtype)
    accumulate = None if accumulate_dtype is None else jnp.dtype(accumulate_dtype)
    return ConvOptions(pad_modes(op, pad_mode, kernel.ndim - 2), groups, precision, accumulate, implementation)


def flipped(kernel: Array, flip: bool) -> Array:  # noqa: FBT001
    """Return the kernel, reversed along its window axes if `flip`."""
    return lax.rev(kernel, range(kernel.ndim - 2)) if flip else kernel


MAPS: dict[str | None, tuple[Map, Map]] = {  # the convolution, and its input gradient
    None: (_primitives.conv, _primitives.conv_input_grad),
    "fft": (_primitives.conv, _primitives.conv_input_grad),
    "lax": (reference, reference_input_grad),
}

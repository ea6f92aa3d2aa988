"""Stride phases: the input gradient as convolutions of the cotangents with stride 1.

Input `p` of the image takes part in the windows and taps with `position * stride + tap * dilation = p + lo`. All inputs
with the same remainder of `p + lo` by the stride form a phase. They use the same taps, so a phase is a convolution of
the cotangents with stride 1. No zeros are multiplied, as they are in a convolution of dilated cotangents.

The phases are separate convolutions, or the channels of one convolution (sub-pixel convolution). For the latter, zeros
extend the kernels of all phases to the same number of taps.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array, Shape
from ..._windows.geometry import Axis
from .form import Form, Map

# Measured limits. All phases are the channels of one convolution if
_MOST_ZEROS_FACTOR = 1.4  # the zeros increase the number of taps by less than this factor,
_NARROW_CHANNELS = 18  # or by less than 2 with fewer channels than this,
_FEW_CHANNELS = 8  # or phases have fewer channels than this, so that separate convolutions would be slow,
_MOST_SEPARATE_PHASES = 16  # or there are more phases than this.


class Phase(NamedTuple):
    """The convolution along one axis that gives every `stride`-th input."""

    taps: slice  # the taps of the kernel that the phase uses
    axis: Axis


def input_grad(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the input gradient. `conv` computes convolutions with stride 1."""
    method = _as_channels if _merges(form, kernel.shape[-2]) else _separately
    x = method(swapped(kernel, form.groups), g, form, conv)
    for i, axis in enumerate(form.axes, start=1):
        begin = axis.lo % axis.stride
        x = lax.slice_in_dim(x, begin, begin + axis.size, axis=i)
    return x


def convolutions(form: Form, channels: int) -> int:
    """Return the number of convolutions of the phases, for an image with this number of channels in each group."""
    return 1 if _merges(form, channels) else _count(form)


def too_many(form: Form) -> bool:
    """Return whether there are too many separate convolutions for this form to save time."""
    return _dilated(form) and _count(form) > _MOST_SEPARATE_PHASES


def _merges(form: Form, channels: int) -> bool:
    """Return whether the phases are the channels of one convolution."""
    if _dilated(form) or _count(form) == 1:
        return False
    zeros_factor = math.prod(_phase_taps(axis) * min(axis.window, axis.stride) / axis.window for axis in form.axes)
    has_few_zeros = zeros_factor < (2 if channels < _NARROW_CHANNELS else _MOST_ZEROS_FACTOR)
    return has_few_zeros or channels < _FEW_CHANNELS or _count(form) > _MOST_SEPARATE_PHASES


def _dilated(form: Form) -> bool:
    """Return whether an axis has both a stride and a dilation: the taps of its phases then have different dilations."""
    return any(axis.stride > 1 and axis.dilation > 1 for axis in form.axes)


def _count(form: Form) -> int:
    """Return the number of phases that have taps."""
    return math.prod(min(axis.window, axis.stride) for axis in form.axes)


def _separately(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the image, with one convolution for each phase. The image starts at the first input of the first phase."""
    n, batch = len(form.axes), g.shape[0]
    axis_phases = [_phases(axis) for axis in form.axes]
    parts = []
    for combination in itertools.product(*axis_phases):
        phases = [phase for phase in combination if phase is not None]
        if len(phases) < n:  # no tap reads these inputs
            parts.append(jnp.zeros((batch, *map(_phase_size, form.axes), kernel.shape[-1]), g.dtype))
        else:
            taps = _reversed(kernel[tuple(phase.taps for phase in phases)], n)
            parts.append(conv(g, taps, form._replace(axes=tuple(phase.axis for phase in phases))))
    if len(parts) == 1:
        return parts[0]
    return _interleaved(jnp.stack(parts, axis=n + 1), tuple(axis.stride for axis in form.axes))


def _as_channels(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the same with one convolution, if no axis has both a stride and a dilation."""
    n, axes = len(form.axes), []
    channels = kernel.shape[-1] // form.groups
    tap_phase_sizes: list[int] = []  # for each axis the taps of a phase, and the phases
    margins = []
    for axis in form.axes:
        taps, phases = _phase_taps(axis), min(axis.window, axis.stride)
        margins.append((0, taps * phases - axis.window))
        tap_phase_sizes += (taps, phases)
        windows = Axis(axis.outputs, taps, 1, axis.dilation, 0, 0, _phase_size(axis))
        windows = windows._replace(lo=windows.extent - 1 - axis.lo // axis.stride)
        axes.append(windows._replace(hi=windows.hi_used))
    # (*(taps, phases) of each axis, in, groups, out) -> (*taps, in, groups * phases * out)
    kernel_shape = (*tap_phase_sizes, kernel.shape[-2], form.groups, channels)
    phase_kernel = jnp.pad(kernel, [*margins, (0, 0), (0, 0)]).reshape(kernel_shape)
    order = (*range(0, 2 * n, 2), 2 * n, 2 * n + 1, *range(1, 2 * n, 2), 2 * n + 2)
    phase_kernel = _reversed(phase_kernel.transpose(order), n)
    phase_kernel = phase_kernel.reshape(*tap_phase_sizes[::2], kernel.shape[-2], -1)
    x = conv(g, phase_kernel, form._replace(axes=tuple(axes)))  # (batch, *positions, groups * phases * channels)
    x = x.reshape(*x.shape[:-1], form.groups, *tap_phase_sizes[1::2], channels)
    # If the stride is larger than the window, the remaining phases have no taps and are zero.
    for i, axis in enumerate(form.axes):
        missing = axis.stride - min(axis.window, axis.stride)
        if missing:
            x = lax.pad(x, jnp.zeros((), x.dtype), [(0, missing if j == n + 2 + i else 0, 0) for j in range(x.ndim)])
    x = jnp.moveaxis(x, n + 1, -2)  # the groups to the channels
    strides = tuple(axis.stride for axis in form.axes)
    x = x.reshape(*x.shape[: n + 1], math.prod(strides), form.groups * channels)
    return _interleaved(x, strides)


def _phase_size(axis: Axis) -> int:
    """Return the number of inputs of each phase that cover the image."""
    return 1 + (axis.lo + axis.size - 1) // axis.stride - axis.lo // axis.stride


def _phase_taps(axis: Axis) -> int:
    """Return the number of taps of the first phase, which has the most, on an axis without stride or dilation."""
    return -(-axis.window // axis.stride)


def _phases(axis: Axis) -> list[Phase | None]:
    """Return the phase of each remainder by the stride, or None if no tap reads it."""
    common = math.gcd(axis.stride, axis.dilation)
    phases: list[Phase | None] = []
    for remainder in range(axis.stride):
        taps = [tap for tap in range(axis.window) if (tap * axis.dilation - remainder) % axis.stride == 0]
        if not taps:
            phases.append(None)
            continue
        lo = (taps[-1] * axis.dilation - remainder) // axis.stride - axis.lo // axis.stride
        dilation = axis.dilation // common if len(taps) > 1 else 1
        windows = Axis(axis.outputs, len(taps), 1, dilation, lo, 0, _phase_size(axis))
        phases.append(Phase(slice(taps[0], None, axis.stride // common), windows._replace(hi=windows.hi_used)))
    return phases


def _reversed(kernel: Array, n: int) -> Array:
    """Return the kernel with its taps in reverse order."""
    # The barrier makes it an array. Otherwise XLA merges the reversal into the convolution, for its library to do.
    taps: Array = lax.optimization_barrier(lax.rev(kernel, range(n)))  # type: ignore[no-untyped-call]
    return taps


def swapped(kernel: Array, groups: int) -> Array:
    """Return the kernel with the input and output channels of each group exchanged."""
    *window, inputs, outputs = kernel.shape
    n = len(window)
    grouped = kernel.reshape(*window, inputs, groups, outputs // groups)
    return grouped.transpose(*range(n), n + 2, n + 1, n).reshape(*window, outputs // groups, groups * inputs)


def _interleaved(x: Array, strides: Shape) -> Array:
    """Return the image from its phases, `(batch, *positions, phases, channels)` (depth to space)."""
    n, positions = len(strides), x.shape[1:-2]
    x = x.reshape(x.shape[0], *positions, *strides, x.shape[-1])
    order: Sequence[int] = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    x = x.transpose(0, *order, 2 * n + 1)
    return x.reshape(x.shape[0], *map(math.prod, zip(positions, strides, strict=True)), x.shape[-1])

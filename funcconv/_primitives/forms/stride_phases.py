"""The input gradient as convolutions of the cotangent with a stride of one.

Place `p` of the image takes part in the windows and taps with `position * stride + tap * dilation = p + lo`. So those
places for which `p + lo` has the same rest by the stride, a phase, read the same taps, and do so by a convolution of
stride one: no zeros are multiplied, and nothing is scattered.

The phases are convolutions of their own, or the channels of one, for which all have to have as many taps.
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

_SPARE = 1.4  # zeros are added to the taps if they are multiplied by no more than this
_FEW = 8  # or if phases have so few channels that convolutions of their own would be slow
_SOME = 18  # or if with these the taps are not doubled
_MANY = 16  # or if there would be more phases


class Phase(NamedTuple):
    """The convolution along one axis that gives every `stride`-th place: which taps it has, and how they lie."""

    taps: slice
    axis: Axis


def input_grad(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the transpose of the convolution by its image; `conv` computes convolutions of stride one."""
    method = _as_channels if _merges(form, kernel.shape[-2]) else _by_themselves
    x = method(swapped(kernel, form.groups), g, form, conv)
    for i, axis in enumerate(form.axes, start=1):
        begin = axis.lo % axis.stride
        x = lax.slice_in_dim(x, begin, begin + axis.size, axis=i)
    return x


def convolutions(form: Form, channels: int) -> int:
    """Return how many convolutions the phases are, for an image of so many channels in each group."""
    return 1 if _merges(form, channels) else _count(form)


def too_many(form: Form) -> bool:
    """Return whether there are so many phases that nothing is gained, since they cannot be the channels of one."""
    return _dilated(form) and _count(form) > _MANY


def _merges(form: Form, channels: int) -> bool:
    if _dilated(form) or _count(form) == 1:
        return False
    spare = math.prod(_rounds(axis) * min(axis.window, axis.stride) / axis.window for axis in form.axes)
    return spare < (2 if channels < _SOME else _SPARE) or channels < _FEW or _count(form) > _MANY


def _dilated(form: Form) -> bool:
    return any(axis.stride > 1 and axis.dilation > 1 for axis in form.axes)


def _count(form: Form) -> int:
    """Return how many phases have taps."""
    return math.prod(min(axis.window, axis.stride) for axis in form.axes)


def _by_themselves(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the image, from the first place that has the first phase; a convolution for each phase."""
    n, batch = len(form.axes), g.shape[0]
    each = [_phases(axis) for axis in form.axes]
    parts = []
    for chosen in itertools.product(*each):
        phases = [phase for phase in chosen if phase is not None]
        if len(phases) < n:
            parts.append(jnp.zeros((batch, *map(_places, form.axes), kernel.shape[-1]), g.dtype))
        else:
            taps = _reversed(kernel[tuple(phase.taps for phase in phases)], n)
            parts.append(conv(g, taps, form._replace(axes=tuple(phase.axis for phase in phases))))
    if len(parts) == 1:
        return parts[0]
    return _interleaved(jnp.stack(parts, axis=n + 1), tuple(axis.stride for axis in form.axes))


def _as_channels(kernel: Array, g: Array, form: Form, conv: Map) -> Array:
    """Return the same by one convolution; where no axis has both a stride and a dilation."""
    n, axes = len(form.axes), []
    channels = kernel.shape[-1] // form.groups
    parted: list[int] = []
    margins = []
    for axis in form.axes:
        rounds, phase = _rounds(axis), min(axis.window, axis.stride)
        margins.append((0, rounds * phase - axis.window))
        parted += (rounds, phase)
        windows = Axis(axis.outputs, rounds, 1, axis.dilation, 0, 0, _places(axis))
        windows = windows._replace(lo=windows.extent - 1 - axis.lo // axis.stride)
        axes.append(windows._replace(hi=windows.reach))
    taps = jnp.pad(kernel, [*margins, (0, 0), (0, 0)]).reshape(*parted, kernel.shape[-2], form.groups, channels)
    order = (*range(0, 2 * n, 2), 2 * n, 2 * n + 1, *range(1, 2 * n, 2), 2 * n + 2)
    taps = _reversed(taps.transpose(order), n).reshape(*parted[::2], kernel.shape[-2], -1)
    x = conv(g, taps, form._replace(axes=tuple(axes)))  # (batch, *places, groups * phases * channels)
    x = x.reshape(*x.shape[:-1], form.groups, *parted[1::2], channels)
    for i, axis in enumerate(form.axes):
        rest = axis.stride - min(axis.window, axis.stride)
        if rest:
            x = lax.pad(x, jnp.zeros((), x.dtype), [(0, rest if j == n + 2 + i else 0, 0) for j in range(x.ndim)])
    x = jnp.moveaxis(x, n + 1, -2)  # the groups to the channels
    strides = tuple(axis.stride for axis in form.axes)
    x = x.reshape(*x.shape[: n + 1], math.prod(strides), form.groups * channels)
    return _interleaved(x, strides)


def _places(axis: Axis) -> int:
    """Return how many places of each phase cover the image."""
    return 1 + (axis.lo + axis.size - 1) // axis.stride - axis.lo // axis.stride


def _rounds(axis: Axis) -> int:
    """Return how many taps the first phase has, if the stride does not meet a dilation."""
    return -(-axis.window // axis.stride)


def _phases(axis: Axis) -> list[Phase | None]:
    """Return the phase of each rest by the stride, None where no tap reads it."""
    common = math.gcd(axis.stride, axis.dilation)
    found: list[Phase | None] = []
    for rest in range(axis.stride):
        taps = [tap for tap in range(axis.window) if (tap * axis.dilation - rest) % axis.stride == 0]
        if not taps:
            found.append(None)
            continue
        lo = (taps[-1] * axis.dilation - rest) // axis.stride - axis.lo // axis.stride
        dilation = axis.dilation // common if len(taps) > 1 else 1
        windows = Axis(axis.outputs, len(taps), 1, dilation, lo, 0, _places(axis))
        found.append(Phase(slice(taps[0], None, axis.stride // common), windows._replace(hi=windows.reach)))
    return found


def _reversed(kernel: Array, n: int) -> Array:
    """Return the kernel with its taps in reverse, made an array of its own: else XLA would ask that of its library."""
    taps: Array = lax.optimization_barrier(lax.rev(kernel, range(n)))  # type: ignore[no-untyped-call]
    return taps


def swapped(kernel: Array, groups: int) -> Array:
    """Return the kernel with the inputs and outputs of each group exchanged."""
    *window, inputs, outputs = kernel.shape
    n = len(window)
    parted = kernel.reshape(*window, inputs, groups, outputs // groups)
    return parted.transpose(*range(n), n + 2, n + 1, n).reshape(*window, outputs // groups, groups * inputs)


def _interleaved(x: Array, strides: Shape) -> Array:
    """Return the image whose phases are those of `x`, `(batch, *places, phases, channels)`."""
    n, places = len(strides), x.shape[1:-2]
    x = x.reshape(x.shape[0], *places, *strides, x.shape[-1])
    order: Sequence[int] = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    x = x.transpose(0, *order, 2 * n + 1)
    return x.reshape(x.shape[0], *map(math.prod, zip(places, strides, strict=True)), x.shape[-1])

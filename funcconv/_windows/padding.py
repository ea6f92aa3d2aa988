"""Padding of the spatial axes of an array."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import wide
from .._common.types import Array
from .geometry import Axis


def pad(
    x: Array,
    axes: Sequence[Axis],
    modes: Sequence[str | None],
    *,
    value: int | float = 0,
    spare: Sequence[tuple[int, int]] | None = None,
) -> Array:
    """Pad the spatial axes of `x` by `axis.lo` before and `axis.hi_used` after, so that the windows just fit.

    Args:
        x: `(batch, *spatial, channels)`.
        axes: one for each spatial axis.
        modes: the pad mode of each axis, as in `numpy.pad`. None fills the padding with `value`.
        value: the value for mode None, and beyond the padding, where `ceil_mode` lets the last window extend.
        spare: zeros before and after each axis that the caller adds instead.

    Returns:
        `(batch, *padded, channels)`. A mode extends the axis over all integers, and the padding selects a part of that.
        So negative padding crops one side and does not change the values on the other.
    """
    dtype = x.dtype
    if any(mode not in (None, "zeros") for mode in modes):
        x = x.astype(wide(dtype))  # the gradient of an input is the sum over its copies in the padding
    zero_margins, value_margins = [(0, 0, 0)] * x.ndim, [(0, 0, 0)] * x.ndim
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True), start=1):
        before, after = axis.lo, min(axis.hi, axis.hi_used)
        padding, beyond = (max(before, 0), max(after, 0)), axis.hi_used - after
        if mode not in (None, "zeros") and any(padding):
            x = _extended(x, i, *padding, str(mode))
        # Cropped by a slice: with negative padding XLA's convolutions have read out of bounds (CPU, jax 0.10.2).
        if min(before, after) < 0:
            x = lax.slice_in_dim(x, max(-before, 0), x.shape[i] - max(-after, 0), axis=i)
        if mode == "zeros":
            left_out = spare[i - 1] if spare else (0, 0)
            zero_margins[i] = (padding[0] - left_out[0], padding[1] - left_out[1], 0)
        value_margins[i] = (0, beyond, 0) if mode else (padding[0], padding[1] + beyond, 0)
    for fill, margins in ((0, zero_margins), (value, value_margins)):
        if any(margin != (0, 0, 0) for margin in margins):
            x = lax.pad(x, jnp.asarray(fill, x.dtype), margins)
    return x.astype(dtype)


def _extended(x: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """Pad one axis in a mode that repeats inputs. The number of operations does not grow with the padding."""
    size = x.shape[axis]
    if mode == "replicate" or (mode == "reflect" and size == 1):
        ends = [(_part(x, axis, 0, 1), before), (_part(x, axis, size - 1, size), after)]
        left, right = (jnp.broadcast_to(end, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for end, n in ends)
        return lax.concatenate([left, x, right], axis)
    edge = 1 if mode == "reflect" else 0  # inputs at either end that are not repeated
    if max(before, after) <= size - edge:
        if mode == "circular":
            parts = [_part(x, axis, size - before, size), x, _part(x, axis, 0, after)]
        else:
            left, right = _part(x, axis, edge, edge + before), _part(x, axis, size - edge - after, size - edge)
            parts = [lax.rev(left, (axis,)), x, lax.rev(right, (axis,))]
        return lax.concatenate([part for part in parts if part.shape[axis]], axis)
    # Wider than the axis: repeat a whole period, and slice the part that is needed.
    if mode != "circular":  # a period is the axis forwards and backwards
        x = lax.concatenate([x, lax.rev(_part(x, axis, edge, size - edge), (axis,))], axis)
    period = x.shape[axis]
    first, copies = -(-before // period), -(-before // period) - (-(size + after) // period)
    copied = jnp.broadcast_to(lax.expand_dims(x, (axis,)), (*x.shape[:axis], copies, *x.shape[axis:]))
    x = copied.reshape(*x.shape[:axis], copies * period, *x.shape[axis + 1 :])
    start = first * period - before
    return _part(x, axis, start, start + before + size + after)


def _part(x: Array, axis: int, start: int, stop: int) -> Array:
    return lax.slice_in_dim(x, start, stop, axis=axis)

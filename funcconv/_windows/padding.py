"""Extending the spatial axes of an array."""

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
    """Extend the spatial axes of `x` by `axis.lo` before and `axis.reach` after, so that the windows just fit.

    Args:
        x: `(batch, *spatial, channels)`.
        axes: one for each spatial axis.
        modes: what to show beyond each axis, as `numpy.pad` does it; None shows `value`.
        value: also shown where `ceil_mode` reaches beyond the padding.
        spare: zeros before and after each axis that are left out, for the caller to add.

    Returns:
        `(batch, *padded, channels)`. A mode extends the axis over all integers and the padding says which part is
        taken, so a negative padding crops and does not change what the other side shows.
    """
    dtype = x.dtype
    if any(mode not in (None, "zeros") for mode in modes):
        x = x.astype(wide(dtype))  # the gradient of a number that is shown several times is a sum
    zeros, values = [(0, 0, 0)] * x.ndim, [(0, 0, 0)] * x.ndim
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True), start=1):
        before, after = axis.lo, min(axis.hi, axis.reach)
        shown, beyond = (max(before, 0), max(after, 0)), axis.reach - after
        if mode not in (None, "zeros") and any(shown):
            x = _extended(x, i, *shown, str(mode))
        if min(before, after) < 0:
            x = lax.slice_in_dim(x, max(-before, 0), x.shape[i] - max(-after, 0), axis=i)
        if mode == "zeros":
            left = spare[i - 1] if spare else (0, 0)
            zeros[i] = (shown[0] - left[0], shown[1] - left[1], 0)
        values[i] = (0, beyond, 0) if mode else (shown[0], shown[1] + beyond, 0)
    for shows, margins in ((0, zeros), (value, values)):
        if any(margin != (0, 0, 0) for margin in margins):
            x = lax.pad(x, jnp.asarray(shows, x.dtype), margins)
    return x.astype(dtype)


def _extended(x: Array, axis: int, before: int, after: int, mode: str) -> Array:
    """Extend one axis in a mode that shows inputs; the number of operations does not depend on how far."""
    size = x.shape[axis]
    if mode == "replicate" or (mode == "reflect" and size == 1):
        ends = [(_part(x, axis, 0, 1), before), (_part(x, axis, size - 1, size), after)]
        left, right = (jnp.broadcast_to(end, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for end, n in ends)
        return lax.concatenate([left, x, right], axis)
    edge = 1 if mode == "reflect" else 0  # places at either end that are not repeated
    if max(before, after) <= size - edge:
        if mode == "circular":
            parts = [_part(x, axis, size - before, size), x, _part(x, axis, 0, after)]
        else:
            left, right = _part(x, axis, edge, edge + before), _part(x, axis, size - edge - after, size - edge)
            parts = [lax.rev(left, (axis,)), x, lax.rev(right, (axis,))]
        return lax.concatenate([part for part in parts if part.shape[axis]], axis)
    if mode != "circular":  # the axis there and back
        x = lax.concatenate([x, lax.rev(_part(x, axis, edge, size - edge), (axis,))], axis)
    period = x.shape[axis]
    first, copies = -(-before // period), -(-before // period) - (-(size + after) // period)
    copied = jnp.broadcast_to(lax.expand_dims(x, (axis,)), (*x.shape[:axis], copies, *x.shape[axis:]))
    x = copied.reshape(*x.shape[:axis], copies * period, *x.shape[axis + 1 :])
    start = first * period - before
    return _part(x, axis, start, start + before + size + after)


def _part(x: Array, axis: int, start: int, stop: int) -> Array:
    return lax.slice_in_dim(x, start, stop, axis=axis)

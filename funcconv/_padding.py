"""Extending the spatial axes of an array."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from ._dtypes import wide
from ._geometry import Axis
from ._typing import Array

# What numpy and JAX call the pad modes.
_NUMPY_MODES = {"reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap"}


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
    if any(mode in _NUMPY_MODES for mode in modes):
        x = x.astype(wide(dtype))  # the gradient of a number that is shown several times is a sum
    zeros, values = [(0, 0, 0)] * x.ndim, [(0, 0, 0)] * x.ndim
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True), start=1):
        before, after = axis.lo, min(axis.hi, axis.reach)
        shown, beyond = (max(before, 0), max(after, 0)), axis.reach - after
        if mode in _NUMPY_MODES and any(shown):
            x = jnp.pad(x, [shown if i == j else (0, 0) for j in range(x.ndim)], mode=_NUMPY_MODES[mode])
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

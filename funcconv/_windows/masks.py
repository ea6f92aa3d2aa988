"""Masks: which positions of an image are real, and which positions of a result are then real.

A mask is boolean. A result is real if the op computes it for the real positions alone: its window lies on real
positions and on the padding that they have, as wide as that of the op, wherever the array itself ends. This rule is the
same for every example and needs no sizes: the padding is the positions within reach of a real one.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError
from .._common.types import Array, ArrayLike, Padding, Shape
from .geometry import Axis
from .layout import as_array, channels_last_order, image
from .padding import pad
from .taps import fold


def read_mask(op: str, mask: ArrayLike, shape: Shape, layout: str | None) -> Array:
    """Return a mask with an axis of size 1 in the place of the channels.

    Args:
        op: name of the op, for messages.
        mask: boolean, with the axes of the input but the channels, in the same order.
        shape: the shape of the input.
        layout: order of the axes of the input; None for channels last.

    Raises:
        FuncconvError: if the mask is not boolean or has other axes.
    """
    mask = as_array(op, "the mask", mask)
    channels = len(shape) - 1 if layout is None else channels_last_order(op, layout, len(shape))[-1]
    expected = (*shape[:channels], *shape[channels + 1 :])
    if mask.dtype != jnp.bool_:
        msg = f"{op}: the mask must be boolean, True at real positions; got {mask.dtype}. Pass mask.astype(bool)"
        raise FuncconvError(msg)
    if mask.shape != expected:
        msg = (
            f"{op}: the mask must have the axes of the input but the channels, {expected}; got {mask.shape}. Repeat it "
            "with jnp.broadcast_to, or remove its axis of channels"
        )
        raise FuncconvError(msg)
    return jnp.expand_dims(mask, channels)


def image_mask(op: str, mask: ArrayLike, shape: Shape, spatial: int, layout: str | None) -> Array:
    """Return the mask of an image as `(batch, *spatial, 1)`."""
    expanded = read_mask(op, mask, shape, layout)
    return image(op, expanded, spatial, "spatial=", layout).whole().array


def zero_masked(x: Array, real: Array | None) -> Array:
    """Return `x` with zeros in place of what is not real, which may be anything, also NaN."""
    return x if real is None else jnp.where(real, x, jnp.zeros((), x.dtype))


def check_padding_modes(op: str, axes: Sequence[Axis], modes: Sequence[str | None]) -> None:
    """Refuse padding that repeats inputs: where each example ends, its padding would be other numbers."""
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True)):
        if mode not in (None, "zeros") and (axis.lo, axis.hi_used) != (0, 0):
            msg = (
                f"{op}: with a mask, padding can only contain zeros; spatial axis {i} has pad_mode={mode!r}, which "
                "repeats inputs of the whole array. Pad each example before you put it into the batch"
            )
            raise FuncconvError(msg)


def padded_real(real: Array, axes: Sequence[Axis]) -> Array:
    """Return which positions of the padded array are real and not cropped, `(batch, *padded, 1)`."""
    # Negative padding crops the ends of what is real, wherever the array ends.
    cropped = with_padding(real, [min(axis.lo, 0) for axis in axes], [min(axis.hi, 0) for axis in axes])
    return pad(cropped, axes, [None] * len(axes))


def with_padding(real: Array, before: Sequence[int], after: Sequence[int]) -> Array:
    """Return which positions are real or in the padding of a real one. Negative padding crops the ends of what is real.

    Args:
        real: `(batch, *spatial, 1)`.
        before: for each axis, how far the padding reaches before a real position.
        after: how far it reaches after one.
    """
    for i, (lo, hi) in enumerate(zip(before, after, strict=True), start=1):
        # Position p is in the padding if a position from p - hi to p + lo is real.
        real = _over_neighbours(jnp.logical_or, real, i, max(hi, 0), max(lo, 0))
        real = _over_neighbours(jnp.logical_and, real, i, max(-lo, 0), max(-hi, 0))
    return real


def windows_mask(op: str, real: Array, axes: Sequence[Axis], padding: Padding, *, ceil_mode: bool = False) -> Array:
    """Return which windows are those of the real positions alone, `(batch, *positions, 1)`.

    Args:
        op: name of the op, for messages.
        real: `(batch, *spatial, 1)`.
        axes: the geometry of each spatial axis.
        padding: as the caller gave it.
        ceil_mode: whether a last window may extend beyond the padding.

    Raises:
        FuncconvError: if the padding before an image depends on its size.
    """
    if padding in ("SAME", "SAME_LOWER"):  # there is a window for each position at a multiple of the stride
        _check_same(op, axes, str(padding))
        for i, axis in enumerate(axes, start=1):
            real = lax.slice_in_dim(real, 0, (axis.outputs - 1) * axis.stride + 1, axis.stride, i)
        return real
    padded = padded_real(real, axes)
    before, after = [max(axis.lo, 0) for axis in axes], [max(axis.hi, 0) for axis in axes]
    y = _all_taps(with_padding(padded, before, after), axes)
    if not ceil_mode:
        return y
    # One window more, which may extend beyond the padding, but does not start in the padding after the image.
    beyond = [hi + axis.stride - 1 for axis, hi in zip(axes, after, strict=True)]
    starts = [axis._replace(window=1, dilation=1) for axis in axes]
    more = _all_taps(with_padding(padded, before, beyond), axes)
    return y | (more & _all_taps(with_padding(padded, before, [0] * len(axes)), starts))


def any_tap(padded: Array, axes: Sequence[Axis]) -> Array:
    """Return which windows of a padded mask have a True, `(batch, *positions, 1)`."""
    return _fold_windows(jnp.logical_or, padded, axes)


def count_taps(padded: Array, axes: Sequence[Axis]) -> Array:
    """Return how many taps of each window of a padded mask are True, `(batch, *positions, 1)`, int32."""
    return _fold_windows(jnp.add, padded.astype(jnp.int32), axes)


def transposed_mask(real: Array, axes: Sequence[Axis]) -> Array:
    """Return which positions are those of the transposed convolution of the real positions alone.

    Args:
        real: `(batch, *positions, 1)`.
        axes: the geometry of the convolution that is transposed, with as many outputs as there are positions.

    Returns:
        `(batch, *sizes, 1)`.
    """
    for i, axis in enumerate(axes, start=1):
        # On the padded image, the window of position m begins at m * stride.
        windows = _spread(real, i, axis.stride, axis.extent)
        if axis.stride > axis.extent and axis.outputs > 1:
            # Between the windows of two real positions, zeros are part of the result.
            first, second = (lax.slice_in_dim(real, m, m + axis.outputs - 1, axis=i) for m in (0, 1))
            gaps = _spread(first & second, i, axis.stride, axis.stride)
            windows = windows | _edges(gaps, i, 0, windows.shape[i] - gaps.shape[i])
        after = windows.shape[i] - axis.lo - axis.size
        windows = _edges(windows, i, max(-axis.lo, 0), max(-after, 0))
        ends = [[0] * len(axes) for _ in range(2)]
        ends[0][i - 1], ends[1][i - 1] = -axis.lo, -after
        real = _edges(with_padding(windows, *ends), i, min(-axis.lo, 0), min(-after, 0))
    return real


def _spread(real: Array, axis: int, stride: int, reach: int) -> Array:
    """Return the positions from `m * stride` to `m * stride + reach - 1` for each real position `m` of an axis."""
    margins = [(0, 0, 0)] * real.ndim
    margins[axis] = (0, reach - 1, stride - 1)
    return _over_neighbours(jnp.logical_or, lax.pad(real, jnp.zeros((), bool), margins), axis, reach - 1, 0)


def _edges(real: Array, axis: int, before: int, after: int) -> Array:
    """Add positions that are not real before and after an axis, or remove positions where a number is negative."""
    margins = [(0, 0, 0)] * real.ndim
    margins[axis] = (before, after, 0)
    return lax.pad(real, jnp.zeros((), bool), margins)


def _over_neighbours(op: Callable[[Array, Array], Array], real: Array, axis: int, before: int, after: int) -> Array:
    """Combine each position with the `before` positions before it and the `after` ones after it along an axis."""
    if before + after == 0:
        return real
    size = real.shape[axis]
    y: Array = fold(op, _edges(real, axis, before, after), axis, before + after + 1, 1, 1, size)
    return y


def _all_taps(real: Array, axes: Sequence[Axis]) -> Array:
    return _fold_windows(jnp.logical_and, real, axes)


def _fold_windows(op: Callable[[Array, Array], Array], x: Array, axes: Sequence[Axis]) -> Array:
    for i, axis in enumerate(axes, start=1):
        x = fold(op, x, i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return x


def _check_same(op: str, axes: Sequence[Axis], padding: str) -> None:
    """Refuse "SAME" where the padding before an image depends on its size."""
    for i, axis in enumerate(axes):
        # The total padding depends on the size modulo the stride.
        totals = [max(axis.extent - rest, 0) for rest in range(1, axis.stride + 1)]
        before = sorted({total // 2 if padding == "SAME" else total - total // 2 for total in totals})
        if len(before) > 1:
            msg = (
                f"{op}: with a mask, the padding before spatial axis {i} must be the same for images of every size; "
                f"padding={padding!r} with a window over {axis.extent} positions and stride {axis.stride} adds "
                f"{' or '.join(map(str, before))}. Pass 'HALF', 'CAUSAL' or numbers"
            )
            raise FuncconvError(msg)

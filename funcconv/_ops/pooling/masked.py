"""Pools of images of which only some positions are real, others in each example of the batch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.types import Array, Padding, Shape
from ..._primitives.folds import NO_INPUT, NO_PART, Fold
from ..._primitives.whole_windows import Joint
from ..._windows.geometry import Axis
from ..._windows.layout import Image
from ..._windows.masks import (
    any_tap,
    check_padding_modes,
    count_taps,
    padded_real,
    windows_mask,
    with_padding,
    zero_masked,
)
from ..._windows.padding import pad
from ..._windows.taps import fold, taps
from .reducers import ReduceOptions, restored


class MaskedWindows(NamedTuple):
    """The windows of a pool, and which positions of its input are real."""

    real: Array  # (batch, *spatial, 1)
    axes: tuple[Axis, ...]
    modes: tuple[str | None, ...]
    padding: Padding
    ceil_mode: bool

    def with_filled_padding(self, *, all_axes: bool = False) -> Array:
        """Return which positions of the padded array are real or padding, on axes whose padding a mode fills."""
        fills = [all_axes or mode is not None for mode in self.modes]
        before = [max(axis.lo, 0) if fill else 0 for axis, fill in zip(self.axes, fills, strict=True)]
        after = [max(axis.hi, 0) if fill else 0 for axis, fill in zip(self.axes, fills, strict=True)]
        return with_padding(padded_real(self.real, self.axes), before, after)


def masked_pool(
    inside: Image, reducer: Fold | Joint, options: ReduceOptions, windows: MaskedWindows, *, count_include_pad: bool
) -> Any:
    """Reduce windows in which real positions take part, and the zeros of padding that a mode fills."""
    real, axes, modes, padding, ceil_mode = windows
    check_padding_modes(inside.op, axes, modes)
    takes_part = windows.with_filled_padding()
    result = windows_mask(inside.op, real, axes, padding, ceil_mode=ceil_mode) & any_tap(takes_part, axes)
    nothing = [None] * len(axes)
    x = pad(zero_masked(inside.array, real), axes, nothing)
    if isinstance(reducer, Joint):
        x = zero_masked(x, takes_part).astype(wide(x.dtype))
        missing = taps(~takes_part, axes, reducer.unrolled)
        return restored(inside, reducer.apply(taps(x, axes, reducer.unrolled), missing), options, [], result)
    number = None
    if reducer.numbers:
        number = pad(reducer.numbers(inside.spatial), axes, nothing)
        number = jnp.where(padded_real(real, axes), number, jnp.where(takes_part, NO_INPUT, NO_PART))
    tree = reducer.lift(jnp.where(takes_part, x, jnp.asarray(reducer.identity, x.dtype)), number)
    # The last axis first: then the first of equal taps is the first in row-major order.
    for i, axis in reversed(tuple(enumerate(axes, start=1))):
        tree = fold(reducer.combine, tree, i, axis.window, axis.stride, axis.dilation, axis.outputs)
    counted = windows.with_filled_padding(all_axes=True) if count_include_pad else takes_part
    return restored(inside, reducer.lower(tree), options, count_taps(counted, axes), result)


def masked_global_pool(inside: Image, reducer: Fold | Joint, options: ReduceOptions, real: Array) -> Any:
    """Reduce the real positions of each example, `(batch, *spatial, 1)`, to one number for each channel."""
    size = math.prod(inside.spatial)
    count = jnp.sum(real, tuple(range(1, real.ndim)), dtype=jnp.int32)[:, None]
    if isinstance(reducer, Joint):
        x, is_real = (array.reshape(array.shape[0], size, array.shape[-1]) for array in (inside.array, real))
        y = reducer.apply([zero_masked(x, is_real).astype(wide(x.dtype))], [~is_real])
        return restored(inside, y, options, count, count > 0)
    tree = _lifted(inside, reducer, real)
    for i, axis_size in reversed(tuple(enumerate(inside.spatial, start=1))):
        tree = fold(reducer.combine, tree, i, axis_size, 1, 1, 1)
    y = jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0], leaf.shape[-1]), reducer.lower(tree))
    return restored(inside, y, options, count, count > 0)


def masked_adaptive_pool(
    inside: Image, reducer: Fold | Joint, options: ReduceOptions, real: Array, outputs: Shape
) -> Any:
    """Reduce bins that divide the real positions of each example, `(batch, *spatial, 1)`."""
    members = [_members(real, axis, count) for axis, count in enumerate(outputs, start=1)]
    count = real.astype(jnp.int32)
    for i, member in enumerate(members, start=1):
        count = _over_bins(jnp.add, count, jnp.zeros((), jnp.int32), member, i)
    if isinstance(reducer, Joint):
        y = _joint_bins(reducer, zero_masked(inside.array, real), real, members)
        return restored(inside, y, options, count, count > 0)
    tree = _lifted(inside, reducer, real)
    nothing = reducer.lift(jnp.asarray(reducer.identity, inside.array.dtype), jnp.asarray(NO_PART, jnp.int32))
    # The last axis first: then the first of equal inputs is the first in row-major order.
    for i, member in reversed(tuple(enumerate(members, start=1))):
        tree = _over_bins(reducer.combine, tree, nothing, member, i)
    return restored(inside, reducer.lower(tree), options, count, count > 0)


def _lifted(inside: Image, reducer: Fold, real: Array) -> Any:
    """Return the values that a fold combines, with its identity where a position is not real."""
    x = jnp.where(real, inside.array, jnp.asarray(reducer.identity, inside.array.dtype))
    return reducer.lift(x, reducer.numbers and jnp.where(real, reducer.numbers(inside.spatial), NO_PART))


def _members(real: Array, axis: int, outputs: int) -> Array:
    """Return which positions of an axis are in which bin of each example, `(batch, bins, positions)`.

    The bins divide the positions from the first real one to the last, with PyTorch's rule: from `floor(i n / m)` to
    `ceil((i + 1) n / m)`.
    """
    others = tuple(i for i in range(1, real.ndim) if i != axis)
    used = jnp.any(real, others)  # (batch, positions)
    size = used.shape[1]
    place = jnp.arange(size, dtype=jnp.int32)[None]
    first = jnp.min(jnp.where(used, place, size), 1, keepdims=True)
    count = jnp.max(jnp.where(used, place + 1, 0), 1, keepdims=True) - first  # negative if nothing is real
    bins = jnp.arange(outputs, dtype=jnp.int32)[None]
    start, stop = first + bins * count // outputs, first - (-(bins + 1) * count // outputs)  # (batch, bins)
    return (place[..., None, :] >= start[..., None]) & (place[..., None, :] < stop[..., None])


def _over_bins(combine: Any, tree: Any, nothing: Any, member: Array, axis: int) -> Any:
    """Reduce the bins of one axis of a tree of arrays by an associative operation; `nothing` is its identity."""

    def by_bin(leaf: Array, identity: Array) -> Array:
        leaf = jnp.expand_dims(leaf, axis)  # (batch, ..., bins, positions, ..., channels)
        own = member.reshape(member.shape[0], *(1,) * (axis - 1), *member.shape[1:], *(1,) * (leaf.ndim - axis - 2))
        return jnp.where(own, leaf, identity.astype(leaf.dtype))

    size = member.shape[2]
    reduced = fold(combine, jax.tree.map(by_bin, tree, nothing), axis + 1, size, 1, 1, 1)
    return jax.tree.map(lambda leaf: jnp.squeeze(leaf, axis + 1), reduced)


def _joint_bins(reducer: Joint, x: Array, real: Array, members: Sequence[Array]) -> Array:
    """Reduce bins along all axes by a function of all their inputs."""
    n = len(members)
    inside = jnp.expand_dims(real, tuple(range(1, n + 1)))  # (batch, *bins, *positions, 1)
    for i, member in enumerate(members):
        bins, positions = [1] * n, [1] * n
        bins[i], positions[i] = member.shape[1:]
        inside = inside & member.reshape(member.shape[0], *bins, *positions, 1)
    inside = inside.reshape(*inside.shape[: n + 1], -1, 1)  # (batch, *bins, all positions, 1)
    taps_of_bins = x.reshape(x.shape[0], *(1,) * n, -1, x.shape[-1]).astype(wide(x.dtype))
    return reducer.apply([zero_masked(taps_of_bins, inside)], [~inside])

"""Windows as shifted slices: tap `t` of every window at once is one strided slice of the array."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.types import Array
from .geometry import Axis

# Folding a window costs one slice a tap up to so many; wider windows are folded in two stages.
_WIDE = 8
_STACKED = 64  # taps along one axis that are gathered by a slice each, at most


def split(x: Array, axis: int, sizes: Sequence[int]) -> Array:
    """Split one axis into several, one after another: JAX can reshape arrays that are spread by type in this way."""
    for size in reversed(sizes[1:]):
        x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return x


def merge(x: Array, axis: int, number: int) -> Array:
    """Merge `number` axes from `axis` on into one, as `split` splits them."""
    for _ in range(number - 1):
        x = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
    return x


def patches(x: Array, axes: Sequence[Axis]) -> Array:
    """Gather the windows of a padded array.

    Args:
        x: `(batch, *padded, channels)`.
        axes: one for each spatial axis.

    Returns:
        `(batch, *positions, *window, channels)`.
    """
    for i, axis in enumerate(axes, start=1):
        places = (axis.window, axis.stride, axis.dilation, axis.outputs)
        if axis.window > _STACKED:  # in stages, so that the program grows as the logarithm of the window
            x = fold(_side_by_side, jnp.expand_dims(x, -2), i, *places)
            continue
        taps = [_slice(x, i, t * axis.dilation, axis.stride, axis.outputs) for t in range(axis.window)]
        x = jnp.stack(taps, axis=-2)
    return x


def _side_by_side(earlier: Array, later: Array) -> Array:
    return lax.concatenate([earlier, later], earlier.ndim - 2)


def shifted(x: Array, axes: Sequence[Axis]) -> list[Array]:
    """Return each tap of all windows of a padded array, in row-major order.

    Args:
        x: `(batch, *padded, channels)`.
        axes: one for each spatial axis.

    Returns:
        Slices `(batch, *positions, channels)`, one for each tap.
    """
    strides = (1, *(axis.stride for axis in axes), 1)
    found = []
    for tap in np.ndindex(tuple(axis.window for axis in axes)):
        starts = [t * axis.dilation for t, axis in zip(tap, axes, strict=True)]
        stops = [i + (axis.outputs - 1) * axis.stride + 1 for i, axis in zip(starts, axes, strict=True)]
        found.append(lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), strides))
    return found


def taps(x: Array, axes: Sequence[Axis], unrolled: int) -> list[Array]:
    """Return the taps of each window of a padded array in row-major order.

    Args:
        x: `(batch, *padded, channels)`.
        axes: one for each spatial axis.
        unrolled: of windows with so many taps each tap is a slice of its own, which XLA fuses with what uses it; the
            windows of others are gathered in one array.

    Returns:
        Arrays `(batch, *positions, some taps, channels)`.
    """
    window = tuple(axis.window for axis in axes)
    if math.prod(window) <= unrolled:
        return [part[..., None, :] for part in shifted(x, axes)]
    return [merge(patches(x, axes), 1 + len(axes), len(axes))]


def fold(
    op: Callable[[Any, Any], Any], x: Any, axis: int, window: int, stride: int, dilation: int, outputs: int
) -> Any:
    """Reduce each window along one axis by an associative operation, its taps in order.

    Derivatives of any order and in any mode are those of `op` and of slices: nothing is scattered.

    Args:
        op: `op(earlier, later)`, elementwise on trees like `x`.
        x: a tree of arrays of one shape.
        axis: the axis to fold.
        window: taps of a window.
        stride: places from one window to the next.
        dilation: places from one tap to the next.
        outputs: the number of windows, all of which must lie inside.

    Returns:
        The tree, with `outputs` in place of what the axis had.
    """
    if window <= _WIDE:
        side_by_side = dilation == 1 and (stride == window or outputs == 1)
        if side_by_side:
            return reduce(op, _parts(x, axis, window, outputs))
        return reduce(op, (_slice(x, axis, t * dilation, stride, outputs) for t in range(window)))
    # Fold `chunk` neighbouring taps first, at those places only that the second stage reads.
    apart = 0 if outputs == 1 else stride
    chunk = max(range(2, _WIDE + 1), key=lambda size: (math.gcd(apart, size * dilation), size))
    blocks, rest = divmod(window, chunk)
    step = math.gcd(apart, chunk * dilation)
    places = 1 + ((outputs - 1) * stride + (blocks - 1) * chunk * dilation) // step
    head = fold(op, x, axis, chunk, step, dilation, places)
    head = fold(op, head, axis, blocks, stride // step if apart else 1, chunk * dilation // step, outputs)
    if not rest:
        return head
    tail = _slice(x, axis, blocks * chunk * dilation, 1, 1 + (outputs - 1) * stride + (rest - 1) * dilation)
    return op(head, fold(op, tail, axis, rest, stride, dilation, outputs))


def _parts(tree: Any, axis: int, window: int, outputs: int) -> Iterator[Any]:
    """Return each tap of windows side by side, as parts of one array: their cotangents are put together, not added."""

    def split(x: Array) -> list[Array]:
        x = _slice(x, axis, 0, 1, outputs * window)
        x = lax.reshape(x, (*x.shape[:axis], outputs, window, *x.shape[axis + 1 :]))
        return [lax.squeeze(part, (axis + 1,)) for part in lax.split(x, (1,) * window, axis + 1)]

    leaves, structure = jax.tree.flatten(tree)
    return (jax.tree.unflatten(structure, tap) for tap in zip(*map(split, leaves), strict=True))


def _slice(tree: Any, axis: int, start: int, stride: int, count: int) -> Any:
    stop = start + (count - 1) * stride + 1
    return jax.tree.map(lambda x: x if count == x.shape[axis] else lax.slice_in_dim(x, start, stop, stride, axis), tree)

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

# A window of up to so many taps is folded with one slice per tap, a wider one in two stages, so that the program grows
# with the logarithm of the window.
_MOST_SLICED_TAPS = 8
_MOST_STACKED_TAPS = 64  # of a window along one axis, if its taps are gathered by a slice each


def split(x: Array, axis: int, sizes: Sequence[int]) -> Array:
    """Return the array with one axis split into several."""
    # One axis is split off at a time: JAX can reshape arrays with explicit sharding only in this way.
    for size in reversed(sizes[1:]):
        x = x.reshape(*x.shape[:axis], x.shape[axis] // size, size, *x.shape[axis + 1 :])
    return x


def merge(x: Array, axis: int, number: int) -> Array:
    """Merge `number` axes from `axis` on into one: the inverse of `split`."""
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
        geometry = (axis.window, axis.stride, axis.dilation, axis.outputs)
        if axis.window > _MOST_STACKED_TAPS:  # in stages, so that the program grows with the logarithm of the window
            x = fold(_joined, jnp.expand_dims(x, -2), i, *geometry)
            continue
        taps = [_slice(x, i, t * axis.dilation, axis.stride, axis.outputs) for t in range(axis.window)]
        x = jnp.stack(taps, axis=-2)
    return x


def _joined(earlier: Array, later: Array) -> Array:
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
    slices = []
    for tap in np.ndindex(tuple(axis.window for axis in axes)):
        starts = [t * axis.dilation for t, axis in zip(tap, axes, strict=True)]
        stops = [i + (axis.outputs - 1) * axis.stride + 1 for i, axis in zip(starts, axes, strict=True)]
        slices.append(lax.slice(x, (0, *starts, 0), (x.shape[0], *stops, x.shape[-1]), strides))
    return slices


def taps(x: Array, axes: Sequence[Axis], unrolled: int) -> list[Array]:
    """Return the taps of each window of a padded array in row-major order.

    Args:
        x: `(batch, *padded, channels)`.
        axes: one for each spatial axis.
        unrolled: up to so many taps, each tap is a separate slice, which XLA can fuse with the operations that use it.
            More taps are gathered in one array.

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
    """Reduce each window along one axis by an associative operation, with the taps in order.

    The program consists of `op` and slices, so derivatives of every order exist, and none of them has a scatter.

    Args:
        op: `op(earlier, later)`, elementwise on trees like `x`.
        x: a tree of arrays of one shape.
        axis: the axis to fold.
        window: taps of a window.
        stride: step from one window to the next.
        dilation: step from one tap to the next.
        outputs: number of windows, all of which must be inside the array.

    Returns:
        The tree, in which the axis has size `outputs`.
    """
    if window <= _MOST_SLICED_TAPS:
        disjoint = dilation == 1 and (stride == window or outputs == 1)
        if disjoint:
            return reduce(op, _taps_of_disjoint_windows(x, axis, window, outputs))
        return reduce(op, (_slice(x, axis, t * dilation, stride, outputs) for t in range(window)))
    # Two stages: fold chunks of neighbouring taps, then fold the chunks of each window. The first stage computes a
    # chunk every `step` positions, where the second reads one. A chunk size with a large step means fewer chunks.
    window_step = 0 if outputs == 1 else stride
    chunk = max(range(2, _MOST_SLICED_TAPS + 1), key=lambda size: (math.gcd(window_step, size * dilation), size))
    blocks, rest = divmod(window, chunk)
    step = math.gcd(window_step, chunk * dilation)
    chunks = 1 + ((outputs - 1) * stride + (blocks - 1) * chunk * dilation) // step
    head = fold(op, x, axis, chunk, step, dilation, chunks)
    head = fold(op, head, axis, blocks, stride // step if window_step else 1, chunk * dilation // step, outputs)
    if not rest:
        return head
    tail = _slice(x, axis, blocks * chunk * dilation, 1, 1 + (outputs - 1) * stride + (rest - 1) * dilation)
    return op(head, fold(op, tail, axis, rest, stride, dilation, outputs))


def _taps_of_disjoint_windows(tree: Any, axis: int, window: int, outputs: int) -> Iterator[Any]:
    """Return each tap of all windows, which follow each other without overlap.

    The taps are parts of one split, so their cotangents are concatenated. Those of slices would be padded and added.
    """

    def split_into_taps(x: Array) -> list[Array]:
        x = _slice(x, axis, 0, 1, outputs * window)
        x = lax.reshape(x, (*x.shape[:axis], outputs, window, *x.shape[axis + 1 :]))
        return [lax.squeeze(part, (axis + 1,)) for part in lax.split(x, (1,) * window, axis + 1)]

    leaves, structure = jax.tree.flatten(tree)
    return (jax.tree.unflatten(structure, tap) for tap in zip(*map(split_into_taps, leaves), strict=True))


def _slice(tree: Any, axis: int, start: int, stride: int, count: int) -> Any:
    stop = start + (count - 1) * stride + 1
    return jax.tree.map(lambda x: x if count == x.shape[axis] else lax.slice_in_dim(x, start, stop, stride, axis), tree)

"""Values that are put to their indices: a linear map, and its transpose.

    put(y, indices) -> x        x[j] = the sum of all y[i] with indices[i] = j
    look_up(x, indices) -> y    y[i] = x[indices[i]]

Only indices that a window reads take part, so a place adds up its windows in a fixed order, and nothing is scattered.
"""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from .._common.mesh_axes import varying_alike
from .._common.types import Array
from .._windows.geometry import Axis
from .._windows.taps import merge
from .rules import define_transposes

put_p = Primitive("put")
look_up_p = Primitive("look_up")

# More terms are summed in a loop. `jet` has no rule for loops, so such a sum is a primitive, which has one.
_UNROLLED = 64
_NOWHERE = -2  # the number of a place outside of the image: no index, as -1 is none


def put(y: Array, indices: Array, axes: tuple[Axis, ...]) -> Array:
    """Add up, at each place of an image, the values of those windows that have its index.

    Args:
        y: `(batch, *positions, channels)`.
        indices: int32 of the shape of `y`, in the row-major order of the spatial axes; -1 is no place.
        axes: the windows.

    Returns:
        `(batch, *size, channels)`. A value whose index its window does not read is dropped.
    """
    if math.prod(map(len, _backs(axes))) <= _UNROLLED:
        return _placed(y, indices, axes=axes)
    return put_p.bind(*varying_alike(y, indices), axes=axes)


def _backs(axes: Sequence[Axis]) -> list[list[int]]:
    """Return by how many strides the windows that read a place can start before it, along each axis."""
    return [sorted({tap * axis.dilation // axis.stride for tap in range(axis.window)}) for axis in axes]


def _placed(y: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Add up, at each place of the image, the values of those windows that have its index.

    In the padded image, window `o` reads from the place `o * stride` on. So the place `m * stride + phase` is read by
    the windows `m - back`, with the tap that lies `back * stride + phase` places after their first.

    Returns:
        `(batch, *size, channels)`.
    """
    backs = _backs(axes)
    firsts = [axis.lo // axis.stride for axis in axes]  # the first and, next, the last m with places of the image
    lasts = [(axis.lo + axis.size - 1) // axis.stride for axis in axes]
    counts = [last - first + 1 for first, last in zip(firsts, lasts, strict=True)]
    edges = [
        (back[-1] - first, last - back[0] - axis.outputs + 1, 0)
        for axis, back, first, last in zip(axes, backs, firsts, lasts, strict=True)
    ]
    edges = [(0, 0, 0), *edges, (0, 0, 0)]
    padded = lax.pad(y, jnp.zeros((), y.dtype), edges), lax.pad(indices, jnp.int32(-1), edges)
    number = jnp.zeros((1,) * (y.ndim + len(axes)), jnp.int32)
    for i, (axis, first, count) in enumerate(zip(axes, firsts, counts, strict=True)):
        place = np.arange(first * axis.stride, (first + count) * axis.stride) - axis.lo
        rows = math.prod(after.size for after in axes[i + 1 :])
        terms = np.where((place >= 0) & (place < axis.size), place * rows, _NOWHERE).reshape(count, axis.stride)
        added = _along(jnp.asarray(terms, jnp.int32), i, len(axes))
        number = jnp.where((number < 0) | (added < 0), _NOWHERE, number + added)

    def term(back: Sequence[Any]) -> Array:
        """Return the values that the windows so many before put at each place, `(batch, m, phase, ..., channels)`."""
        starts = [each[-1] - b for each, b in zip(backs, back, strict=True)]
        values, theirs = (_read(x, starts, counts) for x in padded)
        keep = theirs == number
        for i, (axis, b) in enumerate(zip(axes, back, strict=True)):
            offset = b * axis.stride + np.arange(axis.stride, dtype=np.int32)[None]
            keep &= _along(jnp.asarray((offset < axis.extent) & (offset % axis.dilation == 0)), i, len(axes))
        return jnp.where(keep, values, jnp.zeros_like(values))

    x = _sum_over(backs, term)
    for i, (axis, first) in enumerate(zip(axes, firsts, strict=True), start=1):
        start = axis.lo - first * axis.stride
        x = lax.slice_in_dim(merge(x, i, 2), start, start + axis.size, axis=i)
    return x


def _sum_over(backs: Sequence[Sequence[int]], term: Callable[[Sequence[Any]], Array]) -> Array:
    """Return the sum of the terms for all combinations; many are summed in a loop."""
    shape = tuple(map(len, backs))
    if math.prod(shape) <= _UNROLLED:
        return functools.reduce(jnp.add, map(term, product(*backs)))
    tables = [jnp.asarray(each, jnp.int32) for each in backs]

    def step(total: Array, number: Array) -> tuple[Array, None]:
        back: list[Array] = []
        for table in reversed(tables):
            number, i = jnp.divmod(number, table.size)
            back.insert(0, table[i])
        return total + term(back), None

    first = term([each[0] for each in backs])
    return lax.scan(step, first, jnp.arange(1, math.prod(shape), dtype=jnp.int32))[0]


def _read(x: Array, starts: Sequence[Any], counts: Sequence[int]) -> Array:
    """Return a part of each spatial axis with an axis of one phase after each."""
    for i, (start, count) in enumerate(zip(starts, counts, strict=True), start=1):
        known = isinstance(start, int)
        x = (lax.slice_in_dim(x, start, start + count, axis=i) if known
             else lax.dynamic_slice_in_dim(x, start, count, axis=i))  # fmt: skip
    return lax.expand_dims(x, [2 * i for i in range(1, len(counts) + 1)])


def _along(x: Array, i: int, n: int) -> Array:
    """Return an array of the blocks and phases of axis `i` as one that broadcasts against those of all `n` axes."""
    return x.reshape(1, *(1, 1) * i, *x.shape, *(1, 1) * (n - i - 1), 1)


def placed(y: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Compute `_placed` for arrays with any number of axes in front of the spatial ones."""
    f = partial(_placed, axes=axes)
    for _ in range(y.ndim - len(axes) - 2):
        f = jax.vmap(f)
    return f(y, indices)


def _read_each(x: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Return the value at each index, and 0 where `placed` drops a value: its transpose."""
    y_type = jax.typeof(x).update(shape=indices.shape)
    (y,) = jax.linear_transpose(partial(placed, indices=indices, axes=axes), y_type)(x)
    return y


define_transposes(look_up_p, _read_each, put_p, placed)

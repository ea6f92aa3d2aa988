"""`put`: add values at their indices in an image, a linear map, and its transpose `look_up`.

    put(y, indices) -> x        x[j] = the sum of all y[i] with indices[i] = j
    look_up(x, indices) -> y    y[i] = x[indices[i]]

Only indices that a window reads take part. So each position adds the values of its windows in a fixed order, without a
scatter, whose order is not deterministic on a GPU.
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

# More terms per position are summed in a loop. `jet` has no rule for loops, so that sum is a primitive that has one.
_MOST_UNROLLED_TERMS = 64
_OUTSIDE = -2  # number of a position outside the image; it equals no index, since -1 marks a dropped value


def put(y: Array, indices: Array, axes: tuple[Axis, ...]) -> Array:
    """Return an image of zeros to which each value is added at its index.

    Args:
        y: `(batch, *positions, channels)`.
        indices: int32 of the shape of `y`, in the row-major order of the spatial axes; -1 drops the value.
        axes: the windows.

    Returns:
        `(batch, *size, channels)`. A value is dropped if its window does not read its index.
    """
    if math.prod(map(len, _backs(axes))) <= _MOST_UNROLLED_TERMS:
        return _placed(y, indices, axes=axes)
    return put_p.bind(*varying_alike(y, indices), axes=axes)


def _backs(axes: Sequence[Axis]) -> list[list[int]]:
    """Return how many strides before a position the windows that read it can start, for each axis."""
    return [sorted({tap * axis.dilation // axis.stride for tap in range(axis.window)}) for axis in axes]


def _placed(y: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Compute `put` for one batch axis.

    In the padded image, window `o` reads from position `o * stride` on. So position `m * stride + phase` is read by the
    windows `m - back`, with the tap `back * stride + phase` positions after their first.

    Returns:
        `(batch, *size, channels)`.
    """
    backs = _backs(axes)
    firsts = [axis.lo // axis.stride for axis in axes]  # the first and the last m with positions of the image
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
        terms = np.where((place >= 0) & (place < axis.size), place * rows, _OUTSIDE).reshape(count, axis.stride)
        axis_number = _along(jnp.asarray(terms, jnp.int32), i, len(axes))
        number = jnp.where((number < 0) | (axis_number < 0), _OUTSIDE, number + axis_number)

    def term(back: Sequence[Any]) -> Array:
        """Return the values that the windows `m - back` put at each position, `(batch, m, phase, ..., channels)`."""
        starts = [axis_backs[-1] - b for axis_backs, b in zip(backs, back, strict=True)]
        values, value_indices = (_read(x, starts, counts) for x in padded)
        keep = value_indices == number
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
    """Return the sum of the terms for all combinations; many terms are summed in a loop."""
    shape = tuple(map(len, backs))
    if math.prod(shape) <= _MOST_UNROLLED_TERMS:
        return functools.reduce(jnp.add, map(term, product(*backs)))
    tables = [jnp.asarray(axis_backs, jnp.int32) for axis_backs in backs]

    def step(total: Array, number: Array) -> tuple[Array, None]:
        back: list[Array] = []
        for table in reversed(tables):
            number, i = jnp.divmod(number, table.size)
            back.insert(0, table[i])
        return total + term(back), None

    first = term([axis_backs[0] for axis_backs in backs])
    return lax.scan(step, first, jnp.arange(1, math.prod(shape), dtype=jnp.int32))[0]


def _read(x: Array, starts: Sequence[Any], counts: Sequence[int]) -> Array:
    """Return a part of each spatial axis, followed by an axis of size 1 for the phases."""
    for i, (start, count) in enumerate(zip(starts, counts, strict=True), start=1):
        if isinstance(start, int):
            x = lax.slice_in_dim(x, start, start + count, axis=i)
        else:  # inside the loop
            x = lax.dynamic_slice_in_dim(x, start, count, axis=i)
    return lax.expand_dims(x, [2 * i for i in range(1, len(counts) + 1)])


def _along(x: Array, i: int, n: int) -> Array:
    """Return `(m, phase)` of axis `i` with the axes of all `n` spatial axes, to which it broadcasts."""
    return x.reshape(1, *(1, 1) * i, *x.shape, *(1, 1) * (n - i - 1), 1)


def placed(y: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Compute `put` for any number of batch axes."""
    f = partial(_placed, axes=axes)
    for _ in range(y.ndim - len(axes) - 2):
        f = jax.vmap(f)
    return f(y, indices)


def _read_each(x: Array, indices: Array, *, axes: tuple[Axis, ...]) -> Array:
    """Return the value of an image at each index, and 0 if `put` drops the value there: the transpose of `put`."""
    y_type = jax.typeof(x).update(shape=indices.shape)
    (y,) = jax.linear_transpose(partial(placed, indices=indices, axes=axes), y_type)(x)
    return y


define_transposes(look_up_p, _read_each, put_p, placed)

"""Functions that move, select or repeat the entries of an array, and constant arrays."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...._common.dtypes import in_wide
from ...._common.types import Array, Number, Shape
from ...._graph.to_file.registry import register_op


def to_last(x: Array) -> Array:
    """Move the channels from the first axis to the last."""
    return jnp.moveaxis(x, 0, -1)


def to_first(x: Array) -> Array:
    """Move the channels from the last axis to the first."""
    return jnp.moveaxis(x, -1, 0)


def reshaped(x: Array, *, shape: Shape) -> Array:
    """Reshape an array; the order of the entries does not change."""
    return x.reshape(shape)


def transposed(x: Array, *, axes: tuple[int, ...]) -> Array:
    """Return the array with its axes in another order."""
    return x.transpose(axes)


def concatenate(*xs: Array, axis: int) -> Array:
    """Concatenate arrays."""
    return jnp.concatenate(xs, axis)


def part(x: Array, *, axis: int, start: int, stop: int, step: int = 1) -> Array:
    """Return the entries `start` to `stop` of an axis."""
    return jax.lax.slice_in_dim(x, start, stop, step, axis=axis)


def broadcast(x: Array, *, shape: Shape) -> Array:
    """Broadcast to a shape; the gradient is a sum, which is computed in float32 for 16-bit numbers."""
    return in_wide(lambda x: jnp.broadcast_to(x, shape), x)


def pad(x: Array, *, pairs: tuple[tuple[int, int], ...], value: Number) -> Array:
    """Pad each axis with a number, or crop it if an entry of a pair is negative."""
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(lo, hi, 0) for lo, hi in pairs])


def pad_by(x: Array, *, pairs: tuple[tuple[int, int], ...], mode: str) -> Array:
    """Pad each axis with numbers of the array, as `numpy.pad` does in the same mode."""
    return in_wide(lambda x: jnp.pad(x, pairs, mode), x)


def windows(x: Array, *, axis: int, size: int, step: int, dilation: int = 1) -> Array:
    """Replace an axis by two: the windows along it, and the entries of each window."""
    count = (x.shape[axis] - dilation * (size - 1) - 1) // step + 1
    index = step * np.arange(count)[:, None] + dilation * np.arange(size)
    return in_wide(lambda x: jnp.take(x, index, axis=axis), x)


def flipped(x: Array, *, axes: tuple[int, ...]) -> Array:
    """Reverse axes."""
    return jnp.flip(x, axes)


def rolled(x: Array, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Shift the entries along axes; entries that leave at one end enter at the other."""
    return jnp.roll(x, shifts, axes)


def taken(x: Array, index: Array, *, axis: int) -> Array:
    """Return entries of an axis by index; negative indices count from the end."""
    size = x.shape[axis]
    return in_wide(lambda x: jnp.take(x, jnp.where(index < 0, index + size, index), axis=axis), x)


def indexed(x: Array, *indices: Array, pattern: tuple[Any, ...]) -> Array:
    """Index the axes whose pattern is true by arrays, and keep the other axes."""
    arrays = iter(indices)
    index = tuple(next(arrays) if is_array else slice(None) for is_array in pattern)
    selected: Array = x[index]
    return selected


def resampled(
    x: Array, *, axis: int, index: tuple[tuple[int, ...], ...], weights: tuple[tuple[float, ...], ...]
) -> Array:
    """Return weighted sums of the entries of an axis. Each new entry has indices of old entries, and their weights."""
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]

    def tap(x: Array, k: int) -> Array:
        column = np.array([row[k] for row in weights]).reshape(shape)
        return jnp.take(x, np.array([row[k] for row in index]), axis=axis) * column.astype(x.dtype)

    y: Array = in_wide(lambda x: reduce(jnp.add, [tap(x, k) for k in range(len(index[0]))]), x)
    return y


def repeated(x: Array, *, axis: int, index: tuple[int, ...]) -> Array:
    """Return entries of an axis, some of them several times."""
    return in_wide(lambda x: jnp.take(x, np.array(index), axis=axis), x)


def _kept(dtype: Any) -> Any:
    """Return the dtype that JAX uses: integers of PyTorch have 64 bits, integers of JAX have 32 by default."""
    return jax.dtypes.canonicalize_dtype(dtype)


def filled(*, shape: Shape, value: Any, dtype: Any) -> Array:
    """Return an array of one number."""
    return jnp.full(shape, value, _kept(dtype))


def counted(*, start: Number, stop: Number, step: Number, dtype: Any) -> Array:
    """Return start, start + step, ... below stop."""
    return jnp.arange(start, stop, step, _kept(dtype))


def spaced(*, start: Number, stop: Number, count: int, dtype: Any) -> Array:
    """Return evenly spaced numbers, both ends included."""
    return jnp.linspace(start, stop, count, dtype=_kept(dtype))


def identity(*, rows: int, columns: int, dtype: Any) -> Array:
    """Return a matrix with ones on its diagonal."""
    return jnp.eye(rows, columns, dtype=_kept(dtype))


def listed(*, values: Any, shape: Shape, dtype: Any) -> Array:
    """Return an array of these numbers."""
    return jnp.asarray(np.array(values).reshape(shape), _kept(dtype))


def nothing() -> Array:
    """Return 0, the value of a node that only stores arrays."""
    return jnp.zeros(())


for _op in (
    to_last,
    to_first,
    reshaped,
    transposed,
    concatenate,
    part,
    broadcast,
    pad,
    pad_by,
    windows,
    flipped,
    rolled,
    taken,
    indexed,
    resampled,
    repeated,
    filled,
    counted,
    spaced,
    identity,
    listed,
    nothing,
):
    # The names are in files, so a function must not be renamed. `resampled` and `repeated` are in older files only.
    register_op(f"funcconv.torch.{_op.__name__}", _op)

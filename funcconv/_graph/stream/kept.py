"""What is kept of the values from one chunk to the next, in one array of each dtype: each array makes calls slower."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape


def nothing_kept(specs: Sequence[Any], counts: Sequence[int], batch: Shape) -> dict[str, Array]:
    """Return what is kept before the first chunk, zeros.

    Args:
        specs: the shapes and dtypes of the values, the signal on the first axis.
        counts: how many positions of each are kept.
        batch: the batch axes of the signal.

    Returns:
        For the name of each dtype `(*batch, numbers)`, the kept positions of one value after another.
    """
    numbers: dict[str, int] = {}
    for x, count in zip(specs, counts, strict=True):
        if count:
            numbers[x.dtype.name] = numbers.get(x.dtype.name, 0) + count * math.prod(x.shape[1:])
    return {name: jnp.zeros((*batch, number), name) for name, number in numbers.items()}


class Kept:
    """The kept positions, which are taken and renewed in the order of the values."""

    def __init__(self, arrays: Mapping[str, Array], batch: Shape) -> None:
        self._arrays, self._batch = arrays, batch
        self._taken = dict.fromkeys(arrays, 0)
        self._new: dict[str, list[Array]] = {name: [] for name in arrays}

    def with_old(self, x: Array, count: int) -> Array:
        """Return the new positions of the next value behind those that were kept, of which the last are kept again."""
        axis, name = len(self._batch), x.dtype.name
        size = count * math.prod(x.shape[axis + 1 :])
        first = self._taken.get(name, 0)
        if name not in self._arrays or first + size > self._arrays[name].shape[-1]:
            raise FuncconvError(_OTHER)
        self._taken[name] = first + size
        old = lax.slice_in_dim(self._arrays[name], first, first + size, axis=axis)
        x = lax.concatenate([old.reshape(*self._batch, count, *x.shape[axis + 1 :]), x], axis)
        new = lax.slice_in_dim(x, x.shape[axis] - count, None, axis=axis)
        self._new[name].append(new.reshape(*self._batch, size))
        return x

    def following(self) -> dict[str, Array]:
        """Return what is kept after all values."""
        if any(self._taken[name] != array.shape[-1] for name, array in self._arrays.items()):
            raise FuncconvError(_OTHER)
        return {name: lax.concatenate(new, len(self._batch)) for name, new in self._new.items()}


_OTHER = (
    "stream: the values have other shapes or dtypes than those that the carry was made for. Pass the carry of init or "
    "step, with parameters of the same shapes and dtypes"
)

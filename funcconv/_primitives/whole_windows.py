"""Reductions that need all taps of a window at once: the p-norm, the median, and functions of the user.

As in `folds`, all operations are sums, products and selects, so derivatives of every order exist, without a scatter.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.errors import FuncconvError
from .._common.types import Array, Number

# The median of more taps than this sorts them; of fewer it compares all pairs, which needs the square of their number
# of comparisons but no sort.
_MEDIAN_PAIRWISE_TAPS = 64
_MOST_MEDIAN_TAPS = 2**31 - 1  # that int32 ranks can count


class Joint(NamedTuple):
    """A function of all taps of a window.

    `apply(taps, missing)` gets the taps in row-major order, as one array or as several, each
    `(batch, *positions, some taps, channels)`. Their dtype is the one in which gradients are summed, since an input
    receives one gradient from each of its windows. `missing` is None, or for each array booleans that broadcast against
    it and mark the taps that take no part.
    """

    apply: Callable[[Sequence[Array], Sequence[Array] | None], Array]
    allows_missing: bool  # whether some taps may take no part
    unrolled: int  # windows of up to this many taps are given as one array per tap, which XLA can fuse with `apply`


def norm(p: Number) -> Joint:
    """Return the reduction to the `p`-norm, for a finite `p`."""
    return Joint(partial(_norm, p=p), allows_missing=True, unrolled=36)


def median(op: str) -> Joint:
    """Return the reduction to the lower median. Messages begin with the name `op`."""
    return Joint(partial(_median, op), allows_missing=True, unrolled=16)


def by_function(op: str, function: Callable[..., Any], dtype: np.dtype) -> Joint:
    """Return a user's `function(taps, axis=-1)` for inputs of this dtype. Messages begin with the name `op`."""
    return Joint(partial(_by_function, op, function, dtype), allows_missing=False, unrolled=0)


def _norm(taps: Sequence[Array], missing: Sequence[Array] | None, p: Number) -> Array:
    """Return `m (sum of |x / m|^p)^(1 / p)`, where `m` is the largest `|x|`.

    The factor `m` keeps powers from overflowing. The result does not depend on it, so it is a constant to derivatives.
    """
    del missing  # padding contains zeros, which do not change a norm
    largest = functools.reduce(lax.max, [jnp.max(jnp.abs(lax.stop_gradient(x)), -2) for x in taps])
    # If all taps are zero or one is infinite, the result is `largest` and its derivative is zero. The formula gives NaN
    # there, also in derivatives, so its inputs are replaced too.
    is_regular = ~((largest == 0) | jnp.isinf(largest))
    scale = jnp.where(is_regular, largest, 1)
    ratios = (jnp.where(is_regular[..., None, :], x, 0) / scale[..., None, :] for x in taps)
    total = _sum_of(jnp.sum(_power(ratio, p), -2) for ratio in ratios)
    return jnp.where(is_regular, scale * _root(jnp.where(is_regular, total, 1), p), largest)


def _power(x: Array, p: Number) -> Array:
    """Return `|x|^p`. Its derivatives at zero are those of the polynomial for even `p`, and zero otherwise."""
    exponent = int(p) if p == int(p) else None
    if exponent is not None and exponent % 2 == 0:
        return lax.integer_pow(x, exponent)
    size = jnp.abs(x)
    is_zero = size == 0
    size = jnp.where(is_zero, 1, size)  # some derivative of |x|^p is infinite or NaN at zero
    power = jnp.power(size, float(p)) if exponent is None else lax.integer_pow(size, exponent)
    return jnp.where(is_zero, 0, power)


def _root(x: Array, p: Number) -> Array:
    return jnp.sqrt(x) if p == 2 else jnp.power(x, 1 / float(p))


def _median(op: str, taps: Sequence[Array], missing: Sequence[Array] | None) -> Array:
    """Return the lower median: the tap of rank `(count - 1) // 2`, where the earlier of two equal taps ranks lower.

    The selection is a mask, a constant to derivatives, and the result is the sum of the masked taps.
    """
    values = [lax.stop_gradient(x) for x in taps]
    count = sum(x.shape[-2] for x in taps)
    if count > _MOST_MEDIAN_TAPS:
        msg = (
            f"{op}: a median of {count:,} taps is not supported: ranks are int32 and count at most "
            f"{_MOST_MEDIAN_TAPS:,} taps. Use smaller windows"
        )
        raise FuncconvError(msg)
    if missing is None:
        real = [jnp.ones((1,) * x.ndim, bool) for x in taps]
        middle: Any = (count - 1) // 2
    else:
        real = [~is_missing for is_missing in missing]
        middle = (_sum_of(jnp.sum(is_real, -2, keepdims=True, dtype=jnp.int32) for is_real in real) - 1) // 2
    masks = (_by_rank if count <= _MEDIAN_PAIRWISE_TAPS else _by_sorting)(values, real, middle)
    floats = jnp.issubdtype(values[0].dtype, jnp.inexact)
    if floats:
        nans = _sum_of(
            jnp.sum((x != x) & is_real, -2, keepdims=True, dtype=jnp.int32)
            for x, is_real in zip(values, real, strict=True)
        )
        masks = [mask | ((nans > 0) & is_real) for mask, is_real in zip(masks, real, strict=True)]
    selected = (jnp.where(mask, x, jnp.zeros_like(x)) for mask, x in zip(masks, taps, strict=True))
    y = _sum_of(jnp.sum(x, -2, dtype=x.dtype) for x in selected)
    # If a window contains a NaN, this factor makes its derivatives NaN as well.
    return y * jnp.where(nans[..., 0, :] > 0, jnp.nan, 1).astype(y.dtype) if floats else y


def _by_rank(taps: Sequence[Array], real: Sequence[Array], middle: Array | int) -> list[Array]:
    """Mark the tap of rank `middle` by comparing all pairs."""
    ranked = [x[..., None, :, :] for x in taps]
    others = [x[..., :, None, :] for x in taps]
    real_others = [is_real[..., :, None, :] for is_real in real]
    masks = []
    for i, b in enumerate(ranked):
        rank = jnp.zeros((), jnp.int32)
        for j, a in enumerate(others):
            if i != j:
                is_lower = a <= b if j < i else a < b
            else:
                earlier = np.tri(b.shape[-2], k=-1, dtype=bool).T[..., None]
                is_lower = jnp.where(earlier.reshape((1,) * (a.ndim - 3) + earlier.shape), a <= b, a < b)
            rank = rank + jnp.sum(is_lower & real_others[j], -3, dtype=jnp.int32)
        masks.append((rank == middle) & real[i])
    return masks


def _by_sorting(taps: Sequence[Array], real: Sequence[Array], middle: Array | int) -> list[Array]:
    """Mark the tap of rank `middle` by sorting: it is one of those that equal the middle of the sorted taps."""
    (x,), (is_real,) = taps, real
    # The first sort key moves missing taps to the end. Adding zeros gives it the shape and sharding of x.
    is_missing = (~is_real).astype(jnp.int8) + jnp.zeros_like(x, jnp.int8)
    _, ordered = lax.sort((is_missing, x), dimension=x.ndim - 2, num_keys=2)
    if isinstance(middle, int):
        value = lax.slice_in_dim(ordered, middle, middle + 1, axis=x.ndim - 2)
    else:
        ranks = np.arange(x.shape[-2], dtype=np.int32).reshape((1,) * (x.ndim - 2) + (-1, 1))
        value = jnp.sum(jnp.where(ranks == middle, ordered, jnp.zeros_like(x)), -2, keepdims=True, dtype=x.dtype)
    equal = (x == value) & is_real
    smaller = jnp.sum((x < value) & is_real, -2, keepdims=True, dtype=jnp.int32)
    return [equal & (jnp.cumsum(equal.astype(jnp.int32), -2) == middle - smaller + 1)]


def _by_function(
    op: str, function: Callable[..., Any], dtype: np.dtype, taps: Sequence[Array], missing: Sequence[Array] | None
) -> Array:
    del missing  # always None, since this reduction does not allow missing taps
    x = jnp.moveaxis(taps[0], -2, -1).astype(dtype)
    y = function(x, axis=-1)
    name = getattr(function, "__name__", repr(function))
    if jnp.shape(y) != x.shape[:-1]:
        msg = (
            f"{op}: a function passed as reduce must remove the last axis; {name} received an array of shape {x.shape} "
            f"with axis=-1, and returned shape {jnp.shape(y)}. Return shape {x.shape[:-1]}"
        )
        raise FuncconvError(msg)
    if jnp.result_type(y) != x.dtype:
        msg = (
            f"{op}: a function passed as reduce must keep the dtype; {name} received {x.dtype} and returned "
            f"{jnp.result_type(y)}. Convert the result with .astype(x.dtype)"
        )
        raise FuncconvError(msg)
    return jnp.asarray(y)


def _sum_of(arrays: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)

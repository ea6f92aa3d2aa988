"""Reductions that need all taps of a window at once.

As in `_folds`, derivatives are those of sums, products and selects.
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

_SORTED = 64  # a median of more taps is found by sorting, of fewer by comparing all pairs


class Joint(NamedTuple):
    """A function of all taps of a window: of arrays `(batch, *positions, some taps, channels)` that hold them in order.

    It gets the taps in the dtype in which the gradients of an input, one from each of its windows, are summed.
    Of each such array it also gets, as booleans that broadcast against it, which taps take no part, or None.
    """

    apply: Callable[[Sequence[Array], Sequence[Array] | None], Array]
    partly: bool  # whether taps may take no part
    unrolled: int  # of windows with so many taps each tap is an array of its own


def norm(p: Number) -> Joint:
    """Return the `p`-norm for a finite `p`."""
    return Joint(partial(_norm, p=p), partly=True, unrolled=36)


def median() -> Joint:
    """Return the lower median."""
    return Joint(_median, partly=True, unrolled=16)


def by_function(op: str, function: Callable[..., Any], dtype: np.dtype) -> Joint:
    """Return a user's function `function(taps, axis=-1)` of this dtype; `op` is named if its result is wrong."""
    return Joint(partial(_by_function, op, function, dtype), partly=False, unrolled=0)


def _norm(taps: Sequence[Array], missing: Sequence[Array] | None, p: Number) -> Array:
    """Return `m (sum of |x / m|^p)^(1 / p)` where `m` is the largest `|x|`, and a constant: any gives the same."""
    del missing  # padding shows zeros
    largest = functools.reduce(lax.max, [jnp.max(jnp.abs(lax.stop_gradient(x)), -2) for x in taps])
    usual = ~((largest == 0) | jnp.isinf(largest))
    scale = jnp.where(usual, largest, 1)
    # Where all taps are zero, or one is infinite, the result is `largest`, and its derivative zero.
    shares = (jnp.where(usual[..., None, :], x, 0) / scale[..., None, :] for x in taps)
    total = _total(jnp.sum(_power(share, p), -2) for share in shares)
    return jnp.where(usual, scale * _root(jnp.where(usual, total, 1), p), largest)


def _power(x: Array, p: Number) -> Array:
    """Return `|x|^p`, with all derivatives at zero those of a polynomial if `p` is even and zero if it is not."""
    whole = int(p) if p == int(p) else None
    if whole is not None and whole % 2 == 0:
        return lax.integer_pow(x, whole)
    size = jnp.abs(x)
    zero = size == 0
    size = jnp.where(zero, 1, size)
    power = jnp.power(size, float(p)) if whole is None else lax.integer_pow(size, whole)
    return jnp.where(zero, 0, power)


def _root(x: Array, p: Number) -> Array:
    return jnp.sqrt(x) if p == 2 else jnp.power(x, 1 / float(p))


def _median(taps: Sequence[Array], missing: Sequence[Array] | None) -> Array:
    """Select the tap that `(count - 1) // 2` others come before: the smaller, and of equals the earlier."""
    fixed = [lax.stop_gradient(x) for x in taps]
    number = sum(x.shape[-2] for x in taps)
    if missing is None:
        real = [jnp.ones((1,) * x.ndim, bool) for x in taps]
        middle = jnp.asarray((number - 1) // 2, jnp.int32)
    else:
        real = [~each for each in missing]
        middle = (_total(jnp.sum(each, -2, keepdims=True, dtype=jnp.int32) for each in real) - 1) // 2
    chosen = (_by_rank if number <= _SORTED else _by_sorting)(fixed, real, middle)
    floats = jnp.issubdtype(fixed[0].dtype, jnp.inexact)
    if floats:
        nans = _total(
            jnp.sum((x != x) & r, -2, keepdims=True, dtype=jnp.int32) for x, r in zip(fixed, real, strict=True)
        )
        chosen = [c | ((nans > 0) & r) for c, r in zip(chosen, real, strict=True)]
    selected = (jnp.where(c, x, jnp.zeros_like(x)) for c, x in zip(chosen, taps, strict=True))
    y = _total(jnp.sum(x, -2, dtype=x.dtype) for x in selected)
    # The factor makes a NaN of the derivative by every tap of a window with a NaN.
    return y * jnp.where(nans[..., 0, :] > 0, jnp.nan, 1).astype(y.dtype) if floats else y


def _by_rank(taps: Sequence[Array], real: Sequence[Array], middle: Array) -> list[Array]:
    """Mark the tap that `middle` others come before, by comparing all pairs."""
    after = [x[..., None, :, :] for x in taps]
    before = [x[..., :, None, :] for x in taps]
    real_before = [r[..., :, None, :] for r in real]
    chosen = []
    for i, b in enumerate(after):
        rank = jnp.zeros((), jnp.int32)
        for j, a in enumerate(before):
            if i != j:
                comes = a <= b if j < i else a < b
            else:
                earlier = np.tri(b.shape[-2], k=-1, dtype=bool).T[..., None]
                comes = jnp.where(earlier.reshape((1,) * (a.ndim - 3) + earlier.shape), a <= b, a < b)
            rank = rank + jnp.sum(comes & real_before[j], -3, dtype=jnp.int32)
        chosen.append((rank == middle) & real[i])
    return chosen


def _by_sorting(taps: Sequence[Array], real: Sequence[Array], middle: Array) -> list[Array]:
    """Mark the tap that `middle` others come before: the right one of those that equal the sorted taps' middle."""
    (x,), (r,) = taps, real
    last = (~r).astype(jnp.int8) + jnp.zeros_like(x, jnp.int8)  # of the shape and sharding of x
    _, ordered = lax.sort((last, x), dimension=x.ndim - 2, num_keys=2)
    places = np.arange(x.shape[-2], dtype=np.int32).reshape((1,) * (x.ndim - 2) + (-1, 1))
    value = jnp.sum(jnp.where(places == middle, ordered, jnp.zeros_like(x)), -2, keepdims=True, dtype=x.dtype)
    equal = (x == value) & r
    smaller = jnp.sum((x < value) & r, -2, keepdims=True, dtype=jnp.int32)
    return [equal & (jnp.cumsum(equal.astype(jnp.int32), -2) == middle - smaller + 1)]


def _by_function(
    op: str, function: Callable[..., Any], dtype: np.dtype, taps: Sequence[Array], missing: Sequence[Array] | None
) -> Array:
    del missing  # there are none
    x = jnp.moveaxis(taps[0], -2, -1).astype(dtype)
    y = function(x, axis=-1)
    name = getattr(function, "__name__", repr(function))
    if jnp.shape(y) != x.shape[:-1]:
        msg = (
            f"{op}: a function given as reduce must remove the axis of the taps: {name} was called with shape "
            f"{x.shape} and axis=-1 and gave shape {jnp.shape(y)}, not {x.shape[:-1]}"
        )
        raise FuncconvError(msg)
    if jnp.result_type(y) != x.dtype:
        msg = f"{op}: a function given as reduce must keep the dtype: {name} made {jnp.result_type(y)} of {x.dtype}"
        raise FuncconvError(msg)
    return jnp.asarray(y)


def _total(arrays: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, arrays)

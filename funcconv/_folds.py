"""Reductions that fold two values at a time.

Selections ride on comparisons, and what keeps numbers in range is a constant to differentiation. So derivatives of any
order and in any mode are those of sums, products and selects: nothing is scattered.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._dtypes import wide
from ._typing import Array, Scalar

NO_PART = -2  # the index of padding that takes no part
NO_INPUT = -1  # the index of a zero that a pad mode shows

_FAR = 1000.0  # exp(-1000) is zero in every dtype


class Fold(NamedTuple):
    """An associative operation, what takes no part in it, on what it works and how one gets there and back.

    Each axis is folded by itself, the last one first: what is first within the rows and then among them is first of
    all in row-major order.
    """

    identity: Any
    lift: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]
    lower: Callable[[Any], Any]


def summed(dtype: np.dtype) -> Fold:
    """Return addition."""
    return Fold(0, lambda x: x.astype(wide(dtype)), jnp.add, _same)


def multiplied(dtype: np.dtype) -> Fold:
    """Return multiplication."""
    return Fold(1, lambda x: x.astype(wide(dtype)), jnp.multiply, _same)


def absolute(operation: Fold) -> Fold:
    """Return an operation on absolute values, in which zeros take no part."""
    # Not jnp.abs, whose derivative at zero is 1.
    return operation._replace(identity=0, lift=lambda x: operation.lift(x * jnp.sign(x)))


def extreme(reduce: str, ties: str, dtype: np.dtype) -> Fold:
    """Return the operation that selects the largest or smallest."""
    identity = _lowest(dtype) if reduce == "max" else _highest(dtype)
    summing = wide(dtype)  # of the gradients of windows that select the same input
    if ties == "first" or not jnp.issubdtype(dtype, jnp.inexact):
        return Fold(identity, lambda x: x.astype(summing), partial(first, reduce), _same)
    return Fold(
        identity,
        lambda x: (x.astype(summing), jnp.ones_like(x, summing)),
        partial(_split, reduce),
        lambda pair: pair[0],
    )


def indexed(reduce: str, dtype: np.dtype) -> Fold:
    """Return the operation on pairs of a value and its index."""
    identity = _lowest(dtype) if reduce == "max" else _highest(dtype)
    return Fold(
        identity, lambda pair: (pair[0].astype(wide(dtype)), jnp.broadcast_to(pair[1], pair[0].shape)),
        partial(_first_pair, reduce), _same,
    )  # fmt: skip


def _lowest(dtype: np.dtype) -> Any:
    if jnp.issubdtype(dtype, jnp.inexact):
        return -np.inf
    return False if dtype == np.bool_ else np.iinfo(dtype).min


def _highest(dtype: np.dtype) -> Any:
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.inf
    return True if dtype == np.bool_ else np.iinfo(dtype).max


def later_wins(reduce: str, a: Array, b: Array) -> Array:
    """Return where `b` is beyond `a`, or the first NaN of the two."""
    return (b > a if reduce == "max" else b < a) | ((b != b) & (a == a))


def first(reduce: str, a: Array, b: Array) -> Array:
    """Select the extreme of the two, `a` where they tie; its derivative goes with it."""
    return lax.select(later_wins(reduce, a, b), b, a)


def _first_pair(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme with its index; padding that takes no part loses even to its equal."""
    (a, i), (b, j) = one, two
    later = later_wins(reduce, a, b) | (i == NO_PART)
    return lax.select(later, b, a), lax.select(later, j, i)


def _split(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme of two values that stand for `m` and `n` tied ones; where they tie, both share by number."""
    (a, m), (b, n) = one, two
    later = later_wins(reduce, a, b)
    tie = a == b
    share = (n / (m + n)).astype(a.dtype)
    step = lax.select(tie & jnp.isfinite(a), b - a, jnp.zeros_like(a))  # zero, but its derivative is not
    value = lax.select(later, b, a) + share * step
    return value, lax.select(tie, m + n, lax.select(later, n, m))


def lse(temperature: Scalar, dtype: np.dtype) -> Fold:
    """Return the operation on pairs of a constant `top` and the sum of `exp((x - top) / temperature)`.

    Any constant gives the same `top + temperature * log(sum)`, so it is right to differentiate by the sum alone.
    """
    summing = wide(dtype)
    heat = jnp.asarray(temperature).astype(summing)

    def lift(x: Array) -> tuple[Array, Array]:
        x = x.astype(summing)
        top = lax.stop_gradient(x)
        return top, jnp.exp(jnp.where(jnp.isfinite(top), x - top, 0) / heat)

    def combine(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, m), (b, n) = one, two
        top = lax.max(a, b)
        return top, m * weight(a, top) + n * weight(b, top)

    def weight(a: Array, top: Array) -> Array:
        drop = jnp.where(a < top, a - top, 0)  # also where both are infinite, or one is a NaN
        far = drop < -_FAR * heat  # where an infinite quotient would make a NaN of the derivative by the temperature
        return jnp.where(far, 0, jnp.exp(jnp.where(far, 0, drop) / heat))

    return Fold(-np.inf, lift, combine, lambda pair: pair[0] + heat * jnp.log(pair[1]))


def _same(x: Any) -> Any:
    return x

"""Reductions that fold two values at a time.

Selections ride on comparisons, and what keeps numbers in range is a constant to differentiation. So derivatives of any
order and in any mode are those of sums, products and selects: nothing is scattered.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import Array, Scalar, Shape

NO_PART = -2  # the index of padding that takes no part
NO_INPUT = -1  # the index of a zero that a pad mode shows

_MOST_PLACES = 2**31 - 1  # of an image, whose indices are int32
_FAR = 1000.0  # exp(-1000) is zero in every dtype


class Fold(NamedTuple):
    """An associative operation, the value that padding shows to it, and the way to the arrays it works on and back.

    Each axis is folded by itself, the last one first: what is first within the rows and then among them is first of
    all in row-major order.

    `lift(x, number)` gets the image and, if the operation has `numbers`, what `numbers(sizes)` gives for its inputs:
    integers `(1, *sizes, 1)`, which are `NO_PART` where padding takes no part and `NO_INPUT` where a mode shows a zero.
    """

    identity: Any
    lift: Callable[[Array, Any], Any]
    combine: Callable[[Any, Any], Any]
    lower: Callable[[Any], Any]
    numbers: Callable[[Shape], Array] | None = None


def summed(dtype: np.dtype) -> Fold:
    """Return addition."""
    return Fold(0, lambda x, _: x.astype(wide(dtype)), jnp.add, _same)


def multiplied(dtype: np.dtype) -> Fold:
    """Return multiplication."""
    return Fold(1, lambda x, _: x.astype(wide(dtype)), jnp.multiply, _same)


def absolute(operation: Fold) -> Fold:
    """Return an operation on absolute values, in which zeros take no part."""
    # Not jnp.abs, whose derivative at zero is 1.
    return operation._replace(identity=0, lift=lambda x, number: operation.lift(x * jnp.sign(x), number))


def extreme(reduce: str, ties: str, dtype: np.dtype) -> Fold:
    """Return the operation that selects the largest or smallest."""
    summing = wide(dtype)  # in which derivatives are summed
    if ties == "first" or not jnp.issubdtype(dtype, jnp.inexact):
        return Fold(farthest(reduce, dtype), lambda x, _: x.astype(summing), partial(first, reduce), _same)
    return Fold(
        farthest(reduce, dtype), lambda x, number: (x.astype(summing), (number != NO_PART).astype(summing)),
        partial(_split, reduce), lambda pair: pair[0], lambda sizes: jnp.zeros((1, *sizes, 1), jnp.int32),
    )  # fmt: skip


def indexed(reduce: str, dtype: np.dtype) -> Fold:
    """Return the operation on pairs of a value and its index."""
    summing = wide(dtype)
    return Fold(
        farthest(reduce, dtype), lambda x, number: (x.astype(summing), number + jnp.zeros_like(x, jnp.int32)),
        partial(_first_pair, reduce), _same, _places,
    )  # fmt: skip


def _places(sizes: Shape) -> Array:
    """Return the row-major number of each place, `(1, *sizes, 1)`."""
    check_places("pool", sizes)
    return jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(1, *sizes, 1)


def check_places(op: str, sizes: Shape) -> None:
    """Refuse an image of which indices in int32 cannot tell all places apart."""
    if math.prod(sizes) > _MOST_PLACES:
        msg = (
            f"{op}: an image of {tuple(sizes)} has {math.prod(sizes):,} places, but indices are int32 and number at "
            f"most {_MOST_PLACES:,}. Cut the image into parts"
        )
        raise FuncconvError(msg)


def farthest(reduce: str, dtype: np.dtype) -> Any:
    """Return the value that no other one loses to: the smallest for `"max"`, the largest for `"min"`."""
    if dtype == np.bool_:
        return reduce == "min"
    if jnp.issubdtype(dtype, jnp.inexact):
        return -np.inf if reduce == "max" else np.inf
    limits = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(limits.min if reduce == "max" else limits.max)


def later_wins(reduce: str, a: Array, b: Array) -> Array:
    """Return where `b` is beyond `a`, or the first NaN of the two."""
    return (b > a if reduce == "max" else b < a) | ((b != b) & (a == a))


def first(reduce: str, a: Array, b: Array) -> Array:
    """Select the extreme of the two, `a` where they tie; its derivative goes with it."""
    return lax.select(later_wins(reduce, a, b), b, a)


def first_real(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme of two values, each with whether it is real; padding, which is not, loses to its equal."""
    (a, a_real), (b, b_real) = one, two
    later = later_wins(reduce, a, b) | (b_real & ~a_real)
    return lax.select(later, b, a), a_real | b_real


def _first_pair(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme with its index; padding that takes no part loses even to its equal."""
    (a, i), (b, j) = one, two
    later = later_wins(reduce, a, b) | (i == NO_PART)
    return lax.select(later, b, a), lax.select(later, j, i)


def _split(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme of two values that stand for `m` and `n` tied ones; where they tie, both share by number."""
    (a, m), (b, n) = one, two  # padding stands for none, so it has no share where it ties with an infinity
    share = n / jnp.maximum(m + n, 1)
    tie = (a == b) & (m > 0) & (n > 0)
    later = later_wins(reduce, a, b) | (m == 0)
    # Both ways leave the value as it is and share the derivative: the first is exact, the second takes infinities.
    shared = jnp.where(jnp.isfinite(a), a + share * (b - a), (1 - share) * a + share * b)
    value = jnp.where(tie, shared, lax.select(later, b, a))
    return value, jnp.where(tie, m + n, jnp.where(later, n, m))


def lse(temperature: Scalar, dtype: np.dtype) -> Fold:
    """Return the operation on pairs of a constant `top` and the sum of `exp((x - top) / temperature)`.

    Any constant gives the same `top + temperature * log(sum)`, so it is right to differentiate by the sum alone.
    """
    summing = wide(dtype)
    heat = jnp.asarray(temperature).astype(summing)

    def lift(x: Array, _: Any) -> tuple[Array, Array]:
        x = x.astype(summing)
        top = lax.stop_gradient(x)
        return top, jnp.exp(jnp.where(jnp.isinf(top), 0, x - top) / heat)  # a NaN stays one, as does its derivative

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

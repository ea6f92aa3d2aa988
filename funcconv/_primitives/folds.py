"""Reductions that combine two values at a time: maximum, sum, product, log-sum-exp and others.

Selections depend on comparisons, and factors that keep numbers in range are constants to differentiation. So
derivatives of every order consist of sums, products and selects, without a scatter.
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

NO_PART = -2  # the index of padding that is ignored
NO_INPUT = -1  # the index of a zero in padding with the mode "zeros"

_MOST_PLACES = 2**31 - 1  # positions of an image that int32 indices can number
_ZERO_EXPONENT = 1000.0  # exp(-1000) is zero in every dtype


class Fold(NamedTuple):
    """An associative operation, with its identity and the conversion of its operands and results.

    The axes of a window are folded one after another, the last one first. So the first of equal taps is the first in
    row-major order.

    If the operation has `numbers`, `lift(x, number)` also gets `numbers(sizes)`, integers `(1, *sizes, 1)`. They are
    padded like the image, with `NO_PART` for padding that takes no part and `NO_INPUT` for zeros of a pad mode.
    """

    identity: Any  # the value of padding that takes no part
    lift: Callable[[Array, Any], Any]  # from the image to the values that are combined
    combine: Callable[[Any, Any], Any]
    lower: Callable[[Any], Any]  # from the combined values to the result
    numbers: Callable[[Shape], Array] | None = None


def summed(dtype: np.dtype) -> Fold:
    """Return addition, in float32 for 16-bit floats."""
    return Fold(0, lambda x, _: x.astype(wide(dtype)), jnp.add, _same)


def multiplied(dtype: np.dtype) -> Fold:
    """Return multiplication, in float32 for 16-bit floats."""
    return Fold(1, lambda x, _: x.astype(wide(dtype)), jnp.multiply, _same)


def absolute(operation: Fold) -> Fold:
    """Return an operation on absolute values."""
    # x * sign(x) and not jnp.abs(x), whose derivative at zero is 1 and not 0.
    return operation._replace(identity=0, lift=lambda x, number: operation.lift(x * jnp.sign(x), number))


def extreme(reduce: str, ties: str, dtype: np.dtype) -> Fold:
    """Return the operation that selects the maximum or minimum."""
    sum_dtype = wide(dtype)  # gradients of an input from several windows are summed in it
    identity = extreme_identity(reduce, dtype)
    if ties == "first" or not jnp.issubdtype(dtype, jnp.inexact):
        return Fold(identity, lambda x, _: x.astype(sum_dtype), partial(first, reduce), _same)
    return Fold(
        identity=identity,
        lift=lambda x, number: (x.astype(sum_dtype), (number != NO_PART).astype(sum_dtype)),
        combine=partial(_split, reduce),
        lower=lambda pair: pair[0],
        numbers=lambda sizes: jnp.zeros((1, *sizes, 1), jnp.int32),
    )


def extreme_of_real(reduce: str, dtype: np.dtype) -> Fold:
    """Return the operation that selects the maximum or minimum among the taps that take part, on pairs with a flag."""
    sum_dtype = wide(dtype)
    return Fold(
        identity=extreme_identity(reduce, dtype),
        lift=lambda x, number: (x.astype(sum_dtype), (number != NO_PART) | jnp.zeros_like(x, bool)),
        combine=partial(first_real, reduce),
        lower=lambda pair: pair[0],
        numbers=lambda sizes: jnp.zeros((1, *sizes, 1), jnp.int32),
    )


def indexed(op: str, reduce: str, dtype: np.dtype) -> Fold:
    """Return the operation on pairs of a value and its index. Messages begin with the name `op`."""
    sum_dtype = wide(dtype)
    return Fold(
        identity=extreme_identity(reduce, dtype),
        lift=lambda x, number: (x.astype(sum_dtype), number + jnp.zeros_like(x, jnp.int32)),
        combine=partial(_first_pair, reduce),
        lower=_same,
        numbers=partial(_places, op),
    )


def _places(op: str, sizes: Shape) -> Array:
    """Return the row-major index of each position, `(1, *sizes, 1)`."""
    check_places(op, sizes)
    return jnp.arange(math.prod(sizes), dtype=jnp.int32).reshape(1, *sizes, 1)


def check_places(op: str, sizes: Shape) -> None:
    """Raise an error if int32 cannot number all positions of an image."""
    if math.prod(sizes) > _MOST_PLACES:
        msg = (
            f"{op}: an image of {tuple(sizes)} has {math.prod(sizes):,} positions, but int32 indices can number at "
            f"most {_MOST_PLACES:,}. Split the image into smaller parts"
        )
        raise FuncconvError(msg)


def extreme_identity(reduce: str, dtype: np.dtype) -> Any:
    """Return the identity of the maximum (the smallest value of a dtype) or of the minimum (the largest)."""
    if dtype == np.bool_:
        return reduce == "min"
    if jnp.issubdtype(dtype, jnp.inexact):
        return -np.inf if reduce == "max" else np.inf
    limits = jnp.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(limits.min if reduce == "max" else limits.max)


def later_wins(reduce: str, a: Array, b: Array) -> Array:
    """Return a mask of the positions where `b` is selected: it is more extreme than `a`, or a NaN and `a` is not."""
    return (b > a if reduce == "max" else b < a) | ((b != b) & (a == a))


def first(reduce: str, a: Array, b: Array) -> Array:
    """Select the more extreme value, and `a` if they are equal. The derivative goes to the selected one."""
    return lax.select(later_wins(reduce, a, b), b, a)


def first_real(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the more extreme of two values with flags for real values; padding is not selected if it is equal."""
    (a, a_real), (b, b_real) = one, two
    later = later_wins(reduce, a, b) | (b_real & ~a_real)
    return lax.select(later, b, a), a_real | b_real


def _first_pair(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the more extreme value with its index. Padding that takes no part is not selected if it is equal."""
    (a, i), (b, j) = one, two
    later = later_wins(reduce, a, b) | (i == NO_PART)
    return lax.select(later, b, a), lax.select(later, j, i)


def _split(reduce: str, one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the more extreme of two values that represent `m` and `n` equal taps, and share ties by these numbers."""
    (a, m), (b, n) = one, two  # padding represents no taps, so it has no share, even if it is equal to an infinity
    share = n / jnp.maximum(m + n, 1)
    tie = (a == b) & (m > 0) & (n > 0)
    later = later_wins(reduce, a, b) | (m == 0)
    # Both formulas give the value of a and b, and share the derivative. The first is exact for finite numbers, the
    # second is right for infinities too.
    shared = jnp.where(jnp.isfinite(a), a + share * (b - a), (1 - share) * a + share * b)
    value = jnp.where(tie, shared, lax.select(later, b, a))
    return value, jnp.where(tie, m + n, jnp.where(later, n, m))


def lse(temperature: Scalar, dtype: np.dtype) -> Fold:
    """Return log-sum-exp, on pairs of the maximum `top` and the sum of `exp((x - top) / temperature)`.

    The result `top + temperature * log(sum)` is the same for every `top`, so `top` is a constant to differentiation.
    """
    sum_dtype = wide(dtype)
    heat = jnp.asarray(temperature).astype(sum_dtype)

    def lift(x: Array, _: Any) -> tuple[Array, Array]:
        x = x.astype(sum_dtype)
        top = lax.stop_gradient(x)
        # For an infinity, x - top would be NaN. A NaN in x stays a NaN, also in the derivative.
        return top, jnp.exp(jnp.where(jnp.isinf(top), 0, x - top) / heat)

    def combine(one: tuple[Array, Array], two: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, m), (b, n) = one, two
        top = lax.max(a, b)
        return top, m * weight(a, top) + n * weight(b, top)

    def weight(a: Array, top: Array) -> Array:
        drop = jnp.where(a < top, a - top, 0)  # zero also if both are infinite, or one is a NaN
        # Far below the maximum the weight is zero. The formula would divide infinities, and so give a NaN in the
        # derivative with respect to the temperature.
        is_zero = drop < -_ZERO_EXPONENT * heat
        return jnp.where(is_zero, 0, jnp.exp(jnp.where(is_zero, 0, drop) / heat))

    return Fold(-np.inf, lift, combine, lambda pair: pair[0] + heat * jnp.log(pair[1]))


def _same(x: Any) -> Any:
    return x

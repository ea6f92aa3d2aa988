"""Numbers of mean 0 and variance 1, made of numbers of any mean and any size."""

import math
from collections.abc import Hashable, Sequence

import jax.numpy as jnp
from jax import lax

from .._common.types import Array, Number

_UNIT = 2.0**-4  # differences of numbers of this unit do not overflow, and the reciprocals do not underflow
_BITS = 24  # of the number of terms of a mean, where it is a symbolic dimension


def standardized(
    x: Array, over: Sequence[int], epsilon: Number, axis_name: Hashable | None = None
) -> tuple[Array, Array, Array]:
    """Return `(x - mean) / sqrt(var + epsilon)`, the mean and the variance, over axes that stay as axes of one.

    The mean of numbers far from zero is rounded, by more than they differ if these are nearly equal. So the largest of
    them is subtracted first, which gives zeros if all are equal, then the mean, and then the mean of the result.
    Numbers are scaled so that no sum and no square overflows, and so that no square that counts beside `epsilon`
    underflows. In exact arithmetic the result does not depend on the largest number, the second mean or the scales, so
    all of these are constants to differentiation.
    """
    count = math.prod(x.shape[axis] for axis in over)
    share = 2.0 ** -(count.bit_length() if isinstance(count, int) else _BITS)  # powers of two round nothing

    def mean_of(array: Array) -> Array:
        mean = (array * share).mean(over, keepdims=True) / share
        return mean if axis_name is None else lax.pmean(mean, axis_name)  # type: ignore[no-untyped-call]

    largest = _UNIT * jnp.max(lax.stop_gradient(x), over, keepdims=True, initial=-jnp.inf)
    if axis_name is not None:
        largest = lax.pmax(largest, axis_name)  # type: ignore[no-untyped-call]
    below = _UNIT * x - largest  # at most zero, so no number is beyond `count` times their mean
    mean = mean_of(below)
    center = mean + mean_of(lax.stop_gradient(below - mean))
    least = math.sqrt(epsilon) * _UNIT
    size = jnp.maximum(lax.stop_gradient(-mean), least)
    y = (below - center) * (1 / size)
    var = mean_of(jnp.square(y))
    y = y * lax.rsqrt(var + jnp.square(least / size))
    size = size / _UNIT
    return y, (largest + center) / _UNIT, var * size * size

"""Functions of each number by itself, with the derivatives of PyTorch at their kinks."""

from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Array, Number
from ...._graph.to_file.registry import register_op


def relu6(x: Array) -> Array:
    """Return min(max(x, 0), 6), with the derivative 0 at both ends."""
    return jnp.where(x >= 6, jnp.asarray(6, x.dtype), jax.nn.relu(x))


def hardsigmoid(x: Array) -> Array:
    """Return relu6(x + 3) / 6."""
    return relu6(x + 3) / 6


def hardswish(x: Array) -> Array:
    """Return x relu6(x + 3) / 6."""
    return x * hardsigmoid(x)


def absolute(x: Array) -> Array:
    """Return |x|, with the derivative 0 at 0."""
    return x * jnp.sign(x)


def leaky_relu(x: Array, *, negative_slope: Number) -> Array:
    """Return x if it is above 0, otherwise the slope times x; the derivative at 0 is the slope."""
    return jnp.where(x > 0, x, negative_slope * x)


def prelu(x: Array, slope: Array) -> Array:
    """Return x if it is above 0, otherwise the slope times x; slopes are of one number or one for each channel."""
    return jnp.where(x > 0, x, slope * x)


def clamp(x: Array, *, low: Number | None, high: Number | None) -> Array:
    """Return x, limited to two bounds; the derivative at both is 1."""
    if low is not None:
        x = jnp.where(x < low, jnp.asarray(low, x.dtype), x)
    return x if high is None else jnp.where(x > high, jnp.asarray(high, x.dtype), x)


def hardtanh(x: Array, *, low: Number, high: Number) -> Array:
    """Return x, limited to two bounds; the derivative at both is 0."""
    inside = jnp.where(x >= high, jnp.asarray(high, x.dtype), x)
    return jnp.where(x <= low, jnp.asarray(low, x.dtype), inside)


def softplus(x: Array, *, beta: Number, threshold: Number) -> Array:
    """Return log(1 + exp(beta x)) / beta, or x if beta x is above the threshold."""
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


def hardshrink(x: Array, *, bound: Number) -> Array:
    """Return x outside of -bound..bound, otherwise 0."""
    return jnp.where(jnp.abs(x) > bound, x, jnp.zeros_like(x))


def softshrink(x: Array, *, bound: Number) -> Array:
    """Return x moved towards 0 by the bound, and 0 inside of -bound..bound."""
    return jnp.where(x > bound, x - bound, jnp.where(x < -bound, x + bound, jnp.zeros_like(x)))


def threshold(x: Array, *, bound: Number, value: Number) -> Array:
    """Return x above a bound, otherwise a value."""
    return jnp.where(x > bound, x, jnp.asarray(value, x.dtype))


def rsqrt(x: Array) -> Array:
    """Return 1 / sqrt(x)."""
    return jax.lax.rsqrt(x)


def erf(x: Array) -> Array:
    """Return the error function of x."""
    return jax.lax.erf(x)


def power(x: Array, *, exponent: Number) -> Array:
    """Return x to a constant power; whole powers have products as derivatives."""
    return x ** (int(exponent) if float(exponent).is_integer() else exponent)


def power_of(x: Array, *, base: Number) -> Array:
    """Return a constant to the power of x."""
    return jnp.power(jnp.asarray(base, jnp.result_type(x, type(base))), x)


def floor_divide(a: Array, b: Array) -> Array:
    """Return a / b, rounded down."""
    return jnp.floor_divide(a, b)


def truncated_divide(a: Array, b: Array) -> Array:
    """Return a / b, rounded towards 0."""
    return jnp.trunc(jnp.true_divide(a, b)).astype(jnp.result_type(a, b))


def added(a: Array, b: Array, *, alpha: Number) -> Array:
    """Return a + alpha b."""
    return a + alpha * b


def added_product(x: Array, a: Array, b: Array, *, value: Number) -> Array:
    """Return x + value a b."""
    return x + value * (a * b)


def added_quotient(x: Array, a: Array, b: Array, *, value: Number) -> Array:
    """Return x + value a / b."""
    return x + value * (a / b)


def interpolated(a: Array, b: Array, weight: Array) -> Array:
    """Return a + weight (b - a)."""
    return a + weight * (b - a)


def masked(x: Array, mask: Array, value: Array) -> Array:
    """Return the value where a mask is true, otherwise x."""
    return jnp.where(mask, value.astype(x.dtype), x)


def cast(x: Array, *, dtype: Any) -> Array:
    """Return x in another dtype."""
    return x.astype(jax.dtypes.canonicalize_dtype(dtype))


for _op in (
    relu6,
    hardsigmoid,
    hardswish,
    absolute,
    leaky_relu,
    prelu,
    clamp,
    hardtanh,
    softplus,
    hardshrink,
    softshrink,
    threshold,
    rsqrt,
    erf,
    power,
    power_of,
    floor_divide,
    truncated_divide,
    added,
    added_product,
    added_quotient,
    interpolated,
    masked,
    cast,
):
    # The names are in files, so a function must not be renamed.
    register_op(f"funcconv.torch.{_op.__name__}", _op)

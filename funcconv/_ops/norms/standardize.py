"""What the normalizations share: read their inputs, standardize numbers, apply scale and bias."""

import math
from collections.abc import Hashable, Mapping, Sequence

import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import scale_of, wide
from ..._common.errors import FuncconvError, suggest
from ..._common.mesh_axes import last_axes_like
from ..._common.types import Array, ArrayLike, Number, Params
from ..._windows.layout import as_array
from ..._windows.masks import zero_masked

_ENTRIES = ("scale", "bias")
# Inputs are multiplied by this before they are subtracted: a difference of two numbers of any size then stays finite,
# and the reciprocal of a difference does not underflow.
_INPUT_SCALE = 2.0**-4
_SYMBOLIC_COUNT_BITS = 24  # assumed bits of the number of terms of a mean if it is a symbolic dimension


def standardized(
    x: Array, axes: Sequence[int], epsilon: Number, axis_name: Hashable | None = None, real: Array | None = None
) -> tuple[Array, Array, Array]:
    """Return `(x - mean) / sqrt(var + epsilon)`, the mean and the variance over `axes`, which are kept with size 1.

    Numbers where `real` is False take no part.

    The mean of numbers far from zero has a rounding error, which can be larger than their differences. So the largest
    number is subtracted first (equal numbers then give exact zeros), then the mean, then the mean of the result. The
    numbers are scaled so that no sum and no square overflows, and so that a square underflows only if it is negligible
    beside `epsilon`. In exact arithmetic the result depends neither on the largest number nor on the second mean nor on
    the scales, so differentiation treats all of them as constants.
    """
    count = math.prod(x.shape[axis] for axis in axes)
    # Each term is divided by a power of two above the count, which rounds nothing and keeps the sum from overflowing.
    term_scale = 2.0 ** -(count.bit_length() if isinstance(count, int) else _SYMBOLIC_COUNT_BITS)

    real_count = None if real is None else count_real(real, x, axes, axis_name)

    def mean_of(array: Array) -> Array:
        if real is not None and real_count is not None:
            total = zero_masked(array * term_scale, real).sum(axes, keepdims=True) / term_scale
            total = total if axis_name is None else lax.psum(total, axis_name)  # type: ignore[no-untyped-call]
            return total / jnp.maximum(real_count, 1)
        mean = (array * term_scale).mean(axes, keepdims=True) / term_scale
        return mean if axis_name is None else lax.pmean(mean, axis_name)  # type: ignore[no-untyped-call]

    candidates = lax.stop_gradient(x if real is None else jnp.where(real, x, -jnp.inf))
    largest = _INPUT_SCALE * jnp.max(candidates, axes, keepdims=True, initial=-jnp.inf)
    if axis_name is not None:
        largest = lax.pmax(largest, axis_name)  # type: ignore[no-untyped-call]
    if real_count is not None:
        largest = jnp.where(real_count > 0, largest, 0)
    below = _INPUT_SCALE * x - largest  # at most zero, so no number is larger than `count` times the mean
    below = zero_masked(below, real)
    mean = mean_of(below)
    center = mean + mean_of(lax.stop_gradient(below - mean))
    smallest_size = math.sqrt(epsilon) * _INPUT_SCALE
    size = jnp.maximum(lax.stop_gradient(-mean), smallest_size)
    y = (below - center) * (1 / size)
    var = mean_of(jnp.square(y))
    y = y * lax.rsqrt(var + jnp.square(smallest_size / size))
    size = size / _INPUT_SCALE
    return y, (largest + center) / _INPUT_SCALE, var * size * size


def divided_by_rms(x: Array, axes: Sequence[int], epsilon: Number, real: Array | None = None) -> Array:
    """Return `x / sqrt(mean(x^2) + epsilon)`, with the mean over `axes`. Where `real` is False, `x` is zero.

    The numbers are divided by the largest one first, so that no square overflows, and so that a square underflows only
    if it is negligible beside `epsilon`. In exact arithmetic the result does not depend on this divisor, so
    differentiation treats it as a constant.
    """
    smallest_size = math.sqrt(epsilon)
    size = jnp.maximum(scale_of(x, axes, keepdims=True), smallest_size)
    y = x / size
    squares = jnp.square(y)
    if real is None:
        mean = squares.mean(axes, keepdims=True)
    else:
        mean = squares.sum(axes, keepdims=True) / jnp.maximum(count_real(real, x, axes), 1)
    return y * lax.rsqrt(mean + jnp.square(smallest_size / size))


def count_real(real: Array, x: Array, axes: Sequence[int], axis_name: Hashable | None = None) -> Array:
    """Return how many numbers of `x` over `axes`, which are kept with size 1, are real, in the dtype of `x`."""
    count = jnp.sum(real, tuple(axes), keepdims=True, dtype=x.dtype)
    count = count * math.prod(x.shape[axis] for axis in axes if real.shape[axis] == 1)
    return count if axis_name is None else lax.psum(count, axis_name)  # type: ignore[no-untyped-call]


def scaled(x: Array, scale: Array | None, bias: Array | None) -> Array:
    """Return `x * scale + bias`, both of which may be None."""
    if scale is not None:
        x = x * as_last_axes(scale, x)
    return x if bias is None else x + as_last_axes(bias, x)


def as_last_axes(values: Array, x: Array) -> Array:
    """Return values for the last axes of `x` with as many axes as `x` and its dtype."""
    return last_axes_like(values, x).astype(x.dtype).reshape((1,) * (x.ndim - values.ndim) + values.shape)


def read_inputs(
    op: str, params: Params, x: ArrayLike, epsilon: Number, *, bias: bool = True
) -> tuple[Array, Array | None, Array | None]:
    """Return the input, the scale and the bias. Scale and bias have the dtype of the input, or that of its sums."""
    if not isinstance(params, Mapping):
        expected = '{"scale": array, "bias": array}, either of which' if bias else '{"scale": array}, which'
        msg = f"{op}: params must be {expected} may be missing; got {params!r}"
        raise FuncconvError(msg)
    entries = _ENTRIES if bias else _ENTRIES[:1]
    for name in params:
        if name not in entries:
            msg = f"{op}: params have an unknown entry {name!r}{suggest(name, entries)}"
            raise FuncconvError(msg)
    x = as_array(op, "the input", x)
    check_floating(op, "the input", x)
    check_epsilon(op, epsilon)
    arrays: list[Array | None] = []
    for name in _ENTRIES:
        array = None if params.get(name) is None else as_array(op, f"the {name}", params[name])
        # Mixed-precision training keeps scale and bias in float32 beside 16-bit inputs.
        if array is not None and array.dtype not in (x.dtype, wide(x.dtype)):
            msg = f"{op}: the input is {x.dtype} but the {name} is {array.dtype}; cast one of them"
            raise FuncconvError(msg)
        arrays.append(array)
    return x, *arrays  # type: ignore[return-value]


def check_channels(op: str, channels: int, **arrays: Array | None) -> None:
    """Raise an error if an array does not have one number per channel."""
    for name, array in arrays.items():
        if array is not None and array.shape != (channels,):
            msg = (
                f"{op}: the input has {channels} channels, but the {name} has shape {array.shape}. "
                "Draw parameters for this input"
            )
            raise FuncconvError(msg)


def check_floating(op: str, name: str, array: Array) -> None:
    """Raise an error if an array is integer, boolean or complex."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = f"{op}: {name} is {array.dtype}, but must be floating; cast it first, for instance to jnp.float32"
        raise FuncconvError(msg)


def check_epsilon(op: str, epsilon: Number) -> None:
    """Raise an error if epsilon is not positive: a channel of equal numbers would be divided by zero."""
    if not epsilon > 0:
        msg = f"{op}: epsilon must be above 0; got {epsilon!r}"
        raise FuncconvError(msg)


def kernel_of(op: str, params: Params) -> Array:
    """Return the kernel among the parameters."""
    if not isinstance(params, Mapping) or params.get("kernel") is None:
        shown = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        msg = f'{op}: params must be {{"kernel": array, ...}}; got {shown}'
        raise FuncconvError(msg)
    kernel = as_array(op, "the kernel", params["kernel"])
    check_floating(op, "the kernel", kernel)
    return kernel

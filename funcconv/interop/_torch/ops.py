"""Functions of arrays that PyTorch has and JAX has in another way, for one example with its channels last.

They are registered by name, because the architecture file of a graph stores the names of its functions.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import in_wide
from ..._common.types import Array, Number, Shape
from ..._graph.to_file.registry import register_op
from ..._ops.conv import conv, conv_transpose
from ..._ops.norms import group_norm, layer_norm

# activations, with the derivatives of PyTorch at their kinks --------------------------------------------------


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
    return x.astype(dtype)


# axes ----------------------------------------------------------------------------------------------------------


def to_last(x: Array) -> Array:
    """Move the channels from the first axis to the last."""
    return jnp.moveaxis(x, 0, -1)


def to_first(x: Array) -> Array:
    """Move the channels from the last axis to the first."""
    return jnp.moveaxis(x, -1, 0)


def reshaped(x: Array, *, shape: Shape) -> Array:
    """Return the numbers in another shape, in the same order."""
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
    """Move the entries along axes, those that leave at one end to the other."""
    return jnp.roll(x, shifts, axes)


def taken(x: Array, index: Array, *, axis: int) -> Array:
    """Return entries of an axis; a negative number counts from its end."""
    size = x.shape[axis]
    return in_wide(lambda x: jnp.take(x, jnp.where(index < 0, index + size, index), axis=axis), x)


def indexed(x: Array, *indices: Array, pattern: tuple[Any, ...]) -> Array:
    """Index by arrays, where the pattern is true, and by all entries elsewhere."""
    arrays = iter(indices)
    return x[tuple(next(arrays) if is_array else slice(None) for is_array in pattern)]


def resampled(x: Array, *, axis: int, index: tuple[tuple[int, ...], ...], weights: tuple[tuple[float, ...], ...]) -> Array:
    """Return weighted sums of entries of an axis: for each new entry, which old ones and with which weights."""

    def resample(x: Array) -> Array:
        total: Any = 0
        shape = [1] * x.ndim
        shape[axis] = -1
        for k in range(len(index[0])):
            column = np.array([row[k] for row in weights]).reshape(shape)
            total = total + jnp.take(x, np.array([row[k] for row in index]), axis=axis) * column.astype(x.dtype)
        return total

    return in_wide(resample, x)


def repeated(x: Array, *, axis: int, index: tuple[int, ...]) -> Array:
    """Return entries of an axis, some of them several times."""
    return in_wide(lambda x: jnp.take(x, np.array(index), axis=axis), x)


# constants -----------------------------------------------------------------------------------------------------


def filled(*, shape: Shape, value: Any, dtype: Any) -> Array:
    """Return an array of one number."""
    return jnp.full(shape, value, dtype)


def counted(*, start: Number, stop: Number, step: Number, dtype: Any) -> Array:
    """Return start, start + step, ... below stop."""
    return jnp.arange(start, stop, step, dtype)


def spaced(*, start: Number, stop: Number, count: int, dtype: Any) -> Array:
    """Return evenly spaced numbers, both ends included."""
    return jnp.linspace(start, stop, count, dtype=dtype)


def listed(*, values: Any, shape: Shape, dtype: Any) -> Array:
    """Return an array of these numbers."""
    return jnp.asarray(np.array(values).reshape(shape), dtype)


# layers whose weights are arrays in PyTorch's order -----------------------------------------------------------


def _kernel(weight: Array, bias: Array | None) -> dict[str, Array]:
    # PyTorch: (out, in // groups, *window); funcconv: (*window, in // groups, out)
    return {"kernel": jnp.moveaxis(weight, (0, 1), (-1, -2))} | ({} if bias is None else {"bias": bias})


def convolved(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """Convolve `(*spatial, channels)` with a kernel in PyTorch's order of axes."""
    return conv(_kernel(weight, bias), x, **options)


def convolved_transposed(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """Apply a transposed convolution with a kernel in PyTorch's order of axes."""
    return conv_transpose(_kernel(weight, bias), x, **options)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Multiply the last axis by a matrix `(out, in)`."""
    y = x @ weight.T
    return y if bias is None else y + bias


def _named(scale: Array | None, bias: Array | None) -> dict[str, Array]:
    return ({} if scale is None else {"scale": scale}) | ({} if bias is None else {"bias": bias})


def normalized_groups(
    x: Array, *weights: Array, groups: int, epsilon: Number, spatial: int, has_scale: bool = True
) -> Array:
    """Apply a group norm to `(*axes, *spatial, channels)`; the weights are a scale, if it has one, and a bias."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)
    x_with_batch = x.reshape(-1, *x.shape[x.ndim - spatial - 1 :])
    return group_norm(_named(scale, bias), x_with_batch, groups, epsilon=epsilon, spatial=spatial).reshape(x.shape)


def normalized_layer(x: Array, *weights: Array, axes: int, epsilon: Number, has_scale: bool = True) -> Array:
    """Apply a layer norm to the last axes."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)
    return layer_norm(_named(scale, bias), x, axes=axes, epsilon=epsilon)


def normalized_rms(x: Array, *weights: Array, axes: int, epsilon: Number | None) -> Array:
    """Divide by the root of the mean of the squares of the last axes, and multiply by the scale."""
    last = tuple(range(-axes, 0))

    def normalize(x: Array) -> Array:
        added = jnp.finfo(x.dtype).eps if epsilon is None else epsilon  # type: ignore[no-untyped-call]
        return x * jax.lax.rsqrt(jnp.mean(x * x, last, keepdims=True) + added)

    y = in_wide(normalize, x)
    return y * weights[0] if weights else y


def normalized_by(x: Array, mean: Array, var: Array, *weights: Array, epsilon: Number, has_scale: bool = True) -> Array:
    """Normalize the channels by a mean and a variance that are given."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)
    factor = jax.lax.rsqrt(var + epsilon) * (1 if scale is None else scale)
    y = (x - mean) * factor
    return (y if bias is None else y + bias).astype(x.dtype)


def normalized_by_batch(x: Array, *weights: Array, epsilon: Number, has_scale: bool = True) -> Array:
    """Normalize each channel over all other axes."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)

    def normalize(x: Array) -> Array:
        axes = tuple(range(x.ndim - 1))
        centred = x - jnp.mean(x, axes, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + epsilon)

    y = in_wide(normalize, x)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def _scale_and_bias(weights: Sequence[Array], *, has_scale: bool) -> tuple[Array | None, Array | None]:
    given = iter(weights)
    return next(given, None) if has_scale else None, next(given, None)


def weight_norm(direction: Array, length: Array, *, axis: int | None) -> Array:
    """Return a direction, scaled so that its parts along an axis have given lengths (`torch.nn.utils.weight_norm`)."""
    axes = tuple(i for i in range(direction.ndim) if i != axis)
    norm = jnp.sqrt(jnp.sum(direction * direction, axes, keepdims=axis is not None))
    return direction * (length / norm)


def nothing() -> Array:
    """Return a 0, as the value of a node that only holds arrays."""
    return jnp.zeros(())


# products ------------------------------------------------------------------------------------------------------


def einsum(*xs: Array, subscripts: str) -> Array:
    """Return sums of products, in Einstein's notation."""
    return jnp.einsum(subscripts, *xs)


def attention(query: Array, key: Array, value: Array, *mask: Array, scale: Number | None, causal: bool) -> Array:
    """Return softmax(query key^T scale + mask) value, over the last two axes `(positions, features)`.

    A mask of booleans is true where attention is allowed.
    """
    factor = 1 / sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.einsum("...qf,...kf->...qk", query, key) * factor
    if causal:
        allowed = np.tri(scores.shape[-2], scores.shape[-1], dtype=bool)
        scores = jnp.where(allowed, scores, -jnp.inf)
    for given in mask:
        scores = jnp.where(given, scores, -jnp.inf) if given.dtype == bool else scores + given
    return jnp.einsum("...qk,...kf->...qf", jax.nn.softmax(scores, -1), value)


# reductions ----------------------------------------------------------------------------------------------------


def vector_norm(x: Array, *, axis: tuple[int, ...], order: Number) -> Array:
    """Return the norm of this order of the numbers along axes; the derivative of the norm 2 at 0 is 0."""
    if order == 2:
        squares = in_wide(lambda x: jnp.sum(x * x, axis), x)
        return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), jnp.zeros_like(squares))
    if order == float("inf"):
        return jnp.max(jnp.abs(x), axis)
    if order == 1:
        return in_wide(lambda x: jnp.sum(jnp.abs(x), axis), x)
    return in_wide(lambda x: jnp.sum(jnp.abs(x) ** order, axis) ** (1 / order), x)


def variance(x: Array, *, axis: tuple[int, ...], correction: Number) -> Array:
    """Return the variance along axes, with the divisor n - correction."""
    return in_wide(lambda x: jnp.var(x, axis, ddof=correction), x)


def deviation(x: Array, *, axis: tuple[int, ...], correction: Number) -> Array:
    """Return the standard deviation along axes, with the divisor n - correction."""
    return in_wide(lambda x: jnp.std(x, axis, ddof=correction), x)


def total(x: Array, *, axis: tuple[int, ...]) -> Array:
    """Return the sum along axes; 16-bit numbers are added in float32."""
    return jnp.sum(x, axis)


def average(x: Array, *, axis: tuple[int, ...]) -> Array:
    """Return the mean along axes; 16-bit numbers are added in float32."""
    return jnp.mean(x, axis)


def cumulated(x: Array, *, axis: int) -> Array:
    """Return the sums of the entries up to each."""
    return jnp.cumsum(x, axis)


for _op in (
    *(relu6, hardsigmoid, hardswish, absolute, leaky_relu, prelu, clamp, hardtanh, softplus, hardshrink, softshrink),
    *(threshold, rsqrt, erf, power, power_of, floor_divide, truncated_divide, added, added_product, added_quotient),
    *(interpolated, masked, cast, to_last, to_first, reshaped, transposed, concatenate, part, broadcast, pad, pad_by, windows, flipped),
    *(rolled, taken, indexed, resampled, repeated, filled, counted, spaced, listed, convolved, convolved_transposed),
    *(linear, normalized_groups, normalized_layer, normalized_rms, normalized_by, normalized_by_batch, weight_norm),
    *(einsum, attention, vector_norm, variance, deviation, total, average, cumulated, nothing),
):
    # The names are in files, so a function must not be renamed.
    register_op(f"funcconv.torch.{_op.__name__}", _op)
register_op("jax.lax.stop_gradient", jax.lax.stop_gradient)
for _name in ("ceil", "floor", "round", "trunc", "logical_not", "isnan", "equal", "not_equal", "less", "less_equal"):
    register_op(f"jax.numpy.{_name}", getattr(jnp, _name))
for _name in ("greater", "greater_equal", "where", "logical_and", "logical_or", "log2", "log10", "tan", "arctan", "sinh"):
    register_op(f"jax.numpy.{_name}", getattr(jnp, _name))
for _name in ("cosh", "arcsin", "arccos", "argmax", "argmin", "remainder", "arctan2", "true_divide", "bitwise_not"):
    register_op(f"jax.numpy.{_name}", getattr(jnp, _name))

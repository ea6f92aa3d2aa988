"""Layers whose weights are arrays in PyTorch's order of axes, products and reductions."""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.dtypes import in_wide, wide
from ...._common.types import Array, Number
from ...._graph.to_file.registry import register_op
from ...._ops.conv import conv
from ...._ops.conv_transpose import conv_transpose
from ...._ops.norms.group import group_norm
from ...._ops.norms.kernel import weight_norm as own_weight_norm
from ...._ops.norms.layer import layer_norm, rms_norm


def _kernel(weight: Array, bias: Array | None) -> dict[str, Array]:
    # PyTorch: (out, in // groups, *window); funcconv: (*window, in // groups, out)
    return {"kernel": jnp.moveaxis(weight, (0, 1), (-1, -2))} | ({} if bias is None else {"bias": bias})


def convolved(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """Convolve `(*spatial, channels)` with a kernel in PyTorch's order of axes."""
    return conv(_kernel(weight, bias), x, **options)


def convolved_transposed(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """Apply a transposed convolution with a kernel in PyTorch's order of axes."""
    return conv_transpose(_kernel(weight, bias), x, **options)


def _spread(weight: Array, x: Array) -> Array:
    """Return a weight for the last axes of `x` with axes of size 1 in front, so that it broadcasts."""
    return weight.reshape((1,) * (x.ndim - weight.ndim) + weight.shape)


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Multiply the last axis by a matrix `(out, in)`."""
    y = x @ weight.T
    return y if bias is None else y + _spread(bias, y)


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
    """Apply an RMS norm to the last axes. The default epsilon of PyTorch, None, depends on the dtype."""
    added = float(jnp.finfo(wide(x.dtype)).eps) if epsilon is None else epsilon  # type: ignore[no-untyped-call]
    return rms_norm({"scale": weights[0]} if weights else {}, x, axes=axes, epsilon=added)


def normalized_by(x: Array, mean: Array, var: Array, *weights: Array, epsilon: Number, has_scale: bool = True) -> Array:
    """Normalize the channels by the given mean and variance."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)
    factor = jax.lax.rsqrt(var + epsilon) * (1 if scale is None else scale)
    y = (x - _spread(mean, x)) * _spread(factor, x)
    return (y if bias is None else y + _spread(bias, x)).astype(x.dtype)


def normalized_by_batch(x: Array, *weights: Array, epsilon: Number, has_scale: bool = True) -> Array:
    """Normalize each channel over all other axes."""
    scale, bias = _scale_and_bias(weights, has_scale=has_scale)

    def normalize(x: Array) -> Array:
        axes = tuple(range(x.ndim - 1))
        centred = x - jnp.mean(x, axes, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + epsilon)

    y = in_wide(normalize, x)
    y = y if scale is None else y * _spread(scale, y)
    return y if bias is None else y + _spread(bias, y)


def _scale_and_bias(weights: Sequence[Array], *, has_scale: bool) -> tuple[Array | None, Array | None]:
    given = iter(weights)
    return next(given, None) if has_scale else None, next(given, None)


def weight_norm(direction: Array, length: Array, *, axis: int | None) -> Array:
    """Scale a direction so that its slices along an axis have the given norms (`torch.nn.utils.weight_norm`)."""
    scale = length.reshape(() if axis is None else (-1,))  # PyTorch keeps the other axes, with size 1
    kernel: Array = own_weight_norm({"kernel": direction, "scale": scale}, axis=axis)["kernel"]
    return kernel


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
        allowed = jnp.tri(scores.shape[-2], scores.shape[-1], dtype=bool)
        scores = jnp.where(_spread(allowed, scores), scores, -jnp.inf)
    for given in mask:
        scores = jnp.where(given, scores, -jnp.inf) if given.dtype == bool else scores + given
    return jnp.einsum("...qk,...kf->...qf", jax.nn.softmax(scores, -1), value)


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


def variance(x: Array, *, axis: tuple[int, ...], correction: int) -> Array:
    """Return the variance along axes, with the divisor n - correction."""
    return in_wide(lambda x: jnp.var(x, axis, ddof=correction), x)


def deviation(x: Array, *, axis: tuple[int, ...], correction: int) -> Array:
    """Return the standard deviation along axes, with the divisor n - correction."""
    return in_wide(lambda x: jnp.std(x, axis, ddof=correction), x)


def total(x: Array, *, axis: tuple[int, ...]) -> Array:
    """Return the sum along axes; 16-bit numbers are added in float32."""
    return jnp.sum(x, axis)


def average(x: Array, *, axis: tuple[int, ...]) -> Array:
    """Return the mean along axes; 16-bit numbers are added in float32."""
    return jnp.mean(x, axis)


def cumulated(x: Array, *, axis: int) -> Array:
    """Return the cumulative sum along an axis."""
    return jnp.cumsum(x, axis)


for _op in (
    convolved,
    convolved_transposed,
    linear,
    normalized_groups,
    normalized_layer,
    normalized_rms,
    normalized_by,
    normalized_by_batch,
    weight_norm,
    einsum,
    attention,
    vector_norm,
    variance,
    deviation,
    total,
    average,
    cumulated,
):
    # The names are in files, so a function must not be renamed.
    register_op(f"funcconv.torch.{_op.__name__}", _op)

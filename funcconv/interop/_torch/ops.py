"""PyTorch functions that differ from the JAX function of the same purpose, for one example with its channels last.

They are registered by name, because the architecture file of a graph stores the names of its functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import in_wide
from ..._common.types import Array, Number, Params, Shape
from ..._graph.to_file.registry import register_op
from ..._ops.norms import group_norm


def to_last(x: Array) -> Array:
    """Move the channels from the first axis to the last."""
    return jnp.moveaxis(x, 0, -1)


def to_first(x: Array) -> Array:
    """Move the channels from the last axis to the first."""
    return jnp.moveaxis(x, -1, 0)


def channels_first(op: Callable[..., Array], x: Array) -> Array:
    """Apply an op that expects its channels first, to an array with its channels last."""
    y = op(to_first(x) if x.ndim > 1 else x)
    return to_last(y) if y.ndim > 1 else y


def with_weights_channels_first(op: Callable[..., Array], params: Params, x: Array) -> Array:
    """Apply an op with weights that expects its channels first, to an array with its channels last."""
    y = op(params, to_first(x) if x.ndim > 1 else x)
    return to_last(y) if y.ndim > 1 else y


def concatenate(*xs: Array, axis: int) -> Array:
    """Concatenate arrays."""
    return jnp.concatenate(xs, axis)


def part(x: Array, *, axis: int, start: int, stop: int) -> Array:
    """Return the entries `start` to `stop` of an axis."""
    return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def index(x: Array, *, parts: tuple[Any, ...]) -> Array:
    """Index by integers and by slices, which are given as tuples `(start, stop, step)`."""
    return x[tuple(slice(*item) if isinstance(item, tuple) else item for item in parts)]


def repeat(x: Array, *, times: Shape) -> Array:
    """Repeat each entry `times[i]` times along axis `i`, which enlarges an image by its nearest neighbours."""

    def repeated(x: Array) -> Array:
        for axis, k in enumerate(times):
            x = jnp.repeat(x, k, axis=axis)
        return x

    return in_wide(repeated, x)  # the gradient sums over the repeats, in float32 for 16-bit numbers


def pad(x: Array, *, pairs: tuple[tuple[int, int], ...], value: Number) -> Array:
    """Pad each axis with a number, or crop it if an entry of a pair is negative."""
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(lo, hi, 0) for lo, hi in pairs])


def instance_norm(params: Params, x: Array, *, epsilon: Number) -> Array:
    """Normalize each channel over the spatial axes."""
    return group_norm(params, x, x.shape[-1], epsilon=epsilon, spatial=x.ndim - 1)


# activations, with the derivatives of PyTorch at their kinks


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


def clamp(x: Array, *, low: Number | None, high: Number | None) -> Array:
    """Return x, limited to two bounds; the derivative at both is 1."""
    if low is not None:
        x = jnp.where(x < low, jnp.asarray(low, x.dtype), x)
    return x if high is None else jnp.where(x > high, jnp.asarray(high, x.dtype), x)


def softplus(x: Array, *, beta: Number, threshold: Number) -> Array:
    """Return log(1 + exp(beta x)) / beta, or x if beta x is above the threshold."""
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


for _op in (
    *(to_last, to_first, channels_first, with_weights_channels_first, concatenate, part, index, repeat, pad),
    *(instance_norm, relu6, hardsigmoid, hardswish, absolute, leaky_relu, clamp, softplus),
):
    # The names are in files, so a function must not be renamed.
    register_op(f"funcconv.torch.{_op.__name__}", _op)
register_op("jax.lax.stop_gradient", jax.lax.stop_gradient)

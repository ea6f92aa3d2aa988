"""The initializers that are chosen by name, with few programs to compile for many shapes.

Most of the time of a first `graph.init` is spent on compiling: XLA needs about a second for the random numbers of each
shape, and a residual network of 18 layers has twelve shapes of kernels. Of JAX's default generator, threefry, the first
numbers of a longer vector are the numbers of a shorter one. So kernels are cut from vectors of a few lengths, and have
exactly the numbers that `jax.nn.initializers` draws.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.nn import initializers

from .types import Array, DTypeLike, Shape

_LENGTHS = (1 << 16, 1 << 19, 1 << 22)  # of the vectors, in numbers; the longest takes 0.4 s on two cores
_TRUNCATED_STD = 0.87962566103423978  # the standard deviation of a standard normal that is cut off at -2 and 2


def normal(scale: int, exactly: Callable[..., Array]) -> Callable[..., Array]:
    """Return an initializer of truncated normals with variance `scale / fan_in`.

    Args:
        scale: 1 for LeCun's, 2 for He's.
        exactly: the initializer of `jax.nn.initializers` that draws the same numbers.

    Returns:
        `init(key, shape, dtype)`.
    """

    def init(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
        length = _vector_length(key, shape, dtype)
        if length is None:
            return exactly(key, shape, dtype)
        std = jnp.sqrt(jnp.array(scale / math.prod(shape[:-1]), dtype)) / jnp.array(_TRUNCATED_STD, dtype)
        kernel: Array = _leading(jax.random.truncated_normal(key, -2, 2, (length,), dtype) * std, shape)
        return kernel

    return init


def glorot_uniform(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw from a uniform distribution with variance `2 / (fan_in + fan_out)`."""
    length = _vector_length(key, shape, dtype)
    if length is None:
        return initializers.glorot_uniform()(key, shape, dtype)
    fans = math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]
    bound = jnp.sqrt(3 * jnp.array(1 / (fans / 2), dtype))
    kernel: Array = _leading(jax.random.uniform(key, (length,), dtype, -1) * bound, shape)
    return kernel


def _vector_length(key: Array, shape: Shape, dtype: DTypeLike) -> int | None:
    """Return the length of the vector that a kernel is cut from, None if it has to be drawn in its own shape."""
    if isinstance(key, jax.core.Tracer) or len(shape) < 2 or not jnp.issubdtype(dtype, jnp.floating):
        return None  # inside of a transformation, the caller's program is compiled as a whole
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or str(jax.random.key_impl(key)) != "threefry2x32":
        return None
    if not getattr(jax.config, "jax_threefry_partitionable", True):
        return None  # then numbers depend on the length of the whole vector
    return next((length for length in _LENGTHS if math.prod(shape) <= length), None)


@partial(jax.jit, static_argnums=1)
def _leading(numbers: Array, shape: Shape) -> Array:
    kernel: Array = numbers[: math.prod(shape)].reshape(shape)
    return kernel

"""The initializers that are chosen by name, with few and small programs to compile.

Most of the time of a first `graph.init` is spent on compiling. XLA needs about a second for random numbers in the shape
of a kernel, and a fifth of it for as many numbers in a vector. So kernels are drawn as vectors. Of JAX's default
generator, threefry, the numbers do not depend on the shape, and the first numbers of a longer vector are those of a
shorter one. So outside of transformations kernels are cut from vectors of a few lengths: a residual network of 18
layers has twelve shapes of kernels. They have exactly the numbers that `jax.nn.initializers` draws.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
        `init(key, shape, dtype, *factors)`, the numbers times the factors.
    """

    def init(key: Array, shape: Shape, dtype: DTypeLike, *factors: float) -> Array:
        if len(shape) < 2 or not _as_vectors(key, dtype):
            return _times(exactly(key, shape, dtype), factors)
        kind = jax.dtypes.canonicalize_dtype(dtype)
        std = np.sqrt(np.array(scale / math.prod(shape[:-1]), kind)) / np.array(_TRUNCATED_STD, kind)

        def draw(length: int) -> Array:
            return jax.random.truncated_normal(key, -2, 2, (length,), dtype)

        return _cut(draw, key, shape, std, *factors)

    return init


def glorot_uniform(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
    """Draw from a uniform distribution with variance `2 / (fan_in + fan_out)`."""
    if len(shape) < 2 or not _as_vectors(key, dtype):
        return initializers.glorot_uniform()(key, shape, dtype)
    fans = math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]
    bound = np.sqrt(3 * np.array(1 / (fans / 2), jax.dtypes.canonicalize_dtype(dtype)))
    return _cut(lambda length: jax.random.uniform(key, (length,), dtype, -1), key, shape, bound)


def uniform(key: Array, shape: Shape, dtype: DTypeLike, bound: float) -> Array:
    """Draw uniformly from `-bound` to `bound`."""
    if not _as_vectors(key, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)
    return _cut(lambda length: jax.random.uniform(key, (length,), dtype, -bound, bound), key, shape)


def _as_vectors(key: Array, dtype: DTypeLike) -> bool:
    """Whether the numbers of a generator do not depend on the shape or the length of an array."""
    return bool(
        jnp.issubdtype(dtype, jnp.floating)
        and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        and str(jax.random.key_impl(key)) == "threefry2x32"
        and getattr(jax.config, "jax_threefry_partitionable", True)
    )


def _cut(draw: Callable[[int], Array], key: Array, shape: Shape, *factors: Any) -> Array:
    """Return the first numbers of a vector in a shape, times the factors."""
    size = math.prod(shape)
    if isinstance(key, jax.core.Tracer):  # the caller's program is compiled as a whole
        return _times(draw(size), factors).reshape(shape)
    numbers: Array = _leading(draw(next((length for length in _LENGTHS if size <= length), size)), factors, shape)
    return numbers


@partial(jax.jit, static_argnums=2)
def _leading(numbers: Array, factors: tuple[Any, ...], shape: Shape) -> Array:
    return _times(numbers[: math.prod(shape)], factors).reshape(shape)


def _times(numbers: Array, factors: Iterable[Any]) -> Array:
    for factor in factors:
        numbers = numbers * factor
    return numbers

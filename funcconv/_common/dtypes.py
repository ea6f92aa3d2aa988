"""The dtype in which numbers are summed, and dtypes that JAX supports only with 64 bits enabled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .types import Array


def wide(dtype: Any) -> Any:
    """Return the dtype in which numbers of a dtype are summed: float32 for 16-bit floats, otherwise the same."""
    # A bfloat16 sum has 8 bits of precision: ones stop adding up at 256. In float16 sums overflow at 65,504.
    if not jnp.issubdtype(dtype, jnp.floating):
        return dtype
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype)


def in_wide(f: Callable[[Array], Array], x: Array) -> Array:
    """Return `f(x)` with the dtype of `x`, computed in the dtype in which its numbers are summed.

    If `f` only copies or moves numbers, the result is the same as without the casts. But the gradient of a number is
    the sum over its copies, which JAX computes in the dtype of the copies.

    Args:
        f: a function of one array.
        x: the array.

    Returns:
        `f(x)`. There is no cast if the dtype of `x` is already the one of its sums.
    """
    return f(x.astype(wide(x.dtype))).astype(x.dtype)


def scale_of(x: Array, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Array:
    """Return the largest magnitude of some numbers, by which they are divided before they are squared.

    In float32, squares of numbers above 2e19 overflow. The scale is a constant to differentiation: a formula divides
    and multiplies by it, so derivatives do not depend on it.

    Args:
        x: floats of at least 32 bits.
        axes: the axes over which to search. Default: None, all axes.
        keepdims: whether to keep these axes with size 1. Default: False.

    Returns:
        An array of scales above 0, which is NaN if a number is NaN.
    """
    # Bounded, since XLA flushes the reciprocal of the largest number, which is subnormal, to zero.
    limit = 2.0 ** (jnp.finfo(x.dtype).maxexp * 3 // 4)  # type: ignore[no-untyped-call]
    largest = jnp.abs(lax.stop_gradient(x)).max(axes, initial=0, keepdims=keepdims)
    return jnp.clip(largest, 1 / limit, limit)


def with_infinities(dtype: Any) -> Any:
    """Return the dtype in which maxima and minima are computed: float32 for floats of at most 8 bits."""
    # Most floats of 8 bits have no infinity, which padding of a maximum needs.
    tiny = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2
    return jnp.dtype(jnp.float32 if tiny else dtype)


def exact(x: Any, *, copy: bool = False) -> Any:
    """Return an array as a JAX array if JAX keeps its dtype, otherwise as a NumPy array.

    Without `jax_enable_x64`, JAX silently converts float64 to float32 and 64-bit integers to 32 bits.

    Args:
        x: a NumPy or JAX array.
        copy: whether the result must not share memory with `x`. Default: False.

    Returns:
        An array with the same dtype and the same numbers.
    """
    if isinstance(x, jax.Array):
        return x.copy() if copy else x
    if is_kept(x.dtype):
        return jnp.array(x) if copy else jnp.asarray(x)
    return np.array(x) if copy else np.asarray(x)


def is_kept(dtype: Any) -> bool:
    """Return whether JAX keeps a dtype: those of 64 bits need `jax_enable_x64`."""
    return bool(jax.dtypes.canonicalize_dtype(dtype) == dtype)

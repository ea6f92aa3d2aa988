"""The dtype in which numbers are summed, and dtypes that JAX has only with 64 bits enabled."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .types import Array


def wide(dtype: Any) -> Any:
    """Return the dtype in which numbers of this one are summed: float32 for 16-bit floats, otherwise the same."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return dtype
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype)


def in_wide(f: Callable[[Array], Array], x: Array) -> Array:
    """Return `f(x)` in the dtype of `x`, computed in the dtype in which its numbers are summed.

    If `f` copies or moves numbers, the result is the same as without the casts. But a gradient is a sum over the
    copies, and JAX computes this sum in the dtype in which they were made.

    Args:
        f: a function of one array.
        x: the array.

    Returns:
        `f(x)`; for dtypes that are summed as they are, without any cast.
    """
    return f(x.astype(wide(x.dtype))).astype(x.dtype)


def scale_of(x: Array, axes: Sequence[int] | None = None, *, keepdims: bool = False) -> Array:
    """Return about the largest magnitude of some numbers, by which they are divided before they are squared.

    Squares overflow in float32 from 2e19 on. The scale is bounded, as the reciprocal of the largest number would be
    flushed to 0. It is a constant to derivatives, which do not depend on it.

    Args:
        x: floats of at least 32 bits.
        axes: the axes over which to search; None means all.
        keepdims: whether to keep these axes with size 1.

    Returns:
        An array of scales above 0; NaN where a number is NaN.
    """
    limit = 2.0 ** (jnp.finfo(x.dtype).maxexp * 3 // 4)  # type: ignore[no-untyped-call]
    largest = jnp.abs(lax.stop_gradient(x)).max(axes, initial=0, keepdims=keepdims)
    return jnp.clip(largest, 1 / limit, limit)


def with_infinities(dtype: Any) -> Any:
    """Return the dtype in which extremes of numbers of this one are found: float32 for floats of 8 bits and fewer."""
    tiny = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2
    return jnp.dtype(jnp.float32 if tiny else dtype)


def exact(x: Any, *, copy: bool = False) -> Any:
    """Return an array as a JAX array if JAX keeps its dtype, otherwise as a NumPy array.

    Without `jax_enable_x64`, JAX would make float32 of float64 and 32-bit integers of 64-bit ones, without a word.

    Args:
        x: an array of NumPy or JAX.
        copy: whether the result must have memory of its own.

    Returns:
        An array of the same dtype with the same numbers.
    """
    if isinstance(x, jax.Array):
        return x.copy() if copy else x
    if is_kept(x.dtype):
        return jnp.array(x) if copy else jnp.asarray(x)
    return np.array(x) if copy else np.asarray(x)


def is_kept(dtype: Any) -> bool:
    """Return whether JAX has a dtype now: those of 64 bits need `jax_enable_x64`."""
    return bool(jax.dtypes.canonicalize_dtype(dtype) == dtype)

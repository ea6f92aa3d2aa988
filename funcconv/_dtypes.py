"""The dtype in which numbers are summed."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ._typing import Array


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


def with_infinities(dtype: Any) -> Any:
    """Return the dtype in which extremes of numbers of this one are found: float32 for floats of 8 bits and fewer."""
    tiny = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2
    return jnp.dtype(jnp.float32 if tiny else dtype)

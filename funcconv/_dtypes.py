"""The dtype in which numbers are summed."""

from typing import Any

import jax.numpy as jnp


def wide(dtype: Any) -> Any:
    """Return the dtype in which numbers of this one are summed: float32 for 16-bit floats, otherwise the same."""
    narrow = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4
    return jnp.dtype(jnp.float32 if narrow else dtype)


def with_infinities(dtype: Any) -> Any:
    """Return the dtype in which extremes of numbers of this one are found: float32 for floats of 8 bits and fewer."""
    tiny = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2
    return jnp.dtype(jnp.float32 if tiny else dtype)

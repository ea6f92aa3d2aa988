"""What a user's function returned, in words for an error message."""

from typing import Any

import jax
import jax.numpy as jnp


def is_array(value: Any) -> bool:
    """Whether a value is a number or an array of numbers."""
    try:
        jnp.result_type(value)
    except TypeError:
        return False
    # `result_type` also accepts names of dtypes, their classes, and None.
    return not isinstance(value, str | type) and value is not None


def is_real(value: Any) -> bool:
    """Whether a value is a real number or an array of real numbers."""
    kinds = jnp.bool_, jnp.integer, jnp.floating
    return is_array(value) and any(jnp.issubdtype(jnp.result_type(value), kind) for kind in kinds)


def described(value: Any) -> str:
    """Return the dtype and shape of an array, or the type of another value."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(described, value))})"
    if not jax.tree_util.all_leaves([value]) or not is_array(value):
        return f"a {type(value).__name__}"
    return f"{jnp.result_type(value)} of shape {jnp.shape(value)}"

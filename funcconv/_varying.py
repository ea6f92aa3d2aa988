"""Arrays inside of `jax.shard_map`."""

import jax
from jax import lax

from ._typing import Array


def varying_alike(*arrays: Array) -> list[Array]:
    """Return the arrays as varying over the same axes of a mesh; outside of `jax.shard_map` nothing varies."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    everywhere = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(everywhere - here), to="varying") if everywhere - here else array
        for array, here in zip(arrays, varying, strict=True)
    ]

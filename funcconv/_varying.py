"""Arrays and axes inside of `jax.shard_map`."""

from collections.abc import Hashable

import jax
from jax import lax

from ._errors import FuncconvError
from ._typing import Array


def axis_size(op: str, axis_name: Hashable) -> int:
    """Return over how many devices or examples a mapped axis goes, or several."""
    try:
        return int(lax.axis_size(axis_name))
    except NameError:
        msg = f"{op}: {axis_name!r} is not an axis that is mapped over; call this inside of jax.shard_map or jax.vmap"
        raise FuncconvError(msg) from None


def varying_alike(*arrays: Array) -> list[Array]:
    """Return the arrays as varying over the same axes of a mesh; outside of `jax.shard_map` nothing varies."""
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    everywhere = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(everywhere - here), to="varying") if everywhere - here else array
        for array, here in zip(arrays, varying, strict=True)
    ]

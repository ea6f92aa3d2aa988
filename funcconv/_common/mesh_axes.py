"""How arrays are spread over a mesh: by explicit axes, and inside of `jax.shard_map`."""

from collections.abc import Hashable, Sequence

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .errors import FuncconvError
from .types import Array


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


def sharded_like(x: Array, like: Array) -> Array:
    """Return `x` sharded as another array of its shape is, if the mesh of that has explicit axes."""
    sharding = jax.typeof(like).sharding
    return _resharded(x, sharding) if AxisType.Explicit in sharding.mesh.axis_types else x


def whole_along(x: Array, axes: Sequence[int]) -> Array:
    """Return `x` with these axes not sharded over explicit axes of a mesh; other axes stay as they are."""
    sharding = jax.typeof(x).sharding
    names = [None if i in axes else name for i, name in enumerate(sharding.spec)]
    if names == list(sharding.spec):
        return x
    spec = PartitionSpec(*names)  # type: ignore[no-untyped-call]
    return _resharded(x, NamedSharding(sharding.mesh, spec))


def _resharded(x: Array, sharding: NamedSharding) -> Array:
    return jax.sharding.reshard(x, sharding)  # type: ignore[no-any-return, no-untyped-call]

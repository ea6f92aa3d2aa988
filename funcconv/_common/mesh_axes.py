"""The sharding of arrays over a mesh: explicit mesh axes, and the axes of `jax.shard_map`."""

from collections.abc import Hashable, Sequence

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .errors import FuncconvError
from .types import Array


def axis_size(op: str, axis_name: Hashable) -> int:
    """Return the size of a mapped axis, or of several: the number of devices or examples."""
    try:
        return int(lax.axis_size(axis_name))
    except NameError:
        msg = f"{op}: {axis_name!r} is not an axis that is mapped over; call this inside jax.shard_map or jax.vmap"
        raise FuncconvError(msg) from None


def varying_alike(*arrays: Array) -> list[Array]:
    """Return the arrays with types that vary over the same mesh axes."""
    # Inside jax.shard_map, the type of an array says over which mesh axes its values vary, and a primitive needs equal
    # types. Outside, nothing varies.
    varying = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    all_axes = frozenset().union(*varying)
    return [
        lax.pcast(array, tuple(all_axes - axes), to="varying") if all_axes - axes else array
        for array, axes in zip(arrays, varying, strict=True)
    ]


def sharded_like(x: Array, like: Array) -> Array:
    """Return `x` with the sharding of another array of the same shape, if its mesh has explicit axes."""
    sharding = jax.typeof(like).sharding
    return _resharded(x, sharding) if AxisType.Explicit in sharding.mesh.axis_types else x


def whole_along(x: Array, axes: Sequence[int]) -> Array:
    """Return `x` with these axes not sharded over explicit mesh axes; the sharding of other axes does not change."""
    sharding = jax.typeof(x).sharding
    names = [None if i in axes else name for i, name in enumerate(sharding.spec)]
    if names == list(sharding.spec):
        return x
    spec = PartitionSpec(*names)  # type: ignore[no-untyped-call]
    return _resharded(x, NamedSharding(sharding.mesh, spec))


def _resharded(x: Array, sharding: NamedSharding) -> Array:
    return jax.sharding.reshard(x, sharding)  # type: ignore[no-any-return, no-untyped-call]

"""The sharding of arrays over a mesh: explicit mesh axes, and the axes of `jax.shard_map`."""

from collections.abc import Hashable, Sequence
from typing import Any

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


def last_axes_like(values: Array, x: Array) -> Array:
    """Return parameters for the last axes of `x` with the sharding of these axes, if they are sharded.

    JAX adds and multiplies sharded arrays only if the axes of both have the same explicit sharding. A parameter is
    smaller than the array, so it is moved.
    """
    sharding = jax.typeof(values).sharding
    spec = jax.typeof(x).sharding.spec[x.ndim - values.ndim :]
    if not any(sharding.spec) or tuple(sharding.spec) == tuple(spec):
        return values
    return _resharded(values, NamedSharding(sharding.mesh, PartitionSpec(*spec)))  # type: ignore[no-untyped-call]


def matmul_sharding(x: Array, kernel: Array) -> NamedSharding | None:
    """Return the sharding of `x @ kernel`, a matrix, on explicit mesh axes; None if there are none.

    JAX cannot choose it if both arrays are sharded along the axis that is summed, or over the same mesh axes. The batch
    is sharded like that of `x` and the outputs like those of the kernel.
    """
    of_x, of_kernel = (jax.typeof(array).sharding for array in (x, kernel))
    mesh = next(
        (sharding.mesh for sharding in (of_x, of_kernel) if AxisType.Explicit in sharding.mesh.axis_types), None
    )
    if mesh is None:
        return None
    batch = of_x.spec[:-1]
    spec = PartitionSpec(*batch, unless_used(of_kernel.spec[-1], batch))  # type: ignore[no-untyped-call]
    return NamedSharding(mesh, spec)


def only_outputs_sharded(kernel: Array, x: Array) -> Array:
    """Return a kernel that is sharded at most along its last axis, and not over the mesh axes of the batch of `x`."""
    sharding = jax.typeof(kernel).sharding
    if not any(sharding.spec):
        return kernel
    outputs = unless_used(sharding.spec[-1], jax.typeof(x).sharding.spec[:1])
    spec = PartitionSpec(*[None] * (kernel.ndim - 1), outputs)  # type: ignore[no-untyped-call]
    return _resharded(kernel, NamedSharding(sharding.mesh, spec))


def unless_used(entry: Any, spec: Sequence[Any]) -> Any:
    """Return an entry of a partition spec, or None if one of its mesh axes is in another entry, as no two may share."""
    used = {name for other in spec for name in names_of(other)}
    return None if used & {*names_of(entry)} else entry


def names_of(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes in an entry of a partition spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _resharded(x: Array, sharding: NamedSharding) -> Array:
    return jax.sharding.reshard(x, sharding)  # type: ignore[no-any-return, no-untyped-call]

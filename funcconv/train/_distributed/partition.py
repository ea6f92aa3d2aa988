"""Patterns of parameters, and how parameters and batches are spread over a mesh of devices."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of
from .._state import State
from .processes import Processes, digests

Partition = Mapping[str, PartitionSpec]


def check_patterns(params: Any, patterns: Sequence[str], purpose: str) -> None:
    """Refuse a pattern that matches no parameter; `purpose` says in the message what it is for."""
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not any(meets(path, pattern) for path in paths):
            msg = f"train: {purpose} pattern {pattern!r} matches no parameter; the parameters are {', '.join(paths)}"
            raise FuncconvError(msg)


def check_options(mesh: Any, partition: Any) -> None:
    """Refuse options of the wrong type. `shardings` checks the axes, because it knows the parameters."""
    if mesh is not None and not (isinstance(mesh, Mesh) and mesh.axis_names):
        msg = f"train: mesh must be a jax.sharding.Mesh with at least one axis, from jax.make_mesh; got {mesh!r}"
        raise FuncconvError(msg)
    if mesh is not None and set(mesh.axis_types) not in ({AxisType.Auto}, {AxisType.Explicit}):
        kinds = ", ".join(f"{name!r}: {kind.name}" for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True))
        msg = f"train: the axes of mesh must all be Auto or all be Explicit; got {kinds}. Set axis_types= of make_mesh."
        raise FuncconvError(msg)
    if partition is None:
        return
    if not isinstance(partition, Mapping):
        msg = f'train: partition must be a dict such as {{"dense*/kernel": jax.P(None, "model")}}; got {partition!r}'
        raise FuncconvError(msg)
    for pattern, spec in partition.items():
        if not isinstance(spec, PartitionSpec):
            axis_names = ", ".join(map(repr, spec)) if isinstance(spec, tuple | list) else repr(spec)
            advice = (
                f"jax.P({axis_names})"
                if isinstance(spec, tuple | list | str)
                else "jax.P(...) with the axes of the mesh"
            )
            msg = f"train: partition[{pattern!r}] must be a PartitionSpec; got {spec!r}. Write {advice}."
            raise FuncconvError(msg)
    if partition and mesh is None:
        msg = "train: partition= says how to spread parameters over a mesh; give mesh="
        raise FuncconvError(msg)


def with_auto_axes(mesh: Mesh) -> Mesh:
    """Return the same mesh with Auto axes: every op works, and XLA decides how intermediate results are sharded."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def spread_batch(batch: Any, mesh: Mesh) -> Any:
    """Spread a batch, so that each device along the first axis of the mesh has an equal share of the examples."""
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))  # type: ignore[no-untyped-call]
    return lax.with_sharding_constraint(batch, sharding)  # type: ignore[no-untyped-call]


def on_every_device(tree: Any, mesh: Mesh) -> Any:
    """Give every device of the mesh the whole arrays of a tree, while JAX traces a function."""
    return lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))  # type: ignore[no-untyped-call]


def check_batch(batch: Any, parts: int, mesh: Mesh | None) -> None:
    """Refuse a batch that cannot be cut into equal micro-batches, each of which is spread evenly over the devices.

    Args:
        batch: a tree of arrays, `(examples, ...)`.
        parts: the number of micro-batches.
        mesh: the devices, or None.
    """
    shapes = {path_of(path) or "batch": jnp.shape(leaf) for path, leaf in jax.tree.leaves_with_path(batch)}
    for name, shape in shapes.items():
        if not shape:
            msg = (
                f"train: the entry {name!r} of the batch is a scalar, but with mesh= or accumulate= every entry needs "
                "a first axis, (examples, ...). Give it one value for each example, or let the loss close over it."
            )
            raise FuncconvError(msg)
    listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
    sizes = {shape[0] for shape in shapes.values()}
    if parts > 1 and (len(sizes) != 1 or min(sizes) % parts):
        msg = (
            f"train: a batch of {sorted(sizes)} cannot be cut into {parts} equal parts; its shapes are {listed}. "
            f"Take a multiple of {parts} examples"
        )
        raise FuncconvError(msg)
    if mesh is None:
        return
    axis = mesh.axis_names[0]
    devices = mesh.shape[axis]
    for name, shape in shapes.items():
        if shape[0] % (devices * parts):
            cut = f" in {parts} parts (accumulate={parts})" if parts > 1 else ""
            msg = (
                f"train: the entry {name!r} of the batch has {shape[0]} examples, which cannot be spread evenly over "
                f"{devices} devices, the axis {axis!r} of the mesh{cut}. Take a multiple of {devices * parts} examples."
            )
            raise FuncconvError(msg)


def shardings(state: State, mesh: Mesh, partition: Partition) -> State:
    """Return the sharding of each array of a state.

    Args:
        state: a state. An array of the optimizer that has the name and shape of a parameter is spread as it is.
        mesh: the devices.
        partition: a `PartitionSpec` for each pattern. The first pattern that matches a parameter counts. All other
            arrays are replicated.

    Returns:
        A state with shardings in place of arrays.

    Raises:
        FuncconvError: if a pattern matches nothing, or an array cannot be cut as its `PartitionSpec` says.
    """
    check_patterns(state.params, tuple(partition), "partition")
    replicated = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    by_name_and_shape: dict[tuple[str, tuple[int, ...]], NamedSharding] = {}

    def of_parameter(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name, shape = path_of(path), jnp.shape(leaf)
        for pattern, spec in partition.items():
            if meets(name, pattern):
                _check(name, shape, spec, mesh)
                return by_name_and_shape.setdefault((name, shape), NamedSharding(mesh, spec))
        return replicated

    def of_optimizer(path: Sequence[Any], leaf: Any) -> NamedSharding:
        # Optax keeps trees like the parameters inside of its own, so the end of a path is the name of a parameter.
        keys = path_of(path).split("/")
        suffixes = (("/".join(keys[i:]), jnp.shape(leaf)) for i in range(len(keys)))
        return next((by_name_and_shape[suffix] for suffix in suffixes if suffix in by_name_and_shape), replicated)

    params = jax.tree.map_with_path(of_parameter, state.params)
    everywhere: State = jax.tree.map(lambda _: replicated, state)
    return replace(
        everywhere,
        params=params,
        ema=None if state.ema is None else params,
        ema_float32=None if state.ema_float32 is None else params,
        optimizer=jax.tree.map_with_path(of_optimizer, state.optimizer),
    )


def placed(state: State, state_shardings: State) -> State:
    """Spread a state as its shardings say. Before, every process has the whole state."""
    processes = Processes(state_shardings.step.mesh.devices.flat)  # type: ignore[attr-defined]
    if processes.together:
        with processes.guard():
            processes.check(digests(state, "state"))
    spread: State = jax.tree.map(_put, state, state_shardings)
    return spread


def mesh_of(tree: Any) -> Mesh | None:
    """Return the mesh on which the arrays of a tree are, or None if they are on one device."""
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh
    return None


def placed_batch(batch: Any, mesh: Mesh) -> Any:
    """Place a batch of any size on a mesh. Every process passes the whole batch.

    If every entry can be cut evenly along the first axis of the mesh, each device gets its share of the examples.
    Otherwise, as for a short last batch, each device gets the whole batch. Entries that are already on the devices of
    the mesh stay where they are.

    Args:
        batch: a tree of arrays.
        mesh: the devices.

    Returns:
        The batch as JAX arrays.
    """
    parts = mesh.shape[mesh.axis_names[0]]
    can_be_cut = all(jnp.ndim(leaf) and not jnp.shape(leaf)[0] % parts for leaf in jax.tree.leaves(batch))
    axes = mesh.axis_names[:1] if can_be_cut else ()
    sharding = NamedSharding(mesh, PartitionSpec(*axes))  # type: ignore[no-untyped-call]
    devices = set(mesh.devices.flat)

    def put(leaf: Any) -> Any:
        is_there = isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices
        return leaf if is_there else _put(leaf, sharding)

    return jax.tree.map(put, batch)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    return _from_each_process(leaf, sharding) if jax.process_count() > 1 else jax.device_put(leaf, sharding)


def _from_each_process(leaf: Any, sharding: NamedSharding) -> Any:
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        # A key has no NumPy array, so its data is spread.
        data = _from_each_process(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    # Each process passes the parts for its own devices.
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _check(name: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        msg = (
            f"train: {name!r} has shape {tuple(shape)}, which has fewer axes than {spec}. "
            "Name at most one axis of the mesh for each of its axes"
        )
        raise FuncconvError(msg)
    entries = [axis if isinstance(axis, tuple) else (axis,) for axis in spec]
    axis_names = [axis_name for axis in entries for axis_name in axis if axis_name is not None]
    for axis_name in axis_names:
        if axis_name not in mesh.shape:
            msg = (
                f"train: partition spreads {name!r} over {axis_name!r}, but the axes of the mesh are "
                f"{mesh.axis_names}. Name one of these"
            )
            raise FuncconvError(msg)
        if axis_names.count(axis_name) > 1:
            msg = f"train: partition spreads {name!r} by {spec}, which names {axis_name!r} more than once; name it once"
            raise FuncconvError(msg)
    for size, axis in zip(shape, entries, strict=False):
        parts = math.prod(mesh.shape[axis_name] for axis_name in axis if axis_name is not None)
        if size % parts:
            msg = (
                f"train: {name!r} has shape {tuple(shape)}, of which {size} cannot be cut into {parts} parts, as {spec}"
                ". Spread another axis, or choose a size that is a multiple"
            )
            raise FuncconvError(msg)

"""Parameters by patterns of their paths, and how parameters and batches are sharded over a mesh."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..._common.errors import FuncconvError
from .._state import State
from .processes import Processes, digests

Partition = Mapping[str, PartitionSpec]


def path_of(path: Sequence[Any]) -> str:
    """Return a path in a tree as text, `"trunk/conv1/kernel"`."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def meets(path: str, pattern: str) -> bool:
    """Whether a pattern is that of a path or of a part of the tree above it."""
    names = path.split("/")
    return any(fnmatchcase("/".join(names[:i]), pattern) for i in range(1, len(names) + 1))


def check_patterns(params: Any, patterns: Sequence[str], what: str) -> None:
    """Refuse a pattern that meets no parameter."""
    paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in patterns:
        if not any(meets(path, pattern) for path in paths):
            msg = f"train: no parameter is called {pattern!r}, which was to be {what}; there are {', '.join(paths)}"
            raise FuncconvError(msg)


def check_options(mesh: Any, partition: Any) -> None:
    """Refuse options of the wrong type; axes are checked with the parameters, by `shardings`."""
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
            axes = ", ".join(map(repr, spec)) if isinstance(spec, tuple | list) else repr(spec)
            write = f"jax.P({axes})" if isinstance(spec, tuple | list | str) else "jax.P(...) with the axes of the mesh"
            msg = f"train: partition[{pattern!r}] must be a PartitionSpec; got {spec!r}. Write {write}."
            raise FuncconvError(msg)
    if partition and mesh is None:
        msg = "train: partition= says how to spread parameters over a mesh; give mesh="
        raise FuncconvError(msg)


def with_auto_axes(mesh: Mesh) -> Mesh:
    """Return a mesh of the same devices and names on which XLA decides how intermediate results are sharded."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def spread_batch(batch: Any, mesh: Mesh) -> Any:
    """Return a batch of which each device along the first axis of the mesh has an equal share of the examples."""
    where = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))  # type: ignore[no-untyped-call]
    return lax.with_sharding_constraint(batch, where)  # type: ignore[no-untyped-call]


def check_batch(batch: Any, parts: int, mesh: Mesh | None) -> None:
    """Refuse a batch that cannot be cut into equal parts, each of which is shared equally by the devices.

    Args:
        batch: a tree of arrays, `(examples, ...)`.
        parts: how many parts follow each other.
        mesh: of devices, or None.
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
        msg = f"train: a batch of {sorted(sizes)} cannot be cut into {parts} equal parts; its shapes are {listed}"
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
    """Return where each array of a state lies.

    Args:
        state: a state. What the optimizer keeps under the name of a parameter, of its shape, lies where that does.
        mesh: of devices.
        partition: by patterns, of which the first that meets a parameter counts; others are whole on every device.

    Returns:
        A state of shardings.

    Raises:
        FuncconvError: if a pattern meets nothing, or an array cannot be cut as it says.
    """
    check_patterns(state.params, tuple(partition), "spread")
    whole = NamedSharding(mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    known: dict[tuple[str, tuple[int, ...]], NamedSharding] = {}

    def of_parameter(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name, shape = path_of(path), jnp.shape(leaf)
        for pattern, spec in partition.items():
            if meets(name, pattern):
                _check(name, shape, spec, mesh)
                return known.setdefault((name, shape), NamedSharding(mesh, spec))
        return whole

    def of_optimizer(path: Sequence[Any], leaf: Any) -> NamedSharding:
        names = path_of(path).split("/")
        ends = (("/".join(names[i:]), jnp.shape(leaf)) for i in range(len(names)))
        return next((known[end] for end in ends if end in known), whole)

    params = jax.tree.map_with_path(of_parameter, state.params)
    everywhere: State = jax.tree.map(lambda _: whole, state)
    return replace(
        everywhere, params=params, ema=None if state.ema is None else params,
        ema_float32=None if state.ema_float32 is None else params,
        optimizer=jax.tree.map_with_path(of_optimizer, state.optimizer),
    )  # fmt: skip


def placed(state: State, where: State) -> State:
    """Return a state that lies where its shardings say; every process has all of it before."""
    processes = Processes(where.step.mesh.devices.flat)  # type: ignore[attr-defined]
    if processes.together:
        with processes.guard():
            processes.check(digests(state, "state"))
    put = _from_each_process if jax.process_count() > 1 else jax.device_put
    there: State = jax.tree.map(put, state, where)
    return there


def _from_each_process(leaf: Any, where: NamedSharding) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _from_each_process(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    array = np.asarray(leaf)
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _check(name: str, shape: Sequence[int], spec: PartitionSpec, mesh: Mesh) -> None:
    if len(spec) > len(shape):
        msg = f"train: {name!r} has shape {tuple(shape)}, which has fewer axes than {spec}"
        raise FuncconvError(msg)
    axes = [axis if isinstance(axis, tuple) else (axis,) for axis in spec]
    names = [each for axis in axes for each in axis if each is not None]
    for each in names:
        if each not in mesh.shape:
            msg = f"train: {name!r} was to be spread over {each!r}; the axes of the mesh are {mesh.axis_names}"
            raise FuncconvError(msg)
        if names.count(each) > 1:
            msg = f"train: {name!r} was to be spread by {spec}, which names {each!r} more than once; name it once"
            raise FuncconvError(msg)
    for size, axis in zip(shape, axes, strict=False):
        parts = math.prod(mesh.shape[each] for each in axis if each is not None)
        if size % parts:
            msg = (
                f"train: {name!r} has shape {tuple(shape)}, of which {size} cannot be cut into {parts} parts, as {spec}"
            )
            raise FuncconvError(msg)

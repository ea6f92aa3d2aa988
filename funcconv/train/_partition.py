"""Parameters by patterns of their paths, and where they lie on a mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .._errors import FuncconvError
from ._state import State

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
    for size, axis in zip(shape, spec, strict=False):
        parts = 1
        for each in axis if isinstance(axis, tuple) else (axis,):
            if each is not None and each not in mesh.shape:
                msg = f"train: {name!r} was to be spread over {each!r}; the axes of the mesh are {mesh.axis_names}"
                raise FuncconvError(msg)
            parts *= mesh.shape[each] if each is not None else 1
        if size % parts:
            msg = (
                f"train: {name!r} has shape {tuple(shape)}, of which {size} cannot be cut into {parts} parts, as {spec}"
            )
            raise FuncconvError(msg)

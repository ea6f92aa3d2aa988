"""Parameters, state and shapes of a graph."""

from collections.abc import Sequence
from typing import Any

import jax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Params
from ..._ops.init import fold_in_name
from ..declare.inference import spec
from ..name import entries as _entries
from ..name.flatten import Row
from .check_parameters import GIVEN, check_shared_entry, check_shared_state, checked_entries
from .rows import input_specs, naming_the_node, row_value


def draw_parameters(graph: Any, key: Array, given: Params) -> dict[str, Any]:
    """Return a parameter tree: entries that are given, and those that the layers draw."""
    _entries.check(given, graph._entries, partial=True, optional=graph._optional)
    params: dict[str, Any] = {}
    users: dict[Any, str] = {}
    specs = input_specs(graph._signature)
    for row, path in zip(graph._rows, graph._paths, strict=True):
        xs = [specs[i] for i in row.inputs]
        entry = None
        if path and path in users:
            entry = _entries.get(params, path)
            # The entry is drawn at its first use; another use may need other shapes.
            check_shared_entry(row, f"as node {users[path]!r} has them", entry, xs)
        elif path:
            entry = _given_or_drawn(row, path, key, given, xs)
            _entries.put(params, path, entry)
            users[path] = row.name
        specs.append(row_value(row, entry, xs))
    return params


def first_state(graph: Any, params: Params | None) -> dict[str, Any]:
    """Return the state that the graph starts from."""
    if not graph._stateful:
        return {}
    specs, nodes = value_shapes(graph, params), graph.nodes
    entries = entry_shapes(graph, params)
    state: dict[str, Any] = {}
    users: dict[Any, str] = {}
    for row, path, entry in zip(graph._rows, graph._paths, entries, strict=True):
        if path in graph._stateful and row.op.stateful:
            xs = [specs[nodes[i]] for i in row.inputs]
            first = naming_the_node(row, xs, lambda op=row.op, entry=entry, xs=xs: op.first_state_for(entry, *xs))  # type: ignore[misc]
            if path in users:
                check_shared_state(row, users[path], _entries.get(state, path), first)
                continue
            _entries.put(state, path, first)
            users[path] = row.name
    return state


def value_shapes(graph: Any, params: Params | None) -> dict[str, Any]:
    """Return the shape and dtype of every node's value, by name."""
    specs = input_specs(graph._signature)
    for row, entry in zip(graph._rows, entry_shapes(graph, params), strict=True):
        specs.append(row_value(row, entry, [specs[i] for i in row.inputs]))
    return dict(zip(graph.nodes, specs, strict=True))


def entry_shapes(graph: Any, params: Params | None) -> list[Any]:
    """Return the shapes and dtypes of the parameters that each row uses, None where it uses none."""
    if params is None:
        params = jax.eval_shape(graph.init, jax.eval_shape(jax.random.key, 0))
    return [jax.tree.map(spec, entry) for entry in checked_entries(graph, params)]


def _given_or_drawn(row: Row, path: _entries.Path, key: Array, given: Params, xs: Sequence[Any]) -> Any:
    try:
        entry = _entries.get(given, path)
    except KeyError:
        pass
    else:
        check_shared_entry(row, GIVEN, entry, xs)
        return entry
    if not row.op.draws:
        msg = (
            f"node {row.name!r}: nothing draws its parameters {row.params!r}, and none were given. Pass them, "
            f"graph.init(key, {path[0]}=...), or pass init= to the first node that uses them"
        )
        raise FuncconvError(msg)
    # One key for each name on the path, so that an entry does not depend on what else is drawn.
    for name in path:
        key = fold_in_name(key, name)
    return naming_the_node(row, xs, lambda: row.op.draw_for(key, *xs))

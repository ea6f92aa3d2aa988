"""Pairing of the entries of a graph with the modules of another library, by name or in order."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import exact
from .._common.errors import FuncconvError
from .._common.types import Params, Shape
from .._graph.name.entries import get, put
from .._graph.name.flatten import Row
from .._graph.use.graph import Graph

Arrays = Mapping[str, Any]  # by name: "kernel", "bias", ...


class Entry(NamedTuple):
    """An entry of a graph's parameters, at its first use."""

    path: str
    row: Row
    inputs: tuple[Shape, ...]  # without batch axes
    params: Mapping[str, Any]  # shapes and dtypes
    state: Mapping[str, Any]


def entries(graph: Graph) -> list[Entry]:
    """Return the entries of a graph in the order of first use."""
    by_path: dict[str, Entry] = {}
    shapes, state = graph.shapes(), graph.init_state()
    for row, params in zip(graph.rows, graph.entry_shapes(), strict=True):
        if row.params and row.params not in by_path:
            entry_state = get(state, tuple(row.params.split("/"))) if row.op.stateful else {}
            inputs = tuple(shapes[graph.nodes[i]].shape for i in row.inputs)
            by_path[row.params] = Entry(row.params, row, inputs, params, entry_state)
    return list(by_path.values())


def matched(
    op: str, graph_entries: Sequence[Entry], modules: Mapping[str, Arrays], names: Mapping[str, str] | None
) -> list[tuple[Entry, str]]:
    """Pair the entries of a graph with modules.

    Args:
        op: the name of the public function, for messages.
        graph_entries: the entries of the graph.
        modules: the arrays of each module, in the order of the modules.
        names: the name of a module for each entry; None pairs them in order.

    Returns:
        Pairs of an entry and the name of a module.

    Raises:
        FuncconvError: if names are unknown, or without `names` there are not as many on both sides.
    """
    if names is None:
        if len(graph_entries) != len(modules):
            lines = side_by_side([entry.path for entry in graph_entries], list(modules))
            msg = (
                f"{op}: the graph has {len(graph_entries)} entries and the other side {len(modules)} modules:\n{lines}"
            )
            raise FuncconvError(msg)
        return list(zip(graph_entries, modules, strict=True))
    problems = [
        *(f"the graph has no entry {name!r}" for name in names if name not in {entry.path for entry in graph_entries}),
        *(
            f"the entry {entry.path!r} has no name on the other side"
            for entry in graph_entries
            if entry.path not in names
        ),
        *(f"there is no module {name!r}" for name in names.values() if name not in modules),
        *(f"the module {name!r} belongs to no entry" for name in modules if name not in names.values()),
    ]
    if problems:
        msg = f"{op}: the names do not fit:\n  " + "\n  ".join(problems)
        raise FuncconvError(msg)
    return [(entry, names[entry.path]) for entry in graph_entries]


def _check_shapes(op: str, converted: Sequence[tuple[Entry, str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Raise an error that lists all arrays whose names or shapes differ from those of the entries."""
    problems = []
    for entry, module, params, state in converted:
        for expected, arrays in ((entry.params, params), (entry.state, state)):
            for name in dict.fromkeys([*expected, *arrays]):
                sides = [shape_of(side.get(name)) for side in (expected, arrays)]
                if sides[0] != sides[1]:
                    problems.append(f"{entry.path}/{name} is {sides[0]}, that of {module!r} is {sides[1]}")
    if problems:
        msg = f"{op}: the weights do not fit:\n  " + "\n  ".join(problems)
        raise FuncconvError(msg)


def check_params(graph: Graph, params: Params) -> None:
    """Raise an error for parameters whose entries, shapes or dtypes differ from those of a graph.

    A layer that does not declare a dtype takes floats of any precision: the inputs must share it when the graph is
    called.
    """
    entry_shapes = graph.entry_shapes(params)
    # Reversed, so that the first use of an entry wins.
    first_uses = {row.params: row for row in reversed(graph.rows) if row.params}
    user_params: dict[str, Any] = {}
    for path, row in first_uses.items():
        if not row.op.draws:
            put(user_params, tuple(str(path).split("/")), get(params, tuple(str(path).split("/"))))
    drawn_params = jax.eval_shape(lambda user_params: graph.init(jax.random.key(0), **user_params), user_params)
    problems: dict[str | None, str] = {}
    for row, entry_types, expected in zip(graph.rows, entry_shapes, graph.entry_shapes(drawn_params), strict=True):
        shapes = [jax.tree.map(lambda leaf: leaf.shape, tree) for tree in (entry_types, expected)]
        if shapes[0] != shapes[1]:
            problems[row.params] = f"{row.params} has shapes {shapes[0]}, but needs {shapes[1]}"
        elif row.params:
            entry = get(params, tuple(row.params.split("/")))  # JAX narrows the dtypes in `entry_shapes`
            problems |= _wrong_dtypes(row, entry, expected)
    if problems:
        raise FuncconvError("\n  ".join(problems.values()))


def _wrong_dtypes(row: Row, entry: Any, drawn: Any) -> dict[str | None, str]:
    """Return the arrays of an entry that have another dtype than a layer declares, or no floats where it draws some."""
    declared = getattr(getattr(row.op, "layer", row.op), "dtype", None)
    wrong: dict[str | None, str] = {}
    for (path, leaf), spec in zip(jax.tree.leaves_with_path(entry), jax.tree.leaves(drawn), strict=True):
        if declared:
            fits = leaf.dtype == declared
        else:
            fits = jnp.issubdtype(leaf.dtype, jnp.inexact) or not jnp.issubdtype(spec.dtype, jnp.inexact)
        if not fits:
            name = f"{row.params}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
            wrong[name] = f"{name} is {leaf.dtype}, but needs {declared or 'floats'}"
    return wrong


def trees(
    op: str, converted: Sequence[tuple[Entry, str, Mapping[str, Any], Mapping[str, Any]]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Combine the parameters and states of all entries. Raise an error for arrays of the wrong shape."""
    _check_shapes(op, converted)
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for entry, _, entry_params, entry_state in converted:
        path = tuple(entry.path.split("/"))
        put(params, path, jax.tree.map(copied, dict(entry_params)))  # the other library may change its arrays
        if entry.state:
            put(state, path, jax.tree.map(copied, dict(entry_state)))
    return params, state


def copied(x: Any) -> Any:
    """Return a copy of an array with the same dtype: a JAX array, or a NumPy array if JAX would narrow it."""
    return exact(x if hasattr(x, "dtype") else np.asarray(x), copy=True)


def shape_of(array: Any) -> str:
    """Return the shape of an array, for messages."""
    return "missing" if array is None else str(tuple(jnp.shape(array)))


def side_by_side(left: Sequence[str], right: Sequence[str]) -> str:
    """Return two lists as the columns of a table."""
    count = max(len(left), len(right))
    pairs = zip([*left, *["-"] * (count - len(left))], [*right, *["-"] * (count - len(right))], strict=True)
    return "\n".join(f"  {a}  {b}" for a, b in pairs)

"""Parts of a graph, its uses of parameters as separate entries, and the graph repeated in another one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import jax

from ..._common.errors import FuncconvError, suggest
from ..declare.inference import drawn, shapes
from ..declare.layer import Layer, check_nodes
from ..declare.node import Application, Node, Place
from ..evaluate.inputs import wanted_inputs
from ..infer.rows import infer_rows, input_specs
from ..name import entries as _entries
from ..name.flatten import Row
from .structure import GraphStructure, from_parts

_ADVICE = (
    "Declare fc.Input with the shape of the node, or call the layers themselves on the node, for example an fc.serial; "
    "they take inputs of any shape"
)

Same = TypeVar("Same", bound=GraphStructure)


def repeat_on_nodes(graph: Any, nodes: Sequence[Node]) -> Any:
    """Repeat the rows as nodes of the graph that is being declared."""
    check_nodes(graph, nodes)
    if len(nodes) != len(graph._signature):
        msg = (
            f"graph: expected {wanted_inputs(graph)}; it was called on {len(nodes)} nodes. Pass one node for each input"
        )
        raise FuncconvError(msg)
    _check_channels(graph, nodes)
    values: list[Node] = list(nodes)
    uses: dict[Any, object] = {}  # this use of the graph, or for each use of a graph within, one of its own
    for row, place in zip(graph._rows, graph._places, strict=True):
        if graph.name is not None:
            place = Place(graph, uses.setdefault(None, object()), row.name, row.params)
        elif place is not None:
            place = place._replace(use=uses.setdefault(place.use, object()))
        values.append(Application(row.op, [values[i] for i in row.inputs], row.op.name, place))
    _check_shapes(graph, values)
    return jax.tree.unflatten(graph._tree, [values[i] for i in graph._results])


def _check_channels(graph: Any, nodes: Sequence[Node]) -> None:
    """Refuse nodes with other channels, or another number of axes, than the inputs of the graph declare."""
    for row, node in zip(graph._signature, nodes, strict=True):
        if node.spec is None:
            continue  # the shape is known only in Graph.init
        shape = shapes(node.spec)
        is_array = isinstance(node.spec, jax.ShapeDtypeStruct)
        if not is_array or len(shape) != len(row.shape) or shape[-1:] != row.shape[-1:]:
            msg = (
                f"{_described(graph)}: input {row.name!r} is declared with shape {row.shape}, and a node must have as "
                f"many axes and as many channels (the last axis); got {node!r} of shape {shape}. {_ADVICE}"
            )
            raise FuncconvError(msg)


def _check_shapes(graph: Any, values: Sequence[Node]) -> None:
    """Refuse inputs of other sizes, if a layer has parameters or a state of another shape for them."""
    inputs = list(zip(graph._signature, values, strict=False))
    if all(node.spec is None or shapes(node.spec) == row.shape for row, node in inputs):
        return
    declared = infer_rows(graph._rows, input_specs(graph._signature))
    nodes = values[len(graph._signature) :]
    for row, known, node in zip(graph._rows, declared, nodes, strict=True):
        xs = [operand.spec for operand in node.inputs]
        if node.problem or known.drawn is None or any(x is None for x in xs):
            continue
        own = _kept_shapes(row.op, known.inputs)
        for what, here in _kept_shapes(row.op, xs).items():
            if here != own[what]:
                given = ", ".join(f"{row.name!r} of shape {shapes(node.spec)}" for row, node in inputs)
                wanted = ", ".join(f"{row.name!r} of shape {row.shape}" for row, _ in inputs)
                msg = (
                    f"{_described(graph)}: it declares {wanted}, and is called on {given}. For these sizes the {what} "
                    f"of its node {row.name!r} would have other shapes: {here}, not {own[what]}. {_ADVICE}"
                )
                raise FuncconvError(msg)


def _kept_shapes(layer: Any, xs: Sequence[Any]) -> dict[str, Any]:
    """Return the shapes of the parameters of a layer and of its state, for inputs of one example."""
    entry = drawn(layer, xs)
    kept = {"parameters": shapes(entry)}
    return kept | {"state": shapes(layer.first_state_for(entry, *xs))} if layer.stateful else kept


def _described(graph: Any) -> str:
    return f"graph {graph.name!r}" if graph.name else "graph"


def subgraph(graph: Same, names: Sequence[str]) -> Same:
    """Return a nested graph, or the graph of those nodes that some nodes need."""
    nested: dict[str, Same] = {place.graph.name: place.graph for place in graph._places if place}
    if len(names) == 1 and names[0] not in graph.nodes:
        first, _, rest = names[0].partition("/")
        if first in nested:
            return subgraph(nested[first], (rest,)) if rest else nested[first]
    known = {name: i for i, name in enumerate(graph.nodes)}
    for name in names:
        if name not in known:
            msg = f"subgraph: the graph has no node {name!r}{suggest(name, [*nested, *known])}"
            raise FuncconvError(msg)
    results = [known[name] for name in names]
    return _part(graph, results, jax.tree.structure(names[0] if len(names) == 1 else tuple(names)))


def selected(graph: Any, tree: Mapping[str, Any], paths: Sequence[_entries.Path]) -> dict[str, Any]:
    """Return the entries of a tree at these paths, which a named graph has below its name."""
    if graph.name is not None and graph.name in tree and all(path[0] != graph.name for path in paths):
        tree = tree[graph.name]
    return _entries.select(tree, paths)


def unshared(graph: Same) -> Same:
    """Return the graph in which every use of a parameter entry has an entry of its own, called as its node."""
    rows = tuple(row._replace(params=row.name, op=own_layer(row)) if row.params else row for row in graph._rows)
    places = [None] * len(rows)
    return from_parts(type(graph), graph._signature, graph._keys, rows, graph._results, graph._tree, None, places)


def _part(graph: Same, results: Sequence[int], tree: Any) -> Same:
    """Return the graph of those values that the results need."""
    first = len(graph._signature)
    needed = set(results)
    # Rows come after what they need, so one walk from the end finds all.
    for i in reversed(range(len(graph._rows))):
        if first + i in needed:
            needed.update(graph._rows[i].inputs)
    new_numbers = {old: new for new, old in enumerate(sorted(needed))}
    kept_indices = [i for i in range(len(graph._rows)) if first + i in new_numbers]
    rows = (graph._rows[i] for i in kept_indices)
    return from_parts(
        type(graph),
        tuple(row for i, row in enumerate(graph._signature) if i in new_numbers),
        None,
        tuple(row._replace(inputs=tuple(new_numbers[i] for i in row.inputs)) for row in rows),
        tuple(new_numbers[i] for i in results),
        tree,
        None,
        [graph._places[i] for i in kept_indices],
    )


def own_layer(row: Row) -> Layer:
    """Return the layer of a row as another object, and under no name that other rows have."""
    # A function that draws nothing needs a name of parameters, or it would be called without them.
    params = None if row.op.draws else row.name.replace("@", "_").replace("/", "_")
    return replace(row.op, name=None, params=params)

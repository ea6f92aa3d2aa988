"""Changes to the rows of a graph: a node replaced, removed or inserted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..._common.errors import FuncconvError, suggest
from ..declare.function import as_layer
from ..declare.inference import result
from ..declare.layer import Layer
from ..infer.rows import infer_rows, input_specs, naming_the_node
from ..name.flatten import Row, check_rows
from .structure import GraphStructure, from_parts

Same = TypeVar("Same", bound=GraphStructure)


def replaced(graph: Same, name: str, layer: Any) -> Same:
    """Return the graph with another layer at a node."""
    i = _row_number(graph, name, "replace")
    rows, places = list(graph._rows), _places_without(graph, i)
    rows[i] = _row_of(layer, "replace", rows[i].inputs, graph, without=rows[i])
    return with_rows(graph, rows, places)


def removed(graph: Same, name: str, keep: str | None = None) -> Same:
    """Return the graph without a node, whose value is that of one of its inputs from then on."""
    i = _row_number(graph, name, "remove")
    row, nodes = graph._rows[i], graph.nodes
    choices = list(dict.fromkeys(nodes[number] for number in row.inputs))
    if keep is None and len(choices) == 1:
        (keep,) = choices
    if keep not in choices:
        advice = f"Pass keep={choices[0]!r}" if choices else "Replace it instead"
        msg = (
            f"remove: node {name!r} has the inputs {choices}, one of which must take its place; got keep={keep!r}. "
            f"{advice}"
        )
        raise FuncconvError(msg)
    own, kept = len(graph._signature) + i, nodes.index(keep)

    def renumbered(number: int) -> int:
        number = kept if number == own else number
        return number - (number > own)

    rows = [other._replace(inputs=tuple(map(renumbered, other.inputs))) for other in graph._rows]
    places = _places_without(graph, i)
    del rows[i], places[i]
    return with_rows(graph, rows, places, tuple(map(renumbered, graph._results)))


def inserted(graph: Same, name: str, layer: Any) -> Same:
    """Return the graph with a layer after a node. What read the value of the node reads that of the layer."""
    if name not in graph.nodes:
        msg = f"insert_after: the graph has no node {name!r}{suggest(name, graph.nodes)}"
        raise FuncconvError(msg)
    node, first = graph.nodes.index(name), len(graph._signature)
    new = max(node + 1, first)  # the number of the new value

    def renumbered(number: int) -> int:
        return new if number == node else number + (number >= new)

    rows = [row._replace(inputs=tuple(map(renumbered, row.inputs))) for row in graph._rows]
    places = _places_without(graph, node - first) if node >= first else list(graph._places)
    rows.insert(new - first, _row_of(layer, "insert_after", (node,), graph))
    places.insert(new - first, None)
    return with_rows(graph, rows, places, tuple(map(renumbered, graph._results)))


def with_rows(graph: Same, rows: Sequence[Row], places: Sequence[Any], results: tuple[int, ...] | None = None) -> Same:
    """Return the graph with other rows; raise the error of the first one that does not accept its inputs."""
    check_rows(graph.inputs, rows)
    decided = []
    for row, known in zip(rows, infer_rows(rows, input_specs(graph._signature)), strict=True):
        drawn = known.drawn is not None or row.params is None
        if known.value is None and drawn and all(x is not None for x in known.inputs):
            naming_the_node(row, known.inputs, lambda known=known: result(known.op, known.drawn, known.inputs))  # type: ignore[misc]
        decided.append(row._replace(op=known.op))
    results = graph._results if results is None else results
    parts = (graph._signature, graph._keys, tuple(decided), results, graph._tree, graph._name)
    return from_parts(type(graph), *parts, places)


def _row_number(graph: Any, name: str, method: str) -> int:
    names = [row.name for row in graph._rows]
    if name not in names:
        problem = f"{name!r} is an input" if name in graph.inputs else f"the graph has no node {name!r}"
        msg = f"{method}: {problem}{suggest(name, names)}"
        raise FuncconvError(msg)
    return names.index(name)


def _places_without(graph: Any, i: int) -> list[Any]:
    """Return the places of all rows, without the nested graph of row `i`, which is another one after a change."""
    changed = graph._places[i]
    return [None if changed and place and place.graph.name == changed.graph.name else place for place in graph._places]


def _row_of(layer: Any, method: str, inputs: tuple[int, ...], graph: Any, without: Row | None = None) -> Row:
    """Return the row of a new layer, with a name and an entry that others do not have.

    Args:
        layer: a layer, or a function of arrays.
        method: name of the method, for messages.
        inputs: the numbers of its inputs.
        graph: the graph.
        without: the row whose place it takes, with its name and its entry. Default: None.
    """
    op = as_layer(layer, method)
    if not isinstance(op, Layer):
        msg = f"{method}: expected one layer or a function of arrays; got {layer!r}. Insert its layers one by one"
        raise FuncconvError(msg)
    if op.arity not in (None, len(inputs)):
        msg = f"{method}: {op!r} takes {op.arity} input, but the node has {len(inputs)}. Pass a function of all of them"
        raise FuncconvError(msg)
    others = [row for row in graph._rows if row is not without]
    names = {*graph.inputs, *(row.name for row in others)}
    numbered = (f"{op.label}{n}" for n in range(1, len(names) + 2))
    name = op.name or (without.name if without else next(name for name in numbered if name not in names))
    if name in names:
        msg = (
            f"{method}: all nodes must have different names; the graph has a node {name!r} already. Pass another name="
        )
        raise FuncconvError(msg)
    if not op.parametric:
        return Row(name, op, inputs, None)
    users = {row.params: row for row in others if row.params}
    entry = op.params or op.name or (without and without.params) or name
    if entry in users and not op.params:
        shared = [row.name for row in others if row.params == entry]
        msg = (
            f"{method}: the nodes {shared} have the entry {entry!r} of the parameters too. Pass a layer with "
            f"params='...' for an entry of its own, or with params={entry!r} to share this one"
        )
        raise FuncconvError(msg)
    if entry in users:  # rows that share an entry have one layer
        return Row(name, users[entry].op if _same(users[entry].op, op) else op, inputs, entry)
    return Row(name, op, inputs, entry)


def _same(one: Layer, other: Layer) -> bool:
    return replace(one, name=None, params=None) == replace(other, name=None, params=None)

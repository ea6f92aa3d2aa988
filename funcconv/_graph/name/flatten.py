"""From declared nodes to rows: the order of evaluation, and a name for every node and every parameter entry."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from ..declare.layer import Layer
from ..declare.node import Application, Input, Node, Place


class InputRow(NamedTuple):
    """An input of a graph."""

    name: str
    shape: Shape
    dtype: Any


class Row(NamedTuple):
    """One node of a graph."""

    name: str
    op: Layer
    inputs: tuple[int, ...]  # values of a graph are numbered: first its inputs, then its rows
    params: str | None  # the path of its entry in the parameters, "trunk/conv1"

    @property
    def operation(self) -> str:
        """The op with its options, without the names that the row has already."""
        return repr(replace(self.op, name=None, params=None))


def flatten(
    inputs: Sequence[Input], outputs: Iterable[Node]
) -> tuple[tuple[Row, ...], list[Place | None], dict[Node, int]]:
    """Return the rows that the outputs need, the place of each, and the number of every node's value."""
    for i, input_node in enumerate(inputs):
        if any(input_node is other or input_node.name == other.name for other in inputs[:i]):
            msg = (
                f"graph: all inputs must have different names; two are called {input_node.name!r}. Rename one of them, "
                "or pass one object only once"
            )
            raise FuncconvError(msg)
    numbers: dict[Node, int] = {input_node: i for i, input_node in enumerate(inputs)}
    nodes: list[Application] = []
    for node in post_order(outputs):
        if node in numbers:
            continue
        if isinstance(node, Input):
            known = ", ".join(repr(input_node.name) for input_node in inputs)
            msg = (
                f"graph: the outputs depend on the input {node.name!r}, which is not among the graph's inputs: {known}"
                ". Pass it to fc.Graph as well"
            )
            raise FuncconvError(msg)
        if isinstance(node, Application):
            numbers[node] = len(numbers)
            nodes.append(node)
    names = _Names(inputs, nodes)
    rows = []
    undecided = {id(node.layer) for node in nodes if node.op.undecided}
    for node in nodes:
        name, entry = names.of(node)
        op = node.layer if id(node.layer) in undecided else node.op  # one object for all uses of a layer
        rows.append(Row(name, op, tuple(numbers[operand] for operand in node.inputs), entry))
    _check_entries(rows)
    return tuple(rows), [node.place for node in nodes], numbers


def post_order(outputs: Iterable[Node]) -> list[Node]:
    """Return the nodes depth first, inputs from left to right before what they feed, each once."""
    # A loop, since recursion would exceed Python's stack for a network of a thousand layers.
    done: dict[Node, None] = {}
    for output in outputs:
        path, todo = {output: None}, [(output, iter(output.inputs))]
        while todo and output not in done:
            node, inputs = todo[-1]
            for operand in inputs:
                if operand in path:
                    cycle = [*list(path)[list(path).index(operand) :], operand]
                    msg = (
                        f"graph: no node may depend on itself; there is a cycle: {' needs '.join(map(repr, cycle))}. "
                        "Call layers only on nodes that exist already"
                    )
                    raise FuncconvError(msg)
                if operand not in done:
                    path[operand] = None
                    todo.append((operand, iter(operand.inputs)))
                    break
            else:
                done[node] = None
                del path[node]
                todo.pop()
    return list(done)


class _Names:
    """Gives out names, in the order of first use.

    A layer's parameter entry is called as its `params`, its `name`, or its label and a number; a node as its entry or
    its own name. The second use of a layer is `"conv1@2"`, and what lies in a named graph is below it, `"trunk/conv1"`.
    """

    def __init__(self, inputs: Sequence[Input], nodes: Sequence[Application]) -> None:
        plain = [node for node in nodes if node.place is None]
        input_names = {input_node.name for input_node in inputs}
        self._given = {name for node in plain for name in (node.name, node.layer.params)} | input_names
        self._given |= {node.place.graph.name for node in nodes if node.place}
        # The owner of a node's name is what may repeat it: a layer, a graph or an input.
        self._owner: dict[str, object] = {input_node.name: input_node for input_node in inputs}
        self._repeats: dict[str, int] = {}
        self._numbers: dict[str, int] = {}
        self._graphs: dict[str, Any] = {}
        self._uses: dict[object, str] = {}
        self._bases: dict[int, str] = {}  # by the identity of a layer: its nodes' name, its entry
        self._entries: dict[int, str] = {}
        # Entries of nested graphs first: such a layer may also be used outside, and then shares the nested entry.
        for node in nodes:
            if node.place and node.place.entry:
                self._enter(node, f"{node.place.graph.name}/{node.place.entry}")

    def of(self, node: Application) -> tuple[str, str | None]:
        """Return the name of a node and its entry."""
        layer = node.layer
        if node.place:
            return f"{self._use(node.place)}/{node.place.name}", self._entries.get(id(layer))
        base = node.name or self._bases.get(id(layer)) or self._numbered(layer.label)
        if not layer.parametric:
            return self._repeated(base, layer), None
        self._bases[id(layer)] = base
        if id(layer) not in self._entries:
            self._enter(node, layer.params or base)
        return self._repeated(base, layer), self._entries[id(layer)]

    def _enter(self, node: Application, entry: str) -> None:
        """Note where the parameters of a layer are; one layer in two named graphs would be two entries."""
        if self._entries.setdefault(id(node.layer), entry) != entry:
            msg = (
                f"graph: a layer must have one entry in the parameters; {node.layer!r} is used in two named graphs, as "
                f"{self._entries[id(node.layer)]!r} and {entry!r}. Use copy.copy(layer) in one of them, for weights of "
                "its own, or call one graph twice to share them"
            )
            raise FuncconvError(msg)

    def _use(self, place: Place) -> str:
        """Return the name of one use of a named graph."""
        if place.use not in self._uses:
            name = place.graph.name
            if self._graphs.setdefault(name, place.graph) != place.graph:
                msg = f"graph: nested graphs must have different names; two are called {name!r}. Rename one of them"
                raise FuncconvError(msg)
            self._uses[place.use] = self._repeated(name, self._graphs[name])
        return self._uses[place.use]

    def _numbered(self, label: str) -> str:
        while True:
            self._numbers[label] = self._numbers.get(label, 0) + 1
            name = f"{label}{self._numbers[label]}"
            # A name that the user gives to another node is not used for a number.
            if name not in self._given:
                return name

    def _repeated(self, name: str, owner: object) -> str:
        """Return `name`, or `name@2` where the same owner (a layer or a graph) has used it."""
        first = self._owner.setdefault(name, owner)
        if first is not owner:
            msg = f"graph: all nodes must have different names; two are called {name!r}: {first!r} and {owner!r}"
            if isinstance(first, Layer) and isinstance(owner, Layer) and first.parametric and owner.parametric:
                msg += (
                    ". Two layers have two sets of weights, so give them two names. To share weights, call one layer "
                    f"object twice (layer = {owner!r}; layer(layer(x))), or give both layers params={name!r}"
                )
            else:
                msg += ". Rename one of them"
            raise FuncconvError(msg)
        self._repeats[name] = self._repeats.get(name, 0) + 1
        return name if self._repeats[name] == 1 else f"{name}@{self._repeats[name]}"


def check_rows(inputs: Sequence[str], rows: Sequence[Row]) -> None:
    """Refuse names that stand for two nodes, or for an entry and a subtree, in rows that come from elsewhere."""
    names = [*inputs, *(row.name for row in rows)]
    # To count each name takes quadratic time, so it is done only if some name occurs twice.
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        msg = f"graph: all nodes must have different names; two are called {twice[0]!r}. Rename one of them"
        raise FuncconvError(msg)
    _check_entries(rows)


def _check_entries(rows: Sequence[Row]) -> None:
    """Refuse an entry that would have to be a layer's parameters and a graph's subtree at once."""
    entries = {row.params: row.name for row in rows if row.params}
    for entry, name in entries.items():
        parts = entry.split("/")
        for i in range(1, len(parts)):
            above = "/".join(parts[:i])
            if above in entries:
                msg = (
                    f"graph: a name must belong to one graph or one node; {above!r} is a graph with the node {name!r}, "
                    f"and the entry of the node {entries[above]!r}. Rename one of them"
                )
                raise FuncconvError(msg)

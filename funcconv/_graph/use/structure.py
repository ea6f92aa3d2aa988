"""Graphs as values: their inputs, the rows of their nodes and their outputs, compared, printed and pickled."""

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from ..._common.errors import FuncconvError
from ..declare.layer import Layer
from ..declare.node import Input, Node, Place, check_name
from ..infer.describe import described
from ..infer.rows import infer_rows
from ..name.flatten import InputRow, Row, flatten

Same = TypeVar("Same", bound="GraphStructure")


class GraphStructure:
    """What a graph is, apart from what you can do with it.

    Its value, by which graphs compare and hash, are six attributes:
    `_signature`, the inputs; `_keys`, the keys of a dict of inputs or None; `_rows`, the nodes in the order of
    evaluation; `_results`, the numbers of the outputs' values; `_tree`, the structure of the outputs; `_name`.
    `_places` says of each row where it was in a nested graph with a name.
    """

    takes_nodes = True

    def __init__(self, inputs: Any, outputs: Any, name: str | None = None) -> None:
        declared, keys = _declared(inputs)
        leaves, tree = jax.tree.flatten(outputs, is_leaf=lambda leaf: isinstance(leaf, Node))
        if not leaves or not all(isinstance(leaf, Node) for leaf in leaves):
            msg = f"graph: the outputs must be a node, or a tuple, list or dict of nodes; got {outputs!r}"
            if any(isinstance(leaf, Layer) or getattr(leaf, "takes_nodes", False) for leaf in leaves):
                msg += ". Call a layer on nodes, or on nothing if its function takes only parameters"
            else:
                msg += ". Nodes are what layers return when you call them on an fc.Input"
            raise FuncconvError(msg)
        check_name(name)
        rows, places, numbers = flatten(declared, leaves)
        if any(row.op.undecided for row in rows):
            # An entry that is shared by name has its shapes from another row, which a node does not know of.
            known = infer_rows(rows, [node.spec for node in declared])
            # All uses of a layer must stay one object, so it is decided only if all of them are.
            undecided = {id(row.op) for row, shapes in zip(rows, known, strict=True) if shapes.op.undecided}
            rows = tuple(
                row if id(row.op) in undecided else row._replace(op=shapes.op)
                for row, shapes in zip(rows, known, strict=True)
            )
        signature = tuple(InputRow(node.name, node.shape, node.dtype) for node in declared)
        self._set(signature, keys, rows, tuple(numbers[leaf] for leaf in leaves), tree, name, places)

    def _set(
        self,
        signature: tuple[InputRow, ...],
        keys: tuple[Any, ...] | None,
        rows: tuple[Row, ...],
        results: tuple[int, ...],
        tree: Any,
        name: str | None,
        places: Sequence[Place | None],
    ) -> None:
        self._signature, self._keys, self._rows, self._results = signature, keys, rows, results
        self._tree, self._name, self._places = tree, name, tuple(places)
        self._paths = tuple(tuple(row.params.split("/")) if row.params else None for row in rows)
        with_entries = [(row, path) for row, path in zip(rows, self._paths, strict=True) if path]
        self._entries = tuple(dict.fromkeys(path for row, path in with_entries if not row.op.optional))
        self._stateful = tuple(
            dict.fromkeys(path for row, path in with_entries if row.op.stateful and not row.op.optional)
        )
        self._optional = tuple(dict.fromkeys(path for row, path in with_entries if row.op.optional))
        self._value = (signature, keys, rows, results, tree, name)
        # A graph is a static argument of `jax.jit`, which hashes it at every call.
        self._hash = hash(self._value)
        self._undecided = any(row.op.undecided for row in rows)
        self._checked_shapes: set[Any] = set()  # of parameters, so that each call does not infer shapes again

    @property
    def name(self) -> str | None:
        """The name of its subtree of the parameters in another graph, or None."""
        return self._name

    @property
    def rows(self) -> tuple[Row, ...]:
        """The nodes in the order of evaluation, without the inputs, as named tuples `(name, op, inputs, params)`.

        `op` is the layer. `inputs` are the positions of its inputs in `graph.nodes`. `params` is the path of its entry
        in the parameters, such as `"trunk/conv1"`, or None.
        """
        return self._rows

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs."""
        return tuple(row.name for row in self._signature)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The names of all values: the inputs, then the nodes in the order of evaluation."""
        return self.inputs + tuple(row.name for row in self._rows)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the nodes whose values are the results."""
        nodes = self.nodes
        return tuple(nodes[i] for i in self._results)

    @property
    def entries(self) -> tuple[str, ...]:
        """The paths of the parameter entries, in the order of first use."""
        return tuple("/".join(path) for path in self._entries)

    def _parts(self) -> tuple[Any, ...]:
        # Not the hash, which is another in another process. Not JAX's tree, which cannot pickle types of the user.
        outputs = jax.tree.unflatten(self._tree, self._results)
        return type(self), self._signature, self._keys, self._rows, outputs, self._name, self._places

    def __reduce__(self) -> Any:
        for row in self._rows:
            try:
                row.op.__reduce__()
            except pickle.PicklingError as error:
                msg = f"node {row.name!r}: {error}"
                raise pickle.PicklingError(msg) from None
        return _restored, self._parts()

    def __copy__(self: Same) -> Same:
        return _restored(*self._parts())  # type: ignore[no-any-return]

    def __deepcopy__(self: Same, memo: dict[int, Any]) -> Same:
        return _restored(*copy.deepcopy(self._parts(), memo))  # type: ignore[no-any-return]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GraphStructure):
            return NotImplemented
        return self is other or (self._hash == other._hash and self._value == other._value)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return described(self)


def from_parts(
    kind: type[Same],
    signature: tuple[InputRow, ...],
    keys: tuple[Any, ...] | None,
    rows: tuple[Row, ...],
    results: tuple[int, ...],
    tree: Any,
    name: str | None,
    places: Sequence[Place | None],
) -> Same:
    """Return the graph of these rows, which were declared elsewhere."""
    graph = object.__new__(kind)
    graph._set(signature, keys, rows, results, tree, name, places)
    return graph


def _restored(kind: type[Same], signature: Any, keys: Any, rows: Any, outputs: Any, name: Any, places: Any) -> Same:
    """Return the graph that `pickle` has written as these parts."""
    results, tree = jax.tree.flatten(outputs)
    return from_parts(kind, signature, keys, rows, tuple(results), tree, name, places)


def _declared(inputs: Any) -> tuple[list[Input], tuple[Any, ...] | None]:
    """Return the inputs in order, and the keys of a dict of them."""
    keys = tuple(inputs) if isinstance(inputs, Mapping) else None
    if keys is not None:
        inputs = tuple(inputs.values())
    declared = list(inputs) if isinstance(inputs, tuple | list) else [inputs]
    for node in declared:
        if not isinstance(node, Input):
            msg = (
                f"graph: the inputs must be an fc.Input, or a tuple or dict of them; got {node!r}. Declare one with "
                "fc.Input(name, shape)"
            )
            raise FuncconvError(msg)
    return declared, keys

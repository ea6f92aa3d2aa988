"""Copies of a block as separate nodes, and their arrays stacked again."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params
from ..declare.layer import Layer
from ..name import entries as _entries
from ..name.flatten import Row, check_rows
from ..use.graph import Graph
from ..use.structure import from_parts
from ..use.surgery import own_layer
from .layer import Repeat


def unstack(graph: Graph, params: Params, *trees: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a graph in which the copies of each `fc.repeat` are separate nodes, and its parameters.

    The layer `conv1` of copy 0 of `repeat1` becomes the node `repeat1/0/conv1` with the entry of the same path. Both
    graphs compute the same outputs up to rounding; in training, dropout draws other numbers. Use the new graph to look
    at the values inside copies, to replace a layer of one copy, or to exchange weights with another library.

    Args:
        graph: a `Graph`.
        params: the parameter tree.
        *trees: more trees like the parameters or like the state of the graph: the state, gradients, or the momentum of
            an optimizer.

    Returns:
        `(graph, params, *trees)`. A repeat within a repeat is unstacked too. Other entries are the same objects.

    Raises:
        FuncconvError: if the parameters are not those of the graph, or an array of a tree has another number of copies.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 4))
        >>> graph = fc.Graph(x, fc.repeat(fc.serial(fc.Conv(4, 3, padding=1), jnp.tanh), 2)(x))
        >>> params = graph.init(jax.random.key(0))
        >>> separate, own_params = fc.unstack(graph, params)
        >>> separate.nodes
        ('x', 'repeat1/0/conv1', 'repeat1/0/tanh1', 'repeat1/1/conv1', 'repeat1/1/tanh1')
        >>> again = fc.stack(graph, own_params)
        >>> jnp.array_equal(again["repeat1"]["conv1"]["kernel"], params["repeat1"]["conv1"]["kernel"]).item()
        True
    """
    _entries.check(params, graph._entries, optional=graph._optional)
    repeats = _repeats(graph.rows)
    return (_separate(graph), *(_split(tree, repeats) for tree in (params, *trees)))


def stack(graph: Graph, params: Params, *trees: Mapping[str, Any]) -> Any:
    """Stack the weights of separate copies for a graph with `fc.repeat`: the inverse of `fc.unstack`.

    Args:
        graph: the graph with `fc.repeat`, as you passed it to `fc.unstack`.
        params: the parameter tree of the graph that `fc.unstack` returned, with the entries `repeat1/0`, `repeat1/1`
            and so on.
        *trees: more trees like the parameters or like the state of that graph.

    Returns:
        The parameter tree of `graph`. If you pass more trees, a tuple of all of them. The arrays of copies are stacked
        along a new first axis. Other entries are the same objects.

    Raises:
        FuncconvError: if a copy is missing or unknown, or if the copies have different entries, shapes or dtypes.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (4,))
        >>> graph = fc.Graph(x, fc.repeat(fc.Dense(4), 2)(x))
        >>> separate, _ = fc.unstack(graph, graph.init(jax.random.key(0)))
        >>> params = separate.init(jax.random.key(1))
        >>> sorted(params["repeat1"]), fc.stack(graph, params)["repeat1"]["dense1"]["kernel"].shape
        (['0', '1'], (2, 4, 4))
    """
    repeats = _repeats(graph.rows)
    stacked = tuple(_joined(tree, repeats) for tree in (params, *trees))
    _entries.check(stacked[0], graph._entries, optional=graph._optional)
    return stacked if trees else stacked[0]


def _repeats(rows: Sequence[Row]) -> dict[_entries.Path, Repeat]:
    """Return the repeats that have an entry, by its path."""
    return {tuple(row.params.split("/")): row.op for row in rows if row.params and isinstance(row.op, Repeat)}


def _split(tree: Any, repeats: Mapping[_entries.Path, Repeat]) -> Any:
    """Return a tree in which each entry of a repeat has one entry for each copy."""
    for path, repeat in repeats.items():
        if not _entries.has(tree, path):  # a state has no entry of a repeat that keeps none
            continue
        stacked, within = _entries.get(tree, path), _repeats(repeat.block.rows)
        for leaf in jax.tree.leaves(stacked):
            if np.shape(leaf)[:1] != (repeat.n,):
                msg = (
                    f"unstack: the arrays of the entry {'/'.join(path)!r} must have {repeat.n} copies along their "
                    f"first axis; one has the shape {np.shape(leaf)}. Pass a tree like that of graph.init"
                )
                raise FuncconvError(msg)
        copies = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(repeat.n)]
        tree = _entries.replaced(tree, path, {str(i): _split(copy, within) for i, copy in enumerate(copies)})
    return tree


def _joined(tree: Any, repeats: Mapping[_entries.Path, Repeat]) -> Any:
    """Return a tree in which the copies of each repeat are one entry."""
    for path, repeat in repeats.items():
        if not _entries.has(tree, path):
            continue
        separate, within = _entries.get(tree, path), _repeats(repeat.block.rows)
        names, where = [str(i) for i in range(repeat.n)], f"the entry {'/'.join(path)!r}"
        if not isinstance(separate, Mapping) or set(separate) != set(names):
            given = sorted(separate) if isinstance(separate, Mapping) else type(separate).__name__
            msg = f"stack: {where} must have the {repeat.n} copies {names}; got {given}. Pass the tree of unstack"
            raise FuncconvError(msg)
        copies = [_joined(separate[name], within) for name in names]
        types = [jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", copy) for copy in copies]
        for name, type_of_copy in zip(names, types, strict=True):
            if type_of_copy != types[0]:
                msg = (
                    f"stack: all copies of {where} must have the same arrays, to be one stack; copy 0 has {types[0]}, "
                    f"and copy {name} has {type_of_copy}"
                )
                raise FuncconvError(msg)
        tree = _entries.replaced(tree, path, jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies))
    return tree


def _separate(graph: Graph) -> Graph:
    """Return the graph with a row for each row of each copy, until no repeat is left."""
    while any(isinstance(row.op, Repeat) for row in graph.rows):
        graph = _separate_once(graph)
    return graph


def _separate_once(graph: Graph) -> Graph:
    """Return the graph with a row for each row of each copy; a nested graph with a repeat is no part of it any more."""
    numbers = list(range(len(graph.inputs)))  # of the values of the graph, in the new one
    pairs = list(zip(graph.rows, graph._places, strict=True))
    changed = {place.graph.name for row, place in pairs if place and isinstance(row.op, Repeat)}
    layers: dict[Any, Layer] = {}  # one object for the uses of an entry
    rows: list[Row] = []
    places: list[Any] = []
    for row, place in pairs:
        inputs = tuple(numbers[i] for i in row.inputs)
        if not isinstance(row.op, Repeat):
            numbers.append(len(graph.inputs) + len(rows))
            rows.append(row._replace(inputs=inputs))
            places.append(None if place and place.graph.name in changed else place)
            continue
        (value,) = inputs
        for i in range(row.op.n):
            values = [value]
            for inner in row.op.block.rows:
                values.append(len(graph.inputs) + len(rows))
                rows.append(_row_of_copy(row, i, inner, tuple(values[k] for k in inner.inputs), layers))
                places.append(None)
            value = values[row.op.block.result]
        numbers.append(value)
    check_rows(graph.inputs, rows)
    results = tuple(numbers[i] for i in graph._results)
    return from_parts(Graph, graph._signature, graph._keys, tuple(rows), results, graph._tree, graph.name, places)


def _row_of_copy(repeat: Row, i: int, inner: Row, inputs: tuple[int, ...], layers: dict[Any, Layer]) -> Row:
    """Return a row of one copy."""
    name = f"{repeat.name}/{i}/{inner.name}"
    if inner.params is None:
        return Row(name, inner.op, inputs, None)
    entry = f"{repeat.params}/{i}/{inner.params}"
    op = layers.setdefault((entry, inner.op), own_layer(inner._replace(name=entry)))
    return Row(name, op, inputs, entry)

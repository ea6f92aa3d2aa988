"""Graphs written as JSON: rows of layers with their options."""

import json
import math
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.strict_json import digest
from ..declare.arithmetic import WithNumber
from ..declare.layer import Layer
from ..declare.node import Item
from ..name.block import Block
from ..name.flatten import Row
from .registry import name_of

FORMAT, VERSION = "funcconv graph", 1


def to_json(graph: Any, **options: Any) -> str:
    """Return a network as JSON."""
    data = {"format": FORMAT, "version": VERSION, **_graph(graph)}
    return json.dumps(data | {"hash": digest(data)}, allow_nan=False, **options)


def content_hash(graph: Any) -> str:
    """Return the SHA-256 of a network's JSON, without the hash in it."""
    return digest({"format": FORMAT, "version": VERSION, **_graph(graph)})


def _graph(graph: Any) -> dict[str, Any]:
    nested: list[Any] = []
    uses: dict[object, int] = {}
    nodes = []
    for row, place in zip(graph.rows, graph._places, strict=True):
        try:
            node = _node(row)
        except FuncconvError as error:
            msg = f"to_json: {error}"
            raise FuncconvError(msg) from None
        if place is not None:
            if place.graph not in nested:
                nested.append(place.graph)
            use = uses.setdefault(place.use, len(uses))
            node["place"] = [nested.index(place.graph), use, place.name, place.entry]
        nodes.append(node)
    return {
        "name": graph.name,
        "inputs": [
            {"name": name, "shape": list(shape), "dtype": None if dtype is None else str(dtype)}
            for name, shape, dtype in graph._signature
        ],
        "input_keys": None if graph._keys is None else list(graph._keys),
        "nodes": nodes,
        "outputs": _structure(jax.tree.unflatten(graph._tree, list(graph._results))),
        "graphs": [_graph(inner_graph) for inner_graph in nested],
    }


def _node(row: Row) -> dict[str, Any]:
    try:
        op = _layer(row.op)
    except FuncconvError as error:
        msg = f"node {row.name!r}: {error}"
        raise FuncconvError(msg) from None
    return {"name": row.name, "op": op, "inputs": list(row.inputs), "params": row.params}


def _structure(tree: Any) -> Any:
    if isinstance(tree, int):
        return tree
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [_structure(part) for part in tree]}
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: _structure(part) for key, part in tree.items()}}
    msg = (
        f"to_json: the outputs must be a node, or tuples, lists and dicts of nodes; got a {type(tree).__name__}. "
        "Declare the graph with one of these"
    )
    raise FuncconvError(msg)


def _layer(layer: Layer) -> dict[str, Any]:
    """Return a layer as its class and those options that are not the default."""
    options = {}
    for field in fields(layer):
        value = _like_default(getattr(layer, field.name), field.default)
        if field.init and not (type(value) is type(field.default) and value == field.default):
            options[field.name] = _value(value)
    return {"layer": type(layer).__name__, "options": options}


def _like_default(value: Any, default: Any) -> Any:
    """Return a number as the type of the default, where it is equal: options 1, 1.0 and True are, so is their JSON."""
    if isinstance(default, int | float) and isinstance(value, int | float | np.number) and math.isfinite(value):
        number = type(default)(value)
        return number if number == value else value
    return value


def _value(value: Any) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        # JSON has no infinity and no NaN.
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, complex):
        return {"complex": [_value(value.real), _value(value.imag)]}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, jax.lax.Precision):
        return {"precision": value.name}
    if isinstance(value, Layer):
        return _layer(value)
    if isinstance(value, Block):
        declared = None if value.declared is None else list(value.declared)
        return {"block": {"nodes": list(map(_node, value.rows)), "output": value.result, "shape": declared}}
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return {"dtype": str(jnp.dtype(value))}
    if (name := name_of(value)) is not None:
        return {"function": name}
    if isinstance(value, Item):
        return {"item": value.index}
    if isinstance(value, WithNumber):
        return {"with_number": [_value(value.op), _value(value.number), value.first]}
    if isinstance(value, partial):
        return {"partial": [_value(value.func), _value(value.args), {k: _value(v) for k, v in value.keywords.items()}]}
    if isinstance(value, type(jnp.float32)):  # which is an object of its own
        return {"dtype": str(jnp.dtype(value))}
    hint = "; fc.register_op gives a function a name, under which whoever reads it must have registered it too"
    if not callable(value):
        hint = "; options can be numbers, texts, dtypes, layers, named functions, and tuples of them"
    msg = f"{value!r} cannot be written{hint}"
    raise FuncconvError(msg)

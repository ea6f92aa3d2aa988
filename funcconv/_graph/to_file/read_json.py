"""Graphs read from JSON. Layers and functions are found by name, and nothing in the text is run."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.strict_json import digest, parsed, refuse
from ..declare.arithmetic import WithNumber
from ..declare.layer import Layer
from ..declare.node import Input, Item, Place, check_name
from ..name.block import INPUT, Block
from ..name.flatten import InputRow, Row, check_rows
from .registry import named
from .write_json import FORMAT, VERSION

_MOST_LEVELS = 64  # of nesting: JSON from elsewhere could be nested until Python's stack overflows

Same = TypeVar("Same")


def from_json(kind: type[Same], text: str | bytes) -> Same:
    """Return the network that JSON describes."""
    data = parsed(text)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        given = repr(data.get("format")) if isinstance(data, dict) else f"a {type(data).__name__}"
        refuse(f'its "format" must be "{FORMAT}"; got {given:.100}. Pass what Graph.to_json returned')
    # In Python 1.0 and True equal 1, but no version is written in this way.
    if data.get("version") != VERSION or type(data["version"]) is not int:
        refuse(f"its version must be {VERSION}; got {data.get('version')!r}. Read it with the funcconv that wrote it")
    written = data.pop("hash", None)  # files of earlier versions have none
    try:
        graph = _network(kind, data, 0)
    # A damaged file can fail anywhere in `_network`. Each failure becomes one short message.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, FuncconvError):
            raise
        refuse(f"{type(error).__name__}: {str(error)[:200]}")
    if written is not None and written != digest(data):
        refuse(
            f"its content is not what was written: the SHA-256 is {digest(data)}, and its entry 'hash' says "
            f"{str(written)[:100]!r}. If you have changed the text on purpose, remove that entry"
        )
    return graph


def _network(kind: type[Same], data: Any, depth: int) -> Same:
    if depth > _MOST_LEVELS:
        refuse(f"graphs are nested more than {_MOST_LEVELS} deep")
    known = {"format", "version", "name", "inputs", "input_keys", "nodes", "outputs", "graphs"}
    if set(data) - known:
        refuse(f"it has unknown entries {sorted(set(data) - known)}")
    inputs = [Input(entry["name"], _list(entry["shape"]), _dtype(entry["dtype"])) for entry in _list(data["inputs"])]
    _strings([input_node.name for input_node in inputs])
    signature = tuple(InputRow(input_node.name, input_node.shape, input_node.dtype) for input_node in inputs)
    keys = None if data["input_keys"] is None else tuple(_strings(data["input_keys"]))
    if keys is not None and len(keys) != len(inputs):
        refuse(f"it must have one key for each of its {len(inputs)} inputs; got {len(keys)}")
    nested = [_network(kind, entry, depth + 1) for entry in _list(data["graphs"])]
    uses: dict[Any, object] = {}
    rows = _read_rows(data["nodes"], [input_node.name for input_node in inputs], 0)
    places = [_place(node.get("place"), nested, uses, node["name"]) for node in data["nodes"]]
    count = len(inputs) + len(rows)
    tree = _read_structure(data["outputs"], count, 0)
    results, structure = jax.tree.flatten(tree)
    if not results:
        refuse("it must have at least one output; got none")
    if data["name"] is not None:
        _strings([data["name"]])
        check_name(data["name"])
    graph: Any = object.__new__(kind)
    graph._set(signature, keys, rows, tuple(results), structure, data["name"], places)
    return graph  # type: ignore[no-any-return]


def _read_rows(data: Any, inputs: list[str], depth: int) -> tuple[Row, ...]:
    layers: dict[Any, Layer] = {}  # one object for the uses of an entry, which shares them in another graph too
    rows = []
    for i, node in enumerate(_list(data), len(inputs)):
        name, entry = node["name"], node["params"]
        _strings([name] + ([] if entry is None else [entry]))
        operands = tuple(_number(entry, i, f"node {name!r}") for entry in _list(node["inputs"]))
        try:
            op = _read_layer(node["op"], depth)
        except FuncconvError as error:
            refuse(f"node {name!r}: {error}")
        if (entry is not None) != op.parametric or op.arity not in (None, len(operands)):
            refuse(f"node {name!r}: {op!r} does not go with the parameters {entry!r} and {len(operands)} inputs")
        rows.append(Row(name, layers.setdefault((entry, op), op) if entry else op, operands, entry))
    check_rows(inputs, rows)
    return tuple(rows)


def _place(data: Any, nested: list[Any], uses: dict[Any, object], name: str) -> Place | None:
    if data is None:
        return None
    graph, use, inner, entry = _list(data)
    _strings([inner] + ([] if entry is None else [entry]))
    return Place(
        nested[_number(graph, len(nested), f"node {name!r}")],
        uses.setdefault(_number(use, 1 << 31, name), object()),
        inner,
        entry,
    )


def _read_structure(data: Any, count: int, depth: int) -> Any:
    if depth > _MOST_LEVELS:
        refuse(f"outputs are nested more than {_MOST_LEVELS} deep")
    if not isinstance(data, dict):
        return _number(data, count, "the outputs")
    ((what, inside),) = data.items()
    if what == "dict":
        return {key: _read_structure(entry, count, depth + 1) for key, entry in inside.items()}
    if what not in ("list", "tuple"):
        refuse(f"the outputs have an unknown structure {what!r}")
    found = [_read_structure(entry, count, depth + 1) for entry in _list(inside)]
    return tuple(found) if what == "tuple" else found


def _read_layer(data: Any, depth: int) -> Layer:
    # Layers by the names of their classes: nothing in the text is imported or run.
    kinds = {kind.__name__: kind for kind in _subclasses(Layer)}
    name, options = data["layer"], data["options"]
    if not isinstance(name, str) or name not in kinds:
        public = [kind for kind in kinds if kind[0] != "_"]
        msg = f"there is no layer {name!r}{suggest(name, public)}. Import the module of a layer of your own first"
        raise FuncconvError(msg)
    kind = kinds[name]
    known = {field.name for field in fields(kind) if field.init}
    if not isinstance(options, dict) or set(options) - known:
        msg = f"{name} has no options {sorted(set(options) - known)}; known are {', '.join(sorted(known))}"
        raise FuncconvError(msg)
    layer: Layer = kind(**{key: _read(value, depth + 1) for key, value in options.items()})
    return layer


def _read(data: Any, depth: int) -> Any:
    if depth > _MOST_LEVELS:
        refuse(f"options are nested more than {_MOST_LEVELS} deep")
    if isinstance(data, list):
        return tuple(_read(entry, depth + 1) for entry in data)
    if not isinstance(data, dict):
        return data
    if "layer" in data:
        return _read_layer(data, depth)
    ((what, inside),) = data.items()
    reader = _READERS.get(what)
    if reader is None:
        msg = f"there is no value of the kind {what!r}{suggest(what, _READERS)}"
        raise FuncconvError(msg)
    return reader(inside, depth + 1)


def _read_partial(data: Any, depth: int) -> Any:
    function, args, options = data
    op = _read(function, depth)
    if not callable(op):
        msg = f"a partial application must have a function; got {op!r}"
        raise FuncconvError(msg)
    return partial(op, *_read(args, depth), **{key: _read(value, depth) for key, value in options.items()})


def _read_with_number(data: Any, depth: int) -> WithNumber:
    op, number, first = data
    value = _read(number, depth)
    return WithNumber(_read(op, depth), value, bool(first), type(value))


def _read_item(data: Any, _: int) -> Item:
    if isinstance(data, bool) or not isinstance(data, int | str):
        msg = f"an entry must be a number or a name; got {data!r}"
        raise FuncconvError(msg)
    return Item(data)


def _read_block(data: Any, depth: int) -> Block:
    rows = _read_rows(data["nodes"], [INPUT], depth)
    shape = data["shape"]
    declared = None if shape is None else Input(INPUT, _list(shape)).shape
    return Block(rows, _number(data["output"], len(rows) + 1, "the output of a block"), declared)


_READERS: Mapping[str, Callable[[Any, int], Any]] = {
    "float": lambda data, _: float(data),
    "complex": lambda data, depth: complex(*(_read(entry, depth) for entry in data)),
    "dtype": lambda data, _: _dtype(data),
    "precision": lambda data, _: jax.lax.Precision[data],
    "function": lambda data, _: named(data),
    "item": _read_item,
    "with_number": _read_with_number,
    "partial": _read_partial,
    "block": _read_block,
}


def _subclasses(kind: type[Layer]) -> list[type[Layer]]:
    below: list[type[Layer]] = kind.__subclasses__()
    return [subclass for own in below for subclass in (own, *_subclasses(own))]


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        refuse(f"a list was expected; got {str(data)[:100]!r}")
    return data


def _strings(data: Any) -> list[str]:
    for entry in _list(data):
        # JSON has halves of characters, which no other text has.
        if not isinstance(entry, str) or not entry or entry != entry.encode(errors="ignore").decode():
            refuse(f"names must be texts; got {str(data)[:100]!a}")
    return data  # type: ignore[no-any-return]


def _number(data: Any, below: int, where: str) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or not 0 <= data < below:
        refuse(f"{where} has the number {str(data)[:100]}, which must be from 0 to {below - 1}")
    return data


def _dtype(data: Any) -> Any:
    """Return a dtype by its name; NumPy would take a name for an array of any size, too."""
    if data is not None and (not isinstance(data, str) or not hasattr(jnp, data)):
        refuse(f"a dtype must be a name such as 'float32'; got {str(data)[:100]!r}")
    return None if data is None else jnp.dtype(data)

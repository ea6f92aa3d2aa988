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
from ..name.flatten import InputRow, Row, check_rows
from .registry import named
from .write_json import FORMAT, VERSION

_MOST_LEVELS = 64  # of nesting: JSON from elsewhere could be nested until Python's stack overflows

Same = TypeVar("Same")


def from_json(kind: type[Same], text: str | bytes) -> Same:
    """Return the network that JSON describes."""
    told = parsed(text)
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        refuse(f'it must be an object whose "format" is "{FORMAT}"')
    if told.get("version") != VERSION or type(told["version"]) is not int:
        refuse(f"its version is {told.get('version')!r}, and {VERSION} is what is read here")
    written = told.pop("hash", None)  # files of earlier versions have none
    try:
        graph = _network(kind, told, 0)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        if isinstance(error, FuncconvError):
            raise
        refuse(f"{type(error).__name__}: {str(error)[:200]}")
    if written is not None and written != digest(told):
        refuse(
            f"its content is not what was written: the SHA-256 is {digest(told)}, and its entry 'hash' says "
            f"{str(written)[:100]!r}. If you have changed the text on purpose, remove that entry"
        )
    return graph


def _network(kind: type[Same], told: Any, depth: int) -> Same:
    if depth > _MOST_LEVELS:
        refuse(f"graphs are nested more than {_MOST_LEVELS} deep")
    known = {"format", "version", "name", "inputs", "input_keys", "nodes", "outputs", "graphs"}
    if set(told) - known:
        refuse(f"it has unknown entries {sorted(set(told) - known)}")
    inputs = [Input(each["name"], _list(each["shape"]), _dtype(each["dtype"])) for each in _list(told["inputs"])]
    _strings([each.name for each in inputs])
    signature = tuple(InputRow(each.name, each.shape, each.dtype) for each in inputs)
    keys = None if told["input_keys"] is None else tuple(_strings(told["input_keys"]))
    if keys is not None and len(keys) != len(inputs):
        refuse(f"there are {len(inputs)} inputs and {len(keys)} keys for them")
    nested = [_network(kind, each, depth + 1) for each in _list(told["graphs"])]
    uses: dict[Any, object] = {}
    layers: dict[Any, Layer] = {}  # one object for the uses of an entry, which shares them in another graph too
    rows, places = [], []
    for i, node in enumerate(_list(told["nodes"]), len(inputs)):
        name, entry = node["name"], node["params"]
        _strings([name] + ([] if entry is None else [entry]))
        operands = tuple(_number(each, i, f"node {name!r}") for each in _list(node["inputs"]))
        try:
            op = _read_layer(node["op"], 0)
        except FuncconvError as error:
            refuse(f"node {name!r}: {error}")
        if (entry is not None) != op.parametric or op.arity not in (None, len(operands)):
            refuse(f"node {name!r}: {op!r} does not go with the parameters {entry!r} and {len(operands)} inputs")
        rows.append(Row(name, layers.setdefault((entry, op), op) if entry else op, operands, entry))
        places.append(_place(node.get("place"), nested, uses, name))
    check_rows([each.name for each in inputs], rows)
    count = len(inputs) + len(rows)
    tree = _read_structure(told["outputs"], count, 0)
    results, structure = jax.tree.flatten(tree)
    if not results:
        refuse("it has no outputs")
    if told["name"] is not None:
        _strings([told["name"]])
        check_name(told["name"])
    graph: Any = object.__new__(kind)
    graph._set(signature, keys, tuple(rows), tuple(results), structure, told["name"], places)
    return graph  # type: ignore[no-any-return]


def _place(told: Any, nested: list[Any], uses: dict[Any, object], name: str) -> Place | None:
    if told is None:
        return None
    graph, use, inner, entry = _list(told)
    _strings([inner] + ([] if entry is None else [entry]))
    return Place(
        nested[_number(graph, len(nested), f"node {name!r}")],
        uses.setdefault(_number(use, 1 << 31, name), object()),
        inner,
        entry,
    )


def _read_structure(told: Any, count: int, depth: int) -> Any:
    if depth > _MOST_LEVELS:
        refuse(f"outputs are nested more than {_MOST_LEVELS} deep")
    if not isinstance(told, dict):
        return _number(told, count, "the outputs")
    ((what, inside),) = told.items()
    if what == "dict":
        return {key: _read_structure(each, count, depth + 1) for key, each in inside.items()}
    if what not in ("list", "tuple"):
        refuse(f"the outputs have an unknown structure {what!r}")
    found = [_read_structure(each, count, depth + 1) for each in _list(inside)]
    return tuple(found) if what == "tuple" else found


def _read_layer(told: Any, depth: int) -> Layer:
    kinds = {each.__name__: each for each in _subclasses(Layer)}
    name, options = told["layer"], told["options"]
    if not isinstance(name, str) or name not in kinds:
        msg = f"there is no layer {name!r}{suggest(name, [each for each in kinds if each[0] != '_'])}"
        raise FuncconvError(msg)
    kind = kinds[name]
    known = {each.name for each in fields(kind) if each.init}
    if not isinstance(options, dict) or set(options) - known:
        msg = f"{name} has no options {sorted(set(options) - known)}"
        raise FuncconvError(msg)
    layer: Layer = kind(**{key: _read(value, depth + 1) for key, value in options.items()})
    return layer


def _read(told: Any, depth: int) -> Any:
    if depth > _MOST_LEVELS:
        refuse(f"options are nested more than {_MOST_LEVELS} deep")
    if isinstance(told, list):
        return tuple(_read(each, depth + 1) for each in told)
    if not isinstance(told, dict):
        return told
    if "layer" in told:
        return _read_layer(told, depth)
    ((what, inside),) = told.items()
    reader = _READERS.get(what)
    if reader is None:
        msg = f"there is no value of the kind {what!r}"
        raise FuncconvError(msg)
    return reader(inside, depth + 1)


def _read_partial(told: Any, depth: int) -> Any:
    function, args, options = told
    op = _read(function, depth)
    if not callable(op):
        msg = f"a partial application of {op!r}, which is no function"
        raise FuncconvError(msg)
    return partial(op, *_read(args, depth), **{key: _read(value, depth) for key, value in options.items()})


def _read_with_number(told: Any, depth: int) -> WithNumber:
    op, number, first = told
    value = _read(number, depth)
    return WithNumber(_read(op, depth), value, bool(first), type(value))


def _read_item(told: Any, _: int) -> Item:
    if isinstance(told, bool) or not isinstance(told, int | str):
        msg = f"an entry must be a number or a name; got {told!r}"
        raise FuncconvError(msg)
    return Item(told)


_READERS: Mapping[str, Callable[[Any, int], Any]] = {
    "float": lambda told, _: float(told),
    "complex": lambda told, depth: complex(*(_read(each, depth) for each in told)),
    "dtype": lambda told, _: _dtype(told),
    "precision": lambda told, _: jax.lax.Precision[told],
    "function": lambda told, _: named(told),
    "item": _read_item,
    "with_number": _read_with_number,
    "partial": _read_partial,
}


def _subclasses(kind: type[Layer]) -> list[type[Layer]]:
    below: list[type[Layer]] = kind.__subclasses__()
    return [each for own in below for each in (own, *_subclasses(own))]


def _list(told: Any) -> list[Any]:
    if not isinstance(told, list):
        refuse(f"a list was expected; got {str(told)[:100]!r}")
    return told


def _strings(told: Any) -> list[str]:
    for each in _list(told):
        # JSON has halves of characters, which no other text has.
        if not isinstance(each, str) or not each or each != each.encode(errors="ignore").decode():
            refuse(f"names must be texts; got {str(told)[:100]!a}")
    return told  # type: ignore[no-any-return]


def _number(told: Any, below: int, where: str) -> int:
    if isinstance(told, bool) or not isinstance(told, int) or not 0 <= told < below:
        refuse(f"{where} has the number {str(told)[:100]}, which must be from 0 to {below - 1}")
    return told


def _dtype(told: Any) -> Any:
    """Return a dtype by its name; NumPy would take a name for an array of any size, too."""
    if told is not None and (not isinstance(told, str) or not hasattr(jnp, told)):
        refuse(f"there is no dtype {str(told)[:100]!r}")
    return None if told is None else jnp.dtype(told)

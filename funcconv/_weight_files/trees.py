"""Nested dicts of arrays in checkpoints: find the weights, and name their arrays."""

import re
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

from .._common.errors import FuncconvError

WHOLE = "."  # the key of the whole file
MISSING = object()
_OPTIMIZER = re.compile(r"(^|_)[Oo]ptim(izer)?s?([A-Z0-9][a-z0-9]*)?(_|$)|opt_state|optax")
_NUMBERS_OF_WEIGHTS = ("float", "bfloat", "complex", "q")  # beginnings of dtypes; PyTorch's quantized ones have a q

Path = tuple[str, ...]


def is_array(value: Any) -> bool:
    """Return whether a value is a tensor or an array."""
    return hasattr(value, "dtype") and hasattr(value, "ndim")


def shape_of(array: Any) -> tuple[int, ...] | None:
    """Return the shape of a tensor or an array; None for nested tensors, which have none."""
    try:
        return tuple(array.shape)
    except RuntimeError:
        return None


def is_container(value: Any) -> bool:
    """Return whether a value is a dict or list that can contain arrays."""
    return isinstance(value, Mapping | list | tuple)


def children(tree: Any) -> dict[str, Any]:
    """Return the values in a dict or list by their names or positions. Numbers and texts in lists are left out."""
    if isinstance(tree, Mapping):
        entries: dict[str, Any] = {}
        for name, value in tree.items():
            if str(name) in entries:
                msg = f"two entries have the name {str(name)!r}"
                raise FuncconvError(msg)
            entries[str(name)] = value
        return entries
    return {str(i): value for i, value in enumerate(tree) if is_array(value) or is_container(value)}


def is_optimizer(name: str, value: Any) -> bool:
    """Return whether an entry of a checkpoint is the state of an optimizer, whose arrays have the shapes of weights."""
    return bool(_OPTIMIZER.search(name)) or (isinstance(value, Mapping) and {"state", "param_groups"} <= set(value))


def is_weight(value: Any) -> bool:
    """Return whether a value shows that a dict has weights.

    A single number may be a loss or an accuracy, with the shape `()` or `(1,)`. Integers may be the state of a random
    generator.
    """
    if not is_array(value) or prod(shape_of(value) or ()) < 2:
        return False
    return str(value.dtype).removeprefix("torch.").startswith(_NUMBERS_OF_WEIGHTS)


def subtrees(tree: Any) -> dict[str, Any]:
    """Return the dicts and lists in a dict or list, without the states of optimizers."""
    return {
        name: value for name, value in children(tree).items() if is_container(value) and not is_optimizer(name, value)
    }


def state_dicts(tree: Any) -> list[tuple[Path, Any]]:
    """Return each dict that has weights, with its path. If there is none, return each dict that has arrays.

    States of optimizers are left out.
    """
    return list(_dicts_with(is_weight, tree, ())) or list(_dicts_with(is_array, tree, ()))


def _dicts_with(test: Callable[[Any], bool], tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(tree, Mapping) and any(map(test, tree.values())):
        yield path, tree
    for name, value in subtrees(tree).items():
        yield from _dicts_with(test, value, (*path, name))


def leaves(tree: Any, separator: str) -> dict[str, Any]:
    """Return the arrays in nested dicts by their names, joined by a separator, without the states of optimizers."""
    arrays: dict[str, Any] = {}

    def put(name: str, value: Any) -> None:
        if name in arrays:
            msg = f"two arrays have the name {name!r}"
            raise FuncconvError(msg)
        arrays[name] = value

    inner = subtrees(tree)
    for name, value in children(tree).items():
        if is_array(value):
            put(name, value)
        elif name in inner:
            for inner_name, leaf in leaves(value, separator).items():
                put(f"{name}{separator}{inner_name}", leaf)
    return arrays


def at(tree: Any, key: str) -> Any:
    """Return the entry of a path such as `"ema/state_dict"` or `"ema.state_dict"`, or MISSING.

    Names can contain the separators. If no entry has the name, the arrays whose names begin with it are returned.
    """
    entries = children(tree) if is_container(tree) else {}
    if key in entries:
        return entries[key]
    for name, value in entries.items():
        if key.startswith((f"{name}/", f"{name}.")):
            found = at(value, key[len(name) + 1 :])
            if found is not MISSING:
                return found
    return {
        name[len(key) + 1 :]: value for name, value in entries.items() if name.startswith((f"{key}/", f"{key}."))
    } or MISSING

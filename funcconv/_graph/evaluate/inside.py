"""Values inside of layers that are copies of a block: what takes their place, and what they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..._windows.layout import as_array
from ..name.flatten import Row

# The copies that a value belongs to, from the outermost layer on: the number of the copy, and how many there are.
Copies: TypeAlias = tuple[tuple[Any, int], ...]
InnerEdit: TypeAlias = Callable[[Any, Copies], Any]


class Inside(NamedTuple):
    """What is done with the values inside of copies."""

    edits: Mapping[str, InnerEdit]  # by their names, what takes their place
    found: dict[str, Any] | None  # gets the values by their names; None if they are not wanted

    def of(self, name: str) -> "Inside":
        """Return what is done inside of one node."""
        start = f"{name}/"
        edits = {key.removeprefix(start): edit for key, edit in self.edits.items() if key.startswith(start)}
        return Inside(edits, None if self.found is None else {})

    def put(self, name: str, values: Mapping[str, Any]) -> None:
        """Keep the values inside of one node."""
        if self.found is not None:
            self.found.update({f"{name}/{key}": value for key, value in values.items()})


NOTHING = Inside({}, None)


def is_inside(rows: Sequence[Row], name: str) -> bool:
    """Whether a name begins with that of a node that is copies of a block."""
    return any(row.op.copies and name.startswith(f"{row.name}/") for row in rows)


def checked_edit(name: str, edit: Any) -> Callable[[Any], Any]:
    """Return an edit as a function that refuses a result of another shape or dtype than the value."""

    def edited(value: Any) -> Any:
        new = edit(value) if callable(edit) else edit
        new = jax.tree.map(lambda leaf: as_array("edits", f"the value of node {name!r}", leaf), new)
        before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree) for tree in (value, new))
        if before != after:
            msg = (
                f"edits: the new value of node {name!r} must be like its value, {_types(value)}; got {_types(new)}. "
                "Broadcast and cast it, for example with a function: lambda value: jnp.zeros_like(value)"
            )
            raise FuncconvError(msg)
        return new

    return edited


def inner_edit(name: str, edit: Any) -> InnerEdit:
    """Return an edit of values inside of copies: a function is called in each copy, an array has an axis of copies."""

    def edited(value: Any, copies: Copies) -> Any:
        return checked_edit(name, edit if callable(edit) else _of_copies(name, edit, copies))(value)

    return edited


def for_copies(edits: Mapping[str, InnerEdit], rows: Sequence[Row], number: Any, n: int) -> dict[str, InnerEdit]:
    """Return the edits in one copy of a block by the names of its nodes.

    Args:
        edits: by names such as `conv1`, for all copies, or `3/conv1`, for one of them.
        rows: of the block.
        number: of the copy, an integer of JAX.
        n: how many copies there are.

    Raises:
        FuncconvError: if the block has no such node, or a name can mean two.
    """
    names = [row.name for row in rows]
    own: dict[str, InnerEdit] = {}
    for name, edit in edits.items():
        first, _, rest = name.partition("/")
        of_all, of_one = (key in names or is_inside(rows, key) for key in (name, rest))
        of_one = of_one and first.isdecimal()
        if of_all and of_one:
            msg = (
                f"edits: {name!r} can be a node in all copies, or {rest!r} in copy {first}. Name the layers differently"
            )
            raise FuncconvError(msg)
        if not of_all and not of_one:
            msg = f"edits: its block has no node {name!r}{suggest(rest if first.isdecimal() else name, names)}"
            raise FuncconvError(msg)
        if of_one and int(first) >= n:
            msg = f"edits: there are {n} copies, from 0 to {n - 1}; got {first} for the node {rest!r}"
            raise FuncconvError(msg)
        key, new = (name, _in_all(edit, (number, n))) if of_all else (rest, _in_one(edit, number == int(first)))
        own[key] = _both(own[key], new) if key in own else new
    return own


def _in_all(edit: InnerEdit, copy: tuple[Any, int]) -> InnerEdit:
    return lambda value, copies: edit(value, (copy, *copies))


def _in_one(edit: InnerEdit, chosen: Array) -> InnerEdit:
    def edited(value: Any, copies: Copies) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(chosen, new, old), edit(value, copies), value)

    return edited


def _both(first: InnerEdit, second: InnerEdit) -> InnerEdit:
    return lambda value, copies: second(first(value, copies), copies)


def _of_copies(name: str, edit: Any, copies: Copies) -> Any:
    counts = tuple(n for _, n in copies)

    def of_copy(leaf: Any) -> Any:
        leaf = as_array("edits", f"the value of node {name!r}", leaf)
        if leaf.shape[: len(counts)] != counts:
            msg = (
                f"edits: the new value of node {name!r} must have an entry for each copy, so its first axes have the "
                f"sizes {counts}; got the shape {leaf.shape}. Stack the values of the copies with jnp.stack, or pass a "
                "function, which is called in each copy"
            )
            raise FuncconvError(msg)
        return leaf[tuple(number for number, _ in copies)]

    return jax.tree.map(of_copy, edit)


def _types(value: Any) -> Any:
    types = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", value)
    return types if isinstance(types, str) else repr(types)

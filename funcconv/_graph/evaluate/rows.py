"""Evaluation of the rows of a graph."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import jax

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, Params, Shape
from ..._ops.init import fold_in_name
from ..._ops.masks import Masked
from ..masked.layers import run_masked
from ..name.flatten import Row
from .inside import NOTHING, Inside
from .parts import Paths, in_repeat

_NONE: Mapping[Any, Any] = MappingProxyType({})
_MOST_NARROW_SUMS = 3  # gradients that are summed in 16 bits; a longer sum would lose digits

# All values of a graph for some parameters, with edits to values on the way, by their numbers.
Run: TypeAlias = Callable[[Params, Mapping[int, Callable[[Any], Any]]], list[Any]]


class Mode(NamedTuple):
    """What the values of a graph depend on beside its parameters and inputs."""

    states: Mapping[str, Any] = _NONE  # of the rows that keep one, by their entry
    key: Array | None = None  # of what is drawn in training
    train: bool = False
    evaluating: Paths = frozenset()  # rows that are in evaluation mode in training


def evaluate(
    rows: Sequence[Row],
    entries: Sequence[Any],
    xs: Sequence[Any],
    batch: Shape,
    mode: Mode,
    edits: Mapping[int, Callable[[Any], Any]] = _NONE,
    inside: Inside = NOTHING,
) -> tuple[list[Any], dict[str, Any]]:
    """Return every value of a graph: its inputs, then its rows.

    Args:
        rows: in the order of evaluation.
        entries: the parameters of each row, None where it has none.
        xs: the inputs.
        batch: the axes in front of every input.
        mode: the states, and whether it is training.
        edits: what is done to a value, by its number, before others see it.
        inside: what is done with values inside of rows that are copies of a block.

    Returns:
        The values by their numbers, and the next states. Rows that share an entry share its state, one after another.
    """
    values: list[Any] = []
    readers: list[Callable[[], Any]] = []  # of the values
    states = dict(mode.states)
    value_uses = Counter(i for row in rows for i in row.inputs)
    entry_uses = Counter(row.params for row in rows)
    entry_readers = {
        row.params: _reader(entry, entry_uses[row.params]) for row, entry in zip(rows, entries, strict=True)
    }

    def append(value: Any) -> None:
        edit = edits.get(len(values))
        if edit:
            value = value._replace(x=edit(value.x)) if isinstance(value, Masked) else edit(value)
        readers.append(_reader(value, value_uses[len(values)]))
        values.append(value)

    for x in xs:
        append(x)
    for row in rows:
        entry = entry_readers[row.params]()
        options = _options(row, batch, mode)
        # The entry of an optional row may be missing, in the parameters and in the state.
        state = states.get(str(row.params)) if row.op.stateful else None
        operands = [readers[i]() for i in row.inputs]
        try:
            with jax.named_scope(row.name):  # profilers show this name, and `train.diagnose` reports it
                if row.op.copies:
                    within = inside.of(row.name)
                    value, state, found = row.op.run_inside(entry, state, *operands, **options, inside=within)
                    inside.put(row.name, found)
                elif any(isinstance(operand, Masked) for operand in operands):
                    value, state = run_masked(row.op, entry, state, operands, **options)
                else:
                    value, state = row.op.run(entry, state, *operands, **options)
        # A message of funcconv is complete with the node's name. The traceback of another error must stay, so it gets a
        # note instead.
        except FuncconvError as error:
            msg = f"node {row.name!r}: {error}"
            raise FuncconvError(msg) from None
        except Exception as error:
            error.add_note(f"in node {row.name!r} of the graph, which is {row.op!r}")
            raise
        if row.op.stateful and state is not None:
            states[str(row.params)] = state
        append(value)
    return values, states


def _options(row: Row, batch: Shape, mode: Mode) -> dict[str, Any]:
    """Return the options with which a row is evaluated."""
    is_evaluating = row.name in mode.evaluating
    is_drawn = row.op.random and mode.key is not None and not is_evaluating
    # Folded from the name, so that another random node does not change what this one draws.
    key = fold_in_name(mode.key, row.name) if is_drawn else None  # type: ignore[arg-type]
    options: dict[str, Any] = {"batch": batch, "key": key, "train": mode.train and not is_evaluating}
    if paths := in_repeat(mode.evaluating, row):
        options["evaluating"] = paths
    return options


def _reader(tree: Any, uses: int) -> Callable[[], Any]:
    """Return a function that gives the tree to one of its uses, whose gradients JAX adds in the dtype of the tree.

    For more than a few uses, 16-bit numbers are cast to float32 once and back for each use, so that their gradients are
    added in float32.
    """
    leaves, structure = jax.tree.flatten(tree)
    narrow = [hasattr(leaf, "dtype") and wide(leaf.dtype) != leaf.dtype for leaf in leaves]
    if uses <= _MOST_NARROW_SUMS or not any(narrow):
        return lambda: tree
    casts = [leaf.astype(wide(leaf.dtype)) if cast else leaf for leaf, cast in zip(leaves, narrow, strict=True)]
    return lambda: jax.tree.unflatten(
        structure, [x.astype(leaf.dtype) if cast else leaf for x, leaf, cast in zip(casts, leaves, narrow, strict=True)]
    )

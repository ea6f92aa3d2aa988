"""Evaluation of the rows of a graph."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from ._errors import FuncconvError
from ._flatten import Row
from ._init import fold_in_name
from ._typing import Array, Shape

_NONE: Mapping[Any, Any] = MappingProxyType({})


class Mode(NamedTuple):
    """What the values of a graph depend on beside its parameters and inputs."""

    states: Mapping[str, Any] = _NONE  # of the rows that keep one, by their entry
    key: Array | None = None  # of what is drawn in training
    train: bool = False


def evaluate(
    rows: Sequence[Row],
    entries: Sequence[Any],
    xs: Sequence[Any],
    batch: Shape,
    mode: Mode,
    edits: Mapping[int, Callable[[Any], Any]] = _NONE,
) -> tuple[list[Any], dict[str, Any]]:
    """Return every value of a graph: its inputs, then its rows.

    Args:
        rows: in the order of evaluation.
        entries: the parameters of each row, None where it has none.
        xs: the inputs.
        batch: the axes in front of every input.
        mode: the states, and whether it is training.
        edits: what is done to a value, by its number, before others see it.

    Returns:
        The values by their numbers, and the next states. Rows that share an entry share its state, one after another.
    """
    values: list[Any] = []
    states = dict(mode.states)

    def append(value: Any) -> None:
        edit = edits.get(len(values))
        values.append(edit(value) if edit else value)

    for x in xs:
        append(x)
    for row, entry in zip(rows, entries, strict=True):
        key = fold_in_name(mode.key, row.name) if row.op.random and mode.key is not None else None
        state = states[str(row.params)] if row.op.stateful else None
        operands = (values[i] for i in row.inputs)
        try:
            value, state = row.op.run(entry, state, *operands, batch=batch, key=key, train=mode.train)
        except FuncconvError as error:
            msg = f"node {row.name!r}: {error}"
            raise FuncconvError(msg) from None
        except Exception as error:
            error.add_note(f"in node {row.name!r} of the graph, which is {row.op!r}")
            raise
        if row.op.stateful:
            states[str(row.params)] = state
        append(value)
    return values, states

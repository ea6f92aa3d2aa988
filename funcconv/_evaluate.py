"""Evaluation of the rows of a graph."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ._errors import FuncconvError
from ._flatten import Row
from ._typing import Shape

_NONE: Mapping[int, Callable[[Any], Any]] = MappingProxyType({})


def evaluate(
    rows: Sequence[Row],
    entries: Sequence[Any],
    xs: Sequence[Any],
    batch: Shape,
    edits: Mapping[int, Callable[[Any], Any]] = _NONE,
) -> list[Any]:
    """Return every value of a graph: its inputs, then its rows.

    Args:
        rows: in the order of evaluation.
        entries: the parameters of each row, None where it has none.
        xs: the inputs.
        batch: the axes in front of every input.
        edits: what is done to a value, by its number, before others see it.

    Returns:
        The values by their numbers.
    """
    values: list[Any] = []

    def append(value: Any) -> None:
        edit = edits.get(len(values))
        values.append(edit(value) if edit else value)

    for x in xs:
        append(x)
    for row, entry in zip(rows, entries, strict=True):
        try:
            append(row.op.apply(entry, *(values[i] for i in row.inputs), batch=batch))
        except FuncconvError as error:
            msg = f"node {row.name!r}: {error}"
            raise FuncconvError(msg) from None
        except Exception as error:
            error.add_note(f"in node {row.name!r} of the graph, which is {row.op!r}")
            raise
    return values

"""Which values of a graph its outputs need."""

from typing import Any


def needed(graph: Any) -> set[int]:
    """Return the numbers of the values from which the outputs are computed, with those of the outputs."""
    numbers, first = set(graph._results), len(graph._signature)
    # Rows come after what they need, so one walk from the end finds all.
    for i in reversed(range(len(graph._rows))):
        if first + i in numbers:
            numbers.update(graph._rows[i].inputs)
    return numbers

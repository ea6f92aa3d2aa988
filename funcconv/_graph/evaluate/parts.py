"""Parts of a graph that are in evaluation mode while the rest is in training."""

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from ..._common.errors import FuncconvError, suggest
from ..._common.patterns import meets
from ..name.flatten import Row

_ANY = "\0"  # the name of an array that only a pattern of all arrays matches
Paths = frozenset[str]  # of rows by their names, and of rows in a repeat, "repeat1/dropout1"


def rows_in_evaluation(rows: Sequence[Row], patterns: str | Sequence[str]) -> Paths:
    """Return the rows that match a pattern: by their name, by it without the number of a use, or by their entry.

    A pattern of all arrays of an entry, such as `"conv*/*"`, matches too, so that patterns of `frozen` can be used.

    Args:
        rows: the rows of a graph.
        patterns: a pattern, or several.

    Raises:
        FuncconvError: if a pattern matches no row.
    """
    is_one = isinstance(patterns, str) or not isinstance(patterns, Collection)
    patterns = (patterns,) if is_one else tuple(patterns)  # type: ignore[assignment]
    if not patterns:
        return frozenset()
    named = list(_named(rows, "", [""]))
    for pattern in patterns:
        if not isinstance(pattern, str):
            msg = f'graph: evaluating must be patterns of names of nodes, such as "trunk/*"; got {pattern!r}'
            raise FuncconvError(msg)
        if not any(meets(name, pattern) for _, names in named for name in names):
            known = [path for path, _ in named]
            msg = f"graph: evaluating={pattern!r} matches no node and no entry{suggest(pattern, known)}"
            raise FuncconvError(msg)
    return frozenset(
        path for path, names in named if any(meets(name, pattern) for name in names for pattern in patterns)
    )


def in_repeat(paths: Paths, row: Row) -> Paths:
    """Return the rows in a repeat that are among some paths, by their paths in it."""
    if not (paths and row.op.copies):
        return frozenset()
    above = f"{row.name}/"
    return frozenset(path.removeprefix(above) for path in paths if path.startswith(above))


def _named(rows: Sequence[Row], path: str, above: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the path of each row, and the names by which patterns know it; also of the rows in repeats."""
    for row in rows:
        own = dict.fromkeys([row.name, re.sub(r"@\d+(?=/|$)", "", row.name), row.params or row.name])
        names = [first + name for first in above for name in own]
        yield path + row.name, [f"{name}/{_ANY}" for name in names]
        if row.op.copies:
            block: Any = row.op.block  # type: ignore[attr-defined]
            yield from _named(block.rows, f"{path}{row.name}/", [f"{name}/" for name in names])

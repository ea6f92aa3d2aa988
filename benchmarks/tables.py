"""Tables of numbers: a row for what was measured, a column for each figure."""

import statistics
from collections.abc import Mapping

Table = dict[str, dict[str, float]]


def with_mean(table: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the table with a last row, the geometric mean of each column over the rows that have it."""
    rows = list(table.values())
    mean = {column: statistics.geometric_mean(row[column] for row in rows if column in row) for column in rows[0]}
    return {name: dict(row) for name, row in table.items()} | {"geometric mean": mean}


def show(title: str, table: Mapping[str, Mapping[str, float]]) -> None:
    """Print one table."""
    widths = {column: max(len(column), 8) + 2 for column in next(iter(table.values()))}
    names = max(28, *map(len, table)) + 2
    print(f"\n{title}\n{'':{names}}" + "".join(f"{column:>{width}}" for column, width in widths.items()))
    for name, row in table.items():
        print(f"{name:{names}}" + "".join(f"{row[column]:{width}.2f}" for column, width in widths.items()))

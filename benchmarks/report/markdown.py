"""Numbers and tables as Markdown."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .records import MEAN, Merged, Values

NOTHING = "-"


class Column(NamedTuple):
    """A column of a table on the page."""

    heading: str
    recorded: str  # the name of the column in the result file
    digits: int = 2
    inverted: bool = False  # whether the page has one divided by the recorded figure


def number(x: float, digits: int = 2) -> str:
    """Return a positive number with so many significant digits, and without an exponent."""
    rounded = float(f"{x:.{digits}g}")
    if rounded == 0:
        return "0"
    return f"{rounded:.{max(0, digits - 1 - math.floor(math.log10(abs(rounded))))}f}"


def cell(values: Iterable[float | None], digits: int = 2, *, inverted: bool = False) -> str:
    """Return the figures of all versions of JAX, with strokes between them."""
    shown = [NOTHING if x is None or (inverted and not x) else number(1 / x if inverted else x, digits) for x in values]
    return NOTHING if set(shown) <= {NOTHING} else " / ".join(shown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, or nothing if it has no rows. Columns without a figure are left out."""
    rows = list(rows)
    if not rows:
        return ""
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] != NOTHING for row in rows)]
    lines = [[head[i] for i in kept], ["---"] * len(kept), *([row[i] for i in kept] for row in rows)]
    body = ["| " + " | ".join(line) + " |" for line in lines]
    body[1] = "|" + "---|" * len(kept)
    return "\n".join(body)


def figures(
    first: str, merged: Merged, columns: Sequence[Column], labels: Mapping[str, str] | None = None, mean: str = MEAN
) -> str:
    """Return a table of recorded figures.

    Args:
        first: the heading of the column of names.
        merged: the recorded figures.
        columns: what is shown.
        labels: the rows that are shown, with their names on the page. None for all.
        mean: the name of the row of geometric means.
    """
    labels = {MEAN: mean} | dict(labels if labels is not None else {row: row for row in merged if row != MEAN})
    names = [*(row for row in labels if row in merged and row != MEAN), *([MEAN] if MEAN in merged else [])]
    nothing: Values = ()
    rows = [
        [labels[name]]
        + [
            cell(merged[name].get(column.recorded, nothing), column.digits, inverted=column.inverted)
            for column in columns
        ]
        for name in names
    ]
    return table([first, *(column.heading for column in columns)], rows)


def wrapped(text: str) -> str:
    """Return a text whose paragraphs have lines of at most 120 letters."""
    fill = textwrap.TextWrapper(120, break_long_words=False, break_on_hyphens=False).fill
    paragraphs = text.split("\n\n")
    return "\n\n".join(each if each.startswith(("#", "|", "!", "```")) else fill(each) for each in paragraphs)


def section(heading: str, *paragraphs: str) -> str:
    """Return a heading and what stands below it, or nothing if no paragraph has a table."""
    shown = [paragraph for paragraph in paragraphs if paragraph]
    has_figures = any(paragraph.startswith("|") for paragraph in shown)
    return "\n\n".join([f"### {heading}", *shown]) if has_figures else ""

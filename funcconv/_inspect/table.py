"""The table of a network's summary as text, for a terminal and for a notebook."""

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from .follow import ReceptiveField

_IS_TEXT = (
    True,
    True,
    True,
    True,
    False,
    False,
    False,
    False,
    True,
)  # of each column; numbers are aligned to the right
_LEAST_WIDTH = 4  # letters of a column of text in a terminal that is too narrow for the table
_GAP = "  "


def text_table(summary: Any, width: int | None) -> str:
    """Return the table as text.

    Args:
        summary: a `Summary`.
        width: of the terminal, in letters: longer cells continue on the next line. None: every row is one line.

    Returns:
        Lines without a newline at the end.
    """
    head, *rows = cells(summary)
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    if width is not None:
        longest_words = [
            max(len(word) for cell in column for word in cell.split(" ")) for column in zip(head, *rows, strict=True)
        ]
        widths = _fitted(widths, longest_words, width - len(_GAP) * (len(widths) - 1))
    title, *lines = [_lines(row, widths) for row in (head, *rows)]
    rule = "-" * max(len(line) for row in (title, *lines) for line in row)
    last = totals(summary)
    if width is not None:
        last = [line for text in last for line in textwrap.wrap(text, max(width, _LEAST_WIDTH))]
    return "\n".join([*title, rule, *(line for row in lines for line in row), rule, *last])


def rich_table(summary: Any) -> Any:
    """Return the table as rich draws it, which fits it to the terminal."""
    from rich.console import Group
    from rich.table import Table

    head, *rows = cells(summary)
    table = Table(row_styles=["", "dim"])
    for title, is_text in zip(head, _IS_TEXT, strict=True):
        table.add_column(title, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))  # rich takes brackets for styles
    return Group(table, *totals(summary))


def html_table(summary: Any) -> str:
    """Return the table for a notebook."""
    head, *rows = cells(summary)

    def line(tag: str, row: Sequence[str]) -> str:
        sides = ("left" if is_text else "right" for is_text in _IS_TEXT)
        return "".join(
            f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(row, sides, strict=True)
        )

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    lines = "<br>".join(map(html.escape, totals(summary)))
    return f"<table><thead><tr>{line('th', head)}</tr></thead><tbody>{body}</tbody></table><p>{lines}</p>"


def cells(summary: Any) -> list[tuple[str, ...]]:
    """Return the head of the table and its rows as text."""
    inputs = [row.name for row in summary.rows if row.op == "input"]
    head = ("name", "op", "inputs", "shape", "parameters", "MFLOP", "gradient", "kB")
    table: list[tuple[str, ...]] = [(*head, f"sees of {inputs[0]}" if len(inputs) == 1 else "sees")]
    for row in summary.rows:
        parameters = f"as {row.shared}" if row.shared else f"{row.parameters:,}" if row.parameters else ""
        products = [f"{count / 1e6:,.3f}" if count else "" for count in (row.flops, row.gradient_flops)]
        texts = (row.name, row.op, ", ".join(row.inputs), str(row.shape), parameters, *products)
        table.append((*texts, f"{row.bytes / 1e3:,.1f}", _seen(row.receptive_field)))
    return table


def totals(summary: Any) -> list[str]:
    """Return what the whole network has and takes, as lines below the table."""
    mega = [f"{count / 1e6:,.3f}" for count in (summary.flops, summary.real_flops, summary.gradient_flops)]
    return [
        f"{summary.parameters:,} parameters; {mega[0]} MFLOP forward ({mega[1]} without padding) "
        f"and {mega[2]} for the gradient",
        f"{summary.activation_bytes / 1e3:,.1f} kB of activations; about {summary.peak_bytes / 1e3:,.1f} kB at once in "
        "a training step",
    ]


def _seen(by_input: Mapping[str, tuple[ReceptiveField, ...]]) -> str:
    """Return receptive fields in words, those that are alike once."""
    words: dict[str, list[str]] = {}
    for name, axes in by_input.items():
        sizes = "x".join(str(axis.size) for axis in axes)
        strides = [str(axis.stride) for axis in axes]
        stride = strides[0] if len(set(strides)) == 1 else "x".join(strides)
        if len({axis.axis for axis in axes}) < len(axes):
            stride = "1"  # flattened: neighbours are no neighbours of the image
        text = "all" if all(axis.whole for axis in axes) else sizes + (f" / {stride}" if stride != "1" else "")
        text += "" if all(axis.aligned for axis in axes) else ", misaligned"
        words.setdefault(text, []).append(name)
    if len(words) == 1:
        return next(iter(words))
    return "; ".join(f"{text} of {', '.join(names)}" for text, names in words.items())


def _fitted(widths: Sequence[int], longest_words: Sequence[int], available: int) -> list[int]:
    """Return the widths of columns that fit: the widest columns of text give way first, numbers stay whole.

    As long as it is enough, no column gets narrower than its longest word.
    """
    fitted = list(widths)
    for least in (longest_words, [_LEAST_WIDTH] * len(widths)):
        while sum(fitted) > available:
            shrinkable = [i for i, width in enumerate(fitted) if _IS_TEXT[i] and width > least[i]]
            if not shrinkable:
                break
            fitted[max(shrinkable, key=lambda i: fitted[i])] -= 1
    return fitted


def _wrapped(text: str, width: int) -> list[str]:
    """Return a cell as lines; words that are longer than a line begin on a line of their own."""
    lines = [""]
    for word in text.split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if len(joined) <= width:
            lines[-1] = joined
        else:
            pieces = [word[i : i + width] for i in range(0, len(word), width)]
            lines[len(lines) if lines[-1] else -1 :] = pieces
    return lines


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return a row as one line, or as several where a cell is longer than its column."""
    columns = [_wrapped(text, width) for text, width in zip(row, widths, strict=True)]
    count = max(map(len, columns))
    padded = [column + [""] * (count - len(column)) for column in columns]
    lines = []
    for texts in zip(*padded, strict=True):
        sides = zip(texts, widths, _IS_TEXT, strict=True)
        aligned = (text.ljust(width) if is_text else text.rjust(width) for text, width, is_text in sides)
        lines.append(_GAP.join(aligned).rstrip())
    return lines

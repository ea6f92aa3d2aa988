"""Pictures of boxes and arrows, and how they are written down: as DOT for Graphviz, and as Mermaid."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .._common.errors import FuncconvError

DIRECTIONS = ("TB", "LR", "BT", "RL")
# Tints of the palette of Okabe and Ito, which colour-blind readers can tell apart; dark text is legible on each.
TINTS = ("#f6c667", "#9ad0f5", "#8fd3b6", "#f2e86d", "#e3a8cd", "#f0a37a", "#8fb4e8", "#c8c8c8")
PLAIN, MARKED = "#f4f4f4", "#dcdcdc"  # a box, and one where something comes in or goes out
_LINE = "#767676"  # as far from white as from black


class Box(NamedTuple):
    """A box with lines of text, in nested groups from the outside in."""

    lines: tuple[str, ...]
    fill: str = PLAIN
    group: tuple[str, ...] = ()
    round: bool = False
    double: bool = False  # a second border


class Arrow(NamedTuple):
    """From one box to another, by their numbers."""

    start: int
    end: int
    text: str = ""
    dashed: bool = False


class Picture(NamedTuple):
    """What is drawn."""

    boxes: Sequence[Box]
    arrows: Sequence[Arrow]


def dot(picture: Picture, *, direction: str = "TB") -> str:
    """Return the picture in the DOT language of Graphviz."""
    _check(direction)
    lines = [
        "digraph {",
        f'  graph [rankdir={direction}, bgcolor="transparent", fontname="Helvetica", fontcolor="{_LINE}", '
        f'fontsize=11, labeljust="l", color="{_LINE}", nodesep=0.25, ranksep=0.3]',
        f'  node [shape=box, style="filled", fontname="Helvetica", fontsize=11, fontcolor="#202020", '
        f'color="{_LINE}", margin="0.12,0.06", height=0.3]',
        f'  edge [color="{_LINE}", fontname="Helvetica", fontsize=9, fontcolor="{_LINE}", arrowsize=0.7]',
    ]
    for depth, start, stop, item in _nested(picture.boxes):
        indent = "  " * (depth + 1)
        if start:
            lines += [f"{indent}subgraph cluster_{start} {{", f"{indent}  label={_quoted([item])}"]
        elif stop:
            lines.append(f"{indent}}}")
        else:
            box = picture.boxes[item]
            options = [f"label={_quoted(box.lines)}", f'fillcolor="{box.fill}"']
            options += ['style="filled,rounded"'] if box.round else []
            options += ["peripheries=2"] if box.double else []
            lines.append(f"{indent}n{item} [{', '.join(options)}]")
    for arrow in picture.arrows:
        options = [f"label={_quoted([f' {arrow.text}'])}"] if arrow.text else []  # a space between line and text
        options += ["style=dashed"] if arrow.dashed else []
        lines.append(f"  n{arrow.start} -> n{arrow.end}" + (f" [{', '.join(options)}]" if options else ""))
    return "\n".join([*lines, "}"]) + "\n"


def mermaid(picture: Picture, *, direction: str = "TB") -> str:
    """Return the picture in the language of Mermaid, which GitHub renders."""
    _check(direction)
    lines = [f"flowchart {direction}"]
    for depth, start, stop, item in _nested(picture.boxes):
        indent = "  " * (depth + 1)
        if start:
            lines.append(f'{indent}subgraph g{start}["{_escaped([item])}"]')
        elif stop:
            lines.append(f"{indent}end")
        else:
            box = picture.boxes[item]
            left, right = ('(["', '"])') if box.round else ('[["', '"]]') if box.double else ('["', '"]')
            lines.append(f"{indent}n{item}{left}{_escaped(box.lines)}{right}")
    for arrow in picture.arrows:
        text = f'|"{_escaped([arrow.text])}"|' if arrow.text else ""
        lines.append(f"  n{arrow.start} {'-.->' if arrow.dashed else '-->'}{text} n{arrow.end}")
    for fill in dict.fromkeys(box.fill for box in picture.boxes):
        names = ",".join(f"n{i}" for i, box in enumerate(picture.boxes) if box.fill == fill)
        kind = f"c{fill[1:]}"
        lines += [f"  classDef {kind} fill:{fill},stroke:{_LINE},color:#202020", f"  class {names} {kind}"]
    return "\n".join(lines) + "\n"


def _check(direction: str) -> None:
    if direction not in DIRECTIONS:
        msg = f"draw: direction must be one of {', '.join(DIRECTIONS)}; got {direction!r}"
        raise FuncconvError(msg)


def _nested(boxes: Sequence[Box]) -> Iterator[tuple[int, int, bool, Any]]:
    """Walk through the groups: `(depth, number, False, name)` opens one, `(…, True, …)` closes it, else a box."""
    # Boxes of one group need not follow each other, but its frame is written once, so they are collected first.
    tree: dict[str, Any] = {}
    for i, box in enumerate(boxes):
        inside = tree
        for name in box.group:
            inside = inside.setdefault(name, {})
        inside.setdefault("", []).append(i)
    opened = 0

    def walk(inside: Any, depth: int) -> Iterator[tuple[int, int, bool, Any]]:
        nonlocal opened
        for name, part in inside.items():
            if not name:
                yield from ((depth, 0, False, i) for i in part)
                continue
            opened += 1
            yield depth, opened, False, name
            yield from walk(part, depth + 1)
            yield depth, 0, True, name

    yield from walk(tree, 0)


def _quoted(lines: Sequence[str]) -> str:
    r"""Return a string of the DOT language, in which `\` begins a command and `&` an entity."""
    escaped = (
        line.replace("&", "&amp;").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for line in lines
    )
    return '"' + "\\n".join(escaped) + '"'


def _escaped(lines: Sequence[str]) -> str:
    """Return a text of Mermaid, in which `#` begins an entity."""
    text = "\n".join(lines)
    for character, entity in (
        ("#", "#35;"),
        ("&", "#amp;"),
        ('"', "#quot;"),
        ("<", "#lt;"),
        (">", "#gt;"),
        ("`", "#96;"),
    ):
        text = text.replace(character, entity)
    return text.replace("\n", "<br/>")

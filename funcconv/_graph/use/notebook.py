"""The picture that a notebook shows of a graph.

Graphs do not know how they are drawn: the module that draws them registers itself here when it is imported.
"""

from collections.abc import Callable
from typing import Any

_drawing: list[Callable[[Any], str | None]] = []


def register(draw: Callable[[Any], str | None]) -> None:
    """Use a function that returns the SVG of a graph, or None."""
    _drawing[:] = [draw]


def picture(graph: Any) -> str | None:
    """Return the SVG of a graph, None if it cannot be drawn."""
    return _drawing[0](graph) if _drawing else None

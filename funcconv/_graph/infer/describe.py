"""A graph in one line, for the prompt and for messages."""

import math
from collections.abc import Sequence
from typing import Any

import jax

from ..declare.inference import shapes
from .rows import infer_rows, input_specs

_MOST_NAMED = 4  # inputs or outputs, of which the rest is counted
_LONGEST_SHAPE = 60  # letters of an output's shape: that of a tree of values has no bound


def described(graph: Any) -> str:
    """Return the inputs and outputs of a graph with their shapes, and how many nodes and parameters it has."""
    specs = input_specs(graph._signature)
    try:
        rows = infer_rows(graph._rows, specs)
    except Exception:  # a description must not fail: the op that does is named when the graph is used
        rows = None
    values = specs + ([row.value for row in rows] if rows else [None] * len(graph._rows))
    names = graph.nodes
    inputs = _listed([_with_shape(name, spec) for name, spec in zip(graph.inputs, specs, strict=True)])
    outputs = _listed([_with_shape(names[i], values[i]) for i in graph._results])
    counts = [f"{len(names):,} nodes"] if len(names) != 1 else ["1 node"]
    entries = len(graph._entries)
    counts.append(f"{entries:,} parameter {'entry' if entries == 1 else 'entries'}")
    drawn = {row.params: known.drawn for row, known in zip(graph._rows, rows or (), strict=False) if known.drawn}
    if entries and len(drawn) == entries:
        counts[-1] += f" with {sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(drawn)):,} numbers"
    title = f"Graph {graph.name!r}" if graph.name else "Graph"
    return f"{title}: {inputs} -> {outputs}; {', '.join(counts)}"


def _with_shape(name: str, spec: Any) -> str:
    if spec is None:
        return name
    shape = str(shapes(spec))
    return f"{name} {shape if len(shape) <= _LONGEST_SHAPE else shape[: _LONGEST_SHAPE - 3] + '...'}"


def _listed(texts: Sequence[str]) -> str:
    rest = len(texts) - _MOST_NAMED
    return ", ".join(texts) if rest <= 0 else f"{', '.join(texts[:_MOST_NAMED])} and {rest} more"

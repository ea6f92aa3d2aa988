"""The channels of all values and parameters of a graph."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..infer.init import entry_shapes, value_shapes
from .channels import Channels
from .layers import Axes, Followed, Use, follow


@dataclass(frozen=True)
class GraphChannels:
    """Where the channels of a graph are.

    Attributes:
        channels: the sets of channels that can only be removed together.
        values: the channels of each value along its last axis.
        entries: for each entry of the parameters, the channels of the axes of its arrays.
        made: the nodes whose channels are made by a kernel.
    """

    channels: Channels
    values: Sequence[np.ndarray]
    entries: Mapping[str, Mapping[str, Axes]]
    made: Sequence[str]


def follow_channels(graph: Any, params: Any) -> GraphChannels:
    """Follow the channels of a graph from its inputs to its outputs.

    Args:
        graph: a graph.
        params: its parameters; None for those that its layers draw.

    Returns:
        The channels of each value and of the parameters.
    """
    channels, specs = Channels(), list(value_shapes(graph, params).values())
    values: list[np.ndarray] = []
    for row, spec in zip(graph._signature, specs, strict=False):
        values.append(_kept(channels, spec, f"belongs to the input {row.name!r}"))
    entries: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    made: list[str] = []
    mixed: dict[str, str] = {}  # the entries of layers that mix channels, and why they keep them
    shapes = entry_shapes(graph, params)
    for row, entry, spec in zip(graph._rows, shapes, specs[len(values) :], strict=True):
        own = Use(channels, entry, [specs[i] for i in row.inputs], [values[i] for i in row.inputs])
        followed = _followed(row.op, own)
        value = followed.value
        if value is None or not hasattr(spec, "shape") or value.shape != spec.shape[-1:]:
            reason = f"goes into node {row.name!r}, {row.op!r}, which mixes channels or is not known to keep them apart"
            for x in own.xs:
                channels.keep(x, reason)
            mixed |= {row.params: reason} if row.params else {}
            value, followed = _kept(channels, spec, f"comes out of node {row.name!r}, {row.op!r}"), Followed(None)
        values.append(value)
        made += [row.name] if followed.made else []
        if row.params:
            _join_axes(channels, entries.setdefault(row.params, {}), followed.axes)
    for entry, reason in mixed.items():
        for axes in entries[entry].values():
            for numbers in axes.values():
                channels.keep(numbers, reason)
    for number in graph._results:
        channels.keep(values[number], f"is in the output {graph.nodes[number]!r}")
    return GraphChannels(channels, values, entries, made)


def _followed(op: Any, use: Use) -> Followed:
    if not all(hasattr(spec, "shape") for spec in use.specs):  # a value of several arrays
        return Followed(None)
    return follow(op.decided(use.entry, use.specs), use)


def _kept(channels: Channels, spec: Any, reason: str) -> np.ndarray:
    """Return the channels of a value, none of which can be removed."""
    shape = getattr(spec, "shape", ())
    numbers = channels.new(shape[-1]) if shape else np.array(0)
    channels.keep(numbers, reason)
    return numbers


def _join_axes(channels: Channels, known: dict[str, dict[int, np.ndarray]], axes: Mapping[str, Axes]) -> None:
    """Join the channels of an entry with those that it has in another node."""
    for name, numbers in axes.items():
        own = known.setdefault(name, {})
        for axis, these in numbers.items():
            channels.join(own.setdefault(axis, these), these)

"""What every value of a graph sees of the inputs, followed from node to node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from .._common.types import Params, Shape
from .._graph.name.block import INPUT
from .._graph.name.flatten import Row
from .._graph.repeat.layer import Repeat, one_copy
from .._graph.use.network import Network
from .._windows.reach import IDENTITY, LARGE, NOWHERE, Reach, clipped, everything, of_table
from .dependence import run
from .intervals import Interval, along, union
from .long_axes import Seen, composed, follow, joined


@dataclass(frozen=True)
class ReceptiveField:
    """What the positions along one axis of a node see of one axis of an input.

    Size, stride, offset and padding are those of the geometry, as if the image went on beyond its border. What a
    position really sees is `interval(o)`, cut off at borders, those of the maps on the way included.

    On an axis of more than 32,768 places, of the input or of a node on the way, borders of the maps on the way do not
    cut `interval(o)` off, and a layer that mixes several axes, as one that flattens, sees everything.

    Attributes:
        axis: of the node, counted without its batch axes; None if all positions see the same.
        size: the most pixels that a position sees, from the first to the last.
        stride: the pixels from one position's to the next's (the "jump"), on the average; a fraction where there are
            transposed convolutions, and 0 where all positions see the same.
        offset: the centre of what the first position sees, in pixels; pixel 0 has its centre at 0.
        padding: by how many pixels the first and the last positions see beyond the border.
        whole: whether every position sees the whole axis.
        aligned: whether all branches that were merged on the way advance alike, with the same centres, or with the same
            last pixels, as causal ones do.
        wraps: whether what lies beyond the border is the other end (circular padding).
    """

    axis: int | None
    size: int
    stride: Any
    offset: float
    padding: tuple[int, int]
    whole: bool
    aligned: bool
    wraps: bool
    _reach: Reach = field(repr=False, compare=False)
    _count: int = field(repr=False, compare=False)  # of positions, and of pixels
    _pixels: int = field(repr=False, compare=False)
    _exact: Interval | None = field(repr=False, compare=False)  # None where it is not known but by the geometry

    def reaches(self, position: int) -> tuple[int, int]:
        """Return the first and the last place that a position sees by the geometry, beyond the border too."""
        return self._reach.interval(position)

    def interval(self, position: int) -> tuple[int, int] | None:
        """Return the first and the last pixel that a position sees, or None if it sees padding alone.

        Between them a dilation can leave holes. Where the axis wraps, a position at the border sees the other end too,
        and the pixels from the first to the last are all.
        """
        position = range(self._count)[position] if self.axis is not None else 0
        if self._exact is None:
            first, last = clipped(self._reach.interval(position), self._pixels)
        else:
            first, last = (int(array[position]) for array in self._exact)
        return (first, last) if first <= last else None


Key = tuple[str, int]  # an input, and one of its axes


class FieldsOfGraph:
    """What every value of a graph sees of the inputs; called with a node and inputs, it gives the records."""

    def __init__(self, graph: Network, shapes: Mapping[str, Any], params: Params | None) -> None:
        self._shapes = shapes
        self._seen: dict[str, list[dict[Key, Seen]]] = {}  # for each leaf of each value, by the geometry
        self._exact: dict[str, list[dict[Key, Interval]]] = {}  # and cut off at borders
        self._channels: set[Key] = set()
        for name in graph.inputs:
            self._seen[name] = [{(name, axis): Seen(axis, IDENTITY) for axis in range(len(shapes[name].shape))}]
        operations: dict[Any, _Operation] = {}  # rows that are alike are traced once
        nodes, steps = graph.nodes, []
        for row, entry in zip(graph.rows, graph.entry_shapes(params), strict=True):
            operands = [nodes[i] for i in row.inputs]
            xs = [shapes[name] for name in operands]
            leaves, tree = jax.tree.flatten((entry, xs))
            like = (row.op, tree, *((leaf.shape, leaf.dtype) for leaf in leaves))
            # Tracing dominates the time, and a deep network has many equal blocks.
            operation = operations.setdefault(like, _Operation(row, entry, xs))
            self._seen[row.name] = self._through(operation, operands, jax.tree.leaves(shapes[row.name]))
            steps.append((row.name, operation, operands))
        self.mixed = frozenset(self._channels)
        known = {name for name, _ in self._channels}
        self._channels |= {(name, len(shapes[name].shape) - 1) for name in graph.inputs if name not in known}
        for name in graph.inputs:
            shape = shapes[name].shape
            keys = [(name, axis) for axis in range(len(shape)) if (name, axis) not in self._channels]
            self._exact[name] = [{key: along(shape, key[1]) for key in keys if shape[key[1]] <= LARGE}]
        for name, operation, operands in steps:
            found = operation.run([leaf for operand in operands for leaf in self._exact[operand]])
            inexact = {
                key
                for operand in operands
                for seen, exact in zip(self._seen[operand], self._exact[operand], strict=True)
                for key in seen
                if key not in exact
            }
            self._exact[name] = [
                {key: pair for key, pair in exact.items() if key not in inexact and not _is_long(seen.get(key), leaf)}
                for exact, seen, leaf in zip(found, self._seen[name], jax.tree.leaves(shapes[name]), strict=True)
            ]

    def _through(self, operation: "_Operation", operands: Sequence[str], specs: Sequence[Any]) -> list[dict[Key, Seen]]:
        """Return what the leaves of an operation's value see."""
        results = []
        before = [leaf for name in operands for leaf in jax.tree.leaves(self._shapes[name])]
        for out, spec in enumerate(specs):
            ways: dict[Key, list[Seen]] = {}
            for leaf, seen in enumerate(leaf for name in operands for leaf in self._seen[name]):
                for key, before_step in seen.items():
                    step = operation.sees(leaf, before_step.axis, out)
                    if step is None:
                        continue
                    if step.mixes and before_step.reach == IDENTITY:
                        self._channels.add(key)
                    ways.setdefault(key, []).append(composed(before_step, step, before[leaf].shape))
            results.append({key: joined(seen_each_way, spec.shape) for key, seen_each_way in ways.items()})
        return results

    def along(self, node: str, name: str, axis: int) -> Seen | None:
        """Return what the value of a node, an array, sees of an axis of an input by the geometry."""
        (seen,) = self._seen[node]
        return seen.get((name, axis))

    def __call__(self, node: str, names: Sequence[str]) -> dict[str, tuple[ReceptiveField, ...]]:
        result = {}
        shape = jax.tree.leaves(self._shapes[node])[0].shape
        for name in names:
            pixels, records = self._shapes[name].shape, []
            for key in ((name, axis) for axis in range(len(pixels)) if (name, axis) not in self._channels):
                seen = joined([leaf[key] for leaf in self._seen[node] if key in leaf], shape)
                if seen:
                    leaves = zip(self._exact[node], self._seen[node], strict=True)
                    pairs = [exact.get(key) for exact, own in leaves if key in own]
                    exact = None if any(pair is None for pair in pairs) else union(pairs)
                    records.append(_record(seen, exact, pixels[key[1]], shape))
            if any(key[0] == name for leaf in self._seen[node] for key in leaf):
                result[name] = tuple(records)
        return result


def _is_long(seen: Seen | None, leaf: Any) -> bool:
    """Whether what is seen lies along an axis that is too long for a table of its places."""
    return seen is not None and seen.axis is not None and leaf.shape[seen.axis] > LARGE


class _Operation:
    """What a row's results see of its operands: by the layer's word, or else by its program."""

    def __init__(self, row: Row, entry: Any, xs: Sequence[Any]) -> None:
        self._row, self._entry, self._xs = row, entry, xs
        self._axes = row.op.reaches(*(x.shape for x in xs)) if all(map(_is_array, xs)) else None
        self._found: dict[tuple[int, int], list[Any]] = {}

    @cached_property
    def _program(self) -> Any:
        return jax.make_jaxpr(partial(self._row.op.apply, batch=()))(self._entry, *self._xs)

    def sees(self, leaf: int, axis: int | None, out: int) -> Seen | None:
        """Return what a leaf of the result sees of an axis of a leaf of the operands."""
        if axis is None:
            return Seen(None, IDENTITY)
        if isinstance(self._row.op, Repeat):
            return self._after_copies(self._row.op, axis)
        if self._axes is not None:
            reach = self._axes[axis]
            return Seen(axis, reach) if reach else Seen(None, everything(self._xs[0].shape[axis]), mixes=True)
        if jax.tree.leaves(self._xs)[leaf].shape[axis] > LARGE:
            return follow(self._program.jaxpr, len(jax.tree.leaves(self._entry)) + leaf, axis)[out]
        if (leaf, axis) not in self._found:
            shape = jax.tree.leaves(self._xs)[leaf].shape
            self._found[leaf, axis] = run(self._program.jaxpr, self._arguments({leaf: along(shape, axis)}))
        interval, size = self._found[leaf, axis][out], jax.tree.leaves(self._xs)[leaf].shape[axis]
        return interval and _fitted(interval, self._program.out_avals[out].shape, size)

    def _after_copies(self, repeat: Repeat, axis: int) -> Seen | None:
        """Return what the last copy of a block sees of an axis of the first copy's input."""
        output, shape = repeat.graph(self._xs[0]).outputs[0], self._xs[0].shape
        seen = Seen(axis, IDENTITY)
        for _ in range(repeat.n):
            if seen.axis is None:  # all positions see the same
                break
            step = self._block.along(output, INPUT, seen.axis)
            if step is None:
                return None
            seen = composed(seen, step, shape)
        return seen._replace(mixes=(INPUT, axis) in self._block.mixed)

    @cached_property
    def _block(self) -> FieldsOfGraph:
        """What one copy of a block sees."""
        params = one_copy(self._entry) or {}
        graph = self._row.op.graph(self._xs[0])  # type: ignore[attr-defined]
        return FieldsOfGraph(graph, graph.shapes(params), params)

    def _arguments(self, pairs: Mapping[int, Interval]) -> list[Interval | None]:
        """Return the pairs of the program's arguments: parameters have none."""
        entry: list[Interval | None] = [None] * len(jax.tree.leaves(self._entry))
        return entry + [pairs.get(i) for i in range(len(jax.tree.leaves(self._xs)))]

    def run(self, seen: Sequence[Mapping[Key, Interval]]) -> list[dict[Key, Interval]]:
        """Return, for each leaf of the result, the pairs of those axes of which the leaves of the operands have one."""
        keys = dict.fromkeys(key for leaf in seen for key in leaf)
        results: list[dict[Key, Interval]] = [{} for _ in self._program.out_avals]
        for key in keys:
            pairs = {i: leaf[key] for i, leaf in enumerate(seen) if key in leaf}
            for found, result in zip(run(self._program.jaxpr, self._arguments(pairs)), results, strict=True):
                if found is not None:
                    result[key] = found
        return results


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape")


def _fitted(interval: Interval, shape: Shape, size: int) -> Seen:
    """Return what is seen of an axis fits that axis of the result fits which it is the least."""
    fits = {}
    for axis in range(len(shape)):
        others = tuple(other for other in range(len(shape)) if other != axis)
        low, high = interval[0].min(others, initial=NOWHERE), interval[1].max(others, initial=-NOWHERE)
        if len(low) > 1 or shape[axis] == size == 1:
            fits[axis] = low, high
    if not fits:
        low, high = int(interval[0].min(initial=NOWHERE)), int(interval[1].max(initial=-NOWHERE))
        return Seen(None, Reach(0, (low,), (high,)))
    axis = min(fits, key=lambda axis: (np.max(fits[axis][1] - fits[axis][0]), axis))
    pairs = [(int(first), int(last)) for first, last in zip(*fits[axis], strict=True)]
    return Seen(axis, of_table(pairs, size))


def _record(seen: Seen, exact: Interval | None, pixels: int, shape: Shape) -> ReceptiveField:
    """Return the record of one axis."""
    reach, axis = seen.reach, seen.axis
    count = 1 if axis is None else shape[axis]
    if axis is None:  # the border is of no interest
        first, last = reach.interval(0) if reach.wraps else clipped(reach.interval(0), pixels)
        reach = reach._replace(firsts=(first,), lasts=(last,))
    if exact is None:
        phases = min(len(reach.firsts), count)
        whole = all(reach.interval(count - 1 - i)[0] <= 0 and reach.interval(i)[1] >= pixels - 1 for i in range(phases))
    else:
        others = tuple(other for other in range(exact[0].ndim) if other != axis)
        lows, highs = exact[0].min(others, initial=NOWHERE), exact[1].max(others, initial=-NOWHERE)
        exact = np.broadcast_to(lows, count), np.broadcast_to(highs, count)
        whole = bool((exact[0] == 0).all() and (exact[1] == pixels - 1).all())
    first, last = reach.of((0, count - 1))
    stride = reach.stride
    return ReceptiveField(
        axis=axis,
        size=reach.size,
        stride=int(stride) if stride.denominator == 1 else stride,
        offset=sum(reach.interval(0)) / 2,
        padding=(max(-first, 0), max(last - pixels + 1, 0)),
        whole=whole,
        aligned=reach.aligned,
        wraps=reach.wraps,
        _reach=reach,
        _count=count,
        _pixels=pixels,
        _exact=exact,
    )

"""How all values of a graph are computed along a signal, before anything is computed."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import DTypeLike, Shape
from ..declare.function import Function
from ..declare.inference import shapes, spec
from ..declare.layers import Pool
from ..infer.init import entry_shapes
from ..infer.rows import in_node, input_specs, row_value
from ..masked.by_position import is_by_position
from ..name.flatten import Row
from ..repeat.layer import one_copy
from ..use.graph import Graph
from .flow import SIGNAL, Flow
from .rules import Inputs, Stage, stage_of

_LONG = 1 << 16  # samples of the signal for which the shapes of all values are inferred


class Plan(NamedTuple):
    """How the values of a graph, or of one copy of a block, are computed along a signal."""

    graph: Graph
    flows: list[Flow]  # of all values
    stages: list[Stage]  # of the rows
    kept: list[int]  # positions of each value that are kept for the row that looks back furthest
    copies: dict[str, list["Plan"]]  # of each copy, for rows that are copies of a block, by their names

    @property
    def with_inner(self) -> list["Plan"]:
        """This plan and those of the copies within it."""
        return [self, *(inner for plans in self.copies.values() for plan in plans for inner in plan.with_inner)]

    @property
    def geometry(self) -> Any:
        """The positions that are kept and skipped."""
        inner = [plan.geometry for plans in self.copies.values() for plan in plans]
        return [(stage.kept, stage.skipped) for stage in self.stages], inner


def planned(graph: Graph) -> Plan:
    """Return how all values of a graph are computed along a signal."""
    specs = long_specs(graph, None)
    return _planned(graph, specs, [SIGNAL] * len(specs), None)


def _planned(graph: Graph, specs: list[Any], flows: list[Flow], params: Any) -> Plan:
    """Return how all values are computed, for the inputs of a long signal and parameters of these shapes."""
    specs, flows = list(specs), list(flows)
    stages: list[Stage] = []
    copies: dict[str, list[Plan]] = {}
    for row, entry in zip(graph._rows, entry_shapes(graph, params), strict=True):
        xs, own_flows = [specs[i] for i in row.inputs], [flows[i] for i in row.inputs]
        stage, plans = in_node(row, partial(_of_row, row, xs, own_flows, entry))
        if plans:
            copies[row.name] = plans
        specs.append(row_value(row, entry, xs))
        flows.append(stage.flow)
        stages.append(stage)
    kept = [0] * len(flows)
    for row, stage in zip(graph._rows, stages, strict=True):
        for i, count in zip(row.inputs, stage.kept, strict=True):
            kept[i] = max(kept[i], count)
    return Plan(graph, flows, stages, kept, copies)


def _of_copies(op: Any, x: Any, flow: Flow, entry: Any) -> list[Plan]:
    """Return how each copy of a block is computed. They differ in the delay alone, so that one loop computes them."""
    graph, params, plans = op.graph(x), one_copy(entry) or {}, list[Plan]()
    for _ in range(op.copies):
        if not plans or plans[-1].flows[0] != flow:
            plans.append(_planned(graph, [x], [flow], params))
        else:
            plans.append(plans[-1])
        following = plans[-1].flows[graph._results[0]]
        if plans[-1].geometry != plans[0].geometry or following._replace(delay=flow.delay) != flow:
            msg = (
                f"{op!r}: because of the strides in it, its copies keep different numbers of positions, so one loop "
                "cannot stream them. Part it into layers with fc.unstack(graph, params), and stream the new graph"
            )
            raise FuncconvError(msg)
        flow = following
    return plans


def _of_row(row: Row, xs: Sequence[Any], flows: Sequence[Flow], entry: Any) -> tuple[Stage, list[Plan]]:
    """Return how a row is computed, and how each copy of its block if it is copies of one."""
    if not xs or not all(isinstance(x, jax.ShapeDtypeStruct) for x in xs):
        msg = f"{row.op!r} computes from something else than signals, so it cannot be streamed"
        raise FuncconvError(msg)
    if row.op.copies:
        plans = _of_copies(row.op, xs[0], flows[0], entry)
        flow = plans[-1].flows[plans[-1].graph._results[0]]
        return Stage(flow, (0,), None), plans
    entry = jax.tree.map(spec, entry)
    positionwise = isinstance(row.op, Function) and is_by_position(row.op, entry, xs, [True] * len(xs), 1)
    return stage_of(row.op, Inputs(flows, [shapes(x) for x in xs], entry, positionwise)), []


def long_specs(graph: Graph, dtype: DTypeLike | None) -> list[Any]:
    """Return the shapes and dtypes of the inputs for a long signal, whose length all strides divide."""
    unit, reach = _stride_and_reach(graph._rows)
    length = -(-max(_LONG, 4 * unit * reach) // unit) * unit
    given = input_specs(graph._signature)
    return [x.update(shape=(length, *x.shape[1:]), dtype=x.dtype if dtype is None else jnp.dtype(dtype)) for x in given]


def _stride_and_reach(rows: Sequence[Row]) -> tuple[int, int]:
    """Return the product of the strides of all rows, and at least how far all windows reach together."""
    stride, reach = 1, 0
    for row in rows:
        of_row = (_stride(row.op), _extent(row.op))
        if row.op.copies:
            own, within = _stride_and_reach(row.op.block.rows)  # type: ignore[attr-defined]
            of_row = own, within * row.op.copies
        stride, reach = stride * of_row[0], reach + of_row[1]
    return stride, reach


def _stride(op: Any) -> int:
    """Return the stride of a layer along its first axis."""
    layer = getattr(op, "layer", op)
    stride: Any = getattr(layer, "stride", 1)
    stride = layer.window if stride is None and isinstance(layer, Pool) else stride
    return int(stride[0] if isinstance(stride, tuple) else stride)


def _extent(op: Any) -> int:
    """Return at least how far the windows of a layer reach along the first axis."""
    layer = getattr(op, "layer", op)
    window, dilation = (max(_as_tuple(getattr(layer, name, 1))) for name in ("window", "dilation"))
    return int(window * dilation)


def _as_tuple(value: Any) -> Shape:
    return value if isinstance(value, tuple) else (value,)

"""How all values of a graph are computed along a signal, before anything is computed."""

import math
from collections.abc import Sequence
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
from ..use.graph import Graph
from .flow import SIGNAL, Flow
from .rules import Inputs, Stage, stage_of

_LONG = 1 << 16  # samples of the signal for which the shapes of all values are inferred


class Plan(NamedTuple):
    """How the values of a graph are computed along a signal."""

    flows: list[Flow]  # of all values
    stages: list[Stage]  # of the rows
    kept: list[int]  # positions of each value that are kept for the row that looks back furthest


def planned(graph: Graph) -> Plan:
    """Return how all rows are computed along a signal."""
    specs = _long_specs(graph, None)
    flows: list[Flow] = [SIGNAL] * len(specs)
    stages = []
    for row, entry in zip(graph._rows, entry_shapes(graph, None), strict=True):
        xs = [specs[i] for i in row.inputs]
        stage = in_node(row, lambda row=row, xs=xs, entry=entry: _stage(row, xs, [flows[i] for i in row.inputs], entry))  # type: ignore[misc]
        specs.append(row_value(row, entry, xs))
        flows.append(stage.flow)
        stages.append(stage)
    kept = [0] * len(flows)
    for row, stage in zip(graph._rows, stages, strict=True):
        for i, count in zip(row.inputs, stage.kept, strict=True):
            kept[i] = max(kept[i], count)
    return Plan(flows, stages, kept)


def value_specs(graph: Graph, params: Any, dtype: DTypeLike | None) -> list[Any]:
    """Return the shapes and dtypes of all values for a long signal."""
    specs = _long_specs(graph, dtype)
    for row, entry in zip(graph._rows, entry_shapes(graph, params), strict=True):
        specs.append(row_value(row, entry, [specs[i] for i in row.inputs]))
    return specs


def _stage(row: Row, xs: Sequence[Any], flows: Sequence[Flow], entry: Any) -> Stage:
    if not xs or not all(isinstance(x, jax.ShapeDtypeStruct) for x in xs):
        msg = f"{row.op!r} computes from something else than signals, so it cannot be streamed"
        raise FuncconvError(msg)
    entry = jax.tree.map(spec, entry)
    positionwise = isinstance(row.op, Function) and is_by_position(row.op, entry, xs, [True] * len(xs), 1)
    return stage_of(row.op, Inputs(flows, [shapes(x) for x in xs], entry, positionwise))


def _long_specs(graph: Graph, dtype: DTypeLike | None) -> list[Any]:
    """Return the shapes and dtypes of the inputs for a long signal, whose length all strides divide."""
    unit = math.prod(_stride(row.op) for row in graph._rows)
    reach = sum(_extent(row.op) for row in graph._rows)
    length = -(-max(_LONG, 4 * unit * reach) // unit) * unit
    given = input_specs(graph._signature)
    return [x.update(shape=(length, *x.shape[1:]), dtype=x.dtype if dtype is None else jnp.dtype(dtype)) for x in given]


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

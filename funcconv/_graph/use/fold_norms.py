"""Batch norms folded into the layers before them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.types import Array, Params
from ..declare.conv_layers import Conv, ConvTranspose, LocalConv
from ..declare.layers import Dense
from ..declare.training_layers.batch_norm import BatchNorm
from ..evaluate.call import mode_of
from ..infer.check_parameters import checked_entries
from ..infer.init import value_shapes
from ..name import entries as _entries
from ..name.flatten import Row
from .editing import removed, with_rows
from .structure import GraphStructure

Same = TypeVar("Same", bound=GraphStructure)


def fold_norms(graph: Same, params: Params, state: Mapping[str, Any]) -> tuple[Same, dict[str, Any], dict[str, Any]]:
    """Return the graph without the batch norms that follow a layer with a kernel, its parameters and its state."""
    checked_entries(graph, params)
    mode_of(graph, state)
    graph, params, state = _folded_copies(graph, params, state)
    pairs = _pairs(graph)
    for layer, norm in pairs:
        path, norm_path = (tuple(str(row.params).split("/")) for row in (layer, norm))
        entry, norm_entry = _entries.get(params, path), _entries.get(params, norm_path)
        params = _entries.replaced(
            params, path, _folded(layer.op, norm.op, entry, norm_entry, _entries.get(state, norm_path))
        )
    names = {layer.name for layer, _ in pairs}
    rows = [row._replace(op=_with_bias(row.op)) if row.name in names else row for row in graph._rows]
    folded = with_rows(graph, rows, [None] * len(rows) if pairs else graph._places)
    for _, norm in pairs:
        folded = removed(folded, norm.name)
    return folded, _entries.select(params, folded._entries), _entries.select(state, folded._stateful)


def _folded_copies(graph: Same, params: Params, state: Mapping[str, Any]) -> tuple[Same, Params, Mapping[str, Any]]:
    """Return the graph in which the norms inside of copies are folded, with the arrays of the copies."""
    values, layers = value_shapes(graph, params), dict[Any, Any]()
    for row in graph._rows:
        if not (row.op.copies and row.op.stateful) or row.params in layers:
            continue
        if any(other.params == row.params and other.op != row.op for other in graph._rows):
            continue  # another layer uses the same entry
        path = tuple(str(row.params).split("/"))
        x = values[graph.nodes[row.inputs[0]]]
        entry, own_state = _entries.get(params, path), _entries.get(state, path)
        layers[row.params], entry, own_state = row.op.with_folded_norms(entry, own_state, x)
        params, state = _entries.replaced(params, path, entry), _entries.replaced(state, path, own_state)
    if not layers:
        return graph, params, state
    rows = [row._replace(op=layers.get(row.params, row.op)) for row in graph._rows]
    return with_rows(graph, rows, [None] * len(rows)), params, state


def _pairs(graph: Any) -> list[tuple[Row, Row]]:
    """Return the batch norms that can be folded, each with the layer before it."""
    first = len(graph._signature)
    readers = Counter([number for row in graph._rows for number in row.inputs] + list(graph._results))
    users = Counter(row.params for row in graph._rows)
    pairs = []
    for norm in graph._rows:
        if not isinstance(norm.op, BatchNorm) or norm.inputs[0] < first:
            continue
        layer = graph._rows[norm.inputs[0] - first]
        foldable = (
            isinstance(layer.op, Conv | ConvTranspose | LocalConv | Dense) and getattr(layer.op, "layout", None) is None
        )
        if foldable and readers[norm.inputs[0]] == users[layer.params] == users[norm.params] == 1:
            pairs.append((layer, norm))
    return pairs


def _folded(layer: Any, norm: Any, entry: Any, norm_entry: Any, statistics: Any) -> dict[str, Array]:
    """Return the parameters of a layer followed by a norm."""
    kernel = entry["kernel"]
    positions = (kernel.ndim - 2) // 2 if isinstance(layer, LocalConv) else 0
    dtype = wide(kernel.dtype)
    mean, var = (jnp.asarray(statistics[name]).astype(dtype) for name in ("mean", "var"))
    factor = lax.rsqrt(var + norm.epsilon)
    if norm_entry.get("scale") is not None:
        factor = factor * norm_entry["scale"].astype(dtype)
    mean, factor = (array.reshape((1,) * positions + array.shape) for array in (mean, factor))
    bias = -mean if entry.get("bias") is None else _as_local(entry["bias"], positions).astype(dtype) - mean
    bias = bias * factor
    if norm_entry.get("bias") is not None:
        bias = bias + norm_entry["bias"].astype(dtype).reshape(factor.shape)
    if positions:
        bias = jnp.broadcast_to(bias, (*kernel.shape[:positions], bias.shape[-1]))
    outputs = factor.reshape(-1)
    if isinstance(layer, ConvTranspose):  # (*window, out // groups, in): the groups divide the inputs
        of_inputs = kernel.shape[-1] // layer.groups
        outputs = jnp.repeat(outputs.reshape(layer.groups, -1).T, of_inputs, axis=1)
    outputs = outputs.reshape((1,) * (kernel.ndim - outputs.ndim) + outputs.shape)
    return {"kernel": (kernel.astype(dtype) * outputs).astype(kernel.dtype), "bias": bias.astype(kernel.dtype)}


def _with_bias(layer: Any) -> Any:
    return replace(layer, bias=True)


def _as_local(bias: Array, positions: int) -> Array:
    """Return a bias with axes of positions, which that of a LocalConv has or not."""
    return bias.reshape((1,) * (positions + 1 - bias.ndim) + bias.shape)

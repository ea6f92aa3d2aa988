"""The arrays of layers in PyTorch."""

from typing import Any

import numpy as np

from ...._common.errors import FuncconvError
from ...._graph.declare.conv_layers import Conv, ConvTranspose
from ...._graph.declare.function import Function
from ...._graph.declare.layer import Layer
from ...._graph.declare.layers import Dense
from ...._graph.declare.training_layers.batch_norm import BatchNorm
from ...._graph.declare.training_layers.kernels import WeightNorm, WeightStandardize
from ...._graph.declare.training_layers.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ...._graph.declare.training_layers.spectral_norm import SpectralNorm
from ...._graph.name.flatten import Row
from .array import TORCH_NAMES, Convert, TorchArray, same
from .features import Features, Shapes
from .parametrizations import divided_by_norm, with_scale

_NORMS = (BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm)
_WITH_MODULE = (Conv, ConvTranspose, Dense, *_NORMS)


def has_module(layer: Layer) -> bool:
    """Return whether PyTorch has a module for a layer."""
    if isinstance(layer, SpectralNorm) and layer.norm != "kernel":
        return False
    return isinstance(_inner(layer), _WITH_MODULE)


def _inner(layer: Layer) -> Layer:
    """Return the layer whose kernel another one normalizes, or the layer itself."""
    return layer.layer if isinstance(layer, WeightNorm | WeightStandardize | SpectralNorm) else layer


def arrays_of(op: str, shapes: Shapes, entry: str, row: Row, flatten_order: str) -> list[TorchArray]:
    """Return the arrays of an entry that a layer uses.

    Args:
        op: the name of the public function, for messages.
        shapes: the shapes of the graph.
        entry: the path of the entry.
        row: the first row that uses it.
        flatten_order: how the PyTorch module flattens an image in front of a linear map.

    Returns:
        The arrays, in PyTorch's order.

    Raises:
        FuncconvError: if PyTorch has no module for the layer.
    """
    if not has_module(row.op):
        if isinstance(row.op, Function) and _is_vector(shapes.drawn(row)):
            return [_scale(entry)]
        advice = "Convert its arrays yourself, and the others with a graph without it (graph.subgraph)"
        if row.op.copies:
            advice = "Part it into layers with fc.unstack(graph, params)"
        msg = f"{op}: PyTorch has no module for the layer {row.op!r} of the entry {entry!r}. {advice}"
        raise FuncconvError(msg)
    arrays = _of_plain_layer(op, shapes, entry, row, flatten_order)
    if isinstance(row.op, WeightNorm):
        return with_scale(arrays, row.op, shapes.value(row.inputs[0]))
    if isinstance(row.op, SpectralNorm):
        order = Features(shapes, row, flatten_order)
        return divided_by_norm(arrays, row.op, shapes.value(row.inputs[0]), order)
    return arrays


def _is_vector(entry: Any) -> bool:
    """Return whether an entry is one array, of which only the last axis may be longer than 1."""
    return hasattr(entry, "shape") and entry.ndim > 0 and entry.size == entry.shape[-1]


def _of_plain_layer(op: str, shapes: Shapes, entry: str, row: Row, flatten_order: str) -> list[TorchArray]:
    """Return the arrays of a layer, without regard to a normalized kernel."""
    layer: Any = _inner(row.op)
    if isinstance(layer, Conv | ConvTranspose):
        # PyTorch: (out, in // groups, *window); funcconv: (*window, in // groups, out). A transposed convolution has
        # (in, out // groups, *window), which is the kernel of the convolution that it transposes.
        return [
            _param(entry, "kernel", "weight", _kernel_to_own, _kernel_to_torch),
            *([_param(entry, "bias", "bias")] if layer.bias else []),
        ]
    if isinstance(layer, Dense):
        order = Features(shapes, row, flatten_order)
        return [
            _param(entry, "kernel", "weight", lambda w: order.to_own(w.T), lambda w: order.to_torch(w).T),
            *([_param(entry, "bias", "bias")] if layer.bias else []),
        ]
    to_own, to_torch = _norm_order(op, shapes, row, layer, flatten_order)
    used = [name for name in ("scale", "bias") if getattr(layer, name, False)]
    arrays = [_param(entry, name, TORCH_NAMES[name], to_own, to_torch) for name in used]
    if isinstance(layer, BatchNorm):
        arrays += [_statistic(entry, name, to_own, to_torch) for name in ("mean", "var")]
        if layer.count:
            arrays.append(_statistic(entry, "count", same, _counter))
    return arrays


def _param(entry: str, path: str, name: str, to_own: Convert = same, to_torch: Convert = same) -> TorchArray:
    return TorchArray(entry, path, in_state=False, name=name, is_whole_name=False, to_own=to_own, to_torch=to_torch)


def _statistic(entry: str, path: str, to_own: Convert, to_torch: Convert) -> TorchArray:
    name = TORCH_NAMES[path]
    return TorchArray(entry, path, in_state=True, name=name, is_whole_name=False, to_own=to_own, to_torch=to_torch)


def _scale(entry: str) -> TorchArray:
    """Return a scale such as (1, 1, channels), which is (channels, 1, 1) in PyTorch and is called as its entry."""
    name = entry.replace("/", ".")
    to_own, to_torch = _first_to_last, _last_to_first
    return TorchArray(entry, "", in_state=False, name=name, is_whole_name=True, to_own=to_own, to_torch=to_torch)


def _first_to_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 0, -1)


def _last_to_first(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, -1, 0)


def _kernel_to_own(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (0, 1), (-1, -2)) if weight.ndim > 1 else weight


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-1, -2), (0, 1)) if kernel.ndim > 1 else kernel


def _counter(count: np.ndarray) -> np.ndarray:
    return count.astype(np.int64)  # PyTorch counts in 64 bits


def _norm_order(op: str, shapes: Shapes, row: Row, layer: Any, flatten_order: str) -> tuple[Convert, Convert]:
    if isinstance(layer, LayerNorm | RMSNorm) and layer.axes > 1:
        return _first_to_last, _last_to_first
    order = Features(shapes, row, flatten_order)
    if isinstance(layer, GroupNorm) and layer.groups > 1 and order.is_permuted():
        msg = (
            f"{op}: the entry {row.params!r} has groups of a flattened image, and PyTorch forms other groups. Flatten "
            "the image with order='channels_first'"
        )
        raise FuncconvError(msg)
    return order.to_own, order.to_torch

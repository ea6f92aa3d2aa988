"""The layers of a graph as PyTorch computes them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...._common.errors import FuncconvError
from ...._graph.declare.conv_layers import Conv, ConvTranspose, LocalConv
from ...._graph.declare.function import Function
from ...._graph.declare.layer import Layer
from ...._graph.declare.layers import Dense, Flatten, Pool
from ...._graph.declare.training_layers.batch_norm import BatchNorm
from ...._graph.declare.training_layers.dropout import Dropout, DropPath
from ...._graph.declare.training_layers.kernels import WeightNorm, WeightStandardize
from ...._graph.declare.training_layers.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ...._graph.declare.training_layers.spectral_norm import SpectralNorm
from ...._graph.name.flatten import Row
from ..weighted import _WithWeights
from .convolutions import conv, conv_transpose, local_conv
from .functions import Counterpart, Value, counterpart
from .lazy_torch import torch
from .norms import (
    batch_norm,
    dense,
    drop_path,
    dropout,
    flatten,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
    spectral_norm,
    weight_norm,
    weight_standardize,
)
from .pools import pool

Entry = Mapping[str, Any]
# Computes a row, called with its parameters, its state, its inputs, the size of the batch, and whether it is training;
# returns its value and its next state.
Run = Callable[[Any, Any, list[Value], Any, bool], tuple[Value, Any]]


def runner(row: Row) -> Run:
    """Return a function that computes a row of a graph in PyTorch.

    Args:
        row: the row.

    Returns:
        A function that computes it.

    Raises:
        FuncconvError: if PyTorch has no counterpart of its layer or its function.
    """
    try:
        if isinstance(row.op, Function):
            return _of_function(row.op, len(row.inputs))
        if isinstance(row.op, _WithWeights):
            return _of_weights(row.op)
        if isinstance(row.op, BatchNorm):
            return _of_batch_norm(row.op)
        if isinstance(row.op, SpectralNorm):
            return _of_spectral_norm(row.op)
        return _of_layer(row.op)
    except FuncconvError as error:
        msg = f"to_torch_module: node {row.name!r}: {error}"
        raise FuncconvError(msg) from None


def _of_function(layer: Function, operands: int) -> Run:
    function = counterpart(layer.op, operands, parametric=bool(layer.parametric))

    def run(params: Any, state: Any, xs: list[Value], batch: Any, train: bool) -> tuple[Value, Any]:  # noqa: FBT001
        del train
        if layer.batched:
            xs = [Value(x.for_batch(batch), has_batch=True) for x in xs]
        return function(xs, params=params, batched=bool(layer.batched)), state

    return run


def _of_weights(layer: _WithWeights) -> Run:
    function = counterpart(layer.op, len(layer.arguments))
    computed = [None if argument is None else _computed(argument) for argument in layer.arguments]
    kinds = {path: kind for path, _, _, kind, _ in layer.arrays}

    def run(params: Any, state: Any, xs: list[Value], batch: Any, train: bool) -> tuple[Value, Any]:  # noqa: FBT001
        del batch, train
        inputs = iter(xs)

        def array(path: str) -> Any:
            tree = params if kinds[path] == "param" else state
            for name in path.split("/") if path else ():
                tree = tree[name]
            return tree

        return function([next(inputs) if compute is None else compute(array) for compute in computed]), state

    return run


def _computed(argument: Any) -> Callable[[Callable[[str], Any]], Value]:
    """Return how a value is computed from the arrays of an entry, which have no batch axis."""
    function, *operands = argument
    if function == "array":
        return lambda array: Value(array(operands[0]), has_batch=False)
    apply: Counterpart = counterpart(function, len(operands))
    parts = [_computed(operand) for operand in operands]
    return lambda array: apply([part(array) for part in parts])


def _of_batch_norm(layer: BatchNorm) -> Run:
    if layer.axis_name is not None:
        msg = f"{layer!r} has no counterpart in PyTorch with axis_name, the axis of JAX that it is mapped over"
        raise FuncconvError(msg)

    def run(params: Any, state: Any, xs: list[Value], batch: Any, train: bool) -> tuple[Value, Any]:  # noqa: FBT001
        momentum = layer.momentum
        steps = state["count"] + 1 if train and "count" in state else None
        if momentum is None:  # the mean over all steps
            momentum = 0 if steps is None else 1 - 1 / steps.item()
        running = {name: state[name] for name in ("mean", "var")}
        x = xs[0].for_batch(batch)
        options: Any = {"momentum": momentum, "epsilon": layer.epsilon, "unbiased": layer.unbiased}
        y, new = batch_norm(params or {}, running, x, train=train, **options)
        return Value(y, has_batch=True), {**state, **new} | ({} if steps is None else {"count": steps})

    return run


def _of_spectral_norm(layer: SpectralNorm) -> Run:
    compute = _LAYERS[type(layer.layer)]
    plain = replace(layer.layer, accumulate_dtype=None)  # as in the layer, the vectors are at least float32

    def run(params: Any, state: Any, xs: list[Value], batch: Any, train: bool) -> tuple[Value, Any]:  # noqa: FBT001
        x = xs[0].for_batch(batch)

        def linear_map(kernel: Any, right: Any) -> Any:
            if layer.norm == "kernel":
                return torch.tensordot(right, kernel.movedim(layer.output_axis, -1), right.ndim)
            return compute(plain, {"kernel": kernel}, right[None], False)[0]  # noqa: FBT003

        iterations = layer.iterations if train else 0
        divided, new_state = spectral_norm(params, state, linear_map, iterations=iterations)
        return Value(compute(layer.layer, divided, x, train), has_batch=True), new_state

    return run


def _of_layer(layer: Layer) -> Run:
    compute = _LAYERS.get(type(layer))
    if compute is None:
        msg = f"the layer {layer!r} has no counterpart in PyTorch"
        msg += ". Part it into layers with fc.unstack(graph, params)" if layer.copies else ""
        raise FuncconvError(msg)
    if isinstance(layer, Pool):
        _reduce_of(layer)  # raises if there is none

    def run(params: Any, state: Any, xs: list[Value], batch: Any, train: bool) -> tuple[Value, Any]:  # noqa: FBT001
        return Value(compute(layer, params, xs[0].for_batch(batch), train), has_batch=True), state

    return run


def _reduce_of(layer: Pool) -> Any:
    return counterpart(layer.reduce, 1).function if callable(layer.reduce) else layer.reduce


_POOL_OPTIONS = (
    *("stride", "padding", "dilation", "pad_mode", "ties", "p", "temperature"),
    *("count_include_pad", "ceil_mode", "return_indices", "layout"),
)


def _pool(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del params, train
    spatial = len(layer.window) if isinstance(layer.window, tuple) else x.ndim - 2
    options = {name: getattr(layer, name) for name in _POOL_OPTIONS}
    return pool(x, layer.window, reduce=_reduce_of(layer), spatial=spatial, **options)


def _dense(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del train
    return dense(params, x, accumulate_dtype=layer.accumulate_dtype)


def _flatten(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del params, train
    return flatten(x, spatial=x.ndim - 2, order=layer.order, layout=layer.layout)


def _layer_norm(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del train
    return layer_norm(params or {}, x, axes=layer.axes, epsilon=layer.epsilon)


def _rms_norm(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del train
    return rms_norm(params or {}, x, axes=layer.axes, epsilon=layer.epsilon)


def _instance_norm(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del train
    return instance_norm(params or {}, x, epsilon=layer.epsilon, spatial=x.ndim - 2)


def _group_norm(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del train
    return group_norm(params or {}, x, layer.groups, epsilon=layer.epsilon, spatial=x.ndim - 2)


def _dropout(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del params
    if not train or layer.rate == 0:
        return x
    return dropout(x, layer.rate, spatial=x.ndim - 2 if layer.whole_channels and x.ndim > 1 else 0)


def _drop_path(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    del params
    return drop_path(x, layer.rate, spatial=x.ndim - 2) if train and layer.rate else x


def _weight_standardize(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    spatial = layer.positions(params) or None
    standardized = weight_standardize(params, spatial=spatial, epsilon=layer.epsilon)
    return _LAYERS[type(layer.layer)](layer.layer, standardized, x, train)


def _weight_norm(layer: Any, params: Any, x: Any, train: bool) -> Any:  # noqa: FBT001
    return _LAYERS[type(layer.layer)](layer.layer, weight_norm(params, axis=layer.axis(params)), x, train)


_LAYERS: dict[type, Callable[[Any, Any, Any, bool], Any]] = {
    Conv: lambda layer, params, x, _: conv(params, x, **layer.options()),
    ConvTranspose: lambda layer, params, x, _: conv_transpose(params, x, **layer.options()),
    LocalConv: lambda layer, params, x, _: local_conv(params, x, **layer.options()),
    Dense: _dense,
    Pool: _pool,
    Flatten: _flatten,
    LayerNorm: _layer_norm,
    GroupNorm: _group_norm,
    RMSNorm: _rms_norm,
    InstanceNorm: _instance_norm,
    Dropout: _dropout,
    DropPath: _drop_path,
    WeightStandardize: _weight_standardize,
    WeightNorm: _weight_norm,
}

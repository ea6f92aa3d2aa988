"""Modules of PyTorch: which operation each class is, and how those with weights become layers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from ..._graph.declare.conv_layers import Conv, ConvTranspose
from ..._graph.declare.layers import Dense
from ..._graph.declare.training_layers import BatchNorm, GroupNorm
from ..._ops.dense import dense
from ..._ops.norms import layer_norm
from . import ops as ops
from .translation import Arrays, Translation, Value
from .weights import as_numpy

Description = tuple[str, dict[str, Any]]  # the name of an operation, and the options that the module holds


def conv(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a convolution."""
    if len(x.shape) != len(module.kernel_size) + 1:
        translation.refuse(f"its input has shape {x.shape} without the batch")
    padding = module.padding
    make = partial(
        Conv,
        module.out_channels,
        tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=padding.upper() if isinstance(padding, str) else tuple(padding),  # "same", "valid" or numbers
        dilation=tuple(module.dilation),
        groups=module.groups,
        pad_mode=module.padding_mode,
        bias=module.bias is not None,
    )
    return translation.layer(make, x, _kernel(module))


def conv_transpose(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a transposed convolution."""
    make = partial(
        ConvTranspose,
        module.out_channels,
        tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=tuple(module.padding),
        dilation=tuple(module.dilation),
        groups=module.groups,
        output_padding=tuple(module.output_padding),
        bias=module.bias is not None,
    )
    return translation.layer(make, x, _kernel(module))


def linear(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a dense layer, which PyTorch applies to the last axis, whatever that axis is."""
    params = {"kernel": as_numpy(module.weight).T} | _bias(module)
    if len(x.shape) > 1:  # the last axis is not the one with the channels
        return translation.apply_with_weights(partial(ops.with_weights_channels_first, dense), x, params)
    make = partial(Dense, module.out_features, bias=module.bias is not None)
    return translation.layer(make, x, params)


def batch_norm(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a batch norm, whose momentum is the weight of the new statistics in PyTorch, of the old ones here."""
    if not module.track_running_stats or module.momentum is None:
        translation.refuse("a batch norm without running statistics, or with their plain mean")
    options = {"momentum": 1 - module.momentum, "epsilon": module.eps, "scale": module.affine, "bias": module.affine}
    state = {"mean": as_numpy(module.running_mean), "var": as_numpy(module.running_var)}
    return translation.layer(partial(BatchNorm, **options), x, _scale(module), state)


def group_norm(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a group norm."""
    make = partial(GroupNorm, module.num_groups, epsilon=module.eps, scale=module.affine, bias=module.affine)
    return translation.layer(make, x, _scale(module))


def instance_norm(translation: Translation, x: Value, module: Any) -> Value:
    """Translate an instance norm."""
    if module.track_running_stats:
        translation.refuse("an instance norm with running statistics")
    return translation.apply_with_weights(partial(ops.instance_norm, epsilon=module.eps), x, _scale(module))


def layer_norm_(translation: Translation, x: Value, module: Any) -> Value:
    """Translate a layer norm, which normalizes the last axes, so that PyTorch's order of axes matters."""
    op = partial(layer_norm, axes=len(module.normalized_shape), epsilon=module.eps)
    return translation.apply_with_weights(partial(ops.with_weights_channels_first, op), x, _scale(module))


HANDLERS: dict[str, Callable[..., Value]] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "linear": linear,
    "batch_norm": batch_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm_,
}


# the arrays of a module, in funcconv's layout ------------------------------------------------------------------


def _bias(module: Any) -> Arrays:
    return {} if module.bias is None else {"bias": as_numpy(module.bias)}


def _kernel(module: Any) -> Arrays:
    # PyTorch: (out, in // groups, *window); funcconv: (*window, in // groups, out). A transposed convolution has
    # (in, out // groups, *window), which is the kernel of the convolution that it transposes.
    return {"kernel": np.moveaxis(as_numpy(module.weight), (0, 1), (-1, -2))} | _bias(module)


def _scale(module: Any) -> Arrays:
    weight = getattr(module, "weight", None)
    return ({} if weight is None else {"scale": as_numpy(weight)}) | _bias(module)


# classes of modules --------------------------------------------------------------------------------------------


def _without_options(name: str) -> Callable[[Any], Description]:
    return lambda _: (name, {})


def _with_module(name: str) -> Callable[[Any], Description]:
    """Pass the module itself to the handler, which reads its weights."""
    return lambda module: (name, {"module": module})


def _with_options(name: str, *options: str) -> Callable[[Any], Description]:
    """Pass these attributes of the module to the handler, which the function of the same name takes as arguments."""
    return lambda module: (name, {option: getattr(module, option) for option in options})


DESCRIPTIONS: dict[str, Callable[[Any], Description]] = {
    "Linear": _with_module("linear"),
    "GroupNorm": _with_module("group_norm"),
    "LayerNorm": _with_module("layer_norm"),
    "ReLU": _without_options("relu"),
    "ReLU6": _without_options("relu6"),
    "SELU": _without_options("selu"),
    "SiLU": _without_options("silu"),
    "Mish": _without_options("mish"),
    "Hardswish": _without_options("hardswish"),
    "Hardsigmoid": _without_options("hardsigmoid"),
    "Sigmoid": _without_options("sigmoid"),
    "Tanh": _without_options("tanh"),
    "Softsign": _without_options("softsign"),
    "LogSigmoid": _without_options("logsigmoid"),
    "Identity": _without_options("identity"),
    "LeakyReLU": _with_options("leaky_relu", "negative_slope"),
    "ELU": _with_options("elu", "alpha"),
    "GELU": _with_options("gelu", "approximate"),
    "Softmax": _with_options("softmax", "dim"),
    "LogSoftmax": _with_options("log_softmax", "dim"),
    "Flatten": _with_options("flatten", "start_dim", "end_dim"),
    "Dropout": _with_options("dropout", "p"),
    "Upsample": _with_options("interpolate", "size", "scale_factor", "mode"),
    "Softplus": _with_options("softplus", "beta", "threshold"),
    "Hardtanh": _with_options("hardtanh", "min_val", "max_val"),
}

_MAX_POOL_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL_OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")

for _axes in (1, 2, 3):
    _divisor = () if _axes == 1 else ("divisor_override",)  # AvgPool1d does not have it
    DESCRIPTIONS |= {
        f"Conv{_axes}d": _with_module("conv"),
        f"ConvTranspose{_axes}d": _with_module("conv_transpose"),
        f"BatchNorm{_axes}d": _with_module("batch_norm"),
        f"InstanceNorm{_axes}d": _with_module("instance_norm"),
        f"Dropout{_axes}d": _with_options("dropout_of_channels", "p"),
        f"MaxPool{_axes}d": _with_options("max_pool", *_MAX_POOL_OPTIONS),
        f"AvgPool{_axes}d": _with_options("avg_pool", *_AVG_POOL_OPTIONS, *_divisor),
        f"AdaptiveAvgPool{_axes}d": _with_options("adaptive_avg_pool", "output_size"),
        f"AdaptiveMaxPool{_axes}d": _with_options("adaptive_max_pool", "output_size"),
        f"ZeroPad{_axes}d": lambda module: ("pad", {"pad": list(module.padding)}),
    }

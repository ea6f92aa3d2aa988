"""Norms, which are layers or functions with weights."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from ...._common.dtypes import wide
from ...._common.types import Number
from ...._graph.declare.layer import Layer
from ...._graph.declare.training_layers.batch_norm import BatchNorm
from ...._graph.declare.training_layers.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .. import ops
from ..tensors import Tensor
from ..translation import Translation
from .elementwise import binary
from .layers import apply_layer, module_of, with_last


def batch_norm(
    translation: Translation,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: Number | None,
    eps: Number,
    cudnn_enabled: bool = False,
) -> Tensor:
    del cudnn_enabled
    x = translation.channels_last(x)
    has_scale = weight is not None
    if training or running_mean is None or running_var is None:
        by_batch: Tensor = _by_batch(translation, x, weight, bias, eps)
        return by_batch
    weights = {"state/mean": running_mean, "state/var": running_var, "param/scale": weight, "param/bias": bias}
    owner = module_of(weights)
    layer, counter = None, ""
    if owner is not None:
        # PyTorch passes the momentum 0 where the module has None, which means the plain mean of all batches.
        momentum = getattr(translation.modules[owner[0]], "momentum", momentum)
        counter = f"{owner[0]}.num_batches_tracked".removeprefix(".")
        has_counter = counter in translation.program.tensors
        options: dict[str, Any] = {"epsilon": eps, "scale": has_scale, "bias": bias is not None, "count": has_counter}
        if momentum is not None or has_counter:
            layer = BatchNorm(momentum=None if momentum is None else 1 - momentum, **options)
    op = partial(ops.normalized_by, epsilon=eps, has_scale=has_scale)
    result: Tensor = apply_layer(translation, op, x, weights, x.sizes, x.axes, layer=layer)
    row = translation.rows[-1]
    if layer is not None and row.layer is layer and layer.count:
        row.arrays = {**row.arrays, "state/count": counter}
    return result


def _by_batch(translation: Translation, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: Number) -> Any:
    """Normalize by the batch at hand, in training or not."""
    if x.is_weight:
        tensors = [translation.as_pytorch(tensor) for tensor in (weight, bias) if tensor is not None]
        op = partial(ops.normalized_by_batch, epsilon=eps, has_scale=weight is not None)
        return translation.compute(op, (x, *tensors), x.sizes, x.axes)
    # A function that is written for a batch cannot take weights, which have no batch axis.
    op = partial(ops.normalized_by_batch, epsilon=eps)
    y: Any = translation.compute(op, (x,), x.sizes, x.axes, batched=True)
    for function, tensor in ((operator.mul, weight), (operator.add, bias)):
        if tensor is not None:
            y = binary(function, translation, y, tensor.with_axes((tensor.axes[0], *((),) * (x.rank - 2))))
    return y


def instance_norm(
    translation: Translation,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: Number,
    eps: Number,
    cudnn_enabled: bool = False,
) -> Tensor:
    del momentum, cudnn_enabled, running_mean, running_var
    if not use_input_stats:
        translation.refuse("an instance norm with running statistics")
    return _by_groups(translation, x, x.size(1), weight, bias, eps, InstanceNorm)


def group_norm(
    translation: Translation,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: Number = 1e-5,
    cudnn_enabled: bool = False,
) -> Tensor:
    del cudnn_enabled
    return _by_groups(translation, x, num_groups, weight, bias, eps, partial(GroupNorm, num_groups))


def _by_groups(
    translation: Translation,
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: Number,
    make_layer: Callable[..., Layer],
) -> Tensor:
    x = translation.channels_last(x)
    has_scale, spatial = weight is not None, x.rank - 2
    layer = None
    if not translation.extra(x):
        layer = make_layer(epsilon=eps, scale=has_scale, bias=bias is not None)
    return apply_layer(
        translation,
        partial(ops.normalized_groups, groups=groups, epsilon=eps, spatial=spatial, has_scale=has_scale),
        x,
        {"param/scale": weight, "param/bias": bias},
        x.sizes,
        x.axes,
        layer=layer,
    )


def layer_norm(
    translation: Translation,
    x: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: Number = 1e-5,
    cudnn_enable: bool = False,
) -> Tensor:
    del cudnn_enable
    axes = len(normalized_shape)
    x = with_last(translation, x, axes)
    has_scale = weight is not None
    return apply_layer(
        translation,
        partial(ops.normalized_layer, axes=axes, epsilon=eps, has_scale=has_scale),
        x,
        {"param/scale": weight, "param/bias": bias},
        x.sizes,
        x.axes,
        # With several axes, a LayerNorm has them in another order than PyTorch.
        layer=LayerNorm(epsilon=eps, scale=has_scale, bias=bias is not None) if axes == 1 else None,
    )


def rms_norm(
    translation: Translation, x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: Any = None
) -> Tensor:
    axes = len(normalized_shape)
    x = with_last(translation, x, axes)
    # PyTorch adds the eps of the dtype in which it computes the mean.
    epsilon = float(jnp.finfo(wide(translation.dtype())).eps) if eps is None else eps  # type: ignore[no-untyped-call]
    return apply_layer(
        translation,
        partial(ops.normalized_rms, axes=axes, epsilon=epsilon),
        x,
        {"param/scale": weight},
        x.sizes,
        x.axes,
        # With several axes, an RMSNorm has them in another order than PyTorch.
        layer=RMSNorm(epsilon=epsilon, scale=weight is not None) if axes == 1 else None,
    )


def weight_norm(translation: Translation, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if not (v.is_weight and g.is_weight):
        translation.refuse("of an activation")
    v, g = translation.as_pytorch(v), translation.as_pytorch(g)
    return translation.like(ops.weight_norm, v, g, axis=None if dim == -1 else dim % v.rank)


HANDLERS: dict[str, Callable[..., Any]] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "_weight_norm": weight_norm,
}

"""Operations that are layers: convolutions, linear maps and norms."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

from ...._common.types import Number
from ...._graph.declare.conv_layers import Conv, ConvTranspose
from ...._graph.declare.layer import Layer
from ...._graph.declare.layers import Dense
from ...._graph.declare.training_layers import BatchNorm, GroupNorm, LayerNorm
from .. import ops
from ..tensors import Axes, Tensor, Weight
from ..translation import PendingRow, Translation, as_tuple
from .elementwise import binary


def _module_of(weights: dict[str, Tensor | None]) -> tuple[str, dict[str, str]] | None:
    """Return the module that has these weights, and their names in PyTorch; None if it is not one module."""
    names = {}
    for name, tensor in weights.items():
        if tensor is not None:
            source = tensor.source
            if not isinstance(source, Weight) or source.op is not None:
                return None
            names[name] = source.tensor
    modules = {name.rpartition(".")[0] for name in names.values()}
    return (modules.pop(), names) if len(modules) == 1 else None


def _apply(
    translation: Translation,
    op: Callable[..., Any],
    x: Tensor,
    weights: dict[str, Tensor | None],
    sizes: tuple[int, ...],
    axes: Axes,
    *,
    layer: Layer | None = None,
    order: tuple[int, ...] = (),
) -> Tensor:
    """Apply a function of an input and weights, which is also a layer if the weights are those of one module.

    Args:
        translation: the translation.
        op: the function, called with the input and with those weights that are not None.
        x: the input.
        weights: by their names in the layer, `"param/kernel"` or `"state/mean"`.
        sizes: the stored sizes of the result.
        axes: the axes of the result.
        layer: the layer that computes the same. Default: none.
        order: how the axes of PyTorch's kernel are permuted to those of the layer's. Default: they are the same.

    Returns:
        The result.
    """
    given = [translation.as_pytorch(weight) for weight in weights.values() if weight is not None]
    if all(tensor.is_weight for tensor in (x, *given)):
        return translation.compute(op, (x, *given), sizes, axes)
    module = _module_of(weights) if layer is not None else None
    name = translation.new_name("")
    row = PendingRow(name, op, tuple(tensor.source for tensor in (x, *given)))
    kinds = translation.program.kinds
    expected = {"param": "param", "state": "buffer"}
    if module is not None and all(kinds[name] == expected[place.partition("/")[0]] for place, name in module[1].items()):
        row.layer, row.entry, row.arrays = layer, module[0].replace(".", "/") or translation.root, module[1]
        row.axes = {"param/kernel": order} if order else {}
    return translation.add(row, sizes, axes)


def _convolution(translation: Translation, x: Tensor, spatial: int) -> Tensor:
    x = translation.channels_last(x, spatial)
    if x.batch_axis is None and not x.is_weight:
        translation.refuse("its input has no batch axis")
    return x


def _image_result(translation: Translation, x: Tensor) -> tuple[tuple[int, ...], Axes]:
    """Return the stored sizes and axes of the current operation's result, an image like `x`."""
    sizes = tuple(dim.size for dim in translation.shape()[1:])
    extra = x.sizes[: translation.extra(x)]
    return (*extra, *sizes[1:], sizes[0]), x.axes


def conv(
    translation: Translation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    spatial = weight.rank - 2
    x = _convolution(translation, x, spatial)
    options = {
        "stride": as_tuple(stride, spatial),
        "padding": padding.upper() if isinstance(padding, str) else as_tuple(padding, spatial),
        "dilation": as_tuple(dilation, spatial),
        "groups": groups,
    }
    layer = None
    if not translation.extra(x):
        window = tuple(weight.size(axis) for axis in range(2, weight.rank))
        layer = Conv(weight.size(0), window, bias=bias is not None, **options)
    return _apply(
        translation,
        partial(ops.convolved, **options),
        x,
        {"param/kernel": weight, "param/bias": bias},
        *_image_result(translation, x),
        layer=layer,
        order=(*range(2, weight.rank), 1, 0),
    )


def conv_transpose(
    translation: Translation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    spatial = weight.rank - 2
    x = _convolution(translation, x, spatial)
    options = {
        "stride": as_tuple(stride, spatial),
        "padding": as_tuple(padding, spatial),
        "output_padding": as_tuple(output_padding, spatial),
        "groups": groups,
        "dilation": as_tuple(dilation, spatial),
    }
    layer = None
    if not translation.extra(x):
        window = tuple(weight.size(axis) for axis in range(2, weight.rank))
        layer = ConvTranspose(weight.size(1) * groups, window, bias=bias is not None, **options)
    return _apply(
        translation,
        partial(ops.convolved_transposed, **options),
        x,
        {"param/kernel": weight, "param/bias": bias},
        *_image_result(translation, x),
        layer=layer,
        order=(*range(2, weight.rank), 1, 0),
    )


def linear(translation: Translation, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    last = x.rank - 1
    x = _with_last(translation, x, 1)
    features = weight.size(0)
    sizes = (*x.sizes[:-1], features)
    axes = (*x.axes[:last], (len(x.sizes) - 1,))
    return _apply(
        translation,
        ops.linear,
        x,
        {"param/kernel": weight, "param/bias": bias},
        sizes,
        axes,
        layer=Dense(features, bias=bias is not None),
        order=(1, 0),
    )


def _with_last(translation: Translation, x: Tensor, count: int) -> Tensor:
    """Store a tensor so that its last axes, as PyTorch sees it, are stored last; the others keep their order."""
    last = list(range(x.rank - count, x.rank))
    if x.batch_axis in last:
        translation.refuse("its last axes have the batch")
    end = tuple(range(len(x.sizes) - count, len(x.sizes)))
    is_whole = all(i in (part for axis in x.axes for part in axis) for i in range(len(x.sizes)))
    if is_whole and tuple(x.axes[axis] for axis in last) == tuple((i,) for i in end):
        return x
    others = [axis for axis in range(x.rank - count) if axis != x.batch_axis]
    first = {axis: min(x.factors(axis), default=len(x.sizes)) for axis in others}
    return translation.stored(x, [*sorted(others, key=lambda axis: first[axis]), *last])


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
        return _by_batch(translation, x, weight, bias, eps)
    weights = {"state/mean": running_mean, "state/var": running_var, "param/scale": weight, "param/bias": bias}
    owner = _module_of(weights)
    layer = counter = None
    if owner is not None:
        # PyTorch passes the momentum 0 where the module has None, which means the plain mean of all batches.
        momentum = getattr(translation.modules[owner[0]], "momentum", momentum)
        counter = f"{owner[0]}.num_batches_tracked".removeprefix(".")
        has_counter = counter in translation.program.tensors
        options = {"epsilon": eps, "scale": has_scale, "bias": bias is not None, "count": has_counter}
        if momentum is not None or has_counter:
            layer = BatchNorm(momentum=None if momentum is None else 1 - momentum, **options)
    op = partial(ops.normalized_by, epsilon=eps, has_scale=has_scale)
    result = _apply(translation, op, x, weights, x.sizes, x.axes, layer=layer)
    row = translation.rows[-1]
    if layer is not None and row.layer is layer and layer.count:
        row.arrays = {**row.arrays, "state/count": counter}
    return result


def _by_batch(translation: Translation, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: Number) -> Tensor:
    """Normalize by the batch at hand, in training or not."""
    if x.is_weight:
        given = [translation.as_pytorch(tensor) for tensor in (weight, bias) if tensor is not None]
        op = partial(ops.normalized_by_batch, epsilon=eps, has_scale=weight is not None)
        return translation.compute(op, (x, *given), x.sizes, x.axes)
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
    return group_norm(translation, x, x.size(1), weight, bias, eps)


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
    x = translation.channels_last(x)
    has_scale, spatial = weight is not None, x.rank - 2
    layer = None
    if not translation.extra(x):
        layer = GroupNorm(num_groups, epsilon=eps, scale=has_scale, bias=bias is not None)
    return _apply(
        translation,
        partial(ops.normalized_groups, groups=num_groups, epsilon=eps, spatial=spatial, has_scale=has_scale),
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
    x = _with_last(translation, x, axes)
    has_scale = weight is not None
    return _apply(
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
    x = _with_last(translation, x, axes)
    op = partial(ops.normalized_rms, axes=axes, epsilon=eps)
    return _apply(translation, op, x, {"param/scale": weight}, x.sizes, x.axes)


def weight_norm(translation: Translation, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if not (v.is_weight and g.is_weight):
        translation.refuse("of an activation")
    v, g = translation.as_pytorch(v), translation.as_pytorch(g)
    return translation.like(ops.weight_norm, v, g, axis=None if dim == -1 else dim % v.rank)


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    "linear": linear,
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "_weight_norm": weight_norm,
}

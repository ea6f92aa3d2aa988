"""Operations that are layers: convolutions and linear maps."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ...._graph.declare.conv_layers import Conv, ConvTranspose
from ...._graph.declare.layer import Layer
from ...._graph.declare.layers import Dense
from .. import ops
from ..names.array import TORCH_NAMES
from ..rows import Arrangement
from ..tensors import Axes, Tensor, Weight, whole
from ..translation import PendingRow, Translation, as_tuple
from .parametrizations import normalized_layer


def module_of(weights: dict[str, Tensor | None]) -> tuple[str, dict[str, str]] | None:
    """Return the module that has these weights, and their names in PyTorch; None if no layer has them like this."""
    names = {}
    for name, tensor in weights.items():
        if tensor is not None:
            source = tensor.source
            if (
                not isinstance(source, Weight)
                or source.op is not None
                or tensor.axes != whole(source, tensor.sizes, None).axes
            ):
                return None
            if source.tensor.rpartition(".")[2] != TORCH_NAMES[name.partition("/")[2]]:
                return None
            names[name] = source.tensor
    modules = {name.rpartition(".")[0] for name in names.values()}
    return (modules.pop(), names) if len(modules) == 1 else None


def apply_layer(
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
    tensors = [translation.as_pytorch(weight) for weight in weights.values() if weight is not None]
    if all(tensor.is_weight for tensor in (x, *tensors)):
        return translation.compute(op, (x, *tensors), sizes, axes)
    module = module_of(weights) if layer is not None else None
    arrangements = {"param/kernel": Arrangement(order)} if order else {}
    if layer is not None and module is None and order:
        normalized = normalized_layer(translation, layer, weights, order)
        if normalized is not None:
            layer, arrangements = normalized.layer, normalized.arrangements
            module = (normalized.module, normalized.arrays)
    name = translation.new_name("")
    row = PendingRow(name, op, tuple(tensor.source for tensor in (x, *tensors)))
    kinds = translation.program.kinds
    expected = {"param": "param", "state": "buffer"}
    if module is not None and all(
        kinds[name] == expected[place.partition("/")[0]] for place, name in module[1].items()
    ):
        row.layer, row.entry, row.arrays = layer, module[0].replace(".", "/") or translation.root, module[1]
        row.arrangements = arrangements
    return translation.add(row, sizes, axes)


def _convolution(translation: Translation, x: Tensor, spatial: int) -> Tensor:
    x = translation.channels_last(x, spatial)
    if x.batch_axis is None and not x.is_weight:
        translation.refuse("its input has no batch axis")
    return x


def _image_result(translation: Translation, x: Tensor) -> tuple[tuple[int, ...], Axes]:
    """Return the stored sizes and axes of the current operation's result, an image like `x`."""
    sizes = tuple(dim.size for dim in translation.shape()[1:])
    # An image that depends on no input may have several examples, too.
    extra = x.sizes[: translation.extra(x)] if x.batch_axis is not None else x.sizes[:1]
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
    options: dict[str, Any] = {
        "stride": as_tuple(stride, spatial),
        "padding": padding.upper() if isinstance(padding, str) else as_tuple(padding, spatial),
        "dilation": as_tuple(dilation, spatial),
        "groups": groups,
    }
    layer = None
    if not translation.extra(x):
        window = tuple(weight.size(axis) for axis in range(2, weight.rank))
        layer = Conv(weight.size(0), window, bias=bias is not None, **options)
    return apply_layer(
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
    options: dict[str, Any] = {
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
    return apply_layer(
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
    x = with_last(translation, x, 1)
    features = weight.size(0)
    sizes = (*x.sizes[:-1], features)
    axes = (*x.axes[:last], (len(x.sizes) - 1,))
    return apply_layer(
        translation,
        ops.linear,
        x,
        {"param/kernel": weight, "param/bias": bias},
        sizes,
        axes,
        layer=Dense(features, bias=bias is not None),
        order=(1, 0),
    )


def with_last(translation: Translation, x: Tensor, count: int) -> Tensor:
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


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), conv_transpose),
    "linear": linear,
}

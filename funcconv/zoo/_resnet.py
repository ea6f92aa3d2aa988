"""Residual networks: ResNet, ResNeXt and Wide ResNet."""

from functools import partial
from typing import Any

import jax

from .._common.types import Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import add
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense, Pool
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.use.graph import Graph
from .._ops.pooling.global_pool import global_pool
from ._inits import he_normal_by_outputs
from ._parts import below, conv_norm, variant

_BASIC = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}  # blocks of each stage, by the number of layers with weights
_BOTTLENECK = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(depth: int, *, classes: int = 1000, input_shape: Shape = (224, 224, 3)) -> Graph:
    """Build a residual network: a 7x7 convolution, a max pool, four stages of residual blocks and a dense layer.

    Layers and names are those of torchvision's `resnet18` to `resnet152`. Networks of 18 and 34 layers have blocks of
    two 3x3 convolutions. Deeper ones have bottlenecks of a 1x1, a 3x3 and a 1x1 convolution; the stride is that of the
    3x3 convolution, while the paper has it in the first one. The number of parameters is 11,689,512 (18 layers),
    21,797,672 (34), 25,557,032 (50), 44,549,160 (101) and 60,192,808 (152) for 1000 classes. Kernels are drawn with
    variance `2 / fan_out`, the dense layer uniformly within `±1 / sqrt(fan_in)`.

    Args:
        depth: number of layers with weights: 18, 34, 50, 101 or 152.
        classes: number of features of the result. Default: 1000.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of
            any size. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `conv1`, `bn1`, `layer1/0/conv1`, ..., `layer4/1/bn2` and `fc`. It has a state, the running statistics of the
        batch norms.

    Raises:
        FuncconvError: if there is no such depth, or a number is not positive.

    Source: He et al., "Deep residual learning for image recognition", 2015, arXiv:1512.03385.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.resnet(18, classes=10, input_shape=(32, 32, 3))
        >>> graph.shapes()["fc"].shape, fc.summary(graph).parameters
        ((10,), 11181642)
        >>> graph.entries[:4]
        ('conv1', 'bn1', 'layer1/0/conv1', 'layer1/0/bn1')
    """
    blocks = variant("resnet", "depth", depth, _BASIC | _BOTTLENECK)
    block = _basic if depth in _BASIC else partial(_bottleneck, groups=1, group_width=64)
    return _network(blocks, block, classes, input_shape)


def resnext(
    depth: int,
    *,
    groups: int = 32,
    group_width: int = 4,
    classes: int = 1000,
    input_shape: Shape = (224, 224, 3),
) -> Graph:
    """Build a ResNeXt: a residual network whose 3x3 convolutions have groups.

    Layers and names are those of torchvision's `resnext50_32x4d` (25,028,904 parameters for 1000 classes),
    `resnext101_32x8d` (88,791,336) and `resnext101_64x4d` (83,455,272): a depth, a number of groups and channels for
    each group. The 3x3 convolutions of stage `i`, from 0, have `groups` groups of `group_width * 2**i` channels.
    Everything else is as in `fc.zoo.resnet(50)`. Kernels are drawn with variance `2 / fan_out`, the dense layer
    uniformly within `±1 / sqrt(fan_in)`.

    Args:
        depth: number of layers with weights: 50, 101 or 152.
        groups: number of groups, the cardinality. Default: 32.
        group_width: channels of each group in the first stage. Default: 4.
        classes: number of features of the result. Default: 1000.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of
            any size. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `conv1`, `bn1`, `layer1/0/conv1`, ..., `layer4/2/bn3` and `fc`. It has a state, the running statistics of the
        batch norms.

    Raises:
        FuncconvError: if there is no such depth, or a number is not positive.

    Source: Xie et al., "Aggregated residual transformations for deep neural networks", 2016, arXiv:1611.05431.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.resnext(50, input_shape=(32, 32, 3))
        >>> graph.shapes()["fc"].shape, fc.summary(graph).parameters
        ((1000,), 25028904)
    """
    blocks = variant("resnext", "depth", depth, _BOTTLENECK)
    return _network(blocks, partial(_bottleneck, groups=groups, group_width=group_width), classes, input_shape)


def wide_resnet(
    depth: int,
    *,
    width: int = 2,
    classes: int = 1000,
    input_shape: Shape = (224, 224, 3),
) -> Graph:
    """Build a wide residual network: a residual network whose 3x3 convolutions have more channels.

    Layers and names are those of torchvision's `wide_resnet50_2` (68,883,240 parameters for 1000 classes) and
    `wide_resnet101_2` (126,886,696). The 3x3 convolutions have `width` times as many channels as in
    `fc.zoo.resnet(50)`; everything else is the same. Kernels are drawn with variance `2 / fan_out`, the dense layer
    uniformly within `±1 / sqrt(fan_in)`.

    Args:
        depth: number of layers with weights: 50, 101 or 152.
        width: factor of the number of channels. Default: 2.
        classes: number of features of the result. Default: 1000.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of
            any size. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `conv1`, `bn1`, `layer1/0/conv1`, ..., `layer4/2/bn3` and `fc`. It has a state, the running statistics of the
        batch norms.

    Raises:
        FuncconvError: if there is no such depth, or a number is not positive.

    Source: Zagoruyko and Komodakis, "Wide residual networks", 2016, arXiv:1605.07146.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.wide_resnet(50, input_shape=(32, 32, 3))
        >>> graph.shapes()["fc"].shape, fc.summary(graph).parameters
        ((1000,), 68883240)
    """
    blocks = variant("wide_resnet", "depth", depth, _BOTTLENECK)
    return _network(blocks, partial(_bottleneck, groups=1, group_width=64 * width), classes, input_shape)


def _network(counts: tuple[int, ...], block: Any, classes: int, input_shape: Shape) -> Graph:
    image = Input("image", input_shape)
    stem = serial(_conv(64, 7, "conv1", stride=2), BatchNorm(name="bn1"), jax.nn.relu, Pool(3, stride=2, padding=1))
    x = stem(image)
    for stage, count in enumerate(counts):
        layers = partial(_stage, block, count, channels=64 << stage, stride=2 if stage > 0 else 1)
        x = below(f"layer{stage + 1}", layers, x)
    return Graph(image, serial(global_pool, Dense(classes, init="torch", name="fc"))(x))


def _stage(block: Any, count: int, x: Any, channels: int, stride: int) -> Any:
    for i in range(count):
        x = below(str(i), partial(block, channels=channels, stride=stride if i == 0 else 1), x)
    return x


def _basic(x: Any, channels: int, stride: int) -> Any:
    layers = serial(
        _conv(channels, 3, "conv1", stride=stride),
        BatchNorm(name="bn1"),
        jax.nn.relu,
        _conv(channels, 3, "conv2"),
        BatchNorm(name="bn2"),
    )
    return _with_shortcut(x, layers, channels, stride)


def _bottleneck(x: Any, channels: int, stride: int, groups: int, group_width: int) -> Any:
    width = groups * (channels * group_width // 64)
    layers = serial(
        _conv(width, 1, "conv1"),
        BatchNorm(name="bn1"),
        jax.nn.relu,
        _conv(width, 3, "conv2", stride=stride, groups=groups),
        BatchNorm(name="bn2"),
        jax.nn.relu,
        _conv(4 * channels, 1, "conv3"),
        BatchNorm(name="bn3"),
    )
    return _with_shortcut(x, layers, 4 * channels, stride)


def _with_shortcut(x: Any, layers: Any, channels: int, stride: int) -> Any:
    """Add the input to the result of layers, projected by a 1x1 convolution if the shapes differ."""
    y, shortcut = layers(x), x
    if stride > 1 or x.shape[-1] != channels:
        shortcut = below("downsample", conv_norm(channels, 1, stride=stride), x)
    return serial(jax.nn.relu)(add(y, shortcut))


def _conv(channels: int, window: int, name: str, *, stride: int = 1, groups: int = 1) -> Conv:
    options: Any = {"stride": stride, "groups": groups, "padding": "HALF", "bias": False}
    return Conv(channels, window, **options, init=he_normal_by_outputs, name=name)

"""MobileNetV2."""

from functools import partial
from typing import Any

import jax

from .._common.types import Number, Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import add
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.declare.training_layers.dropout import Dropout
from .._graph.use.graph import Graph
from .._ops.pooling.global_pool import global_pool
from ._inits import he_normal_by_outputs, normal_with_deviation_001
from ._parts import below, conv_norm, rounded_channels

_STAGES = (  # expansion, channels, blocks, stride of the first block: table 2 of the paper
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(
    width: Number = 1.0, *, classes: int = 1000, dropout: Number = 0.2, input_shape: Shape = (224, 224, 3)
) -> Graph:
    """Build a MobileNetV2: inverted residual blocks of a 1x1, a depthwise 3x3 and a 1x1 convolution.

    Layers and names are those of torchvision's `mobilenet_v2`. The activation is `min(max(x, 0), 6)`. It has 3,504,872
    parameters for a width of 1 and 1000 classes. Kernels are drawn with variance `2 / fan_out`, that of the dense layer
    with the standard deviation 0.01; biases are zero.

    Args:
        width: factor of the number of channels of each layer, rounded to a multiple of 8 that is at least nine tenths
            of the product. The last convolution has at least 1280 channels. Default: 1.0.
        classes: number of features of the result. Default: 1000.
        dropout: rate of the dropout in front of the dense layer. Default: 0.2.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of
            any size. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `features/0/0`, `features/0/1`, `features/1/conv/0/0`, ..., and `classifier/1`. It has a state, the running
        statistics of the batch norms.

    Raises:
        FuncconvError: if a number is not positive.

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018, arXiv:1801.04381.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.mobilenet_v2(classes=10, input_shape=(32, 32, 3))
        >>> graph.shapes()["classifier/1"].shape, fc.summary(graph).parameters
        ((10,), 2236682)
    """
    image = Input("image", input_shape)

    def features(x: Any) -> Any:
        x = below("0", conv_norm(rounded_channels(32 * width), 3, stride=2, activation=jax.nn.relu6), x)
        index = 1
        for expansion, channels, count, stride in _STAGES:
            for i in range(count):
                options: Any = {"stride": stride if i == 0 else 1, "expansion": expansion}
                x = below(str(index), partial(_block, channels=rounded_channels(channels * width), **options), x)
                index += 1
        last = rounded_channels(1280 * max(1.0, width))
        return below(str(index), conv_norm(last, 1, activation=jax.nn.relu6), x)

    x = serial(global_pool, Dropout(dropout))(below("features", features, image))
    return Graph(image, below("classifier", Dense(classes, init=normal_with_deviation_001, name="1"), x))


def _block(x: Any, channels: int, stride: int, expansion: int) -> Any:
    wide = expansion * x.shape[-1]

    def layers(y: Any) -> Any:
        depthwise = conv_norm(wide, 3, stride=stride, groups=wide, activation=jax.nn.relu6)
        parts = [depthwise] if expansion == 1 else [conv_norm(wide, 1, activation=jax.nn.relu6), depthwise]
        for i, part in enumerate(parts):
            y = below(str(i), part, y)
        last = Conv(channels, 1, bias=False, init=he_normal_by_outputs, name=str(len(parts)))
        return BatchNorm(name=str(len(parts) + 1))(last(y))

    y = below("conv", layers, x)
    return add(x, y) if y.shape == x.shape else y

"""EfficientNets."""

import math
from functools import partial
from typing import Any

import jax

from .._common.types import Number, Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import add
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense
from .._graph.declare.node import Input
from .._graph.declare.training_layers.dropout import Dropout, DropPath
from .._graph.use.graph import Graph
from .._ops.pooling.adaptive import adaptive_pool
from .._ops.pooling.global_pool import global_pool
from ._inits import he_normal_by_outputs, uniform_by_outputs
from ._parts import below, conv_norm, rounded_channels, variant

_STAGES = (  # expansion, window, stride of the first block, channels, blocks: table 1 of the paper
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_VARIANTS = {  # factor of the channels, factor of the blocks, dropout
    "b0": (1.0, 1.0, 0.2),
    "b1": (1.0, 1.1, 0.2),
    "b2": (1.1, 1.2, 0.3),
    "b3": (1.2, 1.4, 0.3),
    "b4": (1.4, 1.8, 0.4),
    "b5": (1.6, 2.2, 0.4),
    "b6": (1.8, 2.6, 0.5),
    "b7": (2.0, 3.1, 0.5),
}


def efficientnet(
    size: str,
    *,
    classes: int = 1000,
    dropout: Number | None = None,
    drop_path: Number = 0.2,
    input_shape: Shape = (224, 224, 3),
) -> Graph:
    """Build an EfficientNet: inverted residual blocks with squeeze and excitation, wider and deeper from b0 to b7.

    Layers and names are those of torchvision's `efficientnet_b0` to `efficientnet_b7`. The activation is
    `x * sigmoid(x)`. The number of parameters is 5,288,548 (b0), 7,794,184 (b1), 9,109,994 (b2), 12,233,232 (b3),
    19,341,616 (b4), 30,389,784 (b5), 43,040,704 (b6) and 66,347,960 (b7) for 1000 classes. Kernels are drawn with
    variance `2 / fan_out`, that of the dense layer uniformly within `±1 / sqrt(classes)`; biases are zero.

    Args:
        size: `"b0"`, `"b1"`, ... or `"b7"`. The paper trains them on images of 224, 240, 260, 300, 380, 456, 528 and
            600 pixels.
        classes: number of features of the result. Default: 1000.
        dropout: rate of the dropout in front of the dense layer. Default: None, the published one: 0.2 (b0, b1), 0.3
            (b2, b3), 0.4 (b4, b5) or 0.5 (b6, b7).
        drop_path: rate of stochastic depth behind the last block. It grows linearly from 0 in the first block.
            Default: 0.2.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of
            any size. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `features/0/0`, `features/0/1`, `features/1/0/block/0/0`, ..., and `classifier/1`. It has a state, the running
        statistics of the batch norms.

    Raises:
        FuncconvError: if there is no such size, or a number is not positive.

    Source: Tan and Le, "EfficientNet: rethinking model scaling for convolutional neural networks", 2019,
        arXiv:1905.11946.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.efficientnet("b0", classes=10, input_shape=(32, 32, 3))
        >>> graph.shapes()["classifier/1"].shape, fc.summary(graph).parameters
        ((10,), 4020358)
    """
    width, depth, published_dropout = variant("efficientnet", "size", size, _VARIANTS)
    counts = [math.ceil(count * depth) for *_, count in _STAGES]
    # The three large networks were trained with TensorFlow, whose batch norms have other options.
    norm: Any = {"epsilon": 1e-3, "momentum": 0.99} if size in ("b5", "b6", "b7") else {}
    conv: Any = partial(conv_norm, activation=jax.nn.silu, **norm)
    image = Input("image", input_shape)

    def features(x: Any) -> Any:
        x = below("0", conv(rounded_channels(32 * width), 3, stride=2), x)
        for stage, (expansion, window, stride, channels, _) in enumerate(_STAGES):
            first, count = sum(counts[:stage]), counts[stage]
            rates = [drop_path * i / sum(counts) for i in range(first, first + count)]
            block = partial(_block, conv, expansion, window, rounded_channels(channels * width))
            x = below(str(stage + 1), partial(_stage, block, stride, rates), x)
        return below("8", conv(4 * x.shape[-1], 1), x)

    layers = serial(global_pool, Dropout(published_dropout if dropout is None else dropout))
    x = layers(below("features", features, image))
    return Graph(image, below("classifier", Dense(classes, init=uniform_by_outputs, name="1"), x))


def _stage(block: Any, stride: int, rates: list[float], x: Any) -> Any:
    for i, rate in enumerate(rates):
        x = below(str(i), partial(block, stride if i == 0 else 1, rate), x)
    return x


def _block(conv: Any, expansion: int, window: int, channels: int, stride: int, rate: float, x: Any) -> Any:
    narrow = x.shape[-1]
    wide = rounded_channels(expansion * narrow)
    parts = [
        conv(wide, 1),
        conv(wide, window, stride=stride, groups=wide),
        partial(_squeeze_and_excite, max(1, narrow // 4)),
        conv(channels, 1, activation=None),
    ]

    def layers(x: Any) -> Any:
        for i, part in enumerate(parts if wide != narrow else parts[1:]):
            x = below(str(i), part, x)
        return x

    y = below("block", layers, x)
    return add(DropPath(rate)(y), x) if y.shape == x.shape else y


def _squeeze_and_excite(channels: int, x: Any) -> Any:
    """Multiply each channel by a number from 0 to 1, which depends on the means of all channels."""
    scale = serial(
        partial(adaptive_pool, output_size=1),
        Conv(channels, 1, init=he_normal_by_outputs, name="fc1"),
        jax.nn.silu,
        Conv(x.shape[-1], 1, init=he_normal_by_outputs, name="fc2"),
        jax.nn.sigmoid,
    )
    return scale(x) * x

"""VGG networks."""

from functools import partial
from typing import Any

import jax

from .._common.types import Number, Shape
from .._graph.combine.compose import serial
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense, Flatten, Pool
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.declare.training_layers.dropout import Dropout
from .._graph.use.graph import Graph
from .._ops.pooling.adaptive import adaptive_pool
from ._inits import he_normal_by_outputs, normal_with_deviation_001
from ._parts import below, variant

_CONVOLUTIONS = {  # of each stage, by the number of layers with weights
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg(
    depth: int,
    *,
    batch_norm: bool = False,
    classes: int = 1000,
    dropout: Number = 0.5,
    input_shape: Shape = (224, 224, 3),
) -> Graph:
    """Build a VGG network: five stages of 3x3 convolutions, each with a max pool, and three dense layers.

    Layers and names are those of torchvision's `vgg11` to `vgg19` and `vgg11_bn` to `vgg19_bn`. The number of
    parameters is 132,863,336 (11 layers), 133,047,848 (13), 138,357,544 (16) and 143,667,240 (19) for 1000 classes. A
    mean pool gives the last image 7x7 positions, whatever the size of the input. Kernels are drawn with variance
    `2 / fan_out`, those of the dense layers with the standard deviation 0.01; biases are zero.

    Args:
        depth: number of layers with weights: 11, 13, 16 or 19 (the columns A, B, D and E of the paper's table 1).
        batch_norm: whether each convolution is followed by a batch norm. Default: False, as in the paper.
        classes: number of features of the result. Default: 1000.
        dropout: rate of the two dropout layers. Default: 0.5.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of at
            least 32 positions. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `features/0`, `features/2`, ..., `classifier/0`, `classifier/3` and `classifier/6`.

    Raises:
        FuncconvError: if there is no such depth, the image is too small, or a number is not positive.

    Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2014,
        arXiv:1409.1556.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.vgg(11, classes=10, input_shape=(32, 32, 3))
        >>> graph.shapes()["classifier/6"].shape, fc.summary(graph).parameters
        ((10,), 128807306)
    """
    stages = variant("vgg", "depth", depth, _CONVOLUTIONS)
    image = Input("image", input_shape)

    def features(x: Any) -> Any:
        index = 0  # in PyTorch activations and pools have a number too
        for stage, count in enumerate(stages):
            for _ in range(count):
                x = Conv(min(64 << stage, 512), 3, padding=1, init=he_normal_by_outputs, name=str(index))(x)
                if batch_norm:
                    x = BatchNorm(name=str(index + 1))(x)
                x = serial(jax.nn.relu)(x)
                index += 3 if batch_norm else 2
            x = Pool(2)(x)
            index += 1
        return x

    def dense(features: int, name: str) -> Dense:
        return Dense(features, init=normal_with_deviation_001, name=name)

    classifier = serial(
        partial(adaptive_pool, output_size=7),
        Flatten(),
        dense(4096, "0"),
        jax.nn.relu,
        Dropout(dropout),
        dense(4096, "3"),
        jax.nn.relu,
        Dropout(dropout),
        dense(classes, "6"),
    )
    return Graph(image, below("classifier", classifier, below("features", features, image)))

"""Densely connected networks."""

from functools import partial
from typing import Any

import jax

from .._common.types import Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import concat
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense, Pool
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.use.graph import Graph
from .._ops.pooling.global_pool import global_pool
from .._ops.pooling.named import avg_pool
from ._parts import below, variant

_VARIANTS = {  # growth, channels of the first convolution, layers of each block
    121: (32, 64, (6, 12, 24, 16)),
    161: (48, 96, (6, 12, 36, 24)),
    169: (32, 64, (6, 12, 32, 32)),
    201: (32, 64, (6, 12, 48, 32)),
}


def densenet(depth: int, *, classes: int = 1000, input_shape: Shape = (224, 224, 3)) -> Graph:
    """Build a DenseNet-BC: in a block, each layer reads the results of all layers before it.

    Layers and names are those of torchvision's `densenet121` to `densenet201`. A layer is a batch norm, ReLU and a 1x1
    convolution, and again with a 3x3 convolution, which adds 32 channels (48 if `depth` is 161). Between the four
    blocks, a 1x1 convolution halves the number of channels and a mean pool the size. The number of parameters is
    7,978,856 (121 layers), 28,681,000 (161), 14,149,480 (169) and 20,013,928 (201) for 1000 classes. Kernels are drawn
    with variance `2 / fan_in`, that of the dense layer uniformly within `±1 / sqrt(fan_in)`.

    Args:
        depth: number of layers with weights: 121, 161, 169 or 201.
        classes: number of features of the result. Default: 1000.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of at
            least 29 positions. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `features/conv0`, `features/norm0`, `features/denseblock1/denselayer1/norm1`, ..., `features/norm5` and
        `classifier`. It has a state, the running statistics of the batch norms.

    Raises:
        FuncconvError: if there is no such depth, the image is too small, or a number is not positive.

    Source: Huang et al., "Densely connected convolutional networks", 2016, arXiv:1608.06993.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.densenet(121, input_shape=(32, 32, 3))
        >>> graph.shapes()["classifier"].shape, fc.summary(graph).parameters
        ((1000,), 7978856)
    """
    growth, channels, counts = variant("densenet", "depth", depth, _VARIANTS)
    image = Input("image", input_shape)

    def features(x: Any) -> Any:
        stem = Conv(channels, 7, stride=2, padding=3, bias=False, init="he_normal", name="conv0")
        x = serial(stem, BatchNorm(name="norm0"), jax.nn.relu, Pool(3, stride=2, padding=1))(x)
        for i, count in enumerate(counts, 1):
            x = below(f"denseblock{i}", partial(_block, count=count, growth=growth), x)
            if i < len(counts):
                x = below(f"transition{i}", _transition, x)
        return BatchNorm(name="norm5")(x)

    layers = serial(jax.nn.relu, global_pool, Dense(classes, init="torch", name="classifier"))
    return Graph(image, layers(below("features", features, image)))


def _block(x: Any, count: int, growth: int) -> Any:
    for i in range(1, count + 1):
        layer = serial(
            BatchNorm(name="norm1"),
            jax.nn.relu,
            Conv(4 * growth, 1, bias=False, init="he_normal", name="conv1"),
            BatchNorm(name="norm2"),
            jax.nn.relu,
            Conv(growth, 3, padding=1, bias=False, init="he_normal", name="conv2"),
        )
        x = concat(x, below(f"denselayer{i}", layer, x))
    return x


def _transition(x: Any) -> Any:
    conv = Conv(x.shape[-1] // 2, 1, bias=False, init="he_normal", name="conv")
    return serial(BatchNorm(name="norm"), jax.nn.relu, conv, avg_pool)(x)

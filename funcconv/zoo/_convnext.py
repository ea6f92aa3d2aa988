"""ConvNeXt."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._common.types import Number, Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import add
from .._graph.declare.conv_layers import Conv
from .._graph.declare.function import node
from .._graph.declare.layers import Dense
from .._graph.declare.node import Input
from .._graph.declare.training_layers.dropout import DropPath
from .._graph.declare.training_layers.norms import LayerNorm
from .._graph.use.graph import Graph
from .._ops.pooling.global_pool import global_pool
from ._inits import normal_with_deviation_002, small_scale
from ._parts import below, variant

_VARIANTS = {  # blocks and channels of each stage, stochastic depth
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768), 0.1),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768), 0.4),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024), 0.5),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536), 0.5),
}


def convnext(
    size: str, *, classes: int = 1000, drop_path: Number | None = None, input_shape: Shape = (224, 224, 3)
) -> Graph:
    """Build a ConvNeXt: residual blocks of a depthwise 7x7 convolution, a layer norm and two dense layers.

    Layers and names are those of torchvision's `convnext_tiny` to `convnext_large`. The result of a block is multiplied
    by a learned scale for each channel (`layer_scale`), which begins with 1e-6. The number of parameters is 28,589,128
    (tiny), 50,223,688 (small), 88,591,464 (base) and 197,767,336 (large) for 1000 classes. Kernels are drawn with the
    standard deviation 0.02; biases are zero.

    Args:
        size: `"tiny"`, `"small"`, `"base"` or `"large"`.
        classes: number of features of the result. Default: 1000.
        drop_path: rate of stochastic depth in the last block. It grows linearly from 0 in the first block. Default:
            None, the published one: 0.1 (tiny), 0.4 (small) or 0.5 (base, large).
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of at
            least 32 positions. Default: `(224, 224, 3)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `features/0/0`, `features/0/1`, `features/1/0/block/0`, ..., `classifier/0` and `classifier/2`.

    Raises:
        FuncconvError: if there is no such size, the image is too small, or a number is not positive.

    Source: Liu et al., "A ConvNet for the 2020s", 2022, arXiv:2201.03545.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.convnext("tiny", classes=10, input_shape=(32, 32, 3))
        >>> graph.shapes()["classifier/2"].shape, fc.summary(graph).parameters
        ((10,), 27827818)
    """
    counts, channels, published_drop_path = variant("convnext", "size", size, _VARIANTS)
    rate = published_drop_path if drop_path is None else drop_path
    rates = [rate * block / (sum(counts) - 1) for block in range(sum(counts))]
    image = Input("image", input_shape)

    def features(x: Any) -> Any:
        x = below("0", serial(_patches(channels[0], 4, "0"), _norm("1")), x)
        for stage, count in enumerate(counts):
            if stage > 0:
                x = below(str(2 * stage), serial(_norm("0"), _patches(channels[stage], 2, "1")), x)
            first = sum(counts[:stage])
            x = below(str(2 * stage + 1), partial(_stage, rates[first : first + count]), x)
        return x

    classifier = serial(_norm("0"), _dense(classes, "2"))
    return Graph(image, below("classifier", classifier, serial(global_pool)(below("features", features, image))))


def _stage(rates: list[float], x: Any) -> Any:
    for i, rate in enumerate(rates):
        x = below(str(i), partial(_block, rate), x)
    return x


def _block(rate: float, x: Any) -> Any:
    channels = x.shape[-1]
    layers = serial(
        Conv(channels, 7, padding=3, groups=channels, init=normal_with_deviation_002, name="0"),
        _norm("2"),
        _dense(4 * channels, "3"),
        partial(jax.nn.gelu, approximate=False),
        _dense(channels, "5"),
    )
    y = node(jnp.multiply, below("block", layers, x), init=small_scale, name="layer_scale", batched=False)
    return add(DropPath(rate)(y), x)


def _patches(channels: int, size: int, name: str) -> Conv:
    """Return a convolution of patches that do not overlap."""
    return Conv(channels, size, stride=size, init=normal_with_deviation_002, name=name)


def _norm(name: str) -> LayerNorm:
    return LayerNorm(epsilon=1e-6, name=name)


def _dense(features: int, name: str) -> Dense:
    return Dense(features, init=normal_with_deviation_002, name=name)

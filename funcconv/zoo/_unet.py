"""U-Net."""

from functools import partial
from typing import Any

import jax

from .._common.errors import FuncconvError
from .._common.types import Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import concat
from .._graph.declare.conv_layers import Conv, ConvTranspose
from .._graph.declare.layers import Pool
from .._graph.declare.node import Input
from .._graph.declare.training_layers.batch_norm import BatchNorm
from .._graph.use.graph import Graph
from ._parts import below


def unet(
    classes: int = 2,
    *,
    depth: int = 4,
    channels: int = 64,
    batch_norm: bool = False,
    input_shape: Shape = (256, 256, 1),
) -> Graph:
    """Build a U-Net, which returns one value of each class for each position of an image.

    On the way down, `depth` max pools halve the size and two 3x3 convolutions with ReLU at each size double the number
    of channels. On the way up, transposed convolutions double the size, and their results are joined with those of the
    same size on the way down. It has 31,030,658 parameters for 2 classes, images of one channel and the defaults, the
    31.0 million of the paper's figure 1. Convolutions are padded with zeros, so that the result has the size of the
    image; in the paper they are not, and images of 572x572 positions give 388x388. Kernels are drawn with variance
    `2 / fan_in`; biases are zero.

    Args:
        classes: number of channels of the result. Default: 2.
        depth: number of pools. Default: 4.
        channels: number of channels at the full size. Default: 64.
        batch_norm: whether each 3x3 convolution is followed by a batch norm, and has no bias. Default: False.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes,
            whose sizes must be multiples of `2**depth`. Default: `(256, 256, 1)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(*spatial, classes)`, the logits. Its
        entries are `down0/conv1`, `down0/conv2`, ..., `down4/conv2`, `up3/up`, `up3/conv1`, ..., `up0/conv2` and
        `classes`. With `batch_norm` there are also `down0/norm1`, ..., and a state, their running statistics.

    Raises:
        FuncconvError: if a spatial size is not a multiple of `2**depth`, or a number is not positive.

    Source: Ronneberger, Fischer and Brox, "U-Net: convolutional networks for biomedical image segmentation", 2015,
        arXiv:1505.04597.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.unet(3, depth=2, channels=16, input_shape=(32, 48, 3))
        >>> graph.shapes()["classes"].shape, fc.summary(graph).parameters
        ((32, 48, 3), 117075)
    """
    image = Input("image", input_shape)
    if any(size % 2**depth for size in image.shape[:-1]):
        msg = (
            f"unet: spatial sizes must be multiples of 2**depth = {2**depth}, because depth={depth} pools halve them; "
            f"got input_shape={image.shape}. Pad or resize the images, or pass a smaller depth"
        )
        raise FuncconvError(msg)
    widths = [channels << level for level in range(depth + 1)]
    skips = [below("down0", partial(_convs, widths[0], batch_norm), image)]
    for level in range(1, depth + 1):
        half = Pool(2)(skips[-1])
        skips.append(below(f"down{level}", partial(_convs, widths[level], batch_norm), half))
    x = skips.pop()
    for level in reversed(range(depth)):
        x = below(f"up{level}", partial(_up, widths[level], batch_norm), x, skips[level])
    return Graph(image, Conv(classes, 1, name="classes")(x))


def _convs(channels: int, batch_norm: bool, x: Any) -> Any:  # noqa: FBT001 for partial
    for i in (1, 2):
        x = Conv(channels, 3, padding="SAME", bias=not batch_norm, init="he_normal", name=f"conv{i}")(x)
        x = BatchNorm(name=f"norm{i}")(x) if batch_norm else x
        x = serial(jax.nn.relu)(x)
    return x


def _up(channels: int, batch_norm: bool, x: Any, skip: Any) -> Any:  # noqa: FBT001 for partial
    doubled = ConvTranspose(channels, 2, stride=2, init="he_normal", name="up")(x)
    return _convs(channels, batch_norm, concat(skip, doubled))

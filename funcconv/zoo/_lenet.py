"""LeNet-5."""

from functools import partial

import jax.numpy as jnp

from .._common.types import Shape
from .._graph.combine.compose import serial
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense, Flatten
from .._graph.declare.node import Input
from .._graph.use.graph import Graph
from .._ops.pooling.named import avg_pool


def lenet(classes: int = 10, *, input_shape: Shape = (28, 28, 1)) -> Graph:
    """Build LeNet-5 for small images, such as handwritten digits.

    Two convolutions with 5x5 windows, each followed by `tanh` and a mean pool, and three dense layers. It has 61,706
    parameters for 10 classes and images of 28x28 pixels with one channel. This is the usual modern variant: the second
    convolution sees all channels of the first one, the pools have no parameters, `tanh` is not scaled, and the last
    layer is linear. The paper pads the images to 32x32 pixels; here the first convolution pads them by 2.

    Args:
        classes: number of features of the result. Default: 10.
        input_shape: shape of an input without batch axes, `(*spatial, channels)`, with any number of spatial axes of at
            least 12 positions. Default: `(28, 28, 1)`.

    Returns:
        A graph with the input `image`, `(*spatial, channels)`, and the result `(classes,)`, the logits. Its entries are
        `conv1`, `conv2`, `fc1`, `fc2` and `fc3`.

    Raises:
        FuncconvError: if the image is too small for the windows, or a number is not positive.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.lenet()
        >>> graph.shapes()["fc3"].shape, fc.summary(graph).parameters
        ((10,), 61706)
    """
    image = Input("image", input_shape)
    pool = partial(avg_pool, window=2)
    layers = serial(
        Conv(6, 5, padding=2, name="conv1"),
        jnp.tanh,
        pool,
        Conv(16, 5, name="conv2"),
        jnp.tanh,
        pool,
        Flatten(),
        Dense(120, name="fc1"),
        jnp.tanh,
        Dense(84, name="fc2"),
        jnp.tanh,
        Dense(classes, name="fc3"),
    )
    return Graph(image, layers(image))

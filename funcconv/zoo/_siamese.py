"""A siamese network."""

import jax

from .._common.types import Padding, Shape
from .._graph.combine.compose import serial
from .._graph.declare.conv_layers import Conv
from .._graph.declare.layers import Dense, Flatten, Pool
from .._graph.declare.node import Input
from .._graph.use.graph import Graph


def siamese(features: int = 4096, *, padding: Padding = 0, input_shape: Shape = (105, 105, 1)) -> Graph:
    """Build a siamese network for one-shot recognition: one number that says how similar two images are.

    Both images go through one trunk with the same weights: four convolutions with ReLU, three of them with a max pool,
    and a dense layer with a sigmoid, `embedding`. The result is the logit of "both images are of one class": a dense
    layer, `similarity`, of the absolute difference of the embeddings. It has 38,951,745 parameters for 4096 features
    and images of 105x105 pixels with one channel. Kernels are drawn with variance `2 / fan_in`; biases are zero. (The
    paper draws them with fixed standard deviations.)

    `graph.subgraph("embedding")` is the trunk, for other losses, such as a contrastive or a triplet loss.

    Args:
        features: number of features of an embedding. Default: 4096.
        padding: padding of the convolutions, as in `fc.Conv`: an integer, one per axis, a pair per axis, or a name.
            Pass `"SAME"` for small images. Default: 0, as in the paper.
        input_shape: shape of each image without batch axes, `(*spatial, channels)`, with any number of spatial axes.
            Default: `(105, 105, 1)`.

    Returns:
        A graph with the inputs `left` and `right`, both `(*spatial, channels)`, and the result `(1,)`, the logit. Its
        entries are `conv1`, `conv2`, `conv3`, `conv4`, `embedding` and `similarity`.

    Raises:
        FuncconvError: if the images are too small for the windows, or a number is not positive.

    Source: Koch, Zemel and Salakhutdinov, "Siamese neural networks for one-shot image recognition", 2015.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.siamese(64, padding="SAME", input_shape=(28, 28, 1))
        >>> graph.inputs, graph.shapes()["similarity"].shape, fc.summary(graph).parameters
        (('left', 'right'), (1,), 1342401)
    """
    left, right = Input("left", input_shape), Input("right", input_shape)

    def conv(channels: int, window: int, name: str) -> Conv:
        return Conv(channels, window, padding=padding, init="he_normal", name=name)

    trunk = serial(
        conv(64, 10, "conv1"),
        jax.nn.relu,
        Pool(2),
        conv(128, 7, "conv2"),
        jax.nn.relu,
        Pool(2),
        conv(128, 4, "conv3"),
        jax.nn.relu,
        Pool(2),
        conv(256, 4, "conv4"),
        jax.nn.relu,
        Flatten(),
        Dense(features, init="he_normal", name="embedding"),
        jax.nn.sigmoid,
    )
    return Graph((left, right), Dense(1, name="similarity")(abs(trunk(left) - trunk(right))))

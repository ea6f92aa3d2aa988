"""WaveNet."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from .._common.types import Shape
from .._graph.combine.compose import serial
from .._graph.combine.merge import add
from .._graph.declare.conv_layers import Conv
from .._graph.declare.node import Input
from .._graph.use.graph import Graph
from ._parts import below


def wavenet(
    classes: int = 256,
    *,
    layers: int = 10,
    stacks: int = 3,
    channels: int = 32,
    skip_channels: int = 256,
    window: int = 2,
    input_shape: Shape = (8192, 256),
) -> Graph:
    """Build a WaveNet, which returns one value of each class for each time, and never sees later times.

    A causal convolution is followed by `stacks * layers` residual blocks. The dilation is 1, 2, 4, ... within a stack.
    A block computes `tanh(filter(x)) * sigmoid(gate(x))` with two dilated causal convolutions, adds a 1x1 convolution
    of it to its input, and gives another one (`skip`) to the sum over all blocks. Two 1x1 convolutions follow. The
    result at a time depends on the inputs of the last `1 + (window - 1) * (1 + stacks * (2**layers - 1))` times up to
    this one: to predict the next sample, compare it with the input that is one time later. The paper does not give
    numbers of channels; with the defaults, the network has 556,864 parameters. Kernels are drawn with variance
    `1 / fan_in`; biases are zero.

    Args:
        classes: number of channels of the result. Default: 256, the levels of 8 bits.
        layers: number of blocks of a stack. Default: 10, dilations from 1 to 512.
        stacks: number of stacks. Default: 3.
        channels: number of channels of the blocks. Default: 32.
        skip_channels: number of channels of the sum over all blocks. Default: 256.
        window: taps of the causal convolutions. Default: 2.
        input_shape: shape of an input without batch axes, `(time, channels)`: the levels as one-hot vectors, or one
            channel with the samples. Default: `(8192, 256)`.

    Returns:
        A graph with the input `signal`, `(time, channels)`, and the result `(time, classes)`, the logits. Its entries
        are `causal`, `block0/filter`, `block0/gate`, `block0/residual`, `block0/skip`, ..., `post1` and `post2`.

    Raises:
        FuncconvError: if a number is not positive.

    Source: van den Oord et al., "WaveNet: a generative model for raw audio", 2016, arXiv:1609.03499.

    Example:
        >>> import funcconv as fc
        >>> graph = fc.zoo.wavenet(8, layers=4, stacks=2, channels=8, skip_channels=16, input_shape=(64, 1))
        >>> graph.shapes()["post2"].shape, fc.receptive_field(graph)["signal"][0].size
        ((64, 8), 32)
    """
    signal = Input("signal", input_shape)
    x = Conv(channels, window, padding="CAUSAL", name="causal")(signal)
    skips = []
    for i in range(stacks * layers):
        block = partial(_block, channels, skip_channels, window, 2 ** (i % layers))
        x, skip = below(f"block{i}", block, x)
        skips.append(skip)
    post = serial(
        jax.nn.relu,
        Conv(skip_channels, 1, name="post1"),
        jax.nn.relu,
        Conv(classes, 1, name="post2"),
    )
    return Graph(signal, post(add(*skips)))


def _block(channels: int, skip_channels: int, window: int, dilation: int, x: Any) -> Any:
    filtered, gate = (
        Conv(channels, window, dilation=dilation, padding="CAUSAL", name=name)(x) for name in ("filter", "gate")
    )
    y = serial(jnp.tanh)(filtered) * serial(jax.nn.sigmoid)(gate)
    return add(x, Conv(channels, 1, name="residual")(y)), Conv(skip_channels, 1, name="skip")(y)

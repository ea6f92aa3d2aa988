"""The gradient of a number by the inputs."""

from collections.abc import Mapping
from typing import Any

from .._common.types import Params
from .._graph.use.graph import Graph
from ._scores import scores_of
from ._target import Of


def gradient(graph: Graph, params: Params, x: Any, *, of: Of, state: Mapping[str, Any] | None = None) -> Any:
    r"""Compute the gradient of a number with respect to the input: how much the number changes with each pixel.

    $$\frac{\partial s}{\partial x_i}$$

    Args:
        graph: the graph.
        params: the parameter tree.
        x: the input, `(*batch, *shape)`. If the graph has several inputs, a tuple of them in the order of declaration
            or a dict by name.
        of: what is attributed, one number per example. A function that takes the outputs of one example and returns a
            number, such as `lambda y: y[3]`, or takes those of a batch and returns `(batch,)`, such as
            `lambda y: y[:, 3]`. Or a pair of a node and a channel, such as `("conv3", 5)`: the sum of this channel of
            its value over all positions. The channel is an integer, or integers `(*batch)`, one for each example.
        state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph without
            state. The graph is evaluated in evaluation mode (`train=False`).

    Returns:
        An array like `x`, or a tuple or a dict like `x`, with None for inputs that are not real and floating. If a
        function in the graph mixes the examples of a batch, it is the gradient of the sum over the batch.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if no input is real and
            floating, if there is no such node or channel, or if `of` does not give one real number per example.

    Source: Simonyan, Vedaldi and Zisserman 2014, "Deep Inside Convolutional Networks",
    https://arxiv.org/abs/1312.6034.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.global_pool, fc.Dense(3))(x))
        >>> params, images = graph.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1))
        >>> fc.attribution.gradient(graph, params, images, of=lambda y: y[2]).shape
        (5, 8, 8, 1)
        >>> fc.attribution.gradient(graph, params, images, of=("conv1", 3)).shape
        (5, 8, 8, 1)
    """
    scores = scores_of(graph, params, x, of, state, "attribution.gradient")
    scores.check_moving()
    return scores.inputs.structured(scores.gradient(scores.inputs.arrays))

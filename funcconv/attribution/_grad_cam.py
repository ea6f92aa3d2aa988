"""A map of the positions of a node that count for a number."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import Array, Params, Shape
from .._graph.evaluate.call import number_of
from .._graph.use.graph import Graph
from .._ops.masks import Masked
from .._ops.resampling.resize import resize
from ._channels import check_channels_last
from ._inputs import Inputs
from ._rows import needed
from ._scores import scores_of
from ._target import Of


def grad_cam(
    graph: Graph,
    params: Params,
    x: Any,
    *,
    of: Of,
    at: str,
    upsample: bool | str = True,
    state: Mapping[str, Any] | None = None,
) -> Array:
    r"""Compute which positions of a node speak for a number (Grad-CAM), as a map of the size of the input.

    $$m_i = \max\Bigl(\sum_c w_c\, a_{i,c},\; 0\Bigr), \qquad
    w_c = \frac 1 n \sum_{j=1}^n \frac{\partial s}{\partial a_{j,c}}$$

    where `a` is the value of the node, with `n` positions. Channels must be last, in the node and in the inputs: to
    import a module of PyTorch, use `fc.interop.trace_torch(..., layout="NHWC")`.

    Args:
        graph: the graph.
        params: the parameter tree.
        x: the input, `(*batch, *shape)`. If the graph has several inputs, a tuple of them in the order of declaration
            or a dict by name.
        of: what is attributed, one number per example. A function that takes the outputs of one example and returns a
            number, such as `lambda y: y[3]`, or takes those of a batch and returns `(batch,)`, such as
            `lambda y: y[:, 3]`. Or a pair of a node and a channel, such as `("conv3", 5)`: the sum of this channel of
            its value over all positions. The channel is an integer, or integers `(*batch)`, one for each example.
        at: name of the node, usually the last one with spatial axes. Its value must be `(*batch, *spatial, channels)`
            with at least one spatial axis, and `of` must depend on it.
        upsample: whether the map is resized to the spatial sizes of the input, by linear interpolation, as
            `fc.resize(method="linear")` does. If inputs have different sizes, the name of the input. False: the map has
            the spatial sizes of the node. Default: True.
        state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph without
            state. The graph is evaluated in evaluation mode (`train=False`).

    Returns:
        `(*batch, *spatial)`, not negative, with the dtype of the value of the node. Sums of 16-bit numbers are computed
        in float32.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if there is no such node
            or channel, if `of` does not give one real number per example or does not depend on the node, if the value
            of the node has no spatial axes, if no single input has as many, if a node moves the last axis of an input
            elsewhere, or if an input is `fc.Masked`.

    Source: Selvaraju, Cogswell, Das, Vedantam, Parikh and Batra 2017, "Grad-CAM: Visual Explanations from Deep Networks
    via Gradient-based Localization", https://arxiv.org/abs/1610.02391.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3, stride=2), jax.nn.relu, fc.global_pool, fc.Dense(3))(x))
        >>> params, images = graph.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1))
        >>> fc.attribution.grad_cam(graph, params, images, of=lambda y: y[2], at="relu1").shape
        (5, 8, 8)
        >>> fc.attribution.grad_cam(graph, params, images, of=lambda y: y[2], at="relu1", upsample=False).shape
        (5, 3, 3)
    """
    method = "attribution.grad_cam"
    scores = scores_of(graph, params, x, of, state, method)
    number, inputs = number_of(graph, at, method), scores.inputs
    if any(isinstance(x, Masked) for x in inputs.xs):
        msg = f"{method}: the inputs must be arrays; got Masked inputs. Pass the array of one example without padding"
        raise FuncconvError(msg)
    if number not in needed(scores.graph):
        msg = f"{method}: of must depend on the node {at!r}; it is computed without it. Choose another node"
        raise FuncconvError(msg)
    value = scores.values(inputs.arrays)[number]
    batch = len(inputs.batch)
    shape, dtype = jax.tree.map(jnp.shape, value), getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating) or value.ndim < batch + 2:
        msg = (
            f"{method}: the value of node {at!r} must be floating, (*batch, *spatial, channels) with at least one "
            f"spatial axis; got {dtype} {shape}"
        )
        raise FuncconvError(msg)
    numbers, pullback = jax.vjp(lambda value: scores(inputs.arrays, {number: lambda _: value}), value)
    (slopes,) = pullback(jnp.ones_like(numbers))
    positions = range(batch, value.ndim - 1)
    weights = slopes.astype(wide(dtype)).mean(positions, keepdims=True)
    total: Array = jax.nn.relu((weights * value.astype(weights.dtype)).sum(-1))
    if upsample is not False:
        check_channels_last(graph, method)
        size = _input_size(inputs, at, value.shape[batch:-1], upsample=upsample)
        total = resize(total[..., None], size, method="linear")[..., 0]
    return total.astype(dtype)


def _input_size(inputs: Inputs, at: str, spatial: Shape, *, upsample: bool | str) -> Shape:
    """Return the spatial sizes of an input that has as many spatial axes as the node."""
    sizes = {name: x.shape[len(inputs.batch) : -1] for name, x in zip(inputs.names, inputs.arrays, strict=True)}
    chosen = {size for name, size in sizes.items() if upsample in (True, name) and len(size) == len(spatial)}
    if len(chosen) != 1:
        msg = (
            f"{inputs.method}: upsample={upsample!r} must select one size of {len(spatial)} spatial axes, as node "
            f"{at!r} has, from the inputs {sizes}. Pass the name of an input, or upsample=False"
        )
        raise FuncconvError(msg)
    return chosen.pop()

"""Gradients with other rules for ReLUs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Params
from .._graph.evaluate.call import mode_of
from .._graph.infer.check_parameters import checked_entries
from .._graph.masked.values import unmasked
from .._graph.name.flatten import Row
from .._graph.repeat.unstack import unstack
from .._graph.use.graph import Graph
from ._backward import Cotangents, Pullback, Rule, backward_by_rows
from ._relus import is_relu
from ._rows import needed
from ._scores import Scores, scores_of
from ._target import Of


def guided(graph: Graph, params: Params, x: Any, *, of: Of, state: Mapping[str, Any] | None = None) -> Any:
    r"""Compute the gradient with the rule of guided backpropagation: ReLUs pass on only positive derivatives.

    At each ReLU, `y = max(x, 0)`, the derivative of the number with respect to `x` is replaced by

    $$g_x = g_y \cdot [x > 0] \cdot [g_y > 0]$$

    A ReLU is a node that computes `max(x, 0)` or ReLU6, by `jax.nn.relu` or another function. At the kinks `[x > 0]` is
    the derivative of this function, which is 0 for `jax.nn.relu`. Other functions, such as `jax.nn.gelu`, keep their
    derivatives.

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
        An array like `x`, or a tuple or a dict like `x`, with None for inputs that are not real and floating. It is not
        a gradient of any function. The copies of an `fc.repeat` are computed as separate nodes.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if no input is real and
            floating, if there is no such node or channel, if `of` does not give one real number per example or does not
            depend on a ReLU, or if a function of a node computes `max(x, 0)` among other operations.

    Source: Springenberg, Dosovitskiy, Brox and Riedmiller 2015, "Striving for Simplicity: The All Convolutional Net",
    https://arxiv.org/abs/1412.6806.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (3,))
        >>> graph = fc.Graph(x, fc.serial(jax.nn.relu, lambda x: x * jnp.array([1.0, -1.0, 1.0]))(x))
        >>> fc.attribution.guided(graph, {}, jnp.array([1.0, 1.0, -1.0]), of=jnp.sum).tolist()
        [1.0, 0.0, 0.0]
    """
    return _by_rule("attribution.guided", _guided_rule, graph, params, x, of, state)


def deconvolution(graph: Graph, params: Params, x: Any, *, of: Of, state: Mapping[str, Any] | None = None) -> Any:
    r"""Compute the projection of a deconvolutional network: the gradient, with a ReLU in place of each ReLU's rule.

    At each ReLU, `y = max(x, 0)`, the derivative of the number with respect to `x` is replaced by

    $$g_x = \max(g_y, 0)$$

    so the sign of `x` does not count. Max pools send it to the maxima, and convolutions are transposed, as in the
    gradient. A ReLU is a node that computes `max(x, 0)` or ReLU6, by `jax.nn.relu` or another function. Other
    functions, such as `jax.nn.gelu`, keep their derivatives.

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
        An array like `x`, or a tuple or a dict like `x`, with None for inputs that are not real and floating. It is not
        a gradient of any function. The copies of an `fc.repeat` are computed as separate nodes.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if no input is real and
            floating, if there is no such node or channel, if `of` does not give one real number per example or does not
            depend on a ReLU, or if a function of a node computes `max(x, 0)` among other operations.

    Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    https://arxiv.org/abs/1311.2901.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (3,))
        >>> graph = fc.Graph(x, fc.serial(jax.nn.relu, lambda x: x * jnp.array([1.0, -1.0, 1.0]))(x))
        >>> fc.attribution.deconvolution(graph, {}, jnp.array([1.0, 1.0, -1.0]), of=jnp.sum).tolist()
        [1.0, 0.0, 1.0]
    """
    return _by_rule("attribution.deconvolution", _deconvolution_rule, graph, params, x, of, state)


def _guided_rule(cotangents: Cotangents, pullback: Pullback) -> list[Cotangents]:
    return jax.tree.map(jax.nn.relu, pullback(cotangents))  # type: ignore[no-any-return]


def _deconvolution_rule(cotangents: Cotangents, pullback: Pullback) -> list[Cotangents]:
    del pullback
    return [[jax.nn.relu(leaf) for leaf in cotangents]]


def _by_rule(
    method: str, rule: Rule, graph: Graph, params: Params, x: Any, of: Of, state: Mapping[str, Any] | None
) -> Any:
    """Return the backward pass with a rule for ReLUs."""
    scores = scores_of(graph, params, x, of, state, method)
    scores.check_moving()
    scores = _unstacked(scores, state)
    graph, inputs = scores.graph, scores.inputs
    relus: list[str] = []

    def rule_of(row: Row, entry: Any, operands: Sequence[Any]) -> Rule | None:
        if not is_relu(method, row, entry, [unmasked(operand) for operand in operands], inputs.batch):
            return None
        relus.append(row.name)
        return rule

    entries = checked_entries(graph, scores.params, inputs.arrays)
    cotangents = backward_by_rows(graph, entries, inputs.xs, scores.mode, inputs.batch, rule_of, scores.of)
    if not relus:
        outputs, wanted = ", ".join(map(repr, graph.outputs)), needed(graph)
        labels = dict.fromkeys(row.op.label for i, row in enumerate(graph._rows, len(inputs.xs)) if i in wanted)
        msg = (
            f"{method}: of must depend on at least one ReLU; it depends on node {outputs}, which is computed by "
            f"{', '.join(labels)}, and none of these nodes computes max(x, 0). Use attribution.gradient"
        )
        raise FuncconvError(msg)
    results: list[Any] = [None] * len(inputs.xs)
    for i in inputs.moving:
        array, own = inputs.arrays[i], cotangents[i]
        results[i] = jnp.zeros_like(array) if own is None else own[0].astype(array.dtype)
    return inputs.structured(results)


def _unstacked(scores: Scores, state: Mapping[str, Any] | None) -> Scores:
    """Return the same numbers with the copies of each `repeat` as separate nodes."""
    if not any(row.op.copies for row in scores.graph._rows):
        return scores
    graph, params, *states = unstack(scores.graph, scores.params, *([state] if state else []))
    return scores._replace(graph=graph, params=params, mode=mode_of(graph, states[0] if states else None))

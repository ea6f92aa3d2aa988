"""The integral of the gradient along a line."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .._common.dtypes import wide
from .._common.types import Array, Params
from .._derivatives.linear_map import positive
from .._graph.use.graph import Graph
from ._in_batches import summed
from ._scores import scores_of
from ._target import Of


class Integrated(NamedTuple):
    """What `attribution.integrated_gradients` returns.

    Attributes:
        attributions: an array like the input, or a tuple or a dict of them.
        gap: `(*batch)`, the error of the quadrature: the sum of all attributions of an example minus the difference of
            its number at the input and at the baseline, which would be 0 with infinitely many steps.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (2,))
        >>> graph = fc.Graph(x, fc.node(lambda x: (x**2).sum(), x, batched=False))
        >>> integrated = fc.attribution.integrated_gradients(graph, {}, jnp.array([1.0, 2.0]), of=lambda y: y, steps=1)
        >>> integrated.attributions.round(5).tolist(), abs(integrated.gap.item()) < 1e-5
        ([1.0, 4.0], True)
    """

    attributions: Any
    gap: Array


def integrated_gradients(
    graph: Graph,
    params: Params,
    x: Any,
    *,
    of: Of,
    baseline: Any = 0,
    steps: int = 50,
    batch_size: int = 1,
    state: Mapping[str, Any] | None = None,
) -> Integrated:
    r"""Compute the gradient integrated along the line from a baseline to the input.

    $$a_i = (x_i - b_i) \int_0^1 \frac{\partial s}{\partial x_i}\bigl(b + t\,(x - b)\bigr)\, dt,
    \qquad \sum_i a_i = s(x) - s(b)$$

    The integral is computed by the rule of Gauss and Legendre. It is exact if the number is a polynomial of a degree up
    to `2 * steps` along the line, for example with one step if it is linear. Along the line, networks with ReLUs are
    linear in pieces, so the error falls slowly, about as `1 / steps`; `gap` reports it.

    Args:
        graph: the graph.
        params: the parameter tree.
        x: the input, `(*batch, *shape)`. If the graph has several inputs, a tuple of them in the order of declaration
            or a dict by name.
        of: what is attributed, one number per example. A function that takes the outputs of one example and returns a
            number, such as `lambda y: y[3]`, or takes those of a batch and returns `(batch,)`, such as
            `lambda y: y[:, 3]`. Or a pair of a node and a channel, such as `("conv3", 5)`: the sum of this channel of
            its value over all positions. The channel is an integer, or integers `(*batch)`, one for each example.
        baseline: where the line begins, an input without information. A number, or an array that broadcasts to `x`, of
            the same dtype; a tuple or a dict like `x` for one value for each input. Default: 0, a black image.
        steps: the number of points on the line at which the gradient is computed. Default: 50.
        batch_size: how many points are computed at once. More need more memory, and may be faster. Default: 1.
        state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph without
            state. The graph is evaluated in evaluation mode (`train=False`).

    Returns:
        A named tuple `(attributions, gap)`. `attributions` is an array like `x`, or a tuple or a dict like `x`, with
        None for inputs that are not real and floating, which do not change along the line. `gap` is `(*batch)`: the sum
        of the attributions minus the difference of the numbers. 16-bit numbers are summed in float32.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if no input is real and
            floating, if there is no such node or channel, if `of` does not give one real number per example, if
            `baseline` does not broadcast to `x`, or if `steps` or `batch_size` is not a positive integer.

    Source: Sundararajan, Taly and Yan 2017, "Axiomatic Attribution for Deep Networks",
    https://arxiv.org/abs/1703.01365.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.global_pool, fc.Dense(3))(x))
        >>> params, image = graph.init(jax.random.key(0)), jnp.ones((8, 8, 1))
        >>> attributions, gap = fc.attribution.integrated_gradients(graph, params, image, of=lambda y: y[2])
        >>> difference = graph(params, image)[2] - graph(params, 0 * image)[2]
        >>> jnp.allclose(attributions.sum() - gap, difference, atol=1e-5).item()
        True
    """
    method = "attribution.integrated_gradients"
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        positive(f"{method}: {name}", number)
    scores = scores_of(graph, params, x, of, state, method)
    scores.check_moving()
    inputs, ends = scores.inputs, scores.inputs.arrays
    moving, batch = inputs.moving, len(inputs.batch)
    starts = inputs.arrays_like("baseline", baseline, only=moving)
    lines = [end - start for start, end in zip(starts, ends, strict=True)]

    def weighted_gradients(item: tuple[Array, Array]) -> list[Array]:
        t, weight = item
        at = [start + t.astype(line.dtype) * line if i in moving else start for i, start, line in lines_by_number]
        gradients = scores.gradient(at)
        return [weight.astype(wide(gradients[i].dtype)) * gradients[i].astype(wide(gradients[i].dtype)) for i in moving]

    lines_by_number = [(i, start, line) for i, (start, line) in enumerate(zip(starts, lines, strict=True))]
    points, weights = np.polynomial.legendre.leggauss(steps)  # on the interval from -1 to 1
    integrals = summed(weighted_gradients, (jnp.asarray((points + 1) / 2), jnp.asarray(weights / 2)), batch_size)
    gap = scores(starts) - scores(ends)
    attributions: list[Any] = [None] * len(ends)
    for i, integral in zip(moving, integrals, strict=True):
        products = lines[i].astype(integral.dtype) * integral
        gap += products.sum(range(batch, products.ndim)).astype(gap.dtype)
        attributions[i] = products.astype(ends[i].dtype)
    return Integrated(inputs.structured(attributions), gap)

"""The mean gradient at inputs with noise."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from .._common.dtypes import wide
from .._common.types import Array, Params
from .._derivatives.linear_map import positive
from .._graph.use.graph import Graph
from .._ops.init import fold_in_name
from ._in_batches import summed
from ._scores import scores_of
from ._target import Of


def smooth_grad(
    graph: Graph,
    params: Params,
    x: Any,
    *,
    of: Of,
    key: Array,
    noise: Any,
    samples: int = 50,
    batch_size: int = 1,
    state: Mapping[str, Any] | None = None,
) -> Any:
    r"""Compute the mean gradient at inputs with random noise (SmoothGrad). It has less noise than one gradient.

    $$\frac 1 n \sum_{k=1}^n \frac{\partial s}{\partial x}(x + \varepsilon_k),
    \qquad \varepsilon_k \sim \mathcal N(0, \sigma^2)$$

    Args:
        graph: the graph.
        params: the parameter tree.
        x: the input, `(*batch, *shape)`. If the graph has several inputs, a tuple of them in the order of declaration
            or a dict by name.
        of: what is attributed, one number per example. A function that takes the outputs of one example and returns a
            number, such as `lambda y: y[3]`, or takes those of a batch and returns `(batch,)`, such as
            `lambda y: y[:, 3]`. Or a pair of a node and a channel, such as `("conv3", 5)`: the sum of this channel of
            its value over all positions. The channel is an integer, or integers `(*batch)`, one for each example.
        key: a JAX random key. All examples of a batch get the same noise, so the result for an example does not depend
            on the others. Sample `k` is the same for any number of samples.
        noise: the standard deviation σ of the noise, a number or an array that broadcasts to `x`, in the units of `x`;
            a tuple or a dict like `x` for one value for each input. The paper recommends 0.1 to 0.2 times the
            difference of the largest and the smallest pixel.
        samples: the number of samples. Default: 50.
        batch_size: how many samples are computed at once. More need more memory, and may be faster. Default: 1.
        state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph without
            state. The graph is evaluated in evaluation mode (`train=False`).

    Returns:
        An array like `x`, or a tuple or a dict like `x`, with None for inputs that are not real and floating, which get
        no noise. Gradients of 16 bits are summed in float32.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if no input is real and
            floating, if there is no such node or channel, if `of` does not give one real number per example, if `noise`
            does not broadcast to `x`, or if `samples` or `batch_size` is not a positive integer.

    Source: Smilkov, Thorat, Kim, Viégas and Wattenberg 2017, "SmoothGrad: removing noise by adding noise",
    https://arxiv.org/abs/1706.03825.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.global_pool, fc.Dense(3))(x))
        >>> params, image = graph.init(jax.random.key(0)), jnp.ones((8, 8, 1))
        >>> options = {"key": jax.random.key(1), "noise": 0.1, "samples": 10}
        >>> fc.attribution.smooth_grad(graph, params, image, of=lambda y: y[2], **options).shape
        (8, 8, 1)
    """
    method = "attribution.smooth_grad"
    for name, number in (("samples", samples), ("batch_size", batch_size)):
        positive(f"{method}: {name}", number)
    scores = scores_of(graph, params, x, of, state, method)
    scores.check_moving()
    inputs, arrays = scores.inputs, scores.inputs.arrays
    moving, batch = inputs.moving, len(inputs.batch)
    deviations = inputs.arrays_like("noise", noise, only=moving)

    def gradients_at(sample: Array) -> list[Array]:
        own, noisy = jax.random.fold_in(key, sample), list(arrays)
        for i in moving:
            array, dtype = arrays[i], wide(arrays[i].dtype)
            drawn = jax.random.normal(fold_in_name(own, inputs.names[i]), array.shape[batch:], dtype)
            added = deviations[i].astype(dtype) * jnp.broadcast_to(drawn, array.shape)
            noisy[i] = (array.astype(dtype) + added).astype(array.dtype)
        gradients = scores.gradient(noisy)
        return [gradients[i] for i in moving]

    sums = summed(gradients_at, jnp.arange(samples, dtype=jnp.uint32), batch_size)
    means: list[Any] = [None] * len(arrays)
    for i, total in zip(moving, sums, strict=True):
        means[i] = (total / samples).astype(arrays[i].dtype)
    return inputs.structured(means)

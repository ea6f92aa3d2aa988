"""The gradient of each example of a batch."""

from collections.abc import Callable
from typing import Any

import jax

from .trees import Tree, float_tree, leading_size, scalar


def per_example_grad(f: Callable[..., Any]) -> Callable[..., Tree]:
    """Return a function that computes the gradient of `f` for each example: `vmap(grad(f))` over the examples.

    Args:
        f: a function `f(params, *example)` that returns one floating number, the loss of one example.

    Returns:
        A function of `(params, *examples)`. Each leaf of `examples` is `(n, *shape)`, with one axis of `n` examples in
        front. The function returns a tree like `params` whose leaves are `(n, *shape)`.

    Raises:
        FuncconvError: when the returned function is called: if the examples do not have the same first axis or there
            are none, if `f` does not return a scalar, or if a leaf of `params` is not real and floating.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def loss(w, x, y):
        ...     return (w @ x - y) ** 2 / 2
        >>> x, y = jnp.array([[1.0, 3.0], [1.0, 2.0]]), jnp.array([3.0, 4.0])
        >>> fc.per_example_grad(loss)(jnp.zeros(2), x, y).tolist()
        [[-3.0, -9.0], [-4.0, -8.0]]
    """

    def gradients(params: Tree, *examples: Tree) -> Tree:
        params = float_tree("per_example_grad", "params", params)
        leading_size("per_example_grad", "the examples", examples)
        gradient = jax.grad(scalar("per_example_grad", "f", f))
        return jax.vmap(gradient, in_axes=(None, *(0 for _ in examples)))(params, *examples)

    return gradients

"""The gradient of a large batch, in the memory of a small one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._dtypes import wide
from .._typing import Array
from ._linear_map import positive
from ._trees import Tree, float_tree, leading_size, scalar


def value_and_grad_in_batches(f: Callable[..., Any], batch_size: int) -> Callable[..., tuple[Array, Tree]]:
    """Return the function that gives the value of `f` and its gradient, one mini-batch after another.

    It equals `jax.value_and_grad(f)` on all examples together, up to rounding, in the memory of one mini-batch:
    `f = Σ_b n_b / n f_b` over batches of sizes `n_b` with `Σ_b n_b = n`, the last of which has what is left.

    Args:
        f: `f(params, *examples)` gives one floating number: the mean over the first axis of the examples of a loss that
            depends on one of them (not so with batch statistics).
        batch_size: the examples in a mini-batch; it need not divide their number.

    Returns:
        A function of `(params, *examples)`, where all leaves of the examples share their first axis; it gives the value
        and a tree like `params`. 16-bit numbers are summed in float32, and the result has the dtypes of `f` and
        `params`.

    Raises:
        FuncconvError: if the batch size is not a positive integer; when called, if the examples do not share their
            first axis or there are none, `f` does not give a scalar, or a leaf of `params` is not real and floating.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> def loss(w, x):
        ...     return ((x - w) ** 2).mean()
        >>> value, gradient = jax.jit(fc.value_and_grad_in_batches(loss, 2))(jnp.float32(0), jnp.array([1.0, 2.0, 6.0]))
        >>> print(f"{value:.3f} {gradient:.3f}")  # as of all three together
        13.667 -6.000
    """
    positive("value_and_grad_in_batches: batch_size", batch_size)
    where = "value_and_grad_in_batches"
    derivative: Callable[..., tuple[Array, Tree]] = jax.value_and_grad(scalar(where, "f", f))

    def value_and_grad(params: Tree, *examples: Tree) -> tuple[Array, Tree]:
        params = float_tree(where, "params", params)
        n = leading_size(where, "the examples", examples)
        size = min(batch_size, n)
        count, rest = divmod(n, size)
        examples = jax.tree.map(jnp.asarray, examples)

        def part(begin: Any, size: int) -> Tree:
            cut = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, begin, size), examples)
            return jax.tree.map(lambda x: x.astype(wide(x.dtype)) * (size / n), derivative(params, *cut))

        def step(total: Tree, begin: Array) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, part(begin, size)), None

        form = jax.eval_shape(derivative, params, *jax.tree.map(lambda x: x[:size], examples))
        total = jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x.dtype)), form)
        total, _ = jax.lax.scan(step, total, jnp.arange(count) * size)
        if rest:
            total = jax.tree.map(jnp.add, total, part(n - rest, rest))
        value, gradient = jax.tree.map(lambda x, like: x.astype(like.dtype), total, form)
        return value, gradient

    return value_and_grad

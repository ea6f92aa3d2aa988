"""The gradient of a large batch, in the memory of a small one."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import Array
from .linear_map import positive
from .trees import Tree, float_tree, leading_size, scalar


def value_and_grad_in_batches(f: Callable[..., Any], batch_size: int) -> Callable[..., tuple[Array, Tree]]:
    """Return a function that computes the value of `f` and its gradient, one mini-batch after another.

    The result equals `jax.value_and_grad(f)` on all examples, up to rounding, but needs only the memory of one
    mini-batch: `f = Σ_b n_b / n f_b` over mini-batches of sizes `n_b` with `Σ_b n_b = n`.

    Args:
        f: a function `f(params, *examples)` that returns one floating number, the mean of a loss over the first axis of
            the examples. The loss of an example must not depend on the others, as it does with batch statistics.
        batch_size: number of examples in a mini-batch. If it does not divide the number of examples, the last
            mini-batch is smaller. If the examples are sharded over devices, pass a multiple of the number of devices:
            each device then computes its share of each mini-batch, and no example is moved. The examples of a
            mini-batch are in general not consecutive.

    Returns:
        A function of `(params, *examples)`, where all leaves of `examples` have the same first axis. It returns the
        value and a gradient, a tree like `params`. 16-bit numbers are summed in float32, and the results have the
        dtypes of `f` and `params`.

    Raises:
        FuncconvError: if the batch size is not a positive integer. When the returned function is called: if the
            examples do not have the same first axis or there are none, if `f` does not return a scalar, if a leaf of
            `params` is not real and floating, or if the examples are sharded over Explicit axes of a mesh and the
            number of devices does not divide the size of a mini-batch.

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
        # Where devices share the examples, each has consecutive rows of this table. A mini-batch is some columns of it,
        # so that each device has its share of every mini-batch.
        rows = math.gcd(n, size)
        table = jax.tree.map(lambda x: _rows(jnp.asarray(x), rows, batch_size), examples)

        def cut(column: Any, size: int) -> Tree:
            def of(x: Array) -> Array:
                columns = lax.dynamic_slice_in_dim(x, column, size // rows, axis=1)
                return columns.reshape(size, *x.shape[2:])

            return jax.tree.map(of, table)

        def part(column: Any, size: int) -> Tree:
            # Weighted by its size: a mean of means would be wrong, because the last mini-batch may be smaller.
            return jax.tree.map(lambda x: x.astype(wide(x.dtype)) * (size / n), derivative(params, *cut(column, size)))

        def step(total: Tree, column: Array) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, part(column, size)), None

        form = jax.eval_shape(lambda: derivative(params, *cut(0, size)))
        value = jnp.zeros((), wide(form[0].dtype))
        total = value, jax.tree.map(lambda x: jnp.zeros_like(x, dtype=wide(x.dtype)), params)
        total, _ = lax.scan(step, total, jnp.arange(count) * (size // rows))
        if rest:
            total = jax.tree.map(jnp.add, total, part((n - rest) // rows, rest))
        value, gradient = jax.tree.map(lambda x, like: x.astype(like.dtype), total, form)
        return value, gradient

    return value_and_grad


def _rows(x: Array, rows: int, batch_size: int) -> Array:
    """Return the examples as a table, `(rows, examples // rows, ...)`."""
    where = jax.typeof(x).sharding
    axes = where.spec[0] if where.spec else None  # known for axes of type Explicit only
    devices = math.prod(where.mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)) if axis)
    if rows % devices:
        msg = (
            f"value_and_grad_in_batches: {len(x)} examples are spread over {devices} devices, the axis {axes!r} of the "
            f"mesh, so batch_size must be a multiple of {devices}; got {batch_size}"
        )
        raise FuncconvError(msg)
    return x.reshape(rows, len(x) // rows, *x.shape[1:])

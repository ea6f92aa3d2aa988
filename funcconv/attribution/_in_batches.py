"""Sums of a function over many items, some of them at once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._common.dtypes import wide


def summed(f: Callable[[Any], Any], items: Any, batch_size: int) -> Any:
    """Return the sum of `f(item)` over the first axis of a tree of items, in float32 for 16-bit results.

    Args:
        f: a function of one item that returns a tree of arrays.
        items: a tree of arrays with the same first axis.
        batch_size: how many items are computed at once, which bounds the memory.
    """
    n = len(jax.tree.leaves(items)[0])
    size = min(batch_size, n)
    count, rest = divmod(n, size)

    def part(some: Any) -> Any:
        return jax.tree.map(lambda y: y.astype(wide(y.dtype)).sum(0), jax.vmap(f)(some))

    def step(total: Any, some: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(some)), None

    table = jax.tree.map(lambda x: x[: count * size].reshape(count, size, *x.shape[1:]), items)
    form = jax.eval_shape(part, jax.tree.map(lambda x: x[:size], items))
    total, _ = lax.scan(step, jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), form), table)
    return step(total, jax.tree.map(lambda x: x[count * size :], items))[0] if rest else total

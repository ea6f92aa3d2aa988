"""Examples in blocks of one size, so that a loop over many of them is one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..trees import Tree, leading_size


class ExampleBlocks(NamedTuple):
    """Examples in blocks of equal size; the last one is filled up with the last example."""

    arrays: Tree  # (blocks, size, *shape)
    size: int
    examples: int  # how many there are

    @property
    def real(self) -> Array:
        """Return which examples are not there to fill up the last block, `(blocks, size)`."""
        number = len(jax.tree.leaves(self.arrays)[0])
        return (jnp.arange(number * self.size) < self.examples).reshape(number, self.size)

    def total(self, of_block: Callable[..., Tree], *others: Tree) -> Tree:
        """Return the sum over the blocks of `of_block(arrays, real, *others)`; one block is in memory at a time."""
        pieces = self.arrays, self.real, *others
        shapes = jax.eval_shape(of_block, *jax.tree.map(lambda leaf: leaf[0], pieces))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(sums: Any, piece: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, sums, of_block(*piece)), None

        return lax.scan(add, zeros, pieces)[0]


def example_blocks(where: str, what: str, x: Tree, batch_size: int) -> ExampleBlocks:
    """Cut examples `(n, *shape)` into blocks."""
    count = leading_size(where, what, x)
    size = min(batch_size, count)
    number = -(-count // size)

    def cut(leaf: Array) -> Array:
        leaf = jnp.asarray(leaf)
        filled = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], number * size - count, 0)])
        return filled.reshape(number, size, *leaf.shape[1:])

    return ExampleBlocks(jax.tree.map(cut, x), size, count)

"""Block-diagonal symmetric operators, each block known by its eigenvalues and eigenvectors.

A block has the eigenvectors of a Kronecker product, `left[:, i] right[:, j]^T`, and one eigenvalue for each pair. This
covers a dense block (one column) and a diagonal one (one row and one column in each of many groups).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._common.types import Array
from ..trees import Tree


class EigenBlock(NamedTuple):
    """The block of one leaf, whose numbers lie as `(rows, groups, columns)`.

    Attributes:
        left: the eigenvectors of the rows, `(groups, rows, rows)`.
        right: the eigenvectors of the columns, `(groups, columns, columns)`.
        values: the eigenvalues, `(groups, rows, columns)`.
        of_rows: the eigenvalues of the factor of the rows, `(groups, rows)`, if `values` are their products with those
            of the columns; otherwise None.
        of_columns: the same for the columns, `(groups, columns)`.
    """

    left: Array
    right: Array
    values: Array
    of_rows: Array | None = None
    of_columns: Array | None = None

    def product(self, leaf: Array) -> Array:
        """Multiply by a leaf."""
        groups, rows, columns = self.values.shape
        v = leaf.astype(self.values.dtype).reshape(rows, groups, columns).transpose(1, 0, 2)
        inner = self.values * (self.left.mT @ v @ self.right)
        result = (self.left @ inner @ self.right.mT).transpose(1, 0, 2)
        return result.reshape(leaf.shape).astype(leaf.dtype)

    def vector(self, index: Array) -> Array:
        """Return the eigenvector `(rows, groups, columns)` of an eigenvalue, by its place among all of the block."""
        groups, rows, columns = self.values.shape
        group, place = jnp.divmod(index, rows * columns)
        row, column = jnp.divmod(place, columns)
        outer = jnp.outer(self.left[group][:, row], self.right[group][:, column])
        own = jnp.arange(groups, dtype=index.dtype) == group
        return jnp.where(own[None, :, None], outer[:, None, :], 0).reshape(rows, groups, columns)

    def inverse(self, damping: Array, split: str) -> "EigenBlock":
        """Return the block of `(A + damping)^-1`, or with the damping split between the factors."""
        if split == "exact" or self.of_rows is None or self.of_columns is None:
            return EigenBlock(self.left, self.right, 1 / (self.values + damping))
        # Martens and Grosse 2015, section 6.3: the factor of the rows gets pi * sqrt(damping).
        pi = jnp.sqrt(_positive(self.of_rows.mean(1)) / _positive(self.of_columns.mean(1)))[:, None]
        root = jnp.sqrt(damping)
        rows, columns = 1 / (self.of_rows + pi * root), 1 / (self.of_columns + root / pi)
        return EigenBlock(self.left, self.right, rows[:, :, None] * columns[:, None, :], rows, columns)


def kronecker(a: Array, b: Array) -> EigenBlock:
    """Return the block of `a` on the rows and `b` on the columns, `(groups, n, n)` each."""
    (of_a, left), (of_b, right) = jnp.linalg.eigh(a), jnp.linalg.eigh(b)
    of_a, of_b = jnp.maximum(of_a, 0), jnp.maximum(of_b, 0)  # below 0 by rounding only
    return EigenBlock(left, right, of_a[:, :, None] * of_b[:, None, :], of_a, of_b)


def dense(a: Array) -> EigenBlock:
    """Return the block of a matrix `(n, n)`."""
    values, left = jnp.linalg.eigh(a)
    return EigenBlock(left[None], jnp.ones((1, 1, 1), a.dtype), jnp.maximum(values, 0)[None, :, None])


def diagonal(values: Array) -> EigenBlock:
    """Return the block of a diagonal `(n,)`."""
    ones = jnp.ones((values.size, 1, 1), values.dtype)
    return EigenBlock(ones, ones, values.reshape(-1, 1, 1))


def product(blocks: Sequence[EigenBlock], v: Tree) -> Tree:
    """Multiply blocks by a tree that has a leaf for each."""
    leaves, structure = jax.tree.flatten(v)
    return jax.tree.unflatten(structure, [block.product(leaf) for block, leaf in zip(blocks, leaves, strict=True)])


def largest(blocks: Sequence[EigenBlock], form: Tree, order: Callable[[Array], Array], k: int) -> tuple[Array, Any]:
    """Return the `k` eigenvalues that come first in an order, ascending, and their eigenvectors.

    Args:
        blocks: one for each leaf.
        form: the shapes and dtypes of the leaves.
        order: a function of all eigenvalues that returns numbers, of which the largest come first.
        k: how many.

    Returns:
        An array `(k,)`, and a tree like `form` whose leaves have an axis of `k` in front.
    """
    leaves, structure = jax.tree.flatten(form)
    values = jnp.concatenate([block.values.ravel() for block in blocks])
    chosen = jax.lax.top_k(order(values), k)[1]
    chosen = chosen[jnp.argsort(values[chosen])]
    vectors, start = [], 0
    for block, leaf in zip(blocks, leaves, strict=True):
        places = chosen - start
        here = (places >= 0) & (places < block.values.size)
        own = jax.vmap(block.vector)(jnp.clip(places, 0, block.values.size - 1))
        own = jnp.where(here.reshape(-1, 1, 1, 1), own, 0)
        vectors.append(own.reshape(k, *leaf.shape).astype(leaf.dtype))
        start += block.values.size
    return values[chosen], jax.tree.unflatten(structure, vectors)


def _positive(x: Array) -> Array:
    return jnp.where(x > 0, x, 1)

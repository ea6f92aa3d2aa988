"""Products that read a data set in Python, beside those that JAX traces."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..trees import Partial, Tree


@jax.tree_util.register_static  # has no arrays for JAX, so that an operator with it stays a pytree
@dataclass(frozen=True, eq=False)
class DataProduct:
    """A product that reads the data once for any number of vectors.

    Attributes:
        where: the name of the operator, for messages.
        read: the function that multiplies a tree of vectors `(vectors, *shape)`.
    """

    where: str
    read: Callable[[Tree], Tree]

    def many(self, vs: Tree) -> Tree:
        """Multiply by several vectors in one pass: trees whose leaves are `(vectors, *shape)`."""
        refuse_tracing(self.where, vs)
        return self.read(vs)

    def __call__(self, v: Tree) -> Tree:
        """Multiply by one vector."""
        return jax.tree.map(lambda leaf: leaf[0], self.many(jax.tree.map(lambda leaf: leaf[None], v)))


def refuse_tracing(where: str, tree: Tree) -> None:
    """Raise an error inside of a transformation, in which the values of arrays are not known."""
    # `jnp.zeros` finds jax.jit around a tree of constants.
    if any(isinstance(leaf, jax.core.Tracer) for leaf in [*jax.tree.leaves(tree), jnp.zeros(())]):
        msg = (
            f"{where}: with batches=, a product reads the data in Python, so it does not work inside jax.jit, jax.vmap "
            "or jax.grad. Call it outside, or pass a function of one batch without batches="
        )
        raise FuncconvError(msg)


def many(product: Callable[[Tree], Tree], vs: Tree) -> Tree:
    """Multiply by several vectors at once, trees whose leaves are `(vectors, *shape)`."""
    return product.many(vs) if isinstance(product, DataProduct) else jax.vmap(product)(vs)


def around(
    product: Callable[[Tree], Tree], before: Callable[[Tree], Tree], after: Callable[[Tree, Tree], Tree]
) -> Callable[[Tree], Tree]:
    """Return the product `v -> after(v, A before(v))`. Both functions must be pytrees, such as a `Partial`."""
    if not isinstance(product, DataProduct):
        composed: Callable[[Tree], Tree] = Partial(_around, product, before, after)
        return composed

    def read(vs: Tree) -> Tree:
        return jax.vmap(after)(vs, product.many(jax.vmap(before)(vs)))

    return DataProduct(product.where, read)


def _around(product: Any, before: Any, after: Any, v: Tree) -> Tree:
    return after(v, product(before(v)))

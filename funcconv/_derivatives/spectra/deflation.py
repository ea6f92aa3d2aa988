"""Operators from which known vectors are removed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ..._common.dtypes import scale_of
from ..._common.types import Array
from ..data_set.products import around
from ..linear_map import LinearMap
from ..trees import Flat, Partial, Tree, check_like, leading_size
from .krylov import eps


def deflated_product(where: str, operator: LinearMap, vectors: Tree) -> Callable[[Tree], Tree]:
    """Return the product with `P A P`, where `P` projects onto what is orthogonal to all vectors."""
    count = leading_size(where, "vectors", vectors)
    rows = jax.vmap(Flat(operator.rows).ravel)(check_like(where, "vectors", vectors, operator.rows, (count,)))
    project = Partial(_projected, _orthonormal(rows))
    return around(operator.product, project, Partial(_after, project))


def _orthonormal(rows: Array) -> Array:
    """Return an orthonormal basis of the span of vectors `(k, n)`, filled up with zeros if they are dependent."""
    scale = jax.vmap(scale_of)(rows)[:, None]
    rows = rows / scale
    norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / jnp.where(norms == 0, 1, norms)
    _, sizes, basis = jnp.linalg.svd(rows, full_matrices=False)
    return jnp.where((sizes > max(rows.shape) * eps(rows) * sizes[0])[:, None], basis, 0)


def _projected(basis: Array, v: Tree) -> Tree:
    flat = Flat(v)
    vector, highest = flat.ravel(v), jax.lax.Precision.HIGHEST
    along = jnp.matmul(basis.astype(flat.dtype), vector, precision=highest)
    return flat.unravel(vector - jnp.matmul(along, basis.astype(flat.dtype), precision=highest))


def _after(project: Callable[[Tree], Tree], v: Tree, product: Tree) -> Tree:
    del v
    return project(product)

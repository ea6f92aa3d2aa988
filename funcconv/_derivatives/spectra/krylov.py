"""Krylov spaces of symmetric operators, and the small tridiagonal matrices in them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import scale_of
from ..._common.optional_packages import needs
from ..._common.types import Array
from ..linear_map import LinearMap, positive, reads_data, times_vector, times_vectors
from ..trees import Flat


def over_krylov_spaces(
    where: str, operator: LinearMap, probes: Array, order: int, read: Callable[[Array, Array, Array], Any]
) -> Any:
    """Return `read(diagonal, below, basis)` for the Krylov space of each probe, stacked.

    Args:
        where: the name of the method, for messages.
        operator: a symmetric operator with `size` rows.
        probes: the first vectors, `(probes, size)`, none of them zero.
        order: the number of Lanczos steps; at most `size` are made, here called `m`.
        read: a function of the diagonal of the tridiagonal matrix, `(m,)`, of the entries below it, `(m - 1,)`, and of
            the orthonormal basis, `(m, size)`. If the space has fewer than `m` dimensions, from there on the entries
            below and the vectors are 0, and those of the diagonal are the first one.
    """
    order = min(positive(f"{where}: order", order), probes.shape[1])
    if reads_data(operator):  # all spaces grow together, so that one pass over the data serves all
        matrices = _lanczos(operator, probes, order)
    else:
        with needs("curvature", where):
            from matfree import decomp
        # Its sibling tridiag_sym averages with rounding noise, or nan, once the Krylov space is exhausted.
        factorise = decomp.hessenberg(order, reortho="full", custom_vjp=False)

        def one(probe: Array) -> Any:
            scale = scale_of(times_vector(operator, probe))  # the factorization squares what the product returns
            found = factorise(lambda v: times_vector(operator, v) / scale, probe)
            diagonal, below = jnp.diagonal(found.J_small), jnp.diagonal(found.J_small, -1)
            return read(*_cut(diagonal, below, found.Q_tall, scale))

        return jax.lax.map(one, probes)  # one Krylov space at a time
    return jax.vmap(lambda *matrix: read(*_cut(*matrix)))(*matrices)


def _lanczos(operator: LinearMap, probes: Array, order: int) -> tuple[Any, ...]:
    """Return the diagonals, the entries below, the bases and the scales, for all probes."""
    count, size = probes.shape
    basis = jnp.zeros((count, order, size), probes.dtype).at[:, 0].set(_unit(probes)[0])
    diagonals, off_diagonals, scale = [], [], None
    for j in range(order):
        products = times_vectors(operator, basis[:, j])
        scale = jax.vmap(scale_of)(products) if scale is None else scale
        basis, diagonal, below = _extended(basis, jnp.asarray(j), products / scale[:, None])
        diagonals.append(diagonal)
        off_diagonals.append(below)
    return jnp.stack(diagonals, 1), jnp.stack(off_diagonals, 1)[:, :-1], basis, scale


@partial(jax.jit, donate_argnums=0)
def _extended(basis: Array, j: Array, products: Array) -> tuple[Array, Array, Array]:
    """Return the bases with the next vector, and the entries of the tridiagonal matrices: one Lanczos step."""
    highest = jax.lax.Precision.HIGHEST
    diagonal = jnp.einsum("kn,kn->k", basis[:, j], products, precision=highest)
    for _ in range(2):  # once is not enough in floating point (Giraud and others, 2005)
        along = jnp.einsum("kmn,kn->km", basis, products, precision=highest)
        products = products - jnp.einsum("km,kmn->kn", along, basis, precision=highest)
    unit, below = _unit(products)
    return basis.at[:, j + 1].set(unit, mode="drop"), diagonal, below


def _unit(vectors: Array) -> tuple[Array, Array]:
    """Return the vectors `(k, n)` with norm 1, and their norms `(k,)`; a zero stays zero."""
    norms = jnp.linalg.norm(vectors, axis=1)
    return vectors / jnp.where(norms == 0, 1, norms)[:, None], norms


def _cut(diagonal: Array, below: Array, basis: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Return the matrix and the basis without what is beyond the end of an exhausted space.

    There, the next vector is rounding noise or 0 / 0.
    """
    size = jax.lax.cummax(jnp.abs(diagonal[:-1])) + jax.lax.cummax(jnp.abs(below))
    whole = jnp.cumprod(below > len(diagonal) * eps(below) * size).astype(bool)  # nan is not larger
    below = jnp.where(whole, below, 0)
    # What is cut off has no weight; the first entry, which is within the spectrum, stands for it.
    diagonal = diagonal.at[1:].set(jnp.where(whole, diagonal[1:], diagonal[0]))
    basis = basis.at[1:].set(jnp.where(whole[:, None], basis[1:], 0))
    return diagonal * scale, below * scale, basis


def ritz_pairs(diagonal: Array, below: Array) -> tuple[Array, Array]:
    """Return the eigenvalues `(m,)` and the eigenvectors `(m, m)`, in columns, of a tridiagonal matrix."""
    matrix = jnp.diag(diagonal) + jnp.diag(below, -1) + jnp.diag(below, 1)
    scale = scale_of(matrix)  # eigh may square its entries
    values, vectors = jnp.linalg.eigh(matrix / scale)
    return values * scale, vectors


def quadrature(where: str, operator: LinearMap, key: Array, order: int, samples: int) -> tuple[Array, Array]:
    """Return nodes and weights, `(samples, m)`: `<z, f(A) z> / <z, z>` is about `sum_i weight_i f(node_i)`.

    `z` are vectors of random signs, one for each sample. The nodes are the eigenvalues of the tridiagonal matrix. The
    weights are the squares of the first entries of its eigenvectors: the part of the probe along each of them.
    """
    with needs("curvature", where):
        from matfree import stochtrace
    probes = stochtrace.sampler_signs(Flat(operator.rows).zeros(), num=samples)(key)  # (samples, size)

    def read(diagonal: Array, below: Array, _: Array) -> tuple[Array, Array]:
        nodes, vectors = ritz_pairs(diagonal, below)
        return nodes, vectors[0] ** 2

    nodes_and_weights: tuple[Array, Array] = over_krylov_spaces(where, operator, probes, order, read)
    return nodes_and_weights


def eps(x: Array) -> float:
    """Return the distance of 1 from the next number of the dtype."""
    info: Any = jnp.finfo
    return float(info(x.dtype).eps)

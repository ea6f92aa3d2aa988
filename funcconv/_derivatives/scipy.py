"""A linear map as scipy's, and the eigenvalues that scipy finds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import scale_of
from .._common.errors import FuncconvError, suggest
from .._common.optional_packages import needs
from .._common.types import Array
from .linear_map import LinearMap, positive, reads_data, times_vector, times_vectors
from .trees import Flat, Tree

_WHICH = ("LA", "SA", "LM", "SM", "BE")


def scipy_operator(where: str, symmetric: LinearMap) -> Any:
    """Return the `scipy.sparse.linalg.LinearOperator` of a symmetric map, its product compiled."""
    with needs("curvature", where):
        from scipy.sparse.linalg import LinearOperator
    dtype = Flat(symmetric.rows).dtype

    def called(function: Any, x: Any) -> Any:
        try:
            return np.asarray(function(symmetric, jnp.asarray(x, dtype)))
        except jax.errors.TracerArrayConversionError as error:
            msg = f"{where}: SciPy needs the values of arrays, which are not known inside jax.jit. Use mv there"
            raise FuncconvError(msg) from error

    one, several = _compiled(symmetric)

    def matvec(x: Any) -> Any:
        return called(one, x.reshape(-1))  # (n,), or (n, 1)

    def matmat(xs: Any) -> Any:
        return called(several, xs.T).T

    return LinearOperator(symmetric.shape, matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=np.dtype(dtype))


_COMPILED = jax.jit(times_vector), jax.jit(times_vectors)


def _compiled(symmetric: LinearMap) -> tuple[Any, Any]:
    """Return compiled functions that multiply by one vector and by several."""
    # A product that reads data compiles its own parts.
    return (times_vector, times_vectors) if reads_data(symmetric) else _COMPILED


def eigenpairs(
    where: str, symmetric: LinearMap, k: int, which: str, *, tol: float, maxiter: int | None, residuals: bool
) -> tuple[Any, ...]:
    """Return `k` eigenvalues and eigenvectors, and their residuals; see `Operator.eigsh`."""
    if which not in _WHICH:
        msg = f"{where}: unknown which {which!r}{suggest(which, _WHICH)}"
        raise FuncconvError(msg)
    size = symmetric.shape[0]
    if positive(f"{where}: k", k) > size:
        msg = f"{where}: an operator of size {size} has no {k} eigenvalues; ask for at most {size}"
        raise FuncconvError(msg)
    matrix = scipy_operator(where, symmetric)
    with needs("curvature", where):
        from scipy.sparse import linalg
    start = np.random.default_rng(0).standard_normal(size).astype(matrix.dtype)  # so that a second call is the same
    image = matrix.matvec(start)
    if not np.isfinite(image).all():
        msg = (
            f"{where}: the product with a vector is not finite, so there are no eigenvalues. "
            "Look for inf or NaN in the parameters and the data"
        )
        raise FuncconvError(msg)
    if not image.any():  # ARPACK refuses the zero map
        values, vectors = np.zeros(k, matrix.dtype), np.eye(size, k, dtype=matrix.dtype)
    elif k == size:  # ARPACK computes fewer than all
        values, vectors = np.linalg.eigh(matrix.matmat(np.eye(size, dtype=matrix.dtype)))
    else:
        try:
            values, vectors = linalg.eigsh(matrix, k, which=which, v0=start, tol=tol, maxiter=maxiter)
        except linalg.ArpackNoConvergence as error:
            msg = f"{where}: {len(error.eigenvalues)} of {k} eigenvalues converged; raise maxiter= or tol="
            raise FuncconvError(msg) from error
    order = np.argsort(values)
    pairs = jnp.asarray(values[order]), jax.vmap(Flat(symmetric.rows).unravel)(jnp.asarray(vectors.T[order]))
    return (*pairs, residual_norms(symmetric, *pairs)) if residuals else pairs


def residual_norms(symmetric: LinearMap, values: Array, vectors: Tree) -> Array:
    """Return the norms `||A x - lambda x||`, `(k,)`, of eigenvalues `(k,)` and a tree of eigenvectors `(k, *shape)`."""
    rows = jax.vmap(Flat(symmetric.rows).ravel)(vectors)
    differences = _compiled(symmetric)[1](symmetric, rows) - values.astype(rows.dtype)[:, None] * rows
    scale = scale_of(differences)  # large numbers are squared below
    norms: Array = jnp.linalg.norm(differences / scale, axis=1) * scale
    return norms

"""Functions of symmetric operators, by Lanczos iterations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import scale_of
from ..._common.errors import FuncconvError
from ..._common.types import Array
from ..hutchinson import Estimate
from ..linear_map import LinearMap, positive
from ..trees import Flat, Tree, check_like, real_number
from .krylov import eps, over_krylov_spaces, quadrature, ritz_pairs


def log_det(where: str, operator: LinearMap, key: Array, damping: Any, *, order: int, samples: int) -> Estimate:
    """Estimate the logarithm of the determinant; see `Operator.log_det`."""
    positive(f"{where}: samples", samples, least=2)  # one sample says nothing of its error
    damping = real_number(where, "damping", damping)
    nodes, weights = quadrature(where, operator, key, order, samples)
    values = operator.shape[0] * (weights * jnp.log(_positive(where, nodes, damping))).sum(1)  # (samples,)
    return Estimate(values.mean(), values.std(ddof=1) / jnp.sqrt(jnp.asarray(samples, values.dtype)))


def inv_sqrt(where: str, operator: LinearMap, v: Tree, damping: Any, *, order: int) -> Tree:
    """Multiply by the inverse square root; see `Operator.inv_sqrt_mv`."""
    damping = real_number(where, "damping", damping)
    return _times(where, operator, v, order, lambda nodes: _positive(where, nodes, damping) ** -0.5)


def exponential(where: str, operator: LinearMap, v: Tree, t: Any, *, order: int) -> Tree:
    """Multiply by the exponential; see `Operator.exp_mv`."""
    t = real_number(where, "t", t)
    return _times(where, operator, v, order, lambda nodes: jnp.exp(t.astype(nodes.dtype) * nodes))


def _times(where: str, operator: LinearMap, v: Tree, order: int, f: Callable[[Array], Array]) -> Tree:
    """Return `f(A) v = ||v|| Q f(T) e_1`, with the basis `Q` of the Krylov space of `v` and the matrix `T` in it."""
    flat = Flat(operator.rows)
    vector = flat.ravel(check_like(where, "v", v, operator.rows))
    scale = scale_of(vector)
    length = jnp.linalg.norm(vector / scale) * scale
    # A zero has no Krylov space: any vector stands for it, times 0.
    probe = jnp.where(length == 0, jnp.ones_like(vector), vector / scale)

    def read(diagonal: Array, below: Array, basis: Array) -> tuple[Array, ...]:
        nodes, vectors = ritz_pairs(diagonal, below)
        return nodes, vectors, basis

    nodes, vectors, basis = over_krylov_spaces(where, operator, probe[None], order, read)
    coefficients = vectors[0] @ (f(nodes[0]) * vectors[0, 0])
    return flat.unravel(length * (coefficients @ basis[0]))


def _positive(where: str, nodes: Array, damping: Array) -> Array:
    """Return the eigenvalues with damping, which must be above the rounding errors: NaN if they are not known yet."""
    damped = nodes + damping.astype(nodes.dtype)
    limit = nodes.shape[-1] * eps(nodes) * jnp.abs(damped).max()
    smallest = damped.min()
    if not isinstance(smallest, jax.core.Tracer) and smallest <= limit:
        least = float(limit - smallest + damping)
        msg = (
            f"{where}: the operator with damping must be positive definite, but it has an eigenvalue of about "
            f"{float(smallest):.3g} (rounding errors are up to {float(limit):.3g}). Pass a damping above {least:.3g}"
        )
        raise FuncconvError(msg)
    return jnp.where(smallest > limit, damped, jnp.nan)

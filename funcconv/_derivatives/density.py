"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._common.dtypes import scale_of
from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.types import Array
from .linear_map import positive
from .trees import in_short

# exp(-8² / 2) is about 1e-14, so in float32 nothing of the integral is lost at the ends of the grid.
_REACH = 8  # standard deviations of a peak that the grid goes beyond the spectrum


class Density(NamedTuple):
    """A density of eigenvalues, which `Operator.density` returns. Its integral is 1.

    Attributes:
        grid: equidistant eigenvalues, `(points,)`.
        density: the density at each of them, `(points,)`.

    Example:
        >>> import funcconv as fc, jax
        >>> h = fc.hessian(lambda x: (x**4).sum(), jax.numpy.arange(1.0, 9.0))
        >>> density = h.density(jax.random.key(0), order=8, samples=2, points=128)
        >>> density.grid.shape, density.density.shape
        ((128,), (128,))
    """

    grid: Array
    density: Array

    def __repr__(self) -> str:
        return f"Density(grid={in_short(self.grid)}, density={in_short(self.density)})"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the density with matplotlib.

        Args:
            ax: matplotlib axes to draw on. Default: None, a new figure.
            **options: options of `ax.plot`.

        Returns:
            The axes. `.set_yscale("log")` makes a few large eigenvalues visible, `.figure.savefig(path)` saves the
            figure.

        Raises:
            FuncconvError: if `ax` is None and matplotlib is not installed.
        """
        if ax is None:
            with needs("draw", "Density.plot"):
                import matplotlib.pyplot as plt
            ax = plt.subplots()[1]
        ax.plot(self.grid, self.density, **options)
        ax.set(xlabel="eigenvalue", ylabel="density")
        return ax


def lanczos_density(
    where: str,
    product: Callable[[Array], Array],
    like: Array,
    key: Array,
    *,
    order: int,
    samples: int,
    smoothing: float,
    points: int,
) -> Density:
    """Estimate the density; see `Operator.density`."""
    with needs("curvature", where):
        from matfree import decomp, stochtrace
    order = min(positive(f"{where}: order", order), like.size)
    sampler = stochtrace.sampler_signs(like, num=positive(f"{where}: samples", samples))
    check_points(where, smoothing, points)
    # Its sibling tridiag_sym averages with an entry that is rounding noise, or nan, once the Krylov space is exhausted.
    factorise = decomp.hessenberg(order, reortho="full", custom_vjp=False)

    def quadrature(probe: Array) -> tuple[Array, Array]:
        scale = scale_of(product(probe))  # the factorization squares what the product returns
        nodes, weights = _nodes_and_weights(factorise(lambda v: product(v) / scale, probe).J_small)
        return nodes * scale, weights

    nodes, weights = jax.lax.map(quadrature, sampler(key))  # (samples, order); one Krylov space at a time
    low, high = nodes.min(), nodes.max()
    width = smoothing * _scale(low, high)
    unit = jnp.linspace(0, 1, points, dtype=nodes.dtype)
    grid = low - _REACH * width + (high - low + 2 * _REACH * width) * unit
    return Density(grid, _smoothed(grid, nodes.ravel(), weights.ravel() / samples, width))


def check_points(where: str, smoothing: float, points: int) -> None:
    """Refuse a grid whose steps are wider than a peak."""
    if not 0 < smoothing <= 1:
        msg = f"{where}: smoothing, a part of the spectrum's width, must be above 0 and at most 1; got {smoothing!r}"
        raise FuncconvError(msg)
    least = int(1 / smoothing + 2 * _REACH) + 2
    if positive(f"{where}: points", points) < least:
        msg = (
            f"{where}: peaks {smoothing} of the spectrum wide need at least {least} points; got {points}. "
            "Pass more points or a larger smoothing"
        )
        raise FuncconvError(msg)


def _nodes_and_weights(hessenberg: Array) -> tuple[Array, Array]:
    """Return the quadrature of Lanczos: the eigenvalues of its matrix, and what of the probe lies along each.

    Where the Krylov space is exhausted, the next vector is rounding noise or 0 / 0. The matrix is cut there.
    """
    diagonal, below = jnp.diagonal(hessenberg), jnp.diagonal(hessenberg, -1)
    size = jax.lax.cummax(jnp.abs(diagonal[:-1])) + jax.lax.cummax(jnp.abs(below))
    whole = jnp.cumprod(below > len(diagonal) * _eps(below) * size).astype(bool)  # nan is not larger
    below = jnp.where(whole, below, 0)
    # What is cut off has no weight; the first entry, which is within the spectrum, stands for it.
    diagonal = diagonal.at[1:].set(jnp.where(whole, diagonal[1:], diagonal[0]))
    nodes, vectors = jnp.linalg.eigh(jnp.diag(diagonal) + jnp.diag(below, -1) + jnp.diag(below, 1))
    return nodes, vectors[0] ** 2


def _scale(low: Array, high: Array) -> Array:
    """Return the width of a spectrum; where all eigenvalues are equal, their size, or 1, stands for it."""
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    # Equal eigenvalues differ by rounding, and peaks as narrow as rounding errors would show only these.
    equal = high - low <= math.sqrt(_eps(size)) * size
    return jnp.where(equal, jnp.where(size > 0, size, jnp.ones_like(size)), high - low)


def _smoothed(grid: Array, nodes: Array, weights: Array, width: Array) -> Array:
    """Return the sum of normal densities (points,), one at each node."""

    def one(point: Array) -> Array:
        return weights @ jnp.exp(-(((point - nodes) / width) ** 2) / 2)

    # 256 points at a time bound the memory to 256 numbers for each node.
    height: Array = jax.lax.map(one, grid, batch_size=256) / (width * math.sqrt(2 * math.pi))
    return height


def _eps(x: Array) -> float:
    info: Any = jnp.finfo
    return float(info(x.dtype).eps)

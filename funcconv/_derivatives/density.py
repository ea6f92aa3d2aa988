"""The spectral density of a symmetric operator, by stochastic Lanczos quadrature."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.types import Array
from .linear_map import LinearMap, positive
from .spectra.krylov import eps, quadrature
from .trees import in_short

# exp(-8² / 2) is about 1e-14, so in float32 nothing of the integral is lost at the ends of the grid.
_REACH = 8  # standard deviations of a peak that the grid goes beyond the spectrum


class Density(NamedTuple):
    """A density of eigenvalues, which `Operator.density` returns. Its integral is 1.

    Attributes:
        grid: equidistant eigenvalues, `(points,)`.
        density: the density at each of them, `(points,)`.
        error: the standard error of each density, `(points,)`, from the spread over the vectors of random signs; NaN if
            there was one vector. It does not include the error of a finite `order`. Default: None, not known.

    Example:
        >>> import funcconv as fc, jax
        >>> h = fc.hessian(lambda x: (x**4).sum(), jax.numpy.arange(1.0, 9.0))
        >>> density = h.density(jax.random.key(0), order=8, samples=2, points=128)
        >>> density.grid.shape, density.density.shape
        ((128,), (128,))
        >>> density.error.shape
        (128,)
    """

    grid: Array
    density: Array
    error: Array | None = None

    def __repr__(self) -> str:
        error = "" if self.error is None else f", error={in_short(self.error)}"
        return f"Density(grid={in_short(self.grid)}, density={in_short(self.density)}{error})"

    def plot(self, ax: Any = None, **options: Any) -> Any:
        """Draw the density with matplotlib, and a band of two standard errors around it.

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
        (line,) = ax.plot(self.grid, self.density, **options)
        if self.error is not None:
            low, high = jnp.maximum(self.density - 2 * self.error, 0), self.density + 2 * self.error
            ax.fill_between(self.grid, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel="eigenvalue", ylabel="density")
        return ax


def lanczos_density(
    where: str, operator: LinearMap, key: Array, *, order: int, samples: int, smoothing: float, points: int
) -> Density:
    """Estimate the density; see `Operator.density`."""
    positive(f"{where}: samples", samples)
    check_points(where, smoothing, points)
    nodes, weights = quadrature(where, operator, key, order, samples)  # (samples, order)
    low, high = nodes.min(), nodes.max()
    width = smoothing * _scale(low, high)
    unit = jnp.linspace(0, 1, points, dtype=nodes.dtype)
    grid = low - _REACH * width + (high - low + 2 * _REACH * width) * unit
    heights = _smoothed(grid, nodes, weights, width)  # (points, samples)
    mean = heights.mean(1)
    squares = ((heights - mean[:, None]) ** 2).sum(1)
    # One sample says nothing of its error.
    error = jnp.sqrt(squares / (samples - 1) / samples) if samples > 1 else jnp.full_like(mean, jnp.nan)
    return Density(grid, mean, error)


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


def _scale(low: Array, high: Array) -> Array:
    """Return the width of a spectrum; where all eigenvalues are equal, their size, or 1, stands for it."""
    size = jnp.maximum(jnp.abs(low), jnp.abs(high))
    # Equal eigenvalues differ by rounding, and peaks as narrow as rounding errors would show only these.
    equal = high - low <= math.sqrt(eps(size)) * size
    return jnp.where(equal, jnp.where(size > 0, size, jnp.ones_like(size)), high - low)


def _smoothed(grid: Array, nodes: Array, weights: Array, width: Array) -> Array:
    """Return the sums of normal densities, one at each node, for each sample: `(points, samples)`."""

    def one(point: Array) -> Array:
        return (weights * jnp.exp(-(((point - nodes) / width) ** 2) / 2)).sum(1)

    # 256 points at a time bound the memory to 256 numbers for each node.
    height: Array = jax.lax.map(one, grid, batch_size=256) / (width * math.sqrt(2 * math.pi))
    return height

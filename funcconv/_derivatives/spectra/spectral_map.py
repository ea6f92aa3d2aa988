"""What Lanczos iterations compute of a symmetric map: eigenvalues, their density, and functions of the matrix."""

from typing import Any

from ..._common.types import Array
from ..density import Density, lanczos_density
from ..hutchinson import Estimate
from ..linear_map import LinearMap
from ..scipy import eigenpairs
from ..trees import Tree
from . import functions


class SpectralMap(LinearMap):
    """A symmetric linear map on trees, with the methods that depend on its spectrum."""

    def eigsh(
        self, k: int, which: str = "LA", *, tol: float = 0.0, maxiter: int | None = None, residuals: bool = False
    ) -> tuple[Any, ...]:
        """Compute some eigenvalues and eigenvectors, by `scipy.sparse.linalg.eigsh` on the compiled product.

        Args:
            k: the number of eigenvalues, from 1 to `size`.
            which: which eigenvalues: `"LA"` the largest, `"SA"` the smallest, `"LM"` and `"SM"` the largest and
                smallest in absolute value, `"BE"` half from each end of the spectrum. Default: `"LA"`.
            tol: the relative accuracy of the eigenvalues. Default: 0, the accuracy of the dtype.
            maxiter: the maximum number of restarts of the Lanczos iteration. Default: None, `10 * size`.
            residuals: whether to return the residuals too, at the cost of `k` products. Default: False.

        Returns:
            `(eigenvalues, eigenvectors)`: an array `(k,)` in ascending order, and a tree like the parameters in which
            each leaf has an axis of `k` in front. The eigenvectors are orthonormal. With `residuals`, a third result,
            the norms `(k,)` of `A x - eigenvalue * x`: the operator has an eigenvalue within this distance of each
            result. It does not show whether an eigenvalue was missed.

        Raises:
            FuncconvError: if `k` is not from 1 to `size`, if `which` is unknown, if a product is not finite, if an
                eigenvalue does not converge, if scipy is not installed, or inside `jax.jit`.

        Source: Lehoucq, Sorensen and Yang, "ARPACK users' guide", 1998; Parlett, "The symmetric eigenvalue problem",
        1998, theorem 4.5.1, for the bound by the residual.
        """
        return eigenpairs(f"{self.name}.eigsh", self, k, which, tol=tol, maxiter=maxiter, residuals=residuals)

    def density(
        self, key: Array, *, order: int = 64, samples: int = 8, smoothing: float = 0.01, points: int = 1024
    ) -> Density:
        """Estimate the density of the eigenvalues by stochastic Lanczos quadrature.

        For each of `samples` vectors of random signs, `order` Lanczos steps give the nodes and weights of a quadrature.
        Each node becomes a normal density, and the result is the mean over the samples.

        Args:
            key: a JAX random key for the random signs.
            order: the number of Lanczos steps for each vector of signs, with one product and one vector in memory each;
                at most `size` are made. With `batches`, the steps for all vectors of signs are made together, so that
                there are `order` passes over the data, and `order * samples` vectors in memory. Default: 64.
            samples: the number of vectors of random signs, at least 1. Default: 8.
            smoothing: the standard deviation of the normal densities, relative to the width of the spectrum, above 0
                and at most 1. If all eigenvalues are equal, it is relative to their absolute value, or to 1 if all are
                zero. Default: 0.01.
            points: the number of points of the grid, which extends beyond the spectrum by 8 standard deviations on both
                sides. Default: 1024.

        Returns:
            A `Density` with `grid`, `density` and its standard `error`, all `(points,)`. `.plot(ax)` draws it.

        Raises:
            FuncconvError: if a number is out of range, if the points are too few for the smoothing, or if matfree is
                not installed.

        Source: Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 58, 2016.
        """
        return lanczos_density(
            f"{self.name}.density",
            self,
            key,
            order=order,
            samples=samples,
            smoothing=smoothing,
            points=points,
        )

    def log_det(self, key: Array, *, damping: Any = 0.0, order: int = 64, samples: int = 8) -> Estimate:
        """Estimate the logarithm of the determinant of `A + damping * I` by stochastic Lanczos quadrature.

        `log det M = tr log M` is estimated by the mean of `<z, log(M) z>` over random signs `z`. For each of them,
        `order` Lanczos steps compute `<z, log(M) z>`, exactly if there are at most `order` different eigenvalues.
        Otherwise the error decreases like `((sqrt(c) - 1) / (sqrt(c) + 1))^(2 order)` with the condition number `c` of
        `M`.

        Args:
            key: a JAX random key for the random signs.
            damping: a real number, which may be traced. A semidefinite operator needs a positive one. Default: 0.
            order: the number of Lanczos steps for each vector of signs, at most `size`. Default: 64.
            samples: the number of vectors of random signs, at least 2. Default: 8.

        Returns:
            An `Estimate` with two numbers, `value` and its standard `error`, the spread over the samples. The error has
            no part for the finite `order`. NaN inside `jax.jit` if `A + damping * I` is not positive definite.

        Raises:
            FuncconvError: if a number is out of range, if `A + damping * I` is not positive definite up to rounding
                errors and this is known, or if matfree is not installed.

        Source: Ubaru, Chen and Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", 2017.

        Example:
            >>> import funcconv as fc, jax
            >>> h = fc.hessian(lambda x: (x**2).sum(), jax.numpy.ones(8))  # 2 times the identity
            >>> estimate = h.log_det(jax.random.key(0), damping=1.0, samples=4)
            >>> print(f"{estimate.value:.3f}, 8 log 3 = {8 * jax.numpy.log(3):.3f}")
            8.789, 8 log 3 = 8.789
        """
        return functions.log_det(f"{self.name}.log_det", self, key, damping, order=order, samples=samples)

    def inv_sqrt_mv(self, v: Tree, *, damping: Any = 0.0, order: int = 64) -> Tree:
        """Multiply by the inverse square root: `(A + damping * I)^(-1/2) v`, by `order` Lanczos steps.

        With `v` from a normal distribution with unit variance, the result is a sample of the normal distribution with
        the covariance `(A + damping * I)^-1`, as in a Laplace approximation.

        The error is at most `2 ||v||` times the largest distance between `x^(-1/2)` and the best polynomial of degree
        `order - 1` on the spectrum. So it is rounding alone if there are at most `order` different eigenvalues;
        otherwise it decreases like `((sqrt(c) - 1) / (sqrt(c) + 1))^order` with the condition number `c` of
        `A + damping * I`. Compare with a larger `order` to estimate it.

        Args:
            v: a tree like the parameters.
            damping: a real number, which may be traced. A semidefinite operator needs a positive one. Default: 0.
            order: the number of Lanczos steps, at most `size`, with one vector in memory each. Default: 64.

        Returns:
            A tree like the parameters. NaN inside `jax.jit` if `A + damping * I` is not positive definite.

        Raises:
            FuncconvError: if `v` is not like the parameters, if a number is out of range, if `A + damping * I` is not
                positive definite up to rounding errors and this is known, or if matfree is not installed.

        Source: Higham, "Functions of matrices", 2008, section 13.2; for the bound, Musco, Musco and Sidford, "Stability
        of the Lanczos method for matrix function approximation", 2018.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> h = fc.hessian(lambda x: (x**3).sum() / 6, jnp.array([4.0, 9.0]))
            >>> h.inv_sqrt_mv(jnp.array([2.0, 3.0])).round(4).tolist()
            [1.0, 1.0]
        """
        return functions.inv_sqrt(f"{self.name}.inv_sqrt_mv", self, v, damping, order=order)

    def exp_mv(self, v: Tree, t: Any = 1.0, *, order: int = 64) -> Tree:
        """Multiply by the exponential: `exp(t A) v`, by `order` Lanczos steps.

        With `t < 0` and a gradient `v`, this is the gradient after the time `-t` of gradient flow on a quadratic loss.

        The error is at most `2 ||v||` times the largest distance between `exp(t x)` and the best polynomial of degree
        `order - 1` on the spectrum. For a spectrum of width `w`, it decreases faster than any geometric series if
        `order > |t| w / 2`. Compare with a larger `order` to estimate it.

        Args:
            v: a tree like the parameters.
            t: a real number, which may be traced. Default: 1.
            order: the number of Lanczos steps, at most `size`, with one vector in memory each. Default: 64.

        Returns:
            A tree like the parameters.

        Raises:
            FuncconvError: if `v` is not like the parameters, if a number is out of range, or if matfree is not
                installed.

        Source: Hochbruck and Lubich, "On Krylov subspace approximations to the matrix exponential operator", 1997.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> h = fc.hessian(lambda x: (x**2).sum() / 2, jnp.zeros(3))
            >>> h.exp_mv(jnp.ones(3), -1.0).round(4).tolist()
            [0.367..., 0.367..., 0.367...]
        """
        return functions.exponential(f"{self.name}.exp_mv", self, v, t, order=order)

"""The operator that K-FAC returns: eigenvalues of its blocks give its trace, its determinant and its inverse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..linear_map import as_pytree
from ..operator import Operator
from ..scipy import residual_norms
from ..trees import Partial, real_number
from . import eigen_blocks
from .eigen_blocks import EigenBlock

_SPLITS = ("pi", "exact")
_ORDERS: dict[str, Callable[[Array], Array]] = {
    "LM": lambda values: values,
    "LA": lambda values: values,
    "SM": lambda values: -values,
    "SA": lambda values: -values,
}


@as_pytree
@dataclass(frozen=True, eq=False, repr=False)
class Kfac(Operator):
    """A curvature matrix that `fc.kfac` returned: one block for each array of the parameters, zero between them.

    It has the methods of an `Operator`. `trace`, `det`, `log_det`, `eigsh` and `inverse` are computed from the
    eigenvalues of the blocks, so they are exact, fast for any number of parameters, and work inside `jax.jit`.

    Attributes:
        name: its name in messages.
        rows: the shapes and dtypes of the parameters, a tree of `jax.ShapeDtypeStruct`.
        columns: the same as `rows`.
        product: the function that multiplies by a vector, without checks.
        semidefinite: True.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x, y = jnp.array([[1.0, 2.0]]), jnp.zeros((1, 1))
        >>> curvature = fc.kfac(lambda w, x: x @ w, lambda z, y: ((z - y) ** 2).sum() / 2, jnp.ones((2, 1)), (x, y))
        >>> curvature.dense().round(4).tolist(), round(float(curvature.trace()), 4)
        ([[1.0, 2.0], [2.0, 4.0]], 5.0)
    """

    @property
    def blocks(self) -> Sequence[EigenBlock]:
        """The blocks, in the order of the leaves of the parameters."""
        return self.product.args[0]  # type: ignore[attr-defined, no-any-return]

    def eigenvalues(self) -> Array:
        """Return all eigenvalues, in no order, `(size,)`."""
        return jnp.concatenate([block.values.ravel() for block in self.blocks])

    def trace(self, method: str = "exact", **options: Any) -> Any:
        """Return the trace, the sum of the eigenvalues.

        Args:
            method: `"exact"`, or `"hutchinson"` as for any `Operator`. Default: `"exact"`.
            **options: of `Operator.trace`.

        Returns:
            A number.
        """
        return super().trace(method, **options) if method != "exact" else self.eigenvalues().sum()

    def log_det(self, damping: Any = 0.0) -> Array:  # type: ignore[override]  # exact, without a key
        """Return the logarithm of the determinant of the matrix plus a multiple of the identity.

        Args:
            damping: the multiple, a number of at least 0. Default: 0.

        Returns:
            A number; `-inf` if an eigenvalue is 0.
        """
        return jnp.log(self.eigenvalues() + damping).sum()

    def det(self, damping: Any = 0.0) -> Array:
        """Return the determinant of the matrix plus a multiple of the identity. For many parameters, use `log_det`.

        Args:
            damping: the multiple, a number of at least 0. Default: 0.

        Returns:
            A number.
        """
        return jnp.exp(self.log_det(damping))

    def eigsh(
        self,
        k: int = 6,
        which: str = "LM",
        *,
        tol: float = 0.0,
        maxiter: int | None = None,
        residuals: bool = False,
    ) -> tuple[Any, ...]:
        """Return eigenvalues and eigenvectors.

        Args:
            k: how many. Default: 6.
            which: `"LM"` or `"LA"` for the largest, `"SM"` or `"SA"` for the smallest. Default: `"LM"`.
            tol: not used, because the result is exact.
            maxiter: not used.
            residuals: whether to return the residuals too. Default: False.

        Returns:
            `(eigenvalues, eigenvectors)`: an array `(k,)` in ascending order, and a tree like the parameters in which
            each leaf has an axis of `k` in front. With `residuals`, a third result, the norms `(k,)` of
            `A x - eigenvalue * x`.

        Raises:
            FuncconvError: if `k` is not from 1 to `size`, or `which` is unknown.
        """
        del tol, maxiter
        if which not in _ORDERS:
            msg = f"{self.name}.eigsh: unknown which={which!r}{suggest(which, _ORDERS)}"
            raise FuncconvError(msg)
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= self.size:
            msg = f"{self.name}.eigsh: k must be from 1 to {self.size}; got {k!r}"
            raise FuncconvError(msg)
        pairs = eigen_blocks.largest(self.blocks, self.rows, _ORDERS[which], k)
        return (*pairs, residual_norms(self, *pairs)) if residuals else pairs

    def inverse(self, damping: Any, split: str = "pi") -> "Kfac":
        """Return the inverse of the damped matrix, for a step of a second-order method.

        Args:
            damping: a positive number `d`.
            split: `"pi"`: the damping is split between the two factors of a kernel's block, `(A + pi sqrt(d))^-1` and
                `(B + sqrt(d) / pi)^-1` with `pi = sqrt(mean eigenvalue of A / mean eigenvalue of B)`. This is an
                approximation. `"exact"`: the inverse of `A ⊗ B + d`. Other blocks, and those with corrected
                eigenvalues, are exact in both cases. Default: `"pi"`.

        Returns:
            A `Kfac`.

        Raises:
            FuncconvError: if `split` is unknown, or the damping is not one real number.

        Source: Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", 2015,
        arXiv:1503.05671, section 6.3.
        """
        if split not in _SPLITS:
            msg = f"{self.name}.inverse: unknown split={split!r}{suggest(split, _SPLITS)}"
            raise FuncconvError(msg)
        damping = real_number(f"{self.name}.inverse", "damping", damping)
        blocks = [block.inverse(damping.astype(block.values.dtype), split) for block in self.blocks]
        product = Partial(eigen_blocks.product, blocks)
        return Kfac(f"{self.name}.inverse", self.rows, self.columns, product, semidefinite=True)

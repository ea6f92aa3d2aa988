"""The operator that K-FAC returns: eigenvalues of its blocks give its trace, its determinant and its inverse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..linear_map import as_pytree
from ..operator import Operator
from ..trees import Partial, Tree, described, is_float
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

    def log_det(self, damping: Any = 0.0) -> Array:
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
        self, k: int = 6, which: str = "LM", *, tol: float = 0.0, maxiter: int | None = None
    ) -> tuple[Array, Tree]:
        """Return eigenvalues and eigenvectors.

        Args:
            k: how many. Default: 6.
            which: `"LM"` or `"LA"` for the largest, `"SM"` or `"SA"` for the smallest. Default: `"LM"`.
            tol: not used, because the result is exact.
            maxiter: not used.

        Returns:
            `(eigenvalues, eigenvectors)`: an array `(k,)` in ascending order, and a tree like the parameters in which
            each leaf has an axis of `k` in front.

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
        return eigen_blocks.largest(self.blocks, self.rows, _ORDERS[which], k)

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
        if not (is_float(damping) or isinstance(damping, int)) or jnp.shape(damping) != ():
            msg = f"{self.name}.inverse: damping must be one real number; got {described(damping)}"
            raise FuncconvError(msg)
        blocks = [block.inverse(jnp.asarray(damping, block.values.dtype), split) for block in self.blocks]
        product = Partial(eigen_blocks.product, blocks)
        return Kfac(f"{self.name}.inverse", self.rows, self.columns, product, semidefinite=True)

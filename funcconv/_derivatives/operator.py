"""A symmetric operator on trees: its products, diagonal, trace, blocks, and what other libraries call it."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError, suggest
from .._common.optional_packages import needs
from .._common.types import Array
from .blocks import part
from .data_set.products import around
from .hutchinson import Estimate, hutchinson
from .linear_map import LinearMap, as_pytree, over_basis, reads_data
from .scipy import scipy_operator
from .spectra.deflation import deflated_product
from .spectra.spectral_map import SpectralMap
from .trees import Flat, Partial, Tree, real_number

_METHODS = ("exact", "hutchinson")


@as_pytree
@dataclass(frozen=True, eq=False, repr=False)
class Operator(SpectralMap):
    """A symmetric linear operator on trees, known by its products: a Hessian, a Gauss–Newton matrix, a Fisher matrix.

    `hessian`, `gauss_newton` and `fisher` return one. They evaluate the network once, and a product repeats only the
    linear part. All methods except `eigsh` and `to_scipy` work inside `jax.jit`. An operator is a pytree, so a compiled
    function can return it: `jax.jit(lambda params: fc.hessian(f, params))` is compiled once for all points. `A @ v` is
    `A.mv(v)`.

    With `batches`, each product reads a data set once, for any number of vectors. The methods then work outside of
    `jax.jit` only, and `to_lineax` does not.

    Vectors are trees like the parameters. The rows and columns of the matrix are in the order of
    `jax.flatten_util.ravel_pytree`, in the widest dtype of the leaves, and at least float32.

    Attributes:
        name: its name in messages.
        rows: the shapes and dtypes of the parameters, a tree of `jax.ShapeDtypeStruct`.
        columns: the same as `rows`.
        product: the function that multiplies by a vector, without checks.
        semidefinite: whether the operator is marked as positive semidefinite: True for Gauss–Newton and Fisher
            matrices, False for Hessians.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def f(params):
        ...     return params["a"] @ params["a"] + params["a"].sum() * params["b"]
        >>> h = fc.hessian(f, {"a": jnp.ones(2), "b": jnp.float32(3)})
        >>> h.shape, h.dense().tolist()
        ((3, 3), [[2.0, 0.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0]])
        >>> h.diag()["a"].tolist(), float(h.trace()), h.block("a").dense().tolist()
        ([2.0, 2.0], 4.0, [[2.0, 0.0], [0.0, 2.0]])
        >>> values, vectors = h.eigsh(1)
        >>> print(f"{values[0]:.3f}", vectors["a"].shape)
        2.732 (1, 2)
    """

    semidefinite: bool = False

    @property
    def size(self) -> int:
        """The number of rows, which is also the number of columns."""
        return self.shape[0]

    def shifted(self, damping: Any) -> "Operator":
        """Add a multiple of the identity: `A + damping * I`, as in damped Newton steps.

        Args:
            damping: a real number; it may be traced.

        Returns:
            An operator. It is marked as positive semidefinite if this one is, unless the damping is a known negative
            number.

        Raises:
            FuncconvError: if the damping is not one real number.
        """
        damping = real_number(f"{self.name}.shifted", "damping", damping)
        # A traced number has no sign yet, so it is taken to be positive.
        negative = not isinstance(damping, jax.core.Tracer) and bool(damping < 0)
        product = around(self.product, Partial(_same), Partial(_shifted, damping))
        return Operator(self.name, self.rows, self.columns, product, self.semidefinite and not negative)

    def diag(
        self, method: str = "exact", *, chunk: int = 32, key: Array | None = None, samples: int = 64
    ) -> Tree | Estimate:
        """Compute or estimate the diagonal.

        Args:
            method: `"exact"` multiplies by every basis vector, `size` products; `"hutchinson"` estimates by the mean of
                `z * A z` over random signs `z`. Default: `"exact"`.
            chunk: how many products are computed at once, which bounds the memory. With `batches`, each chunk is one
                pass over the data. Default: 32.
            key: a JAX random key for the random signs; `"hutchinson"` needs it. Default: None.
            samples: how many vectors of random signs, at least 2. Default: 64.

        Returns:
            A tree like the parameters; for `"hutchinson"` an `Estimate` with two such trees, `value` and its standard
            `error`.

        Raises:
            FuncconvError: if the method is unknown, if a number is too small, or for `"hutchinson"` if there is no key
                or matfree is not installed.

        Source: Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007.
        """
        flat = Flat(self.rows)
        if self._is_exact("diag", method):
            return flat.unravel(over_basis(self, _entry, chunk))
        estimate = hutchinson(f"{self.name}.diag", "diagonal", self, key, samples, chunk)
        return Estimate(*map(flat.unravel, estimate))

    def trace(
        self, method: str = "exact", *, chunk: int = 32, key: Array | None = None, samples: int = 64
    ) -> Array | Estimate:
        """Compute or estimate the trace.

        Args:
            method: `"exact"` multiplies by every basis vector, `size` products; `"hutchinson"` estimates by the mean of
                `<z, A z>` over random signs `z`. Default: `"exact"`.
            chunk: how many products are computed at once, which bounds the memory. With `batches`, each chunk is one
                pass over the data. Default: 32.
            key: a JAX random key for the random signs; `"hutchinson"` needs it. Default: None.
            samples: how many vectors of random signs, at least 2. Default: 64.

        Returns:
            A scalar; for `"hutchinson"` an `Estimate` with two, `value` and its standard `error`.

        Raises:
            FuncconvError: if the method is unknown, if a number is too small, or for `"hutchinson"` if there is no key
                or matfree is not installed.

        Source: Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989.
        """
        if self._is_exact("trace", method):
            return over_basis(self, _entry, chunk).sum()
        return hutchinson(f"{self.name}.trace", "trace", self, key, samples, chunk)

    def deflated(self, vectors: Tree) -> "Operator":
        """Remove known vectors, such as eigenvectors of large eigenvalues: `P A P`, with `P` orthogonal to the vectors.

        The vectors are mapped to 0. If they are eigenvectors, the other eigenvalues and eigenvectors stay. An
        estimate of the trace has a smaller error without a few eigenvalues that are much larger than the others.

        Args:
            vectors: a tree in which each leaf has an axis in front, `(vectors, *shape)`, such as `eigsh` returns. They
                need not be orthogonal or of norm 1; vectors that depend on others have no effect.

        Returns:
            An operator of the same size, with at least as many eigenvalues 0 as there are independent vectors.

        Raises:
            FuncconvError: if the structure, a shape or a dtype differs from the parameters'.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> h = fc.hessian(lambda x: (x**3).sum() / 6, jnp.array([1.0, 2.0, 50.0]))
            >>> values, vectors = h.eigsh(1)
            >>> h.deflated(vectors).dense().round(3).tolist()
            [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
        """
        product = deflated_product(f"{self.name}.deflated", self, vectors)
        return Operator(f"{self.name}.deflated", self.rows, self.columns, product, self.semidefinite)

    def block(self, row: str, column: str | None = None) -> Any:
        """Return a block of the operator, for parameters that are nested dicts.

        A product computes only what depends on the parameters of the column.

        Args:
            row: path of an entry of the parameters, such as `"conv1"`, `"trunk/conv1"` or `"conv1/kernel"`.
            column: path of another entry. Default: None, the same entry.

        Returns:
            For a block on the diagonal, an `Operator` on that part of the tree. Otherwise a `LinearMap` from the entry
            of the column to the entry of the row, which has `mv`, `mm`, `dense` and `shape`.

        Raises:
            FuncconvError: if there is no such entry; the message suggests a similar one.

        Example:
            >>> import funcconv as fc, jax.numpy as jnp
            >>> h = fc.hessian(lambda p: p["a"] * (p["b"] ** 2).sum(), {"a": jnp.float32(3), "b": jnp.ones(2)})
            >>> h.block("b").dense().tolist(), h.block("a", "b").dense().tolist()
            ([[6.0, 0.0], [0.0, 6.0]], [[2.0, 2.0]])
        """
        where = f"{self.name}.block"
        rows, columns = part(where, self.rows, row), part(where, self.rows, row if column is None else column)
        form = columns.taken(self.columns)
        product = around(
            self.product, lambda v: columns.among_zeros(v, self.columns), lambda _, product: rows.taken(product)
        )
        if not reads_data(self):
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), form)
            # Linearised again, the product forgets the derivatives by all that is zero.
            product = jax.linearize(product, zeros)[1]
        if rows == columns:
            return Operator(f"{self.name}.block({row!r})", form, form, product, self.semidefinite)
        return LinearMap(f"{self.name}.block({row!r}, {column!r})", rows.taken(self.rows), form, product)

    def to_scipy(self) -> Any:
        """Convert the operator for SciPy. Vectors are in the order of `jax.flatten_util.ravel_pytree`.

        Returns:
            A `scipy.sparse.linalg.LinearOperator` with a compiled product.

        Raises:
            FuncconvError: if scipy is not installed. The products of the result raise it inside `jax.jit`.
        """
        return scipy_operator(f"{self.name}.to_scipy", self)

    def to_lineax(self, *, semidefinite: bool | None = None) -> Any:
        """Convert the operator for lineax. Vectors are trees like the parameters.

        Args:
            semidefinite: whether to tag it as positive semidefinite, which some solvers require. Pass True for a
                Hessian with enough damping. Default: None, `self.semidefinite`, which is True for Gauss–Newton and
                Fisher matrices and False for Hessians.

        Returns:
            A `lineax.FunctionLinearOperator`, tagged as symmetric. `lineax.CG` returns NaN if `<p, A p>` is not above
            `100 * size * eps` times the squared residual. This can happen in float32: use a larger damping, or a solver
            of SciPy.

        Raises:
            FuncconvError: if lineax is not installed.
        """
        with needs("curvature", f"{self.name}.to_lineax"):
            import lineax
        positive = self.semidefinite if semidefinite is None else semidefinite
        tags = (lineax.symmetric_tag, *[lineax.positive_semidefinite_tag][: int(positive)])
        return lineax.FunctionLinearOperator(self.product, self.rows, tags)

    def _is_exact(self, what: str, method: str) -> bool:
        if method not in _METHODS:
            msg = f"{self.name}.{what}: unknown method {method!r}{suggest(method, _METHODS)}"
            raise FuncconvError(msg)
        return method == "exact"


def _entry(column: Array, i: Array) -> Array:
    return column[i]


def _same(v: Tree) -> Tree:
    return v


def _shifted(damping: Array, v: Tree, product: Tree) -> Tree:
    return jax.tree.map(lambda a, x: a + damping.astype(x.dtype) * x, product, v)

"""A linear map between trees, known by its products."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Array
from .data_set.products import DataProduct, many
from .trees import Flat, Tree, check_like, leading_size

Kind = TypeVar("Kind")


def as_pytree(kind: type[Kind]) -> type[Kind]:
    """Make a kind of map a pytree: its product, and around it what is known without numbers."""

    def flatten(linear: Any) -> tuple[tuple[Any], Any]:
        options = {field.name: getattr(linear, field.name) for field in fields(linear)}
        leaves, structure = jax.tree.flatten((options.pop("rows"), options.pop("columns")))
        return (options.pop("product"),), (structure, tuple(leaves), tuple(options.items()))

    def unflatten(known: Any, children: tuple[Any]) -> Any:
        structure, leaves, options = known
        rows, columns = jax.tree.unflatten(structure, leaves)
        return kind(**dict(options, rows=rows, columns=columns, product=children[0]))

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
    return kind


@as_pytree
@dataclass(frozen=True, eq=False, repr=False)
class LinearMap:
    """A linear map `A` from trees to trees, which is known by its products. `Operator.block` returns one.

    It is a pytree, so you can pass it to a compiled function or return it from one. `A @ v` is `A.mv(v)`.

    Attributes:
        name: its name in messages.
        rows: the shapes and dtypes of its results, a tree of `jax.ShapeDtypeStruct`.
        columns: the shapes and dtypes of its arguments, a tree of `jax.ShapeDtypeStruct`.
        product: the function that multiplies by a vector, without checks.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> h = fc.hessian(lambda p: p["a"] @ p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array([3.0, 4.0])})
        >>> mixed = h.block("a", "b")  # the second derivatives with respect to a and b: 2 b on the diagonal
        >>> isinstance(mixed, fc.LinearMap), mixed.mv(jnp.ones(2)).tolist()
        (True, [6.0, 8.0])
    """

    name: str
    rows: Tree
    columns: Tree
    product: Callable[[Tree], Tree]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of rows and of columns of the matrix."""
        return Flat(self.rows).size, Flat(self.columns).size

    def mv(self, v: Tree) -> Tree:
        """Multiply by one vector: `A v`.

        Args:
            v: a tree with the structure, shapes and dtypes of `columns`.

        Returns:
            A tree like `rows`.

        Raises:
            FuncconvError: if the structure, a shape or a dtype differs.
        """
        return self.product(check_like(f"{self.name}.mv", "v", v, self.columns))

    def mm(self, vs: Tree) -> Tree:
        """Multiply by several vectors at once, with `jax.vmap`. An operator with `batches` reads the data once for all.

        Args:
            vs: a tree like `columns`, in which each leaf has one more axis in front: `(vectors, *shape)`.

        Returns:
            A tree like `rows`, in which each leaf has this axis in front: `(vectors, *shape)`.

        Raises:
            FuncconvError: if the structure, a shape or a dtype differs.
        """
        count = leading_size(f"{self.name}.mm", "vs", vs)
        return many(self.product, check_like(f"{self.name}.mm", "vs", vs, self.columns, (count,)))

    def __matmul__(self, v: Tree) -> Tree:
        return self.mv(v)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.shape[0]} x {self.shape[1]})"

    def dense(self, *, chunk: int = 32, max_size: int = 4096) -> Array:
        """Compute the matrix, with rows and columns in the order of `jax.flatten_util.ravel_pytree`.

        Args:
            chunk: how many columns are computed at once, which bounds the memory. Default: 32.
            max_size: the maximum number of rows and of columns, so that you do not compute a large matrix by mistake.
                Default: 4096.

        Returns:
            An array `(rows, columns)`, in the widest dtype of the leaves, and at least float32.

        Raises:
            FuncconvError: if the matrix has more than `max_size` rows or columns, or `chunk` is not a positive integer.
        """
        rows, columns = Flat(self.rows), Flat(self.columns)
        if max(rows.size, columns.size) > max_size:
            size = rows.size * columns.size * rows.dtype.itemsize
            msg = (
                f"{self.name}.dense: the matrix would be {rows.size} x {columns.size}, {size / 1e9:.3g} GB of "
                f"{rows.dtype}, but max_size is {max_size}. Pass max_size={max(rows.size, columns.size)} to allow it"
            )
            raise FuncconvError(msg)
        return over_basis(self, lambda column, _: column, chunk).T


def times_vector(linear: LinearMap, vector: Array) -> Array:
    """Multiply by one vector `(columns,)`, which is the tree in the order of `jax.flatten_util.ravel_pytree`."""
    return Flat(linear.rows).ravel(linear.product(Flat(linear.columns).unravel(vector)))


def times_vectors(linear: LinearMap, vectors: Array) -> Array:
    """Multiply by several vectors at once: `(vectors, columns)` to `(vectors, rows)`."""
    products: Array = jax.vmap(Flat(linear.rows).ravel)(
        many(linear.product, jax.vmap(Flat(linear.columns).unravel)(vectors))
    )
    return products


def reads_data(linear: LinearMap) -> bool:
    """Return whether a product reads a data set in Python, so that JAX cannot trace it."""
    return isinstance(linear.product, DataProduct)


def over_basis(linear: LinearMap, read: Callable[[Array, Array], Array], chunk: int) -> Array:
    """Return `read(A e_i, i)` for every basis vector `e_i`, stacked; `chunk` of them are in memory at a time."""
    columns = Flat(linear.columns)
    positive(f"{linear.name}: chunk", chunk)

    def basis(i: Array) -> Array:
        return (jnp.arange(columns.size) == i).astype(columns.dtype)

    if not reads_data(linear):
        numbers, size = jnp.arange(columns.size), min(chunk, columns.size)
        stacked: Array = jax.lax.map(lambda i: read(times_vector(linear, basis(i)), i), numbers, batch_size=size)
        return stacked
    chunks = (jnp.arange(first, min(first + chunk, columns.size)) for first in range(0, columns.size, chunk))
    return jnp.concatenate([jax.vmap(read)(times_vectors(linear, jax.vmap(basis)(i)), i) for i in chunks])


def positive(what: str, number: Any, least: int = 1) -> int:
    """Return an integer that is large enough."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        msg = f"{what} must be an integer of at least {least}; got {number!r}"
        raise FuncconvError(msg)
    return number

"""A linear map between trees, known by its products."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Array
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
    """A linear map from trees to trees: `name` for messages, the forms of both sides, and the product.

    `product` is a pytree of arrays, as `jax.linearize` gives one, and so is the map (`as_pytree`): a compiled function
    takes and gives it like any other value, and no array becomes a constant of the program.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> h = fc.hessian(lambda p: p["a"] @ p["b"] ** 2, {"a": jnp.ones(2), "b": jnp.array([3.0, 4.0])})
        >>> mixed = h.block("a", "b")  # of second derivatives by a and by b: 2 b on the diagonal
        >>> isinstance(mixed, fc.LinearMap), mixed.mv(jnp.ones(2)).tolist()
        (True, [6.0, 8.0])
    """

    name: str
    rows: Tree
    columns: Tree
    product: Callable[[Tree], Tree]

    @property
    def shape(self) -> tuple[int, int]:
        """The number of rows and of columns, as a matrix."""
        return Flat(self.rows).size, Flat(self.columns).size

    def mv(self, v: Tree) -> Tree:
        """Multiply by one vector: `A v`.

        Args:
            v: a tree like the columns.

        Returns:
            A tree like the rows.

        Raises:
            FuncconvError: if the structure, a shape or a dtype differs.
        """
        return self.product(check_like(f"{self.name}.mv", "v", v, self.columns))

    def mm(self, vs: Tree) -> Tree:
        """Multiply by several vectors at once: `A V`, by `jax.vmap` of the product.

        Args:
            vs: a tree like the columns, each leaf with one more axis in front, of the same size.

        Returns:
            A tree like the rows, each leaf with that axis in front.

        Raises:
            FuncconvError: if the structure, a shape or a dtype differs.
        """
        count = leading_size(f"{self.name}.mm", "vs", vs)
        return jax.vmap(self.product)(check_like(f"{self.name}.mm", "vs", vs, self.columns, (count,)))

    def __matmul__(self, v: Tree) -> Tree:
        return self.mv(v)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {self.shape[0]} x {self.shape[1]})"

    def dense(self, *, chunk: int = 32, max_size: int = 4096) -> Array:
        """Form the matrix, its rows and columns in the order of `jax.flatten_util.ravel_pytree`.

        Args:
            chunk: how many columns are computed at once.
            max_size: the most rows or columns that are not taken for a mistake.

        Returns:
            `(rows, columns)`, in the widest dtype of the leaves, and at least float32.

        Raises:
            FuncconvError: if the matrix would be larger than `max_size`.
        """
        rows, columns = Flat(self.rows), Flat(self.columns)
        if max(rows.size, columns.size) > max_size:
            size = rows.size * columns.size * rows.dtype.itemsize
            msg = (
                f"{self.name}.dense: the matrix would be {rows.size} x {columns.size}, {size / 1e9:.3g} GB of "
                f"{rows.dtype}; max_size={max(rows.size, columns.size)} allows it (now {max_size})"
            )
            raise FuncconvError(msg)
        return over_basis(self, lambda column, _: column, chunk).T


def over_basis(linear: LinearMap, read: Callable[[Array, Array], Array], chunk: int) -> Array:
    """Return `read(A e_i, i)` for every basis vector `e_i`, stacked; `chunk` of them are in memory at a time."""
    rows, columns = Flat(linear.rows), Flat(linear.columns)
    positive(f"{linear.name}: chunk", chunk)

    def one(i: Array) -> Array:
        basis = (jnp.arange(columns.size) == i).astype(columns.dtype)
        return read(rows.ravel(linear.product(columns.unravel(basis))), i)

    stacked: Array = jax.lax.map(one, jnp.arange(columns.size), batch_size=min(chunk, columns.size))
    return stacked


def positive(what: str, number: Any, least: int = 1) -> int:
    """Return an integer that is large enough."""
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        msg = f"{what} must be an integer of at least {least}; got {number!r}"
        raise FuncconvError(msg)
    return number

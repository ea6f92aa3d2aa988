"""Trees of floats: what is checked before one is differentiated by, and how one lies in a vector."""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Array

Tree: TypeAlias = Any  # any pytree of arrays

# JAX leaves these without types.
Partial: Any = jax.tree_util.Partial
Struct: Any = jax.ShapeDtypeStruct


def named(tree: Tree) -> dict[str, Any]:
    """Return the leaves by their paths, such as `"conv1/kernel"`; the path of a bare leaf is empty."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def at(path: str) -> str:
    """Return how a message speaks of a leaf."""
    return f" at {path!r}" if path else ""


def described(leaf: Any) -> str:
    """Return the dtype and shape of a leaf as messages have them."""
    try:
        return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    except TypeError:
        return f"a value of type {type(leaf).__name__}"


def in_short(tree: Tree) -> str:
    """Return a number, or how many arrays and numbers a tree has, as descriptions have them."""
    leaves = jax.tree.leaves(tree)
    if len(leaves) != 1:
        return f"{len(leaves):,} arrays with {sum(math.prod(jnp.shape(leaf)) for leaf in leaves):,} numbers"
    (leaf,) = leaves
    if jnp.shape(leaf) == () and not isinstance(leaf, jax.core.Tracer) and is_float(leaf):
        return f"{float(leaf):.6g}"
    return described(leaf)


def is_float(leaf: Any) -> bool:
    """Return whether a leaf is real and floating."""
    return _is(leaf, jnp.floating)


def is_real(leaf: Any) -> bool:
    """Return whether a leaf is real and floating, or an integer."""
    return _is(leaf, jnp.floating) or _is(leaf, jnp.integer)


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is an array or a number that JAX knows."""
    return _is(leaf, jnp.generic)


def _is(leaf: Any, kind: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.result_type(leaf), kind))
    except TypeError:
        return False


def float_tree(where: str, what: str, tree: Tree) -> Tree:
    """Return the tree with arrays for leaves; refuse what is not real and floating, and a tree without leaves."""
    leaves = named(tree)
    if not leaves:
        msg = f"{where}: {what} must have at least one array; got {tree!r}. Pass the arrays to differentiate by"
        raise FuncconvError(msg)
    for path, leaf in leaves.items():
        if not is_float(leaf):
            msg = (
                f"{where}: {what} must be of real floating arrays; got {described(leaf)}{at(path)}. "
                "Leave it out of the tree; the function can use it by closure"
            )
            raise FuncconvError(msg)
    return jax.tree.map(jnp.asarray, tree)


def like(tree: Tree) -> Tree:
    """Return the shapes and dtypes of a tree, without its numbers."""
    return jax.tree.map(lambda x: Struct(x.shape, x.dtype), tree)


def check_like(where: str, what: str, tree: Tree, form: Tree, batch: tuple[int, ...] = ()) -> Tree:
    """Return the tree with arrays for leaves; refuse it if it has not the structure, shapes and dtypes of `form`."""
    leaves, expected = named(tree), named(form)
    structures: list[Any] = [jax.tree.structure(form), jax.tree.structure(tree)]
    if structures[0] != structures[1]:
        missing, extra = ([*one.keys() - other.keys()] for one, other in ((expected, leaves), (leaves, expected)))
        difference = "".join(f"; it has no {sorted(names)[0]!r}" for names in [missing] if names)
        difference += "".join(f"; it has {sorted(names)[0]!r}, which is not there" for names in [extra] if names)
        difference = difference or f": expected {structures[0]}, got {structures[1]}"
        msg = f"{where}: {what} must have the structure of the parameters{difference}"
        raise FuncconvError(msg)
    for path, leaf in leaves.items():
        wanted = Struct((*batch, *expected[path].shape), expected[path].dtype)
        if described(leaf) != described(wanted):
            msg = (
                f"{where}: {what} must be {described(wanted)}{at(path)}, like the parameters; got {described(leaf)}. "
                "Cast or reshape it"
            )
            raise FuncconvError(msg)
    return jax.tree.map(jnp.asarray, tree)


def real_number(where: str, what: str, number: Any) -> Array:
    """Return one real number as a floating array; it may be traced."""
    if not is_real(number) or jnp.shape(number) != ():
        msg = f"{where}: {what} must be one real number; got {described(number)}"
        raise FuncconvError(msg)
    return jnp.asarray(number)


def scalar(where: str, what: str, f: Callable[..., Any]) -> Callable[..., Array]:
    """Return `f`, with its result checked while it is traced: one real float."""

    def checked(*args: Any) -> Array:
        y = f(*args)
        if not jax.tree_util.all_leaves([y]) or jnp.shape(y) != () or not is_float(y):
            description = described(y) if jax.tree_util.all_leaves([y]) else f"a {type(y).__name__}"
            msg = f"{where}: {what} must give one floating number, a scalar; got {description}. Return a mean or a sum"
            raise FuncconvError(msg)
        return jnp.asarray(y)

    return checked


def leading_size(where: str, what: str, tree: Tree) -> int:
    """Return the size of the first axis, which all leaves must share."""
    leaves = named(tree)
    sizes = {path: jnp.shape(leaf)[0] if jnp.ndim(leaf) else None for path, leaf in leaves.items()}
    first = next(iter(sizes.values()), None)
    for path, size in sizes.items():
        if size is None or size != first:
            begin = f"{first}{at(next(iter(sizes)))} and " if size is not None else ""
            msg = f"{where}: {what} must share one leading axis; got {begin}{described(leaves[path])}{at(path)}"
            raise FuncconvError(msg)
    if not first:
        msg = f"{where}: {what} must have at least one example; got {'none' if first is None else first}"
        raise FuncconvError(msg)
    return first


class Flat:
    """Where the leaves of a tree lie in one vector: that of `jax.flatten_util.ravel_pytree`.

    The vector has one dtype, the widest of the leaves', and at least float32, since the algorithms on vectors know no
    16-bit numbers.
    """

    def __init__(self, form: Tree) -> None:
        self.leaves, self.structure = jax.tree.flatten(form)
        self.sizes = [math.prod(leaf.shape) for leaf in self.leaves]
        self.size = sum(self.sizes)
        with jax.numpy_dtype_promotion("standard"):  # strict promotion would refuse to name the widest
            self.dtype = jnp.result_type(jnp.float32, *(leaf.dtype for leaf in self.leaves))

    def zeros(self) -> Array:
        """Return the vector (size,) of zeros."""
        return jnp.zeros(self.size, self.dtype)

    def ravel(self, tree: Tree) -> Array:
        """Return the vector (size,) of a tree."""
        return jnp.concatenate([leaf.astype(self.dtype).ravel() for leaf in jax.tree.leaves(tree)])

    def unravel(self, vector: Array) -> Tree:
        """Return the tree of a vector (size,)."""
        ends = accumulate(self.sizes)
        parts = [vector[end - size : end] for size, end in zip(self.sizes, ends, strict=True)]
        leaves = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(parts, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

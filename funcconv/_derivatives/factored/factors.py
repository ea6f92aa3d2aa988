"""Gradients of many examples as sums of outer products, which are not formed.

The gradient by a kernel is a sum of outer products, over the places `r` where the kernel was used, of what went in and
of the derivative by what came out:

    dL/dw = sum over r of a_r g_r^T

A kernel that is used several times has more places. So the traced gradient is followed once more, and results of this
kind are carried as their factors up to the end.

Source: Goodfellow, "Efficient per-example gradient computations", 2015, arXiv:1510.01799; Rochette, Manoel and Tramel,
"Efficient per-example gradient computations in convolutional neural networks", 2019, arXiv:1912.06015.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from ..._common.types import Array
from ..._primitives import conv as _family
from ..._primitives.forms import Form
from ..._windows.padding import pad
from ..._windows.taps import patches
from ..per_example import per_example_grad
from ..trees import Tree


class Product(NamedTuple):
    """A summand of a gradient, `(examples, *rows, *columns)`, that was not formed: how to form it, and its factors."""

    kind: tuple[
        int, ...
    ]  # the sizes of groups, rows and columns, and how many axes are rows: alike where two are added
    places: int
    form: Callable[[], Array]
    factors: Callable[[], tuple[Array, Array]]  # (examples, places, groups, rows), (examples, places, groups, columns)


class Sum(NamedTuple):
    """The summands of one gradient."""

    products: tuple[Product, ...]

    @property
    def places(self) -> int:
        """How many outer products are summed."""
        return sum(product.places for product in self.products)

    def formed(self) -> Array:
        """Return the gradient."""
        return functools.reduce(jnp.add, (product.form() for product in self.products))

    def factors(self) -> tuple[Array, Array]:
        """Return what went in and the derivatives, `(examples, places, groups, rows)` and `(..., columns)`."""
        a, g = (jnp.concatenate(arrays, axis=1) for arrays in zip(*(p.factors() for p in self.products), strict=True))
        return a, g


def gradients_as_sums(f: Callable[..., Any], params: Tree, *examples: Tree) -> list[Any]:
    """Return the gradient of each example by each leaf of the parameters, as a `Sum` where it is one.

    Args:
        f: a function `f(params, *example)` that returns one floating number.
        params: a tree of arrays.
        *examples: trees of arrays `(n, *shape)`.

    Returns:
        For each leaf, an array `(n, *shape)` or a `Sum`.
    """
    closed = jax.make_jaxpr(per_example_grad(f))(params, *examples)
    return _follow(closed.jaxpr, closed.consts, jax.tree.leaves((params, *examples)))


def _follow(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a traced program; what is a sum of products stays one as long as it is only added to others."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    results: Sequence[Any]
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = eqn.params.get("jaxpr")
        if eqn.primitive.name in ("jit", "pjit"):
            results = _follow(inner.jaxpr, inner.consts, operands)
        else:
            results = _apply(eqn, operands)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """Return the results of one operation, a `Sum` where it is a product for each example or a sum of such."""
    name, sums = eqn.primitive.name, [operand for operand in operands if isinstance(operand, Sum)]
    if name == "add_any" and len(sums) == 2 and len({term.products[0].kind for term in sums}) == 1:
        return [Sum(sums[0].products + sums[1].products)]
    if name == "transpose" and sums:
        swapped = tuple(_swapped(product, eqn.params["permutation"]) for product in sums[0].products)
        if None not in swapped:
            return [Sum(swapped)]  # type: ignore[arg-type]
    operands = [operand.formed() if isinstance(operand, Sum) else operand for operand in operands]
    params = eqn.primitive.get_bind_params(eqn.params)
    bind = functools.partial(eqn.primitive.bind, *operands, **params)
    if eqn.primitive is _family.conv_kernel_grad_p and params["stack"] == 1:
        return [Sum((_of_convolution(operands[0], operands[1], params["form"], bind),))]
    # One batch axis, the first of both, is the axis of the examples; everything contracted is summed for each of them.
    if eqn.primitive is lax.dot_general_p and params["dimension_numbers"][1] == ((0,), (0,)):
        return [Sum((_of_product(operands[0], operands[1], params["dimension_numbers"][0], bind),))]
    return bind() if eqn.primitive.multiple_results else [bind()]


def _of_convolution(x: Array, g: Array, form: Form, bind: Callable[[], Array]) -> Product:
    """Return what is summed over the positions: windows of `(examples, batch, *spatial, in)`, and derivatives."""
    examples, channels = x.shape[0], x.shape[-1] // form.groups
    places, taps = math.prod(g.shape[1:-1]), math.prod(form.window)

    def factors() -> tuple[Array, Array]:
        images = pad(x.reshape(-1, *x.shape[2:]), form.axes, ("zeros",) * len(form.axes))
        windows = patches(images, form.axes).reshape(examples, places, taps, form.groups, channels)
        rows = jnp.moveaxis(windows, 2, 3).reshape(examples, places, form.groups, taps * channels)
        return rows, g.reshape(examples, places, form.groups, -1)

    kind = (form.groups, taps * channels, g.shape[-1] // form.groups, len(form.axes) + 1)
    return Product(kind, places, bind, factors)


def _of_product(
    a: Array, g: Array, contracted: tuple[Sequence[int], Sequence[int]], bind: Callable[[], Array]
) -> Product:
    """Return what is summed over the contracted axes of two arrays that both have the examples in front."""

    def factor(array: Array, axes: Sequence[int]) -> Array:
        free = [i for i in range(1, array.ndim) if i not in axes]
        places = math.prod(array.shape[i] for i in axes)
        return array.transpose(0, *axes, *free).reshape(array.shape[0], places, 1, -1)

    places = math.prod(a.shape[i] for i in contracted[0])
    rows, columns = (math.prod(array.shape[1:]) // places for array in (a, g))
    kind = (1, rows, columns, a.ndim - 1 - len(contracted[0]))
    return Product(kind, places, bind, lambda: (factor(a, contracted[0]), factor(g, contracted[1])))


def _swapped(product: Product, permutation: Sequence[int]) -> Product | None:
    """Return the product with rows and columns exchanged, if that is what the permutation does."""
    groups, rows, columns, row_axes = product.kind
    order = (0, *range(1 + row_axes, len(permutation)), *range(1, 1 + row_axes))
    if tuple(permutation) != order or groups > 1:
        return None
    kind = (1, columns, rows, len(permutation) - 1 - row_axes)
    return Product(kind, product.places, lambda: product.form().transpose(permutation), lambda: product.factors()[::-1])

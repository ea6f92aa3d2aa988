"""The norm of each example's gradient, without forming the gradients where that is cheaper.

The gradient by a kernel is a sum of outer products, over the places `r` where the kernel was used, of what went in and
of the derivative by what came out:

    dL/dw = sum over r of a_r g_r^T,      so that      |dL/dw|^2 = sum over r, s of (a_r . a_s) (g_r . g_s)

A kernel that is used several times has more places: the cross terms are among these. So the traced gradient is
followed once more, and results of this kind are carried as their factors up to the end.

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

from .._common.dtypes import scale_of, wide
from .._common.types import Array
from .._primitives import conv as _family
from .._primitives.forms import Form
from .._windows.padding import pad
from .._windows.taps import patches
from . import per_example_grad


class _Product(NamedTuple):
    """A summand of a gradient, `(examples, *rows, *columns)`, that was not formed: how to form it, and its factors."""

    kind: tuple[
        int, ...
    ]  # the sizes of groups, rows and columns, and how many axes are rows: alike where two are added
    places: int
    form: Callable[[], Array]
    factors: Callable[[], tuple[Array, Array]]  # (examples, places, groups, rows), (examples, places, groups, columns)


class _Sum(NamedTuple):
    """The summands of one gradient."""

    products: tuple[_Product, ...]

    def formed(self) -> Array:
        """Return the gradient."""
        return functools.reduce(jnp.add, (product.form() for product in self.products))

    def squared_norms(self) -> tuple[Array, Array]:
        """Return a scale for each example, and the squared norm of the gradient divided by it, in the cheaper way."""
        places = sum(product.places for product in self.products)
        _, rows, columns, _ = self.products[0].kind
        if places * (rows + columns) >= rows * columns:
            return _squared_norms(self.formed())
        a, g = (jnp.concatenate(array, axis=1) for array in zip(*(p.factors() for p in self.products), strict=True))
        a, g = (array.astype(wide(array.dtype)) for array in (a, g))
        # Each place has scales of its own: one factor may be as large as the other is small.
        of_a, of_g = (scale_of(array, (3,), keepdims=True) for array in (a, g))
        scale = scale_of(of_a * of_g, (1, 2, 3), keepdims=True)
        a, g = a / of_a, g / of_g * (of_a * of_g / scale)
        a_a, g_g = (jnp.einsum("erni,esni->ersn", array, array) for array in (a, g))
        return scale.reshape(-1), (a_a * g_g).sum((1, 2, 3))


def per_example_grad_norm(f: Callable[..., Any]) -> Callable[..., Array]:
    """Return a function that computes the norm of the gradient of `f` for each example.

    The norm is the square root of the sum of squares over all leaves of `per_example_grad(f)`. The gradient of a kernel
    is a sum of outer products over the positions at which the kernel is used. If the kernel is a matrix
    `(rows, columns)` and `positions * (rows + columns) < rows * columns`, the norm is computed from inner products of
    the factors, without the gradient.

    The norm has a kink where the gradient is zero. Its derivatives of every order are 0 there.

    Args:
        f: a function `f(params, *example)` that returns one floating number, the loss of one example.

    Returns:
        A function of `(params, *examples)`. Each leaf of `examples` is `(n, *shape)`, with one axis of `n` examples in
        front. The function returns the norms, `(n,)`.

    Raises:
        FuncconvError: when the returned function is called: if the examples do not have the same first axis or there
            are none, if `f` does not return a scalar, or if a leaf of `params` is not real and floating.

    Source: Goodfellow, "Efficient per-example gradient computations", 2015, arXiv:1510.01799; Rochette, Manoel and
    Tramel, "Efficient per-example gradient computations in convolutional neural networks", 2019, arXiv:1912.06015.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def loss(w, x, y):
        ...     return (w @ x - y) ** 2 / 2
        >>> x, y = jnp.array([[3.0, 4.0], [0.0, 2.0]]), jnp.array([1.0, 4.0])
        >>> fc.per_example_grad_norm(loss)(jnp.zeros(2), x, y).tolist()
        [5.0, 8.0]
    """
    gradient = per_example_grad(f)

    def norms(params: Any, *examples: Any) -> Array:
        closed = jax.make_jaxpr(gradient)(params, *examples)
        results = _follow(closed.jaxpr, closed.consts, jax.tree.leaves((params, *examples)))
        pairs = [result.squared_norms() if isinstance(result, _Sum) else _squared_norms(result) for result in results]
        widest = max((square.dtype for _, square in pairs), key=lambda dtype: dtype.itemsize)
        scales, squares = (jnp.stack([array.astype(widest) for array in part]) for part in zip(*pairs, strict=True))
        scale = scales.max(0)
        return scale * _root((squares * (scales / scale[None]) ** 2).sum(0))

    return norms


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
    """Return the results of one operation, a `_Sum` where it is a product for each example or a sum of such."""
    name, sums = eqn.primitive.name, [operand for operand in operands if isinstance(operand, _Sum)]
    if name == "add_any" and len(sums) == 2 and len({term.products[0].kind for term in sums}) == 1:
        return [_Sum(sums[0].products + sums[1].products)]
    if name == "transpose" and sums:
        swapped = tuple(_swapped(product, eqn.params["permutation"]) for product in sums[0].products)
        if None not in swapped:
            return [_Sum(swapped)]  # type: ignore[arg-type]
    operands = [operand.formed() if isinstance(operand, _Sum) else operand for operand in operands]
    params = eqn.primitive.get_bind_params(eqn.params)
    bind = functools.partial(eqn.primitive.bind, *operands, **params)
    if eqn.primitive is _family.conv_kernel_grad_p and params["stack"] == 1:
        return [_Sum((_of_convolution(operands[0], operands[1], params["form"], bind),))]
    # One batch axis, the first of both, is the axis of the examples; everything contracted is summed for each of them.
    if eqn.primitive is lax.dot_general_p and params["dimension_numbers"][1] == ((0,), (0,)):
        return [_Sum((_of_product(operands[0], operands[1], params["dimension_numbers"][0], bind),))]
    return bind() if eqn.primitive.multiple_results else [bind()]


def _of_convolution(x: Array, g: Array, form: Form, bind: Callable[[], Array]) -> _Product:
    """Return what is summed over the positions: windows of `(examples, batch, *spatial, in)`, and derivatives."""
    examples, channels = x.shape[0], x.shape[-1] // form.groups
    places, taps = math.prod(g.shape[1:-1]), math.prod(form.window)

    def factors() -> tuple[Array, Array]:
        images = pad(x.reshape(-1, *x.shape[2:]), form.axes, ("zeros",) * len(form.axes))
        windows = patches(images, form.axes).reshape(examples, places, taps, form.groups, channels)
        rows = jnp.moveaxis(windows, 2, 3).reshape(examples, places, form.groups, taps * channels)
        return rows, g.reshape(examples, places, form.groups, -1)

    kind = (form.groups, taps * channels, g.shape[-1] // form.groups, len(form.axes) + 1)
    return _Product(kind, places, bind, factors)


def _of_product(
    a: Array, g: Array, contracted: tuple[Sequence[int], Sequence[int]], bind: Callable[[], Array]
) -> _Product:
    """Return what is summed over the contracted axes of two arrays that both have the examples in front."""

    def factor(array: Array, axes: Sequence[int]) -> Array:
        free = [i for i in range(1, array.ndim) if i not in axes]
        places = math.prod(array.shape[i] for i in axes)
        return array.transpose(0, *axes, *free).reshape(array.shape[0], places, 1, -1)

    places = math.prod(a.shape[i] for i in contracted[0])
    rows, columns = (math.prod(array.shape[1:]) // places for array in (a, g))
    kind = (1, rows, columns, a.ndim - 1 - len(contracted[0]))
    return _Product(kind, places, bind, lambda: (factor(a, contracted[0]), factor(g, contracted[1])))


def _swapped(product: _Product, permutation: Sequence[int]) -> _Product | None:
    """Return the product with rows and columns exchanged, if that is what the permutation does."""
    groups, rows, columns, row_axes = product.kind
    order = (0, *range(1 + row_axes, len(permutation)), *range(1, 1 + row_axes))
    if tuple(permutation) != order or groups > 1:
        return None
    kind = (1, columns, rows, len(permutation) - 1 - row_axes)
    return _Product(
        kind, product.places, lambda: product.form().transpose(permutation), lambda: product.factors()[::-1]
    )


def _root(square: Array) -> Array:
    """Return the square root; 0 with derivatives 0 where the square is 0, or below 0 by rounding."""
    positive = ~(square <= 0)  # true for NaN, which stays
    # The inner `where` keeps the infinite derivative of the root at 0 away: times 0 it would be NaN.
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)


def _squared_norms(gradient: Array) -> tuple[Array, Array]:
    """Return a scale for each example, and the squared norm of its gradient divided by it."""
    gradient = gradient.astype(wide(gradient.dtype)).reshape(gradient.shape[0], math.prod(gradient.shape[1:]))
    scale = scale_of(gradient, (1,), keepdims=True)
    return scale[:, 0], ((gradient / scale) ** 2).sum(1)

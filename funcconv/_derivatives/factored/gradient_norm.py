"""The norm of each example's gradient, without forming the gradients where that is cheaper.

With the factors of `factors.py`,

    |dL/dw|^2 = sum over r, s of (a_r . a_s) (g_r . g_s)

A kernel that is used several times has more places: the cross terms are among these.

Source: Goodfellow, "Efficient per-example gradient computations", 2015, arXiv:1510.01799; Rochette, Manoel and Tramel,
"Efficient per-example gradient computations in convolutional neural networks", 2019, arXiv:1912.06015.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..._common.dtypes import scale_of, wide
from ..._common.types import Array
from .factors import Sum, gradients_as_sums


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

    def norms(params: Any, *examples: Any) -> Array:
        results = gradients_as_sums(f, params, *examples)
        pairs = [_of_sum(result) if isinstance(result, Sum) else _squared_norms(result) for result in results]
        widest = max((square.dtype for _, square in pairs), key=lambda dtype: dtype.itemsize)
        scales, squares = (jnp.stack([array.astype(widest) for array in part]) for part in zip(*pairs, strict=True))
        scale = scales.max(0)
        return scale * _root((squares * (scales / scale[None]) ** 2).sum(0))

    return norms


def _of_sum(gradient: Sum) -> tuple[Array, Array]:
    """Return a scale for each example, and the squared norm of the gradient divided by it, in the cheaper way."""
    _, rows, columns, _ = gradient.products[0].kind
    if gradient.places * (rows + columns) >= rows * columns:
        return _squared_norms(gradient.formed())
    a, g = (array.astype(wide(array.dtype)) for array in gradient.factors())
    # Each place has scales of its own: one factor may be as large as the other is small.
    of_a, of_g = (scale_of(array, (3,), keepdims=True) for array in (a, g))
    scale = scale_of(of_a * of_g, (1, 2, 3), keepdims=True)
    a, g = a / of_a, g / of_g * (of_a * of_g / scale)
    a_a, g_g = (jnp.einsum("erni,esni->ersn", array, array) for array in (a, g))
    return scale.reshape(-1), (a_a * g_g).sum((1, 2, 3))


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

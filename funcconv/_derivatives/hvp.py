"""Products of the Hessian with a vector, the Hessian itself never being formed."""

from collections.abc import Callable
from typing import Any

import jax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array
from .trees import Partial, Tree, check_like, float_tree, like, scalar


def hvp(f: Callable[[Tree], Any], params: Tree, v: Tree, mode: str = "forward-over-reverse") -> Tree:
    """Multiply the Hessian of `f` at `params` by `v`: `H v`, with `H = d²f / d params²`.

    The three modes return the same result up to rounding. They differ in time and memory.

    Args:
        f: a function of a tree that returns one floating number. It gets its data by closure:
            `lambda params: loss(params, x, y)`.
        params: the point at which to differentiate, a tree of real floating arrays.
        v: the vector, a tree with the structure, shapes and dtypes of `params`.
        mode: how to differentiate. `"forward-over-reverse"`: the directional derivative of the gradient along `v`,
            usually the fastest. `"reverse-over-forward"`: the gradient of the directional derivative along `v`.
            `"reverse-over-reverse"`: the gradient of `<grad f, v>`, for an `f` without forward mode. Default:
            `"forward-over-reverse"`.

    Returns:
        A tree like `params`.

    Raises:
        FuncconvError: if `v` is not like `params`, if `f` does not return a scalar, if a leaf is not real and floating,
            or if the mode is unknown.

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6, 1994.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def f(params):  # the Hessian is [[2y, 2x], [2x, 0]]
        ...     return params["x"] ** 2 * params["y"]
        >>> point, v = {"x": jnp.float32(3), "y": jnp.float32(5)}, {"x": jnp.float32(1), "y": jnp.float32(0)}
        >>> {name: float(number) for name, number in fc.hvp(f, point, v).items()}
        {'x': 10.0, 'y': 6.0}
    """
    if mode not in _MODES:
        msg = f"hvp: unknown mode {mode!r}{suggest(mode, _MODES)}"
        raise FuncconvError(msg)
    params = float_tree("hvp", "params", params)
    v = check_like("hvp", "v", v, like(params))
    return _MODES[mode](scalar("hvp", "f", f), params, v)


def linearize_hvp(f: Callable[[Tree], Any], params: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
    """Return the gradient of `f` at a point, and a function that multiplies by the Hessian there.

    Use it for many products at one point. `f` and its gradient are evaluated once, and a product repeats only the part
    that is linear in the vector. The intermediate results stay in memory.

    Args:
        f: a function of a tree that returns one floating number. It gets its data by closure:
            `lambda params: loss(params, x, y)`.
        params: the point at which to differentiate, a tree of real floating arrays.

    Returns:
        `(gradient, product)`: a tree like `params`, and a function `product(v)` that maps a tree like `params` to a
        tree like `params`. The function is a pytree of arrays, so you can pass it to a jitted function or return it
        from one.

    Raises:
        FuncconvError: if `f` does not return a scalar, or a leaf is not real and floating. `product` raises it if its
            argument is not like `params`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> gradient, product = fc.linearize_hvp(lambda x: (x**3).sum(), jnp.array([1.0, 2.0]))
        >>> gradient.tolist(), product(jnp.array([1.0, 0.0])).tolist(), product(jnp.array([0.0, 1.0])).tolist()
        ([3.0, 12.0], [6.0, 0.0], [0.0, 12.0])
    """
    params = float_tree("linearize_hvp", "params", params)
    gradient, product = jax.linearize(jax.grad(scalar("linearize_hvp", "f", f)), params)
    # The gradient has the form to check against, and is an array that travels with the product.
    return gradient, Partial(_checked_product, product, gradient)


def _checked_product(product: Callable[[Tree], Tree], gradient: Tree, v: Tree) -> Tree:
    return product(check_like("linearize_hvp", "v", v, like(gradient)))


def _forward_over_reverse(f: Callable[[Tree], Array], params: Tree, v: Tree) -> Tree:
    # The derivative of the gradient along v is H v.
    return jax.jvp(jax.grad(f), (params,), (v,))[1]


def _reverse_over_forward(f: Callable[[Tree], Array], params: Tree, v: Tree) -> Tree:
    return jax.grad(lambda p: jax.jvp(f, (p,), (v,))[1])(params)


def _reverse_over_reverse(f: Callable[[Tree], Array], params: Tree, v: Tree) -> Tree:
    return jax.vjp(jax.grad(f), params)[1](v)[0]  # H is symmetric, so this is H v


_MODES = {
    "forward-over-reverse": _forward_over_reverse,
    "reverse-over-forward": _reverse_over_forward,
    "reverse-over-reverse": _reverse_over_reverse,
}

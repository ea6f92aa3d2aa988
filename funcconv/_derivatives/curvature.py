"""The Hessian, the Gauss–Newton matrix and the Fisher matrix of a network, as operators."""

import math
from collections.abc import Callable
from typing import Any

import jax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array
from .operator import Operator
from .trees import Partial, Tree, described, float_tree, like, scalar


def hessian(f: Callable[[Tree], Any], params: Tree) -> Operator:
    """Return the Hessian of `f` at `params` as an operator: `H = d²f / d params²`.

    Args:
        f: a function of a tree that returns one floating number. It gets its data by closure:
            `lambda params: loss(params, x, y)`.
        params: the point at which to differentiate, a tree of real floating arrays.

    Returns:
        An `Operator` on trees like `params`.

    Raises:
        FuncconvError: if `f` does not return a scalar, or a leaf of `params` is not real and floating.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> h = fc.hessian(lambda x: (x**3).sum() + x[0] * x[1], jnp.array([1.0, 2.0]))
        >>> h.mv(jnp.array([1.0, 0.0])).tolist(), h.dense().tolist()
        ([6.0, 1.0], [[6.0, 1.0], [1.0, 12.0]])
    """
    params = float_tree("hessian", "params", params)
    # The gradient is evaluated once here; a product repeats only its linear part.
    product = jax.linearize(jax.grad(scalar("hessian", "f", f)), params)[1]
    return _operator("hessian", params, product, semidefinite=False)


def gauss_newton(model: Callable[[Tree], Tree], loss: Callable[[Tree], Any], params: Tree) -> Operator:
    """Return the generalized Gauss–Newton matrix of `loss(model(params))` as an operator: `G = Jᵀ H J`.

    `J = d outputs / d params` is the Jacobian of the model, and `H = d²loss / d outputs²` the Hessian of the loss with
    respect to the outputs. `G` is the Hessian of `loss(model(params))` without the second derivatives of the model, so
    both are equal for a linear model.

    Args:
        model: a function of a tree that returns the outputs, a tree of real floating arrays. It gets its inputs by
            closure.
        loss: a function of the outputs that returns one floating number. It gets its targets by closure.
        params: the point at which to differentiate, a tree of real floating arrays.

    Returns:
        An `Operator` on trees like `params`. It is marked as positive semidefinite, which is true if the loss is convex
        in the outputs, like the squared error and the cross-entropy of logits.

    Raises:
        FuncconvError: if `loss` does not return a scalar, or a leaf of `params` or of the outputs is not real and
            floating.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x, target = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.ones(2)
        >>> g = fc.gauss_newton(lambda w: x @ w, lambda y: ((y - target) ** 2).sum() / 2, jnp.zeros(2))
        >>> g.dense().tolist()  # x.T @ x
        [[2.0, 2.0], [2.0, 4.0]]
    """
    params = float_tree("gauss_newton", "params", params)
    # The network is evaluated once here; a product repeats only the linear parts.
    outputs, push = jax.linearize(_float_outputs("gauss_newton", model), params)
    middle = jax.linearize(jax.grad(scalar("gauss_newton", "loss", loss)), outputs)[1]
    return _operator("gauss_newton", params, Partial(_sandwiched, push, middle), semidefinite=True)


def fisher(model: Callable[[Tree], Array], params: Tree, likelihood: str = "categorical") -> Operator:
    """Return the Fisher matrix of a model's likelihood as an operator, the mean over the examples.

    `F = 1/n Σ_i E[g gᵀ]`, with `g = d log p(y | z_i) / d params` and `y` drawn from `p(. | z_i)`. Here
    `z = model(params)` has the shape `(*examples, outputs)`, with `n` examples in all axes except the last. So an array
    `(outputs,)` is one example, and `n` examples with one output have the shape `(n, 1)`.

    Args:
        model: a function of a tree that returns the array `z`. It gets its inputs by closure.
        params: the point at which to differentiate, a tree of real floating arrays.
        likelihood: the distribution of `y` given `z`, with `J = d z_i / d params`:
            `"categorical"`: `z` are logits of classes; `E[g gᵀ] = Jᵀ (diag(p) - p pᵀ) J` with `p = softmax(z)`.
            `"bernoulli"`: `z` are logits of independent binary variables; `Jᵀ diag(p (1 - p)) J` with `p = sigmoid(z)`.
            `"gaussian"`: `z` are means, with unit variance; `Jᵀ J`.
            `"empirical"`: `z` are losses `(n,)`, one per example, which contain the targets. The expectation is left
            out: `F = 1/n Σ_i g_i g_iᵀ` with `g_i = d z_i / d params`.
            Default: `"categorical"`.

    Returns:
        An `Operator` on trees like `params`, positive semidefinite.

    Raises:
        FuncconvError: if the likelihood is unknown, if the model does not return one floating array with the axes
            above, or if a leaf of `params` is not real and floating.

    Source: Martens, "New insights and perspectives on the natural gradient method", 2020; Kunstner, Balles and Hennig,
    "Limitations of the empirical Fisher approximation", 2019.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[2.0, 0.0], [0.0, 4.0]])
        >>> fc.fisher(lambda w: x @ w[:, None], jnp.zeros(2), "gaussian").dense().tolist()  # x.T @ x / 2
        [[2.0, 0.0], [0.0, 8.0]]
        >>> fc.fisher(lambda w: x @ w[:, None], jnp.zeros(2), "bernoulli").dense().tolist()  # a quarter of it
        [[0.5, 0.0], [0.0, 2.0]]
    """
    if likelihood not in _MIDDLES:
        msg = f"fisher: unknown likelihood {likelihood!r}{suggest(likelihood, _MIDDLES)}"
        raise FuncconvError(msg)
    params = float_tree("fisher", "params", params)
    z, push = jax.linearize(_float_outputs("fisher", model), params)
    if not jax.tree_util.all_leaves([z]):
        msg = f"fisher: model(params) must give one array; got a {type(z).__name__}. Return the outputs alone"
        raise FuncconvError(msg)
    if (z.ndim != 1 if likelihood == "empirical" else z.ndim < 1) or not z.size:
        axes = "losses (n,), one for each example" if likelihood == "empirical" else "(*examples, outputs)"
        msg = f"fisher: for {likelihood!r}, model(params) must give {axes}, none empty; got {described(z)}"
        raise FuncconvError(msg)
    return _operator("fisher", params, Partial(_sandwiched, push, _MIDDLES[likelihood](z)), semidefinite=True)


def _operator(name: str, params: Tree, product: Callable[[Tree], Tree], *, semidefinite: bool) -> Operator:
    form = like(params)
    return Operator(name, form, form, product, semidefinite)


def _float_outputs(where: str, model: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    return lambda params: float_tree(where, "model(params)", model(params))


def _sandwiched(push: Callable[[Tree], Tree], middle: Callable[[Tree], Tree], v: Tree) -> Tree:
    """Return `Jᵀ M J v`, with `J` the linear map `push` and `M` the map `middle` on outputs."""
    # Transposing `push` reuses the residuals of the one forward pass; `jax.vjp` of the model would evaluate it again.
    return jax.linear_transpose(push, v)(middle(push(v)))[0]


# The curvature of a negative log likelihood by its outputs, averaged over the examples, as a product with `u` -------


def _categorical(p: Array, u: Array) -> Array:
    # `diag(p) - p pᵀ` is not formed: its size is quadratic in the number of classes.
    return p * (u - (p * u).sum(-1, keepdims=True)) / math.prod(p.shape[:-1])


def _bernoulli(p: Array, u: Array) -> Array:
    return p * (1 - p) * u / math.prod(p.shape[:-1])


def _gaussian(u: Array) -> Array:
    return u / math.prod(u.shape[:-1])


def _empirical(u: Array) -> Array:
    return u / len(u)


_MIDDLES: dict[str, Callable[[Array], Callable[[Array], Array]]] = {
    "categorical": lambda z: Partial(_categorical, jax.nn.softmax(z)),
    "bernoulli": lambda z: Partial(_bernoulli, jax.nn.sigmoid(z)),
    "gaussian": lambda _: Partial(_gaussian),
    "empirical": lambda _: Partial(_empirical),
}

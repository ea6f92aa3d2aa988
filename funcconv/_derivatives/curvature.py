"""The Hessian, the Gauss–Newton matrix and the Fisher matrix of a network, as operators."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array
from .data_set.over_batches import OnBatch, product_over_batches
from .operator import Operator
from .trees import Partial, Tree, described, float_tree, like, scalar


def hessian(
    f: Callable[..., Any],
    params: Tree,
    *,
    batches: Any = None,
    weight: Callable[[Tree], Any] | None = None,
    progress: bool = True,
) -> Operator:
    """Return the Hessian of `f` at `params` as an operator: `H = d²f / d params²`.

    With `batches`, it is the Hessian of the mean over a data set, `H = Σ_b w_b H_b / Σ_b w_b` with the weights `w_b` of
    the batches. Each product reads the data once, for any number of vectors, and computes a batch by a program that is
    compiled once for each shape of a batch. Operators with the same `f` share it, so define `f` once, outside of loops.

    Args:
        f: a function of a tree that returns one floating number. It gets its data by closure:
            `lambda params: loss(params, x, y)`. With `batches`, a function `f(params, batch)` that returns the mean of
            a loss over the examples of the batch. It is compiled, so it must be pure and hashable.
        params: the point at which to differentiate, a tree of real floating arrays.
        batches: a data set, trees of arrays with the same structure: a list, a loader that can be read again, the
            result of `train.batches` (with `drop_last=False`; one epoch is read), or a function without arguments that
            returns a new iterator. Every pass must read the same examples, without random augmentation. The order of
            the batches is the order of summation, so the results are the same in each run if the order is. 16-bit
            numbers are summed in float32. Default: None, `f` has one argument.
        weight: a function of a batch that returns the weight `w_b`, a real number of at least 0, such as
            `lambda batch: batch["mask"].sum()`. A batch with weight 0 is left out. Default: None, the number of
            examples of the batch, which is the size of the first axis of all its arrays.
        progress: whether a pass over the batches that takes more than a second shows a progress bar on the standard
            error. Without tqdm, no bar is shown. Default: True.

    Returns:
        An `Operator` on trees like `params`. With `batches`, it does not work inside `jax.jit`.

    Raises:
        FuncconvError: if `f` does not return a scalar, if a leaf of `params` is not real and floating, or if `batches`
            is not iterable. Products with `batches` raise it if there are no batches, if an iterator is exhausted, if
            the structure of the batches changes, if a pass reads other examples than the first one, if a weight is
            negative or not finite or all are 0, or inside a transformation such as `jax.jit`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> h = fc.hessian(lambda x: (x**3).sum() + x[0] * x[1], jnp.array([1.0, 2.0]))
        >>> h.mv(jnp.array([1.0, 0.0])).tolist(), h.dense().tolist()
        ([6.0, 1.0], [[6.0, 1.0], [1.0, 12.0]])
        >>> data = [jnp.array([1.0, 2.0, 3.0]), jnp.array([6.0])]  # 3 examples, and 1
        >>> h = fc.hessian(lambda x, batch: (batch * x**2).mean(), jnp.float32(1), batches=data)
        >>> float(h.mv(jnp.float32(1)))  # 2 * the mean over all 4 examples
        6.0
    """
    return _operator(_HESSIAN, (f,), params, batches, weight, progress=progress)


def gauss_newton(
    model: Callable[..., Tree],
    loss: Callable[..., Any],
    params: Tree,
    *,
    batches: Any = None,
    weight: Callable[[Tree], Any] | None = None,
    progress: bool = True,
) -> Operator:
    """Return the generalized Gauss–Newton matrix of `loss(model(params))` as an operator: `G = Jᵀ H J`.

    `J = d outputs / d params` is the Jacobian of the model, and `H = d²loss / d outputs²` the Hessian of the loss with
    respect to the outputs. `G` is the Hessian of `loss(model(params))` without the second derivatives of the model, so
    both are equal for a linear model.

    Args:
        model: a function of a tree that returns the outputs, a tree of real floating arrays. It gets its inputs by
            closure. With `batches`, a function `model(params, batch)`.
        loss: a function of the outputs that returns one floating number. It gets its targets by closure. With
            `batches`, a function `loss(outputs, batch)` that returns the mean over the examples of the batch.
        params: the point at which to differentiate, a tree of real floating arrays.
        batches: a data set, trees of arrays with the same structure: a list, a loader that can be read again, the
            result of `train.batches` (with `drop_last=False`; one epoch is read), or a function without arguments that
            returns a new iterator. As for `hessian`, each product reads it once. Default: None, no batches.
        weight: a function of a batch that returns its weight in the mean, a real number of at least 0. Default: None,
            the number of examples of the batch, which is the size of the first axis of all its arrays.
        progress: whether a pass over the batches that takes more than a second shows a progress bar on the standard
            error. Without tqdm, no bar is shown. Default: True.

    Returns:
        An `Operator` on trees like `params`. It is marked as positive semidefinite, which is true if the loss is convex
        in the outputs, like the squared error and the cross-entropy of logits. With `batches`, it does not work inside
        `jax.jit`.

    Raises:
        FuncconvError: if `loss` does not return a scalar, or a leaf of `params` or of the outputs is not real and
            floating; for `batches` as `hessian`.

    Source: Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent", 2002.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x, target = jnp.array([[1.0, 0.0], [1.0, 2.0]]), jnp.ones(2)
        >>> g = fc.gauss_newton(lambda w: x @ w, lambda y: ((y - target) ** 2).sum() / 2, jnp.zeros(2))
        >>> g.dense().tolist()  # x.T @ x
        [[2.0, 2.0], [2.0, 4.0]]
    """
    return _operator(_GAUSS_NEWTON, (model, loss), params, batches, weight, progress=progress)


def fisher(
    model: Callable[..., Array],
    params: Tree,
    likelihood: str = "categorical",
    *,
    batches: Any = None,
    weight: Callable[[Tree], Any] | None = None,
    progress: bool = True,
) -> Operator:
    """Return the Fisher matrix of a model's likelihood as an operator, the mean over the examples.

    `F = 1/n Σ_i E[g gᵀ]`, with `g = d log p(y | z_i) / d params` and `y` drawn from `p(. | z_i)`. Here
    `z = model(params)` has the shape `(*examples, outputs)`, with `n` examples in all axes except the last. So an array
    `(outputs,)` is one example, and `n` examples with one output have the shape `(n, 1)`.

    Args:
        model: a function of a tree that returns the array `z`. It gets its inputs by closure. With `batches`, a
            function `model(params, batch)`.
        params: the point at which to differentiate, a tree of real floating arrays.
        likelihood: the distribution of `y` given `z`, with `J = d z_i / d params`:
            `"categorical"`: `z` are logits of classes; `E[g gᵀ] = Jᵀ (diag(p) - p pᵀ) J` with `p = softmax(z)`.
            `"bernoulli"`: `z` are logits of independent binary variables; `Jᵀ diag(p (1 - p)) J` with `p = sigmoid(z)`.
            `"gaussian"`: `z` are means, with unit variance; `Jᵀ J`.
            `"empirical"`: `z` are losses `(n,)`, one per example, which contain the targets. The expectation is left
            out: `F = 1/n Σ_i g_i g_iᵀ` with `g_i = d z_i / d params`.
            Default: `"categorical"`.
        batches: a data set, trees of arrays with the same structure: a list, a loader that can be read again, the
            result of `train.batches` (with `drop_last=False`; one epoch is read), or a function without arguments that
            returns a new iterator. As for `hessian`, each product reads it once. Default: None, no batches.
        weight: a function of a batch that returns its weight in the mean, a real number of at least 0. Default: None,
            the number `n` of examples in `z`.
        progress: whether a pass over the batches that takes more than a second shows a progress bar on the standard
            error. Without tqdm, no bar is shown. Default: True.

    Returns:
        An `Operator` on trees like `params`, positive semidefinite. With `batches`, it does not work inside `jax.jit`.

    Raises:
        FuncconvError: if the likelihood is unknown, if the model does not return one floating array with the axes
            above, or if a leaf of `params` is not real and floating; for `batches` as `hessian`.

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
    kind = _Kind("fisher", _fisher_at, semidefinite=True, options=(likelihood,))
    return _operator(kind, (model,), params, batches, weight, progress=progress)


class _Kind(NamedTuple):
    name: str
    at: Callable[..., tuple[Any, int | None]]  # the product at a point, and how many examples it is the mean of
    semidefinite: bool
    options: tuple[Any, ...] = ()  # the first arguments of `at`


def _operator(
    kind: _Kind, functions: tuple[Any, ...], params: Tree, batches: Any, weight: Any, *, progress: bool
) -> Operator:
    params = float_tree(kind.name, "params", params)
    if batches is not None:
        on_batch = OnBatch(kind.name, kind.at, kind.options, functions, weight)
        product: Any = product_over_batches(on_batch, params, batches, progress=progress)
    elif weight is not None:
        msg = f"{kind.name}: weight= is the weight of a batch, but batches is None. Pass batches= too"
        raise FuncconvError(msg)
    else:
        product, _ = kind.at(*kind.options, *functions, params)
    form = like(params)
    return Operator(kind.name, form, form, product, kind.semidefinite)


def _hessian_at(f: Callable[[Tree], Any], params: Tree) -> tuple[Any, None]:
    # The gradient is evaluated once here; a product repeats only its linear part.
    return jax.linearize(jax.grad(scalar("hessian", "f", f)), params)[1], None


def _gauss_newton_at(model: Callable[[Tree], Tree], loss: Callable[[Tree], Any], params: Tree) -> tuple[Any, None]:
    # The network is evaluated once here; a product repeats only the linear parts.
    outputs, push = jax.linearize(_float_outputs("gauss_newton", model), params)
    middle = jax.linearize(jax.grad(scalar("gauss_newton", "loss", loss)), outputs)[1]
    return Partial(_sandwiched, push, middle), None


def _fisher_at(likelihood: str, model: Callable[[Tree], Array], params: Tree) -> tuple[Any, int]:
    z, push = jax.linearize(_float_outputs("fisher", model), params)
    if not jax.tree_util.all_leaves([z]):
        msg = f"fisher: model(params) must give one array; got a {type(z).__name__}. Return the outputs alone"
        raise FuncconvError(msg)
    if (z.ndim != 1 if likelihood == "empirical" else z.ndim < 1) or not z.size:
        axes = "losses (n,), one for each example" if likelihood == "empirical" else "(*examples, outputs)"
        msg = f"fisher: for {likelihood!r}, model(params) must give {axes}, none empty; got {described(z)}"
        raise FuncconvError(msg)
    examples = len(z) if likelihood == "empirical" else math.prod(z.shape[:-1])
    return Partial(_sandwiched, push, _MIDDLES[likelihood](z)), examples


_HESSIAN = _Kind("hessian", _hessian_at, semidefinite=False)
_GAUSS_NEWTON = _Kind("gauss_newton", _gauss_newton_at, semidefinite=True)


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

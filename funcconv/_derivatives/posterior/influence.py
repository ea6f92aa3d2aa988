"""Influence functions: how the loss of a test example changes if a training example is left out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array
from ..factored.example_blocks import ExampleBlocks, example_blocks
from ..linear_map import LinearMap, positive
from ..per_example import per_example_grad
from ..trees import Flat, Tree, check_like, described, float_tree, is_float, leading_size, like, scalar

_ROUNDING = 10  # by this factor the residual of conjugate gradients may be above their own estimate of it


def influence(
    f: Callable[..., Any],
    params: Tree,
    train: tuple[Tree, ...],
    test: tuple[Tree, ...],
    *,
    solver: Any = "cg",
    damping: Any = 0.0,
    tol: float = 1e-5,
    maxiter: int | None = None,
    batch_size: int = 128,
    chunk: int = 32,
) -> Array:
    """Estimate how the loss of each test example changes if a training example is left out and you train again.

    With the loss `f_i(params) = f(params, *train_i)` of a training example, and `params` at the minimum of
    `1/n sum_i f_i + damping/2 |params|²`, the result is, to first order in `1/n`,

    `I[t, i] = 1/n ∇f_tᵀ H^-1 ∇f_i`, with `H = 1/n sum_i ∇²f_i + damping I`.

    If `I[t, i] > 0`, the example `i` lowers the loss of the test example `t`: the loss rises without it. The other
    examples keep the weight `1/n`. Koh and Liang define `I_up,loss = -∇f_tᵀ H^-1 ∇f_i`, the derivative by the weight of
    the example, which is `-n` times the result.

    Args:
        f: a function `f(params, *example)` that returns one floating number, the loss of one example.
        params: the trained parameters, a tree of real floating arrays.
        train: the training examples, a tuple such as `(x, y)`. Each leaf is `(n, *shape)`.
        test: the test examples, a tuple such as `(x, y)`. Each leaf is `(m, *shape)`.
        solver: how to multiply by `H^-1`. `"cg"`: by conjugate gradients with Hessian-vector products, which need a
            positive definite `H`. Or an `Operator` that is an inverse of the curvature of the mean loss, such as
            `fc.kfac(...).inverse(damping)`; or a function from a tree like `params` to a tree like `params`. The
            `covariance` of `fc.laplace` is the inverse for the sum of the losses, so multiply the result by `n`.
            Default: `"cg"`.
        damping: the penalty in the training loss, or a number that makes `H` positive definite. For `"cg"` only; an
            operator has its own. At least 0. Default: 0.
        tol: conjugate gradients stop if the norm of the residual is at most `tol` times the one of `∇f_t`. Default:
            1e-5.
        maxiter: the maximum number of iterations. Default: None, 10 times the number of parameters.
        batch_size: how many training examples are in memory at a time. Default: 128.
        chunk: how many test examples are in memory at a time, each with some trees like `params`. Default: 32.

    Returns:
        An array `(m, n)`, at least in float32. Inside `jax.jit` and for `"cg"`, the row of a test example is NaN if
        conjugate gradients did not converge.

    Raises:
        FuncconvError: if the solver is unknown, if a number is out of range, if damping is given for an operator or a
            function, if `train` or `test` is not a tuple of examples with one first axis, if `f` does not return a
            scalar, if a leaf of `params` is not real and floating, or if conjugate gradients do not converge.

    Source: Koh and Liang, "Understanding black-box predictions via influence functions", 2017, arXiv:1703.04730.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> def f(w, y):
        ...     return (w - y) ** 2 / 2
        >>> train, test = (jnp.array([0.0, 2.0, 4.0, 6.0]),), (jnp.array([6.0]),)
        >>> mean = jnp.float32(3)  # the minimum. Without the last example it moves away from 6, and the loss rises
        >>> fc.influence(f, mean, train, test).tolist()
        [[-2.25, -0.75, 0.75, 2.25]]
    """
    positive("influence: batch_size", batch_size)
    positive("influence: chunk", chunk)
    params = float_tree("influence", "params", params)
    for what, examples in (("train", train), ("test", test)):
        if not isinstance(examples, tuple) or not examples:
            msg = f"influence: {what} must be a tuple of arrays such as (x, y); got {type(examples).__name__}"
            raise FuncconvError(msg)
    blocks = example_blocks("influence", "train", train, batch_size)
    tests = leading_size("influence", "test", test)
    f = scalar("influence", "f", f)
    inverse = _inverse(solver, partial(_curved, f, params, blocks), params, damping, tol, maxiter)
    gradients = per_example_grad(f)

    def solved(example: tuple[Tree, ...]) -> tuple[Tree, Array]:
        return inverse(jax.grad(f)(params, *example))

    vectors, residuals = lax.map(solved, jax.tree.map(jnp.asarray, test), batch_size=min(chunk, tests))
    flat = jax.vmap(_ravel)(vectors)
    products = lax.map(lambda block: flat @ jax.vmap(_ravel)(gradients(params, *block)).T, blocks.arrays)
    result = products.swapaxes(0, 1).reshape(tests, -1)[:, : blocks.examples] / blocks.examples
    return _converged(result, residuals, tol)


def _inverse(
    solver: Any, curved: Callable[[Tree], Tree], params: Tree, damping: Any, tol: float, maxiter: int | None
) -> Callable[[Tree], tuple[Tree, Array]]:
    """Return a function that multiplies by the inverse, and says how large the relative residual is."""
    if not isinstance(solver, str):
        if not (isinstance(solver, LinearMap) or callable(solver)):
            msg = f'influence: solver must be "cg", an Operator or a function of a tree; got {type(solver).__name__}'
            raise FuncconvError(msg)
        if isinstance(damping, jax.core.Tracer) or damping != 0:
            msg = f'influence: damping is for solver="cg"; got damping={damping}. Damp the operator: .inverse(damping)'
            raise FuncconvError(msg)
        product = solver.mv if isinstance(solver, LinearMap) else solver
        form = like(params)
        return lambda v: (check_like("influence", "solver(v)", product(v), form), jnp.zeros(()))
    if solver != "cg":
        msg = f'influence: unknown solver={solver!r}; pass "cg", an Operator or a function'
        raise FuncconvError(msg)
    if not (is_float(damping) or isinstance(damping, int)) or jnp.shape(damping) != ():
        msg = f"influence: damping must be one real number; got {described(damping)}"
        raise FuncconvError(msg)
    if not isinstance(damping, jax.core.Tracer) and damping < 0:
        msg = f"influence: damping must be at least 0; got {damping}"
        raise FuncconvError(msg)
    if not 0 < tol < 1:
        msg = f"influence: tol must be between 0 and 1; got {tol}"
        raise FuncconvError(msg)
    steps = 10 * Flat(params).size if maxiter is None else positive("influence: maxiter", maxiter)
    shift = jnp.asarray(damping)
    conjugate_gradients: Any = jax.scipy.sparse.linalg.cg  # JAX leaves it without types

    def damped(v: Tree) -> Tree:
        return jax.tree.map(lambda a, b: a + shift.astype(b.dtype) * b, curved(v), v)

    def solve(v: Tree) -> tuple[Tree, Array]:
        solution, _ = conjugate_gradients(damped, v, tol=tol, maxiter=steps)
        residual = jax.tree.map(jnp.subtract, damped(solution), v)
        size, of = jnp.linalg.norm(_ravel(residual)), jnp.linalg.norm(_ravel(v))
        return solution, jnp.where(of > 0, size / jnp.where(of > 0, of, 1), 0)

    return solve


def _curved(f: Callable[..., Array], params: Tree, blocks: ExampleBlocks, v: Tree) -> Tree:
    """Multiply by the Hessian of the mean loss, in the memory of one block."""

    def of_block(examples: tuple[Tree, ...], real: Array) -> Tree:
        def total(params: Tree) -> Array:
            losses = jax.vmap(f, (None, *(0 for _ in examples)))(params, *examples)
            return jnp.where(real, losses, 0).sum()

        product = jax.jvp(jax.grad(total), (params,), (v,))[1]
        return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), product)

    sums = blocks.total(of_block)
    return jax.tree.map(lambda total, leaf: (total / blocks.examples).astype(leaf.dtype), sums, v)


def _converged(result: Array, residuals: Array, tol: float) -> Array:
    """Return the result; refuse it if a residual is too large, or mark its row if they are not known yet."""
    good = residuals <= _ROUNDING * tol  # false for NaN
    if not isinstance(good, jax.core.Tracer) and not good.all():
        msg = (
            f"influence: conjugate gradients did not converge for {int((~good).sum())} of {len(good)} test examples; "
            f"the largest relative residual is {float(residuals.max()):.3g}, tol is {tol}. "
            "Use a larger damping, tol or maxiter, or float64"
        )
        raise FuncconvError(msg)
    return jnp.where(good[:, None], result, jnp.nan)


def _ravel(tree: Tree) -> Array:
    return Flat(tree).ravel(tree)

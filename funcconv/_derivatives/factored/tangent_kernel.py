"""The tangent kernel of a model: inner products of the gradients of its outputs, for pairs of examples.

With the gradients as sums of outer products (`factors.py`), an inner product is

    <dL_i/dw, dL_j/dw> = sum over r, s of (a_ir . a_js) (g_ir . g_js)

so that a dense layer costs two products of vectors, and no gradient is formed. Where a kernel is small and is used at
many places, its gradients are formed, which is cheaper.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..linear_map import positive
from ..operator import Operator
from ..trees import Partial, Tree, float_tree, like
from .example_blocks import example_blocks
from .factors import Sum, gradients_as_sums
from .outputs import Model, outputs

_KINDS = ("trace", "full", "pseudo")


def ntk(
    model: Model, params: Tree, x1: Tree, x2: Tree | None = None, *, of: str = "trace", batch_size: int = 32
) -> Array:
    """Compute the empirical neural tangent kernel: inner products of the gradients of a model's outputs.

    `K(x, x')_ab = sum over all parameters of (d f_a(x) / d params) (d f_b(x') / d params)`, for outputs `a` and `b`.
    The Jacobian is not formed: each layer contributes products of its inputs and of its cotangents, or, where that is
    cheaper, of the gradients of some examples.

    Args:
        model: a function `model(params, x)` that returns an array `(n, *outputs)` for `n` examples, such as a `Graph`.
            The outputs of an example must not depend on the others.
        params: the point at which to differentiate, a tree of real floating arrays.
        x1: examples, an array `(n1, *shape)` or a tree of arrays with this first axis.
        x2: other examples, with a first axis of `n2`. Default: None, `x1`.
        of: what is returned for a pair of examples.
            `"trace"`: the sum over all outputs, `sum_a K_aa`.
            `"full"`: all pairs of outputs.
            `"pseudo"`: the kernel of the sum of the outputs, divided by their number, `1/k sum_ab K_ab`; it takes `k`
            times less time, and is close to the mean of `K_aa` in wide networks (Mohamadi, Bae and Sutherland 2023).
            Default: `"trace"`.
        batch_size: how many examples of `x1` and of `x2` are in memory at a time. Default: 32.

    Returns:
        An array `(n1, n2)`, or `(n1, n2, *outputs, *outputs)` for `"full"`, in the dtype of the outputs, at least
        float32.

    Raises:
        FuncconvError: if `of` is unknown, if the batch size is not a positive integer, if the examples do not have one
            first axis, if the model does not return one floating array with this first axis, or if a leaf of `params`
            is not real and floating.

    Source: Jacot, Gabriel and Hongler, "Neural tangent kernel", 2018, arXiv:1806.07572; Novak, Sohl-Dickstein and
    Schoenholz, "Fast finite width neural tangent kernel", 2022, arXiv:2206.08720; Mohamadi, Bae and Sutherland, "A
    fast, well-founded approximation to the empirical neural tangent kernel", 2023, arXiv:2206.12543.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> fc.ntk(lambda w, x: x @ w, jnp.zeros((2, 1)), x).tolist()  # x @ x.T
        [[5.0, 3.0], [3.0, 9.0]]
        >>> fc.ntk(lambda w, x: x @ w, jnp.zeros((2, 3)), x, of="full").shape
        (2, 2, 3, 3)
    """
    if of not in _KINDS:
        msg = f"ntk: unknown of={of!r}{suggest(of, _KINDS)}"
        raise FuncconvError(msg)
    positive("ntk: batch_size", batch_size)
    params = float_tree("ntk", "params", params)
    first = example_blocks("ntk", "x1", x1, batch_size)
    second = first if x2 is None else example_blocks("ntk", "x2", x2, batch_size)
    out = jax.eval_shape(partial(outputs, "ntk", model), params, x1)
    count = math.prod(out.shape[1:])

    def kernel(cotangents: Array) -> Array:
        """Return `(n1, m, n2, m)` for m cotangents `(m, outputs)`."""

        def gradients(x: Tree) -> list[_Gradients]:
            return _gradients(model, params, x, cotangents)

        def of_first(x: Tree) -> Array:
            own = gradients(x)
            if first is second and first.size == first.examples:  # one block, with itself
                return _inner(own, own)[None]
            blocks: Array = lax.map(lambda other: _inner(own, gradients(other)), second.arrays)
            return blocks

        k: Array = lax.map(of_first, first.arrays)  # (blocks, other blocks, size * m, other size * m)
        m = len(cotangents)
        k = k.reshape(*k.shape[:2], first.size, m, second.size, m).transpose(0, 2, 3, 1, 4, 5)
        k = k.reshape(k.shape[0] * first.size, m, -1, m)
        return k[: first.examples, :, : second.examples]

    dtype = wide(out.dtype)
    if of == "pseudo":
        return kernel(jnp.full((1, count), 1 / math.sqrt(count), dtype))[:, 0, :, 0]
    units = jnp.eye(count, dtype=dtype)
    if of == "full":
        k = kernel(units).swapaxes(1, 2)
        return k.reshape(first.examples, second.examples, *out.shape[1:], *out.shape[1:])
    zero = jnp.zeros((first.examples, second.examples), jax.eval_shape(kernel, units[:1]).dtype)
    total: Array = lax.scan(lambda total, unit: (total + kernel(unit[None])[:, 0, :, 0], None), zero, units)[0]
    return total


def ntk_operator(model: Model, params: Tree, x: Tree) -> Operator:
    """Return the tangent kernel of some examples as an operator on outputs: `K v = J Jᵀ v`, with `J = d f / d params`.

    A product takes one backward and one forward pass, and the kernel is never formed.

    Args:
        model: a function `model(params, x)` that returns an array `(n, *outputs)`.
        params: the point at which to differentiate, a tree of real floating arrays.
        x: the examples.

    Returns:
        An `Operator` on arrays `(n, *outputs)`, positive semidefinite.

    Raises:
        FuncconvError: if the model does not return one floating array, or a leaf of `params` is not real and floating.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0], [3.0, 0.0]])
        >>> kernel = fc.ntk_operator(lambda w, x: x @ w, jnp.zeros((2, 1)), x)
        >>> kernel.mv(jnp.array([[1.0], [0.0]])).tolist()
        [[5.0], [3.0]]
    """
    params = float_tree("ntk_operator", "params", params)
    out = jax.eval_shape(partial(outputs, "ntk_operator", model), params, x)
    push = jax.linearize(lambda params: model(params, x), params)[1]
    product = Partial(_there_and_back, push, like(params))
    return Operator("ntk_operator", like(out), like(out), product, semidefinite=True)


def linearize(model: Callable[..., Any], params: Tree) -> Callable[..., Any]:
    """Return the first-order model around some parameters, which is linear in its parameters.

    `linear(p, *xs) = model(params, *xs) + J (p - params)`, with `J = d model(params, *xs) / d params`. It is called
    like the model, and can be trained like it. Its tangent kernel is that of the model at `params`.

    Args:
        model: a function `model(params, *xs)` whose outputs are a tree of arrays, such as a `Graph`.
        params: the parameters around which it is linear, a tree of real floating arrays.

    Returns:
        A function `linear(p, *xs)`, where `p` is a tree like `params`.

    Raises:
        FuncconvError: if a leaf of `params` is not real and floating.

    Source: Lee and others, "Wide neural networks of any depth evolve as linear models under gradient descent", 2019,
    arXiv:1902.06720.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> linear = fc.linearize(lambda p, x: x * p**2, jnp.float32(3))
        >>> linear(jnp.float32(4), jnp.ones(2)).tolist()  # 9 + 6 * (4 - 3)
        [15.0, 15.0]
    """
    params = float_tree("linearize", "params", params)

    def linear(p: Tree, *xs: Any, **options: Any) -> Any:
        change = jax.tree.map(jnp.subtract, p, params)
        value, tangent = jax.jvp(lambda params: model(params, *xs, **options), (params,), (change,))
        return jax.tree.map(jnp.add, value, tangent)

    return linear


class _Gradients(NamedTuple):
    """The gradients of examples by one leaf: formed, `(n, numbers)`, or as two factors."""

    a: Array
    g: Array | None  # None if they are formed


def _gradients(model: Model, params: Tree, x: Tree, cotangents: Array) -> list[_Gradients]:
    """Return the gradients of `cotangent . output` for each example and cotangent, by each leaf."""

    def of_one(params: Tree, x: Tree, cotangent: Array) -> Array:
        y = model(params, jax.tree.map(lambda leaf: leaf[None], x))
        return (y.astype(cotangent.dtype).ravel() * cotangent).sum()

    size = len(jax.tree.leaves(x)[0])
    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, len(cotangents), 0), x)
    results = gradients_as_sums(of_one, params, repeated, jnp.tile(cotangents, (size, 1)))
    return [_prepared(result, size * len(cotangents)) for result in results]


def _prepared(result: Any, n: int) -> _Gradients:
    """Return gradients of `n` examples in the form in which `n` times `n` inner products take less time."""
    if isinstance(result, Sum):
        (groups, rows, columns, _), places = result.products[0].kind, result.places
        by_factors = n * places**2 * (rows + columns) * groups
        formed = (2 * places + n) * rows * columns * groups
        if by_factors < formed:
            a, g = result.factors()
            return _Gradients(a.astype(wide(a.dtype)), g.astype(wide(g.dtype)))
        result = result.formed()
    flat = result.reshape(result.shape[0], -1)
    return _Gradients(flat.astype(wide(flat.dtype)), None)


def _inner(one: list[_Gradients], other: list[_Gradients]) -> Array:
    """Return the inner products of two sets of gradients, `(n, m)`."""
    products = []
    for mine, theirs in zip(one, other, strict=True):
        if mine.g is None or theirs.g is None:
            products.append(mine.a @ theirs.a.T)
        else:
            a, g = (jnp.einsum("irgx,jsgx->ijgrs", *pair) for pair in ((mine.a, theirs.a), (mine.g, theirs.g)))
            products.append((a * g).sum((2, 3, 4)))
    widest = max((product.dtype for product in products), key=lambda dtype: dtype.itemsize)
    return jnp.stack([product.astype(widest) for product in products]).sum(0)


def _there_and_back(push: Callable[[Tree], Tree], form: Tree, v: Array) -> Array:
    result: Array = push(jax.linear_transpose(push, form)(v)[0])
    return result

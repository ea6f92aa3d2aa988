"""Kronecker-factored curvature (K-FAC): a block for each array of parameters, from the factors of its gradients.

The gradient of one example by a kernel is a sum over places, `sum_r a_r g_r^T` (`factors.py`). K-FAC takes the inputs
`a` and the derivatives `g` to be independent, so that the block of the kernel is the Kronecker product of two small
matrices. The examples are taken in blocks, and only sums are kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..linear_map import positive
from ..trees import Partial, Tree, float_tree, like, scalar
from . import eigen_blocks
from .cotangents import Fisher, cotangents_of
from .eigen_blocks import EigenBlock
from .example_blocks import example_blocks
from .factors import Sum, gradients_as_sums
from .kfac_operator import Kfac
from .outputs import outputs

Approximation: TypeAlias = Literal["expand", "reduce"]
_LARGEST_EXACT = 4096  # numbers of an array without factors whose block is exact


def kfac(
    model: Callable[[Tree, Tree], Array],
    loss: Callable[[Array, Tree], Any],
    params: Tree,
    batch: tuple[Tree, Tree],
    *,
    approximation: Approximation = "expand",
    fisher: Fisher = "type-2",
    key: Array | None = None,
    samples: int = 1,
    corrected: bool = False,
    batch_size: int = 128,
) -> Kfac:
    """Approximate the Gauss–Newton matrix of a mean loss by Kronecker factors, one block for each array of parameters.

    For the mean over `N` examples of `loss(model(params, x), y)`, with the gradient of an example by a kernel
    `sum_r a_r g_r^T` over `R` places, the block of the kernel is `A ⊗ B`:

    `"expand"`: `A = 1/(N R) sum_n sum_r a_r a_r^T` and `B = 1/N sum_n sum_r g_r g_r^T`;
    `"reduce"`: `A = 1/N sum_n a a^T` with the mean `a` over the places, and `B = 1/N sum_n g g^T` with the sum `g`.

    Kernels of convolutions, transposed convolutions and dense layers have such a block, with a pair of factors for each
    group. A kernel that is used several times has more places. The block of any other array, such as a bias or the
    scale of a norm, is exact if it has at most 4,096 numbers, and otherwise diagonal.

    Args:
        model: a function `model(params, x)` that returns an array `(n, *outputs)` for `n` examples, such as a `Graph`.
            The outputs of an example must not depend on the others.
        loss: a function of the outputs `(*outputs)` and the target of one example, which returns one floating number
            and is convex in the outputs.
        params: the point, a tree of real floating arrays.
        batch: a pair `(x, y)` of examples and targets, arrays `(n, *shape)` or trees of them.
        approximation: how the places of a kernel are treated. `"expand"` suits outputs at each place, `"reduce"` suits
            networks that average over places. Default: `"expand"`.
        fisher: where the derivatives `g` come from. `"type-2"`: from a root of the Hessian of the loss with respect to
            the outputs of each example, one for each output. `"mc"`: from random combinations of these, `samples` for
            each example. `"empirical"`: from the gradient of the loss. Default: `"type-2"`.
        key: a random key, for `"mc"`.
        samples: how many random combinations there are for each example, for `"mc"`. Default: 1.
        corrected: whether to replace the eigenvalues of each kernel's block by the mean squares of the gradients along
            its eigenvectors (EKFAC). The block then has the trace of the exact block, and is never farther from it.
            Default: False.
        batch_size: how many examples are in memory at a time. Default: 128.

    Returns:
        A `Kfac`, an `Operator` with exact `trace`, `det`, `eigsh` and `inverse`.

    Raises:
        FuncconvError: if an option is unknown, if `"mc"` has no key, if the examples and targets do not have one first
            axis, if the model does not return one floating array with this first axis, if the loss does not return a
            scalar, or if a leaf of `params` is not real and floating.

    Source: Martens and Grosse, 2015, arXiv:1503.05671; Grosse and Martens, "A Kronecker-factored approximate Fisher
    matrix for convolution layers", 2016, arXiv:1602.01407; George and others, "Fast approximate natural gradient
    descent in a Kronecker-factored eigenbasis", 2018, arXiv:1806.03884; Eschenhagen and others, "Kronecker-factored
    approximate curvature for modern neural network architectures", 2023, arXiv:2311.00636.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> x = fc.Input("x", (8, 8, 1))
        >>> network = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.global_pool, fc.Dense(3))(x))
        >>> params, images, labels = network.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1)), jnp.zeros(5, int)
        >>> loss = optax.softmax_cross_entropy_with_integer_labels
        >>> curvature = fc.kfac(network, loss, params, (images, labels))
        >>> gradient = jax.grad(lambda params: loss(network(params, images), labels).mean())(params)
        >>> step = curvature.inverse(damping=1e-2).mv(gradient)
        >>> step["conv1"]["kernel"].shape
        (3, 3, 1, 4)
    """
    for what, value, known in (("approximation", approximation, _APPROXIMATIONS), ("fisher", fisher, _FISHERS)):
        if value not in known:
            msg = f"kfac: unknown {what}={value!r}{suggest(value, known)}"
            raise FuncconvError(msg)
    if (fisher == "mc") != (key is not None):
        msg = f'kfac: key is for fisher="mc", which needs it; got fisher={fisher!r} and key={key!r}'
        raise FuncconvError(msg)
    positive("kfac: batch_size", batch_size)
    positive("kfac: samples", samples)
    params = float_tree("kfac", "params", params)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        msg = f"kfac: batch must be a pair (x, y) of examples and targets; got {type(batch).__name__}"
        raise FuncconvError(msg)
    blocks = example_blocks("kfac", "the batch", tuple(batch), batch_size)
    keys = jax.random.split(jax.random.key(0) if key is None else key, len(blocks.real))
    cotangents = partial(cotangents_of, scalar("kfac", "loss", loss), fisher, samples)
    followed = partial(_followed, model, cotangents, params)

    def mean(of_block: Callable[..., Any]) -> Any:
        return jax.tree.map(lambda leaf: leaf / blocks.examples, blocks.total(of_block, keys))

    moments = mean(lambda *piece: [_moments(gradient, approximation) for gradient in followed(*piece)])
    result = [_block(moment) for moment in moments]
    if corrected:
        squares = mean(lambda *piece: [_squares(*pair) for pair in zip(followed(*piece), result, strict=True)])
        result = [
            block if square is None else EigenBlock(block.left, block.right, square)
            for block, square in zip(result, squares, strict=True)
        ]
    form = like(params)
    return Kfac("kfac", form, form, Partial(eigen_blocks.product, result), semidefinite=True)


_APPROXIMATIONS, _FISHERS = ("expand", "reduce"), ("type-2", "mc", "empirical")


class _Factors(NamedTuple):
    """The gradients of some examples by a kernel; those to fill up a block are zero.

    Attributes:
        a: what went in, `(examples, places, groups, n)`.
        g: the derivatives, `(examples * vectors, places, groups, m)`.
        inputs_are_rows: whether `a` belongs to the rows of the kernel, and `g` to the columns.
    """

    a: Array
    g: Array
    inputs_are_rows: bool


class _Moments(NamedTuple):
    """The sums over examples that make a block: of a kernel, of a whole array, or of its diagonal."""

    of_rows: Array | None = None
    of_columns: Array | None = None
    whole: Array | None = None
    diagonal: Array | None = None


def _followed(
    model: Callable[[Tree, Tree], Array],
    cotangents: Callable[[Array, Tree, Array], Array],
    params: Tree,
    batch: tuple[Tree, Tree],
    real: Array,
    key: Array,
) -> list[_Factors | Array]:
    """Return the gradients of a block of examples by each leaf, along each of their vectors."""
    x, y = batch
    z = outputs("kfac", model, params, x)
    vectors = jax.vmap(cotangents)(z, y, jax.random.split(key, len(z)))
    vectors = vectors * real[:, None, None].astype(vectors.dtype)
    number = vectors.shape[1]

    def of_one(params: Tree, x: Tree, vector: Array) -> Array:
        out = model(params, jax.tree.map(lambda leaf: leaf[None], x))
        return (out.astype(vector.dtype).ravel() * vector).sum()

    repeated = jax.tree.map(lambda leaf: jnp.repeat(leaf, number, 0), x)
    flat = vectors.reshape(-1, vectors.shape[-1])

    def factors(flat: Array) -> list[Any]:
        found = gradients_as_sums(of_one, params, repeated, flat)
        return [result.factors() if isinstance(result, Sum) else result for result in found]

    closed, shapes = jax.make_jaxpr(factors, return_shape=True)(flat)
    depend = jax.tree.unflatten(jax.tree.structure(shapes), _depend(closed.jaxpr))
    values = jax.tree.unflatten(jax.tree.structure(shapes), core.jaxpr_as_fun(closed)(flat))
    return [_oriented(value, on, number, real) for value, on in zip(values, depend, strict=True)]


def _oriented(value: Any, depends: Any, number: int, real: Array) -> _Factors | Array:
    """Return gradients as input and derivative, or formed if both factors depend on the vectors."""
    if not isinstance(value, tuple):
        return value.astype(wide(value.dtype))  # type: ignore[no-any-return]
    rows, columns = (factor.astype(wide(factor.dtype)) for factor in value)
    if all(depends):
        return jnp.einsum("nrgx,nrgy->nxgy", rows, columns).reshape(len(rows), -1)
    a, g = (rows, columns) if depends[1] else (columns, rows)
    return _Factors(a[::number] * real[:, None, None, None].astype(a.dtype), g, inputs_are_rows=bool(depends[1]))


def _depend(jaxpr: Any) -> list[bool]:
    """Return which results of a program depend on its arguments."""
    known = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(not isinstance(var, core.Literal) and var in known for var in eqn.invars):
            known.update(eqn.outvars)
    return [not isinstance(var, core.Literal) and var in known for var in jaxpr.outvars]


def _moments(gradient: _Factors | Array, approximation: Approximation) -> _Moments:
    if not isinstance(gradient, _Factors):
        flat = gradient.reshape(len(gradient), -1)
        if flat.shape[1] > _LARGEST_EXACT:
            return _Moments(diagonal=jnp.square(flat).sum(0))
        return _Moments(whole=flat.T @ flat)
    a, g = gradient.a, gradient.g
    places = a.shape[1]
    if approximation == "reduce":
        a, g = a.mean(1, keepdims=True), g.sum(1, keepdims=True)
        places = 1
    of_a, of_g = (jnp.einsum("nrgx,nrgy->gxy", factor, factor) for factor in (a, g))
    of_a = of_a / places
    return _Moments(of_a, of_g) if gradient.inputs_are_rows else _Moments(of_g, of_a)


def _block(moments: _Moments) -> EigenBlock:
    if moments.whole is not None:
        return eigen_blocks.dense(moments.whole)
    if moments.diagonal is not None:
        return eigen_blocks.diagonal(moments.diagonal)
    return eigen_blocks.kronecker(moments.of_rows, moments.of_columns)  # type: ignore[arg-type]


def _squares(gradient: _Factors | Array, block: EigenBlock) -> Array | None:
    """Return the sums of the squares of the gradients along the eigenvectors of a kernel's block."""
    if not isinstance(gradient, _Factors):
        return None
    vectors = (block.left, block.right) if gradient.inputs_are_rows else (block.right, block.left)
    a, g = (
        jnp.einsum("nrgx,gxi->nrgi", factor, v) for factor, v in zip((gradient.a, gradient.g), vectors, strict=True)
    )
    a = jnp.repeat(a, len(g) // len(a), 0)
    squares = jnp.square(jnp.einsum("nrgi,nrgj->ngij", a, g)).sum(0)
    return squares if gradient.inputs_are_rows else squares.mT

"""The Laplace approximation: how the curvature of the loss at the trained parameters is summed over the data."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array
from ..blocks import Part, names, part, whole
from ..factored import eigen_blocks
from ..factored.cotangents import cotangents_of
from ..factored.eigen_blocks import EigenBlock
from ..factored.example_blocks import example_blocks
from ..factored.kfac import kfac
from ..factored.outputs import Model, outputs
from ..linear_map import positive
from ..trees import Flat, Tree, float_tree, leading_size, scalar
from .laplace_posterior import Laplace, gradients_of
from .precision import prior

Structure: TypeAlias = Literal["kron", "diag", "full", "last_layer"]
_STRUCTURES = ("kron", "diag", "full", "last_layer")


def laplace(
    model: Model,
    loss: Callable[[Array, Tree], Any],
    params: Tree,
    data: tuple[Tree, Tree] | list[tuple[Tree, Tree]],
    *,
    structure: Structure = "kron",
    prior_precision: Any = 1.0,
    last_layer: str | None = None,
    batch_size: int = 128,
    max_size: int = 4096,
) -> Laplace:
    """Approximate the posterior distribution of trained parameters by a normal distribution.

    The mean is `params`, which should minimize `sum_i loss(model(params, x_i), y_i) + prior_precision / 2 |params|²`.
    The precision is `G + prior_precision I`. `G = sum_i J_iᵀ H_i J_i` is the Gauss–Newton matrix of the sum of the
    losses, with the Jacobian `J_i` of the outputs of an example, and the Hessian `H_i` of its loss by the outputs.

    If you train with the mean loss over `n` examples and the penalty `d/2 |params|²`, the prior precision is `n d`.

    Args:
        model: a function `model(params, x)` that returns an array `(n, *outputs)` for `n` examples, such as a `Graph`.
            The outputs of an example must not depend on the others.
        loss: a function of the outputs `(*outputs)` and the target of one example, which returns one floating number
            and is convex in the outputs. It is the negative logarithm of the likelihood of the target.
        params: the trained parameters, a tree of real floating arrays.
        data: the training set: a tuple `(x, y)` of examples and targets, arrays `(n, *shape)` or trees of them; or a
            list of such tuples, which are joined.
        structure: which parts of `G` are computed, for `P` parameters. `"kron"`: blocks of Kronecker factors, as of
            `fc.kfac`. `"diag"`: the diagonal. `"full"`: the whole matrix, `P²` numbers. `"last_layer"`: the whole block
            of one entry of `params`; the other parameters do not vary. Default: `"kron"`.
        prior_precision: the precision of the prior, the normal distribution `N(0, I / prior_precision)`. A positive
            number; it may be traced. Default: 1.
        last_layer: the path of the entry for `"last_layer"`, such as `"dense1"` or `"head/dense1"`. Default: None.
        batch_size: how many examples are in memory at a time, each with a gradient for each output. Default: 128.
        max_size: the maximum number of rows of `G` for `"full"` and `"last_layer"`, so that you do not compute a large
            matrix by mistake. Default: 4096.

    Returns:
        A `Laplace`, with the methods `predictive_variance`, `sample` and `log_marginal_likelihood`.

    Raises:
        FuncconvError: if an option is unknown or out of range, if `last_layer` is missing, not an entry or given for
            another structure, if `data` are not pairs with one first axis, if the model does not return one floating
            array with this first axis, if the loss does not return a scalar, if a leaf of `params` is not real and
            floating, or if the matrix is too large.

    Source: MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Ritter, Botev and Barber, "A
    scalable Laplace approximation for neural networks", 2018; Daxberger and others, "Laplace redux", 2021,
    arXiv:2106.14806.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> x = fc.Input("x", (8, 8, 1))
        >>> network = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.global_pool, fc.Dense(3))(x))
        >>> params, images, labels = network.init(jax.random.key(0)), jnp.ones((5, 8, 8, 1)), jnp.zeros(5, int)
        >>> loss = optax.softmax_cross_entropy_with_integer_labels
        >>> posterior = fc.laplace(network, loss, params, (images, labels))
        >>> posterior
        Laplace(kron, 55 parameters)
        >>> posterior.predictive_variance(images).shape
        (5, 3)
        >>> fc.laplace(network, loss, params, (images, labels), structure="last_layer", last_layer="dense1")
        Laplace(last_layer, 15 parameters)
    """
    if structure not in _STRUCTURES:
        msg = f"laplace: unknown structure={structure!r}{suggest(structure, _STRUCTURES)}"
        raise FuncconvError(msg)
    positive("laplace: batch_size", batch_size)
    prior_precision = prior("laplace", prior_precision)
    params = float_tree("laplace", "params", params)
    entry = _entry(params, structure, last_layer)
    _check_size(entry, params, structure, max_size)
    joined = _joined(data)
    examples = example_blocks("laplace", "the data", joined, batch_size)
    checked = scalar("laplace", "loss", loss)

    def losses(batch: tuple[Tree, Tree], real: Array) -> Array:
        x, y = batch
        values = jax.vmap(checked)(outputs("laplace", model, params, x), y)
        return jnp.where(real, values, 0).astype(wide(values.dtype)).sum()

    total = examples.total(losses)
    if structure == "kron":
        of_mean = kfac(model, loss, params, joined, batch_size=batch_size).blocks
        blocks = [EigenBlock(block.left, block.right, block.values * examples.examples) for block in of_mean]
    else:
        sums = examples.total(partial(_moments, model, checked, params, entry, structure))
        blocks = [eigen_blocks.diagonal(sum_) if structure == "diag" else eigen_blocks.dense(sum_) for sum_ in sums]
    return Laplace(params, total, prior_precision, blocks, model, structure, entry)


def _entry(params: Tree, structure: Structure, last_layer: str | None) -> Part:
    """Return the part of the parameters that varies."""
    if structure != "last_layer":
        if last_layer is not None:
            msg = f'laplace: last_layer={last_layer!r} is for structure="last_layer"; got structure={structure!r}'
            raise FuncconvError(msg)
        return whole(params)
    known = [*names(params)]
    if last_layer not in known:
        listed = f"entries are {', '.join(map(repr, known))}" if known else "params are not a nested dict"
        got = "it is missing" if last_layer is None else f"got {last_layer!r}"
        msg = f'laplace: structure="last_layer" needs last_layer, the path of an entry of params; {got}; {listed}'
        raise FuncconvError(msg)
    return part("laplace", params, last_layer)


def _check_size(entry: Part, params: Tree, structure: Structure, max_size: int) -> None:
    flat = Flat(entry.taken(params))
    if structure in ("full", "last_layer") and flat.size > max_size:
        gigabytes = flat.size**2 * flat.dtype.itemsize / 1e9
        msg = (
            f"laplace: the matrix for structure={structure!r} would be {flat.size} x {flat.size}, {gigabytes:.3g} GB "
            f"of {flat.dtype}, but max_size is {max_size}. Pass max_size={flat.size} to allow it"
        )
        raise FuncconvError(msg)


def _joined(data: tuple[Tree, Tree] | list[tuple[Tree, Tree]]) -> tuple[Tree, Tree]:
    """Return a pair or a list of pairs as one pair."""
    pairs = [data] if isinstance(data, tuple) else data
    if not isinstance(pairs, list) or not pairs or any(not isinstance(p, tuple) or len(p) != 2 for p in pairs):
        kinds = sorted({type(p).__name__ for p in pairs}) if isinstance(pairs, list) else []
        got = f"a list of {' and '.join(kinds) or 'nothing'}" if isinstance(pairs, list) else type(data).__name__
        msg = f"laplace: data must be a tuple (x, y) of examples and targets, or a list of such tuples; got {got}"
        raise FuncconvError(msg)
    for pair in pairs:
        leading_size("laplace", "the data", pair)
    forms = {str(jax.tree.map(lambda leaf: (jnp.shape(leaf)[1:], jnp.result_type(leaf)), pair)) for pair in pairs}
    if len(forms) > 1:
        msg = f"laplace: the batches must have equal shapes, except for the first axis, and equal dtypes; got {forms}"
        raise FuncconvError(msg)
    x, y = jax.tree.map(lambda *leaves: jnp.concatenate([*map(jnp.asarray, leaves)]), *pairs)
    return x, y


def _moments(
    model: Model,
    loss: Callable[..., Array],
    params: Tree,
    entry: Part,
    structure: Structure,
    batch: tuple[Tree, Tree],
    real: Array,
) -> list[Array]:
    """Return the Gauss-Newton matrix of the sum over some examples, or its diagonal for each leaf."""

    def roots(x: Tree, y: Tree) -> list[Array]:
        """Return rows `(outputs, *shape)` for each leaf, of which the outer products add up to `J^T H J`."""
        z, pull = gradients_of(model, params, entry, x)
        cotangents = cotangents_of(loss, "type-2", 1, z, y)
        gradients = jax.vmap(pull)(cotangents.reshape(-1, *z.shape).astype(z.dtype))
        return [leaf.astype(wide(leaf.dtype)) for leaf in jax.tree.leaves(gradients)]

    rows = [jnp.where(real.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, 0) for leaf in jax.vmap(roots)(*batch)]
    if structure == "diag":
        return [jnp.square(leaf).sum((0, 1)).ravel() for leaf in rows]
    dtype = max((leaf.dtype for leaf in rows), key=lambda dtype: dtype.itemsize)
    size = rows[0].shape[0] * rows[0].shape[1]
    flat = jnp.concatenate([leaf.reshape(size, -1).astype(dtype) for leaf in rows], axis=1)
    return [flat.T @ flat]

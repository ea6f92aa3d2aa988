"""The normal distribution of parameters that a Laplace approximation gives, and what is computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.types import Array
from ..blocks import Part
from ..factored.eigen_blocks import EigenBlock
from ..factored.example_blocks import example_blocks
from ..factored.outputs import Model, outputs
from ..linear_map import positive
from ..operator import Operator
from ..trees import Partial, Tree, like
from .precision import power, prior


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "loss", "prior_precision", "blocks"),
    meta_fields=("model", "structure", "part"),
)
@dataclass(frozen=True, eq=False, repr=False)
class Laplace:
    """A normal distribution of parameters that `fc.laplace` returned: `N(params, (G + prior_precision I)^-1)`.

    It is a pytree, so you can pass it to a compiled function or return it from one. Parameters that are not in
    `last_layer` do not vary.

    Attributes:
        params: the mean, a tree of arrays.
        loss: the sum of the losses of all examples at the mean.
        prior_precision: the precision of the prior, a number.
        blocks: the eigenvalues and eigenvectors of `G`, for each array, or of all arrays together.
        model: the model.
        structure: the structure of `G`.
        part: which arrays vary.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x, y = jnp.array([[3.0], [2.0]]), jnp.array([[6.0], [4.0]])
        >>> loss = lambda z, y: ((z - y) ** 2).sum() / 2  # a negative log likelihood, for noise of variance 1
        >>> w = jnp.full((1, 1), 26 / 16)  # the minimum
        >>> posterior = fc.laplace(lambda w, x: x @ w, loss, w, (x, y), structure="full", prior_precision=3.0)
        >>> posterior.covariance.dense().round(4).tolist()  # 1 / (9 + 4 + 3)
        [[0.0625]]
        >>> posterior.predictive_variance(jnp.array([[1.0], [4.0]])).round(4).tolist()
        [[0.0625], [1.0]]
        >>> posterior.sample(jax.random.key(0), 5).shape
        (5, 1, 1)
        >>> slope = jax.grad(posterior.log_marginal_likelihood)
        >>> bool(slope(0.01) > 0 > slope(10.0))  # the best prior precision is between
        True
    """

    params: Tree
    loss: Array
    prior_precision: Array
    blocks: Sequence[EigenBlock]
    model: Model
    structure: str
    part: Part

    def __repr__(self) -> str:
        return f"Laplace({self.structure}, {sum(block.values.size for block in self.blocks):,} parameters)"

    @property
    def covariance(self) -> Operator:
        """The covariance `(G + prior_precision I)^-1` as an `Operator` on the arrays that vary."""
        form = like(self.part.taken(self.params))
        product = Partial(_product, self.blocks, self.prior_precision)
        return Operator("laplace.covariance", form, form, product, semidefinite=True)

    def with_prior_precision(self, prior_precision: Any) -> "Laplace":
        """Return the distribution for another prior, with the same mean and the same `G`.

        Args:
            prior_precision: a positive number; it may be traced.

        Returns:
            A `Laplace`.

        Raises:
            FuncconvError: if the prior precision is not one positive real number.
        """
        return replace(self, prior_precision=prior("laplace.with_prior_precision", prior_precision))

    def predictive_variance(self, x: Tree, *, covariance: bool = False, batch_size: int = 32) -> Array:
        """Compute the variance of the outputs of the linearized model: the diagonal of `J Σ Jᵀ`.

        `J = d model(params, x) / d params` is the Jacobian for one example, and `Σ` the covariance of the parameters.
        The noise of the targets is not in it.

        Args:
            x: examples, an array `(n, *shape)` or a tree of arrays with this first axis.
            covariance: whether to return the covariances of all pairs of outputs of an example. Default: False.
            batch_size: how many examples are in memory at a time, each with a gradient for each output. Default: 32.

        Returns:
            An array `(n, *outputs)`, or `(n, *outputs, *outputs)` for `covariance=True`, at least in float32.

        Raises:
            FuncconvError: if the examples do not have one first axis, if the model does not return one floating array
                with this first axis, or if the batch size is not a positive integer.

        Source: Immer, Korzepa and Bauer, "Improving predictions of Bayesian neural nets via local linearization", 2021,
        arXiv:2008.08400.
        """
        where = "laplace.predictive_variance"
        positive(f"{where}: batch_size", batch_size)
        blocks = example_blocks(where, "x", x, batch_size)
        shape = jax.eval_shape(partial(outputs, where, self.model), self.params, x).shape[1:]

        def of_one(x: Tree) -> Array:
            z, pull = gradients_of(self.model, self.params, self.part, x)
            units = jnp.eye(z.size, dtype=z.dtype).reshape(z.size, *z.shape)
            rows = jax.vmap(lambda unit: _in_wide(pull(unit)))(units)
            rows = jax.vmap(partial(power, self.blocks, self.prior_precision, -0.5))(rows)
            flat = [leaf.reshape(z.size, -1) for leaf in jax.tree.leaves(rows)]
            products = [leaf @ leaf.T if covariance else jnp.square(leaf).sum(1) for leaf in flat]
            return jnp.stack(_in_one_dtype(products)).sum(0)

        result: Array = lax.map(jax.vmap(of_one), blocks.arrays)
        result = result.reshape(-1, *result.shape[2:])[: blocks.examples]
        return result.reshape(-1, *shape * (2 if covariance else 1))

    def sample(self, key: Array, n: int) -> Tree:
        """Draw parameters from the distribution.

        Args:
            key: a JAX random key.
            n: how many.

        Returns:
            A tree like the parameters, in which each leaf has an axis of `n` in front. Use it with
            `jax.vmap(model, (0, None))`. Arrays that do not vary are repeated.

        Raises:
            FuncconvError: if `n` is not a positive integer.
        """
        positive("laplace.sample: n", n)
        leaves, structure = jax.tree.flatten(_in_wide(self.part.taken(self.params)))

        def one(key: Array) -> Tree:
            keys = jax.random.split(key, len(leaves))
            noise = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
            change = power(self.blocks, self.prior_precision, -0.5, noise)
            moved = jax.tree.unflatten(structure, [leaf + step for leaf, step in zip(leaves, change, strict=True)])
            return jax.tree.map(lambda new, old: new.astype(old.dtype), self.part.put(moved, self.params), self.params)

        return jax.vmap(one)(jax.random.split(key, n))

    def log_marginal_likelihood(self, prior_precision: Any = None) -> Array:
        """Compute the logarithm of the marginal likelihood of the data, by Laplace's method.

        For `P` parameters `w` that vary, with the prior `N(0, I / d)`:

        `log p(D) = -sum of losses - d/2 |w|² + P/2 log d - 1/2 log det(G + d I)`

        It compares models and prior precisions without held-out data. You can differentiate it with respect to `d`.
        Constants that are missing in the loss are missing in the result.

        Args:
            prior_precision: the precision `d` of the prior, a positive number; it may be traced. `params` and `G` stay
                the same. Default: None, the one of the distribution.

        Returns:
            A number.

        Raises:
            FuncconvError: if the prior precision is not one positive real number.

        Source: MacKay, "A practical Bayesian framework for backpropagation networks", 1992; Immer and others, "Scalable
        marginal likelihood estimation for model selection in deep learning", 2021, arXiv:2104.04975.
        """
        known = prior_precision is None
        d = self.prior_precision if known else prior("laplace.log_marginal_likelihood", prior_precision)
        leaves = jax.tree.leaves(_in_wide(self.part.taken(self.params)))
        norm = jnp.stack(_in_one_dtype([jnp.square(leaf).sum() for leaf in leaves])).sum()
        # P/2 log d - 1/2 log det(G + d I), as one sum over the eigenvalues of G.
        volumes = [-jnp.log1p(block.values / d.astype(block.values.dtype)).sum() / 2 for block in self.blocks]
        volume = jnp.stack(_in_one_dtype(volumes)).sum()
        loss, norm, volume = _in_one_dtype([self.loss, norm, volume])
        return -loss - d.astype(norm.dtype) / 2 * norm + volume


def gradients_of(model: Model, params: Tree, part: Part, x: Tree) -> Any:
    """Return the outputs `(*outputs)` of one example, and a function from cotangents to gradients by a part."""

    def of_part(leaves: Tree) -> Array:
        return model(part.put(leaves, params), jax.tree.map(lambda leaf: leaf[None], x))[0]

    z, pull = jax.vjp(of_part, part.taken(params))
    return z, lambda cotangent: pull(cotangent)[0]


def _product(blocks: Sequence[EigenBlock], damping: Array, v: Tree) -> Tree:
    return power(blocks, damping, -1.0, v)


def _in_wide(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), tree)


def _in_one_dtype(arrays: Sequence[Array]) -> list[Array]:
    widest = max((array.dtype for array in arrays), key=lambda dtype: dtype.itemsize)
    return [array.astype(widest) for array in arrays]

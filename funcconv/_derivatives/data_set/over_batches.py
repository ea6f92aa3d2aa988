"""The product with the mean of a matrix over the batches of a data set."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array
from ..trees import Tree, described, is_real, leading_size
from .data_set import DataSet
from .products import DataProduct, refuse_tracing


class OnBatch(NamedTuple):
    """How to multiply by the matrix of one batch. It is hashed, so that programs are found again.

    Attributes:
        where: the name of the operator.
        at: `at(*options, *functions, params)` returns the product at a point, and the number of examples, or None.
        options: its first arguments.
        functions: functions of the user, whose last argument is the batch.
        weight: the weight of a batch by the batch; None for its number of examples.
    """

    where: str
    at: Callable[..., tuple[Any, int | None]]
    options: tuple[Any, ...]
    functions: tuple[Any, ...]
    weight: Callable[[Tree], Any] | None


def product_over_batches(on_batch: OnBatch, params: Tree, batches: Any, *, progress: bool) -> DataProduct:
    """Return the product with `sum_b w_b A_b / sum_b w_b`, over the batches `b`."""
    where = on_batch.where
    refuse_tracing(where, params)
    for function in (*on_batch.functions, on_batch.weight):
        try:
            hash(function)
        except TypeError as error:
            msg = (
                f"{where}: with batches=, functions must be hashable, so that the compiled product is found again; got "
                f"a {type(function).__name__}. Define a function with def"
            )
            raise FuncconvError(msg) from error
    data = DataSet(where, batches, progress=progress)

    def read(vs: Tree) -> Tree:
        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, wide(v.dtype)), vs)
        total, weight = data.read(lambda total, batch: _added(on_batch, params, vs, batch, total), zeros)
        return jax.tree.map(lambda x, v: (x / jnp.asarray(weight, x.dtype)).astype(v.dtype), total, vs)

    return DataProduct(where, read)


@partial(jax.jit, static_argnums=0)
def _added(on_batch: OnBatch, params: Tree, vs: Tree, batch: Tree, total: Tree) -> tuple[Tree, Array]:
    """Return the total with the weighted products of a batch, and its weight."""
    product, examples = on_batch.at(*on_batch.options, *(_closed(f, batch) for f in on_batch.functions), params)
    weight = _weight(on_batch, batch) if examples is None or on_batch.weight else jnp.asarray(examples)

    def sum_of(total: Array, y: Array) -> Array:
        y = y.astype(total.dtype)
        # A batch of padding alone may have a mean that is not finite.
        return total + jnp.where(weight == 0, jnp.zeros_like(y), weight.astype(y.dtype) * y)

    return jax.tree.map(sum_of, total, jax.vmap(product)(vs)), weight


def _closed(function: Callable[[Any, Tree], Any], batch: Tree) -> Callable[[Any], Any]:
    return lambda argument: function(argument, batch)


def _weight(on_batch: OnBatch, batch: Tree) -> Array:
    if on_batch.weight is None:
        return jnp.asarray(leading_size(on_batch.where, "the arrays of a batch", batch))
    weight = on_batch.weight(batch)
    if not is_real(weight) or jnp.shape(weight) != ():
        description = described(weight) if jax.tree_util.all_leaves([weight]) else f"a {type(weight).__name__}"
        msg = f"{on_batch.where}: weight(batch) must return one real number; got {description}"
        raise FuncconvError(msg)
    return jnp.asarray(weight)

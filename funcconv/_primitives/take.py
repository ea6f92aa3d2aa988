"""`take`: weighted sums of the places of one axis by a fixed table, a linear map whose transpose is of the same kind.

    take(x) -> y    y[i] = the sum of weights[i][k] * x[table[i][k]] for all k

Without weights, each is 1. The transpose of JAX's own indexing is a scatter, which adds in no fixed order on a GPU.
"""

from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from .._common.dtypes import wide
from .._common.types import Array

Table: TypeAlias = tuple[tuple[int, ...], ...]  # rows of one length, filled up with -1
Weights: TypeAlias = tuple[tuple[float, ...], ...]  # of the same shape

# Up to so many terms are added one by one, in one loop over the result. For sums over an axis, XLA's loops are slow.
_MOST_UNROLLED_TERMS = 32

take_p = Primitive("take_places")


def take(x: Array, axis: int, places: Sequence[int]) -> Array:
    """Return `x` at the given positions of an axis, in any order and any number of times."""
    return take_p.bind(x, axis=axis - x.ndim, table=tuple((int(place),) for place in places), weights=None)


def weighted_sums(x: Array, axis: int, rows: Sequence[Sequence[tuple[int, float]]]) -> Array:
    """Return sums along an axis: entry `i` is the sum of `weight * x[place]` over the pairs of row `i`."""
    table, weights = _filled_up(rows)
    return take_p.bind(x, axis=axis - x.ndim, table=table, weights=weights)


def _filled_up(rows: Sequence[Sequence[tuple[int, float]]]) -> tuple[Table, Weights]:
    most = max(map(len, rows))
    full = [[*row, *[(-1, 0.0)] * (most - len(row))] for row in rows]
    table = tuple(tuple(place for place, _ in row) for row in full)
    return table, tuple(tuple(weight for _, weight in row) for row in full)


def taken(x: Array, *, axis: int, table: Table, weights: Weights | None) -> Array:
    """Compute the map with operations of JAX; `axis` is negative, so that it does not change under `jax.vmap`."""
    axis += x.ndim
    index = np.asarray(table, np.int32)
    factors = None if weights is None else np.asarray(weights, wide(x.dtype))
    terms = index.shape[1]
    if terms == 1 and weights is None and (index >= 0).all():
        return _term(x, axis, index[:, 0], None)
    columns = [(index[:, k], None if factors is None else factors[:, k]) for k in range(terms)]
    if terms <= _MOST_UNROLLED_TERMS:
        y = reduce(jnp.add, (_term(x, axis, *column).astype(wide(x.dtype)) for column in columns))
        return y.astype(x.dtype)
    y = x.astype(wide(x.dtype))
    index_of_terms, factors = index.T.ravel(), None if factors is None else factors.T.ravel()
    y = _term(y, axis, index_of_terms, factors)
    y = y.reshape(*x.shape[:axis], terms, len(table), *x.shape[axis + 1 :])
    return jnp.sum(y, axis).astype(x.dtype)


def _term(x: Array, axis: int, index: np.ndarray, factors: np.ndarray | None) -> Array:
    """Return one term of each sum, which is zero where the index is -1."""
    # No index is out of range. The mode "fill" would add comparisons.
    y = jnp.take(x, index.clip(0), axis, mode="clip")
    shape = [-1 if i == axis else 1 for i in range(x.ndim)]
    if factors is not None:
        y = y.astype(factors.dtype) * factors.reshape(shape)
    is_term = index >= 0
    return y if is_term.all() else jnp.where(is_term.reshape(shape), y, jnp.zeros_like(y))


def _transpose(cotangent: Array, x: Any, *, axis: int, table: Table, weights: Weights | None) -> list[Array]:
    readers: list[list[tuple[int, float]]] = [[] for _ in range(x.aval.shape[axis])]
    for row, places in enumerate(table):
        for term, place in enumerate(places):
            if place >= 0:
                readers[place].append((row, 1.0 if weights is None else weights[row][term]))
    back, back_weights = _filled_up(readers)
    return [take_p.bind(cotangent, axis=axis, table=back, weights=None if weights is None else back_weights)]


def _type(x: Any, *, axis: int, table: Table, weights: Weights | None) -> Any:
    del weights
    axis += len(x.shape)
    return x.update(shape=(*x.shape[:axis], len(table), *x.shape[axis + 1 :]), weak_type=False)


def _batch(operands: Sequence[Array], dims: Sequence[int], **params: Any) -> tuple[Array, int]:
    return take_p.bind(jnp.moveaxis(operands[0], dims[0], 0), **params), 0


def _taylor(primals: Sequence[Array], series: Sequence[Any], **params: Any) -> tuple[Array, list[Array]]:
    y, *coefficients = (take_p.bind(x, **params) for x in (primals[0], *series[0]))
    return y, coefficients


take_p.def_impl(partial(xla.apply_primitive, take_p))
take_p.def_abstract_eval(_type)
mlir.register_lowering(take_p, mlir.lower_fun(taken, multiple_results=False))
ad.deflinear2(take_p, _transpose)
batching.primitive_batchers[take_p] = _batch
jet_rules[take_p] = _taylor  # type: ignore[assignment]

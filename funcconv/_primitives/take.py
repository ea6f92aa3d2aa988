"""`take`: indexing of one axis by a fixed table, a linear map whose transpose is of the same kind.

    take(x) -> y    y[i] = the sum of x[j] for all j in table[i]

The transpose of JAX's own indexing is a scatter, which adds in no fixed order on a GPU.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from .._common.dtypes import wide
from .._common.types import Array

Table: TypeAlias = tuple[tuple[int, ...], ...]  # rows of one length, filled up with -1

take_p = Primitive("take_places")


def take(x: Array, axis: int, places: Sequence[int]) -> Array:
    """Return `x` at the given positions of an axis, in any order and any number of times."""
    return take_p.bind(x, axis=axis - x.ndim, table=tuple((int(place),) for place in places))


def taken(x: Array, *, axis: int, table: Table) -> Array:
    """Compute the map with operations of JAX; `axis` is negative, so that it does not change under `jax.vmap`."""
    axis += x.ndim
    index = np.asarray(table, np.int32)
    rows, terms = index.shape
    # No index is out of range. The mode "fill" would add comparisons.
    y = jnp.take(x, index.clip(0).ravel(), axis, mode="clip")
    if (index >= 0).all() and terms == 1:
        return y
    y = y.reshape(*x.shape[:axis], rows, terms, *x.shape[axis + 1 :])
    is_term = (index >= 0).reshape(rows, terms, *(1 for _ in x.shape[axis + 1 :]))
    y = jnp.where(is_term[(None,) * axis], y, jnp.zeros_like(y))
    return jnp.sum(y, axis + 1, dtype=wide(x.dtype)).astype(x.dtype)


def _transpose(cotangent: Array, x: Any, *, axis: int, table: Table) -> list[Array]:
    readers: list[list[int]] = [[] for _ in range(x.aval.shape[axis])]
    for row, places in enumerate(table):
        for place in places:
            if place >= 0:
                readers[place].append(row)
    most = max(map(len, readers))
    back = tuple((*rows, *[-1] * (most - len(rows))) for rows in readers)
    return [take_p.bind(cotangent, axis=axis, table=back)]


def _type(x: Any, *, axis: int, table: Table) -> Any:
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

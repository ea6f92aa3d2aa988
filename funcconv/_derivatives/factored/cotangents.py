"""The curvature of the loss of one example by its outputs, as vectors whose outer products add up to it."""

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.types import Array
from ..trees import Tree

Fisher: TypeAlias = Literal["type-2", "mc", "empirical"]


def cotangents_of(
    loss: Callable[..., Array], fisher: Fisher, samples: int, z: Array, y: Tree, key: Any = None
) -> Array:
    """Return vectors `(vectors, outputs)` whose outer products add up to the curvature of one example's loss."""

    def of_flat(flat: Array) -> Array:
        return loss(flat.reshape(z.shape).astype(z.dtype), y).astype(flat.dtype)

    flat = z.ravel().astype(wide(z.dtype))
    if fisher == "empirical":
        slope: Array = jax.grad(of_flat)(flat)
        return slope[None]
    values, vectors = jnp.linalg.eigh(jax.hessian(of_flat)(flat))
    roots: Array = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]).T
    if fisher == "mc":
        roots = jax.random.normal(key, (samples, len(flat)), flat.dtype) @ roots / math.sqrt(samples)
    return roots

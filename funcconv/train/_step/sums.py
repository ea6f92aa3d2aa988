"""Sums over gradients and parameters, formed in float32 for 16-bit numbers: norms, clipping, moving averages."""

from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import scale_of, wide
from ..._common.types import Array, Number


def widened(tree: Any) -> Any:
    """Return the tree with the dtypes in which its numbers are summed."""
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), tree)


def like(tree: Any, other: Any) -> Any:
    """Return the tree with the dtypes of another."""
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), tree, other)


def scale_and_norm(tree: Any) -> tuple[Array, Array]:
    """Return a scale, and the norm of the tree divided by it; that is finite if all numbers are.

    Squares would overflow, in float32 from 2e19 on. Derivatives are 0 where all numbers are 0.
    """
    leaves = [leaf for leaf in jax.tree.leaves(widened(tree)) if leaf.size]
    dtype = max((leaf.dtype for leaf in leaves), key=lambda each: each.itemsize, default=jnp.dtype(jnp.float32))
    if not leaves:
        return jnp.ones((), dtype), jnp.zeros((), dtype)
    leaves = [leaf.astype(dtype) for leaf in leaves]
    scale = jnp.stack([scale_of(leaf) for leaf in leaves]).max()
    square = jnp.stack([jnp.square(leaf / scale).sum() for leaf in leaves]).sum()
    zero = square == 0
    return scale, jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def clipped(tree: Any, clip: Number, scale: Array, norm: Array) -> Any:
    """Return the tree, rescaled to the norm `clip` if its own, `scale * norm`, is larger."""
    too_large = scale * norm > clip
    factor = clip / jnp.where(too_large, norm, 1)
    return jax.tree.map(
        lambda leaf: jnp.where(too_large, leaf / scale.astype(leaf.dtype) * factor.astype(leaf.dtype), leaf), tree
    )


def float32_average(params: Any) -> Any:
    """Return the first moving average of parameters in float32; None if no parameter has 16 bits."""
    wider = widened(params)
    same = all(leaf.dtype == other.dtype for leaf, other in zip(*map(jax.tree.leaves, (params, wider)), strict=True))
    return None if same else wider


def averaged(params: Any, average: Any, in_float32: Any, decay: Number) -> tuple[Any, Any]:
    """Return the next moving average `decay * average + (1 - decay) * params`, and the same in float32.

    A small change is lost if it is added to a 16-bit number. So the average of such parameters is kept in float32
    as well, and rounded anew at each step.
    """

    def one(leaf: Array, before: Array) -> Array:
        if not jnp.issubdtype(before.dtype, jnp.inexact):
            return leaf
        return before + (1 - decay) * (leaf.astype(before.dtype) - before)

    found = jax.tree.map(one, params, average if in_float32 is None else in_float32)
    return like(found, average), None if in_float32 is None else found

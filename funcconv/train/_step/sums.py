"""Sums over gradients and parameters, computed in float32 for 16-bit numbers: norms, clipping, averages."""

from typing import Any

import jax
import jax.numpy as jnp

from ..._common.dtypes import scale_of, wide
from ..._common.types import Array, Number


def widened(tree: Any) -> Any:
    """Return the tree in the dtypes in which its numbers are summed: at least float32."""
    return jax.tree.map(lambda leaf: leaf.astype(wide(leaf.dtype)), tree)


def like(tree: Any, other: Any) -> Any:
    """Return the tree in the dtypes of another one."""
    return jax.tree.map(lambda leaf, other_leaf: leaf.astype(other_leaf.dtype), tree, other)


def scale_and_norm(tree: Any) -> tuple[Array, Array]:
    """Return a scale, and the norm of the tree divided by it, which is finite if all numbers are.

    Without the scale, squares would overflow, in float32 from 2e19 on. If all numbers are 0, derivatives are 0.
    """
    leaves = [leaf for leaf in jax.tree.leaves(widened(tree)) if leaf.size]
    # The widest in the tree.
    dtype = max((leaf.dtype for leaf in leaves), key=lambda dtype: dtype.itemsize, default=jnp.dtype(jnp.float32))
    if not leaves:
        return jnp.ones((), dtype), jnp.zeros((), dtype)
    leaves = [leaf.astype(dtype) for leaf in leaves]
    scale = jnp.stack([scale_of(leaf) for leaf in leaves]).max()
    square = jnp.stack([jnp.square(leaf / scale).sum() for leaf in leaves]).sum()
    zero = square == 0  # the derivative of the square root is infinite there
    return scale, jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, square)))


def clipped(tree: Any, clip: Number, scale: Array, norm: Array) -> Any:
    """Return the tree, rescaled to the norm `clip` if its norm, `scale * norm`, is larger."""
    is_larger = scale * norm > clip
    # Where the norm is not larger it may be 0, and a division by it would make the derivative NaN.
    factor = clip / jnp.where(is_larger, norm, 1)
    return jax.tree.map(
        lambda leaf: jnp.where(is_larger, leaf / scale.astype(leaf.dtype) * factor.astype(leaf.dtype), leaf), tree
    )


def float32_average(params: Any) -> Any:
    """Return the first moving average in float32; None if no parameter has 16 bits."""
    in_float32 = widened(params)
    is_same = all(
        leaf.dtype == wide_leaf.dtype
        for leaf, wide_leaf in zip(*map(jax.tree.leaves, (params, in_float32)), strict=True)
    )
    return None if is_same else in_float32


def averaged(params: Any, average: Any, in_float32: Any, weight: Number | Array) -> tuple[Any, Any]:
    """Return the next average `average + weight * (params - average)`, and the same in float32.

    A small change is lost if it is added to a 16-bit number. So the average of such parameters is kept in float32, and
    rounded to 16 bits at each step.
    """

    def average_leaf(leaf: Array, old: Array) -> Array:
        if not jnp.issubdtype(old.dtype, jnp.inexact):
            return leaf
        leaf = leaf.astype(old.dtype)
        if not isinstance(weight, jax.Array):
            return old + weight * (leaf - old)
        # The sum could differ from the parameters in the last digit where it should be equal to them.
        return jnp.where(weight == 1, leaf, old + weight.astype(old.dtype) * (leaf - old))

    new_average = jax.tree.map(average_leaf, params, average if in_float32 is None else in_float32)
    return like(new_average, average), None if in_float32 is None else new_average

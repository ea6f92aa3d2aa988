"""The precision of a Laplace approximation: a curvature known by its eigenvalues, plus a multiple of the identity."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array
from ..factored import eigen_blocks
from ..factored.eigen_blocks import EigenBlock
from ..trees import Flat, Tree, described, is_float


def prior(where: str, precision: Any) -> Array:
    """Return a prior precision; refuse what is not one positive number. A traced one is taken to be positive."""
    if not (is_float(precision) or isinstance(precision, int)) or jnp.shape(precision) != ():
        msg = f"{where}: prior_precision must be one positive real number; got {described(precision)}"
        raise FuncconvError(msg)
    if not isinstance(precision, jax.core.Tracer) and not precision > 0:
        msg = f"{where}: prior_precision must be above 0; got {precision}"
        raise FuncconvError(msg)
    return jnp.asarray(precision)


def power(blocks: Sequence[EigenBlock], damping: Array, exponent: float, v: Tree) -> Tree:
    """Multiply a tree by `(G + damping)^exponent`, with `G` as one block for each leaf, or one block for all leaves."""
    blocks = [_power(block, damping, exponent) for block in blocks]
    flat = Flat(v)
    if len(blocks) == 1 < len(flat.leaves):
        return flat.unravel(blocks[0].product(flat.ravel(v)))
    return eigen_blocks.product(blocks, v)


def _power(block: EigenBlock, damping: Array, exponent: float) -> EigenBlock:
    return EigenBlock(block.left, block.right, (block.values + damping.astype(block.values.dtype)) ** exponent)

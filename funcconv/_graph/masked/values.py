"""Masked values: arrays, or trees of arrays, whose positions are not all real."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.types import Array
from ..._ops.masks import Masked
from ..._windows.masks import zero_masked


def unmasked(value: Any) -> Any:
    """Return a value without its mask."""
    return value.x if isinstance(value, Masked) else value


def hidden(value: Masked) -> Masked:
    """Return a masked value with zeros at the masked positions."""
    x, mask = value

    def hide(leaf: Array) -> Array:
        return zero_masked(leaf, mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim)))

    return Masked(jax.tree.map(hide, x), mask)


def joint_mask(values: Sequence[Any]) -> Array:
    """Return which positions are real in all masked values."""
    masks = list({id(value.mask): value.mask for value in values if isinstance(value, Masked)}.values())
    mask: Array = reduce(jnp.logical_and, masks)
    return mask

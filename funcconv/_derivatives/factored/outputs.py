"""The outputs of a model for some examples, checked."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array
from ..trees import Tree, described, is_float, leading_size

Model: TypeAlias = Callable[[Tree, Tree], Array]


def outputs(where: str, model: Model, params: Tree, x: Tree) -> Array:
    """Return `model(params, x)`; refuse what is not one floating array with the first axis of the examples."""
    count = leading_size(where, "the examples", x)
    z = model(params, x)
    if not jax.tree_util.all_leaves([z]) or jnp.shape(z)[:1] != (count,) or not is_float(z):
        got = described(z) if jax.tree_util.all_leaves([z]) else f"a {type(z).__name__}"
        msg = f"{where}: model(params, x) must return one floating array ({count}, *outputs); got {got}"
        raise FuncconvError(msg)
    return z

"""Parameters that are not trained, and the statistics that belong to them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from optax import MaskedNode

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of
from .._distributed.partition import check_patterns


def check_frozen(params: Any, model: Any, patterns: Sequence[str]) -> None:
    """Refuse a pattern that matches nothing in parameters and state, and integer parameters that are not frozen."""
    entries = [path_of(path) for path, _ in jax.tree.leaves_with_path(model)]
    # A pattern may match statistics alone, which have no parameters.
    unmet = [pattern for pattern in patterns if not any(meets(entry, pattern) for entry in entries)]
    check_patterns(params, unmet, "frozen")
    for path, leaf in jax.tree.leaves_with_path(trained(params, patterns)):
        # `jax.grad` would refuse integers without naming them.
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = path_of(path)
            msg = (
                f"train: {name!r} is {leaf.dtype} and has no gradient; freeze it with frozen={name!r}, or make it float"
            )
            raise FuncconvError(msg)


def trained(params: Any, patterns: Sequence[str]) -> Any:
    """Return the parameters with optax's `MaskedNode()`, which has no leaves, in place of each frozen one."""
    if not patterns:
        return params
    return jax.tree.map_with_path(
        lambda path, leaf: MaskedNode() if _meets_any(path_of(path), patterns) else leaf, params
    )


def is_masked(leaf: Any) -> bool:
    """Return whether a node stands in place of a parameter."""
    return isinstance(leaf, MaskedNode)


def with_frozen(part: Any, params: Any) -> Any:
    """Put the frozen parameters of `params` back into a tree of the trained ones, which `trained` returned."""
    return jax.tree.map(lambda leaf, old: old if is_masked(leaf) else leaf, part, params, is_leaf=is_masked)


def masked_like(tree: Any, part: Any) -> Any:
    """Return a tree of all parameters, or of all trained ones, with those masked that are masked in `part`."""
    return jax.tree.map(lambda own, leaf: own if is_masked(own) else leaf, part, tree, is_leaf=is_masked)


def next_model(old: Any, new: Any, params: Any, patterns: Sequence[str]) -> Any:
    """Return the next state of the model, with the old statistics of frozen layers.

    An entry such as `"trunk/batch_norm1/mean"` is frozen if a pattern matches it, or if `params` has an entry
    `"trunk/batch_norm1"` and all parameters in it are frozen.
    """
    if not patterns:
        return new
    is_frozen: dict[str, bool] = {}
    for path, _ in jax.tree.leaves_with_path(params):
        entry = path_of(path[:-1])
        is_frozen[entry] = is_frozen.get(entry, True) and _meets_any(path_of(path), patterns)

    def choose(path: Sequence[Any], old_leaf: Any, new_leaf: Any) -> Any:
        stays = _meets_any(path_of(path), patterns) or (len(path) > 1 and is_frozen.get(path_of(path[:-1]), False))
        return old_leaf if stays else new_leaf

    return jax.tree.map_with_path(choose, old, new)


def _meets_any(path: str, patterns: Sequence[str]) -> bool:
    return any(meets(path, pattern) for pattern in patterns)

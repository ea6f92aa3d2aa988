"""Parameters that training leaves as they are, and the statistics that belong to them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from optax import MaskedNode

from ..._common.errors import FuncconvError
from .._distributed.partition import check_patterns, meets, path_of


def check_frozen(params: Any, model: Any, patterns: Sequence[str]) -> None:
    """Refuse a pattern that meets nothing in parameters and state, and integers that are not frozen."""
    entries = [path_of(path) for path, _ in jax.tree.leaves_with_path(model)]
    unmet = [pattern for pattern in patterns if not any(meets(entry, pattern) for entry in entries)]
    check_patterns(params, unmet, "frozen")
    for path, leaf in jax.tree.leaves_with_path(trained(params, patterns)):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            name = path_of(path)
            msg = (
                f"train: {name!r} is {leaf.dtype} and has no gradient; freeze it with frozen={name!r}, or make it float"
            )
            raise FuncconvError(msg)


def trained(params: Any, patterns: Sequence[str]) -> Any:
    """Return the parameters with `MaskedNode()`, which has no leaves, in the place of each frozen one."""
    if not patterns:
        return params
    return jax.tree.map_with_path(
        lambda path, leaf: MaskedNode() if _meets_any(path_of(path), patterns) else leaf, params
    )


def with_frozen(part: Any, params: Any) -> Any:
    """Return what `trained` returned, or new values for it, with the frozen ones of `params` in their places."""
    return jax.tree.map(
        lambda leaf, old: old if isinstance(leaf, MaskedNode) else leaf, part, params,
        is_leaf=lambda leaf: isinstance(leaf, MaskedNode),
    )  # fmt: skip


def next_model(old: Any, new: Any, params: Any, patterns: Sequence[str]) -> Any:
    """Return the model's next state, with the old statistics of what is frozen.

    An entry such as `"trunk/batch_norm1/mean"` is frozen if a pattern meets it, or if `params` has an entry
    `"trunk/batch_norm1"` of which every parameter is frozen.
    """
    if not patterns:
        return new
    all_frozen: dict[str, bool] = {}
    for path, _ in jax.tree.leaves_with_path(params):
        entry = path_of(path[:-1])
        all_frozen[entry] = all_frozen.get(entry, True) and _meets_any(path_of(path), patterns)

    def choose(path: Sequence[Any], before: Any, after: Any) -> Any:
        stays = _meets_any(path_of(path), patterns) or (len(path) > 1 and all_frozen.get(path_of(path[:-1]), False))
        return before if stays else after

    return jax.tree.map_with_path(choose, old, new)


def _meets_any(path: str, patterns: Sequence[str]) -> bool:
    return any(meets(path, pattern) for pattern in patterns)

"""Which parameters weight decay changes."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of
from .._distributed.partition import check_patterns


def decay_mask(params: Any, *, decay: str | Sequence[str] = (), no_decay: str | Sequence[str] = ()) -> Any:
    """Return which parameters have weight decay: kernels, but not biases and the scales of norms.

    Pass the function as the `mask` of an optax optimizer, `optax.adamw(1e-3, mask=fc.train.decay_mask)`. The name of a
    parameter decides: an entry `"kernel"` with at least two axes has weight decay; entries `"bias"` and `"scale"` have
    none. These are the names of all layers of funcconv and of Flax. For other entries, pass patterns with
    `functools.partial(fc.train.decay_mask, no_decay="embedding")`.

    Args:
        params: a tree of parameters.
        decay: patterns of the paths of parameters that have weight decay, whatever their names. `*` stands for any
            text, and a pattern that matches the path of a dict matches all its entries. Default: none.
        no_decay: patterns of the paths of parameters without weight decay, whatever their names. Default: none.

    Returns:
        A tree of the same structure, with True or False for each parameter.

    Raises:
        FuncconvError: if a parameter has another name and matches no pattern, a kernel has fewer than two axes, a
            parameter matches patterns of both kinds, or a pattern matches no parameter.

    Example:
        >>> import funcconv as fc, jax
        >>> params = {"conv1": fc.init_conv(jax.random.key(0), 1, 4, (3, 3))}
        >>> fc.train.decay_mask(params)
        {'conv1': {'bias': False, 'kernel': True}}
    """
    decay, no_decay = (
        ((patterns,) if isinstance(patterns, str) else tuple(patterns)) for patterns in (decay, no_decay)
    )
    check_patterns(params, decay, "decay")
    check_patterns(params, no_decay, "no_decay")
    unknown: list[str] = []

    def has_decay(path: Sequence[Any], leaf: Any) -> bool:
        name = path_of(path)
        listed = [any(meets(name, pattern) for pattern in patterns) for patterns in (decay, no_decay)]
        if all(listed):
            msg = f"decay_mask: {name!r} matches patterns of decay and of no_decay; remove one of them"
            raise FuncconvError(msg)
        if any(listed):
            return listed[0]
        last = name.rpartition("/")[2]
        if last not in ("kernel", "bias", "scale") or (last == "kernel" and jnp.ndim(leaf) < 2):
            unknown.append(f"{name!r} of shape {jnp.shape(leaf)}")
        return last == "kernel"

    mask = jax.tree.map_with_path(has_decay, params)
    if unknown:
        msg = (
            "decay_mask: kernels with at least two axes have weight decay, biases and scales have none, but which are "
            f"{', '.join(unknown)}? Name them with functools.partial(decay_mask, decay=..., no_decay=...)"
        )
        raise FuncconvError(msg)
    return mask

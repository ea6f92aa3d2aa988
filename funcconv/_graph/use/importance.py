"""How much each channel of a graph counts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, Number, Params
from ..infer.check_parameters import checked_entries
from ..name import entries as _entries
from ..prune.follow import GraphChannels, follow_channels
from ..prune.layers import name_of
from .structure import GraphStructure


def importance(
    graph: GraphStructure, params: Params, gradient: Params | None = None, *, p: Number = 1
) -> dict[str, Array]:
    """Return how much each channel counts that `graph.prune` can remove.

    By norm (Li et al. 2017, https://arxiv.org/abs/1608.08710), it is the `p`-norm of all numbers in the kernels that
    compute the channel: `(sum |w|^p)^(1/p)`. With a gradient of a loss (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771), it is `|sum g * w|` over all parameters that compute the channel: kernels, biases
    and the parameters of norms. This is the change of the loss, to first order, if they become 0.

    Channels that can only be removed together, such as the terms of a sum, have one importance, from the parameters of
    all of them. A kernel that only reads a channel does not count.

    Args:
        graph: the graph.
        params: the parameter tree.
        gradient: the gradient of a loss with respect to the parameters, a tree like `params`. Default: None, by norm.
        p: order of the norm, a positive number. Default: 1.

    Returns:
        An array `(channels,)` for each node with a kernel, by its name. Channels that cannot be removed, such as those
        of an output, have `inf`. Nodes that have no other channels are left out. Arrays of 16-bit parameters are
        float32.

    Raises:
        FuncconvError: if the parameters or the gradient are not those of the graph, or `p` is not positive.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.global_pool, fc.Dense(2))(x))
        >>> params = graph.init(jax.random.key(0))
        >>> scores = fc.importance(graph, params)
        >>> {name: score.shape for name, score in scores.items()}
        {'conv1': (4,)}
        >>> best = jnp.argsort(-scores["conv1"])[:2]
        >>> graph.prune(params, {"conv1": best}).graph.shapes()["conv1"].shape
        (6, 6, 2)
    """
    if not p > 0:
        msg = f"importance: p must be positive; got {p!r}. Pass 1 or 2"
        raise FuncconvError(msg)
    for tree in (params, params if gradient is None else gradient):
        checked_entries(graph, tree)
    found = follow_channels(graph, params)
    first = len(graph._signature)
    values = {row.name: found.values[i] for i, row in enumerate(graph._rows, first) if row.name in found.made}
    numbers = np.unique(np.concatenate([found.channels.sets(own) for own in values.values()] or [np.zeros(0, int)]))
    fixed = found.channels.reasons(numbers.tolist())
    sums = jnp.zeros(len(numbers))
    for (entry, name), (axis, channels) in _made_axes(graph, found).items():
        if gradient is None and name != "kernel":
            continue
        w, g = (_array(tree, entry, name) for tree in (params, params if gradient is None else gradient))
        if w is not None and g is not None:
            terms = jnp.abs(w) ** p if gradient is None else (g * w).real
            of_channel = jnp.moveaxis(terms, axis, 0).reshape(len(channels), -1).sum(1)
            places = np.searchsorted(numbers, found.channels.sets(channels))
            known = np.isin(found.channels.sets(channels), numbers)
            sums = sums.astype(jnp.promote_types(sums.dtype, of_channel.dtype))
            sums = sums.at[places[known]].add(of_channel[known])
    scores = jnp.abs(sums) if gradient is not None else sums ** (1 / p)
    scores = jnp.where(np.isin(numbers, list(fixed)), jnp.inf, scores)
    sets = {name: found.channels.sets(own) for name, own in values.items()}
    return {
        name: scores[np.searchsorted(numbers, own)]
        for name, own in sets.items()
        if not all(number in fixed for number in own.tolist())
    }


def _made_axes(graph: Any, found: GraphChannels) -> Mapping[tuple[str, str], tuple[int, np.ndarray]]:
    """Return for arrays of parameters the axis along which they make or scale channels, and the channels there."""
    made: dict[tuple[str, str], tuple[int, np.ndarray]] = {}
    for i, row in enumerate(graph._rows, len(graph._signature)):
        value = found.values[i]
        for name, axes in found.entries.get(row.params, {}).items() if row.params else ():
            for axis, channels in axes.items():
                # Two axes of a kernel can have channels of one set, of which one makes those of the value.
                is_only = len(axes) == 1 and np.isin(found.channels.sets(channels), found.channels.sets(value)).all()
                if is_only or np.array_equal(channels, value):
                    made.setdefault((row.params, name), (axis, channels))
    return made


def _array(tree: Params, entry: str, name: str) -> Any:
    """Return an array of an entry in the dtype in which its numbers are summed, None if it is missing."""
    leaves = jax.tree.leaves_with_path(_entries.get(tree, tuple(entry.split("/"))))
    return next((leaf.astype(wide(leaf.dtype)) for path, leaf in leaves if name_of(path) == name), None)

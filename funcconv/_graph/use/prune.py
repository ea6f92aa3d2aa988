"""Channels removed from a graph, its parameters and its state."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params
from ..declare.conv_layers import Conv, ConvTranspose, LocalConv
from ..declare.layers import Dense
from ..declare.training_layers.kernels import WeightNorm, WeightStandardize
from ..declare.training_layers.norms import GroupNorm
from ..evaluate.call import mode_of, number_of
from ..infer.check_parameters import checked_entries
from ..name import entries as _entries
from ..prune.follow import GraphChannels, follow_channels
from ..prune.layers import name_of
from .editing import with_rows


class Pruned(NamedTuple):
    """A graph without some channels.

    Attributes:
        graph: the graph.
        params: its parameters.
        state: its state.
        removed: the removed channels of each node with a kernel, counted as before.
    """

    graph: Any
    params: dict[str, Any]
    state: dict[str, Any]
    removed: dict[str, tuple[int, ...]]


def prune(graph: Any, params: Params, keep: Mapping[str, Any], state: Mapping[str, Any] | None) -> Pruned:
    """Return the graph without the channels that are not kept, and without those that go with them."""
    checked_entries(graph, params)
    mode_of(graph, state)
    found = follow_channels(graph, params)
    removed = _removed_sets(graph, found, keep)

    def stays(channels: np.ndarray) -> np.ndarray:
        return ~np.isin(found.channels.sets(channels), list(removed))

    layers: dict[int, Any] = {}  # by their identity, which shares parameters
    rows = []
    for i, row in enumerate(graph._rows, len(graph._signature)):
        if not stays(found.values[i]).any():
            msg = f"prune: node {row.name!r} would have no channels. Keep one, or graph.remove the node"
            raise FuncconvError(msg)
        own = [stays(found.values[number]) for number in row.inputs]
        rows.append(row._replace(op=layers.setdefault(id(row.op), _smaller(row.op, own, stays(found.values[i])))))

    def cut(tree: Mapping[str, Any], paths: Sequence[_entries.Path]) -> dict[str, Any]:
        names = {"/".join(path): path for path in paths}
        entries = {name: _sliced(found.entries[name], _entries.get(tree, path), stays) for name, path in names.items()}
        return _entries.tree_of(entries)

    smaller = with_rows(graph, rows, [None] * len(rows) if removed else graph._places)
    own_params, own_state = cut(params, _present(graph, params)), cut(state or {}, graph._stateful)
    _check_same_places(graph, found, follow_channels(smaller, own_params), stays)
    return Pruned(smaller, own_params, own_state, _by_node(graph, found, removed))


def channel_groups(graph: Any, params: Params | None) -> list[dict[str, tuple[int, ...]]]:
    """Return the sets of channels that can only be removed together."""
    found = follow_channels(graph, params)
    groups: dict[int, dict[str, tuple[int, ...]]] = {}
    for name in found.made:
        for channel, number in enumerate(found.channels.sets(found.values[graph.nodes.index(name)]).tolist()):
            own = groups.setdefault(number, {})
            own[name] = (*own.get(name, ()), channel)
    fixed = found.channels.reasons(groups)
    return [group for number, group in groups.items() if number not in fixed]


def _removed_sets(graph: Any, found: GraphChannels, keep: Mapping[str, Any]) -> set[int]:
    """Return the sets of channels that are removed."""
    kept = {}
    for name, channels in keep.items():
        number = number_of(graph, name, "prune")
        kept[name] = (
            found.channels.sets(found.values[number]),
            _kept_channels(name, channels, len(found.values[number])),
        )
    removed: set[int] = set().union(*(own[~stays].tolist() for own, stays in kept.values()))
    for name, (own, stays) in kept.items():
        for number, reason in found.channels.reasons(own[~stays].tolist()).items():
            msg = f"prune: channel {_places(own, {number})[0]} of node {name!r} cannot be removed: it {reason}. Keep it"
            raise FuncconvError(msg)
        lost = np.isin(own, list(removed)) & stays
        if lost.any():
            number = int(own[lost][0])
            msg = (
                f"prune: channel {int(np.flatnonzero(lost)[0])} of node {name!r} was to be kept, but can only be kept "
                f"or removed together with these: {_by_node(graph, found, {number})}. Keep all of them or none"
            )
            raise FuncconvError(msg)
    return removed


def _kept_channels(name: str, channels: Any, count: int) -> np.ndarray:
    """Return which of a node's channels are kept."""
    expected = f"prune: {name!r} must have the channels to keep, numbers from 0 to {count - 1} or {count} booleans"
    try:
        given = np.asarray(channels)
    except jax.errors.TracerArrayConversionError:
        msg = f"{expected}; got a traced array. Shapes cannot depend on it; call prune outside of jax.jit"
        raise FuncconvError(msg) from None
    if given.dtype == bool and given.shape == (count,):
        return given
    is_list = given.ndim == 1 and given.size and np.issubdtype(given.dtype, np.integer)
    if not is_list or given.min() < 0 or given.max() >= count or len(np.unique(given)) < given.size:
        msg = f"{expected}, each at most once and at least one; got {channels!r}"
        raise FuncconvError(msg)
    return np.isin(np.arange(count), given)


def _smaller(op: Any, inputs: Sequence[np.ndarray], value: np.ndarray) -> Any:
    """Return a layer for fewer channels.

    Args:
        op: the layer.
        inputs: which channels of its inputs stay.
        value: which channels of its value stay.
    """
    if value.all() and all(own.all() for own in inputs):
        return op
    if isinstance(op, WeightNorm | WeightStandardize):
        return replace(op, layer=_smaller(op.layer, inputs, value))
    if isinstance(op, Dense):
        return replace(op, features=int(value.sum()))
    if isinstance(op, GroupNorm):
        return replace(op, groups=int(value.reshape(op.groups, -1)[:, 0].sum()))
    if isinstance(op, Conv | ConvTranspose | LocalConv):
        groups = 1 if op.groups == 1 else int(value.reshape(op.groups, -1)[:, 0].sum())
        return replace(op, out_channels=int(value.sum()), groups=groups)
    return op


def _sliced(axes: Mapping[str, Any], entry: Any, stays: Any) -> Any:
    """Return the arrays of an entry without the channels that are removed."""

    def cut(path: Any, leaf: Any) -> Any:
        for axis, channels in axes.get(name_of(path), {}).items():
            kept = stays(channels)
            if not kept.all():
                leaf = jnp.take(leaf, np.flatnonzero(kept), axis=axis)
        return leaf

    return jax.tree.map_with_path(cut, entry)


def _present(graph: Any, params: Params) -> list[_entries.Path]:
    return [*graph._entries, *(path for path in graph._optional if _entries.has(params, path))]


def _check_same_places(graph: Any, old: GraphChannels, new: GraphChannels, stays: Any) -> None:
    """Refuse a function that takes the remaining channels to other places, because it counts channels."""
    same: dict[int, int] = {}  # the new number of each channel
    for name, before, after in zip(graph.nodes, old.values, new.values, strict=True):
        kept = before[stays(before)] if before.ndim else before
        pairs = list(zip(kept.ravel().tolist(), after.ravel().tolist(), strict=False))
        if kept.shape != after.shape or any(same.setdefault(a, b) != b for a, b in pairs):
            msg = (
                f"prune: with fewer channels, node {name!r} takes other channels than before, because its function "
                "counts them. Use a function that works for any number of channels, or replace the node afterwards"
            )
            raise FuncconvError(msg)


def _by_node(graph: Any, found: GraphChannels, sets: set[int]) -> dict[str, tuple[int, ...]]:
    """Return the channels in these sets of each node with a kernel."""
    by_node = {name: _places(found.channels.sets(found.values[graph.nodes.index(name)]), sets) for name in found.made}
    return {name: places for name, places in by_node.items() if places}


def _places(own: np.ndarray, sets: set[int]) -> tuple[int, ...]:
    return tuple(np.flatnonzero(np.isin(own, list(sets))).tolist())

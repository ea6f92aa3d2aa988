"""Where each kind of layer takes channels: one rule for each.

A rule says which channels the axes of the parameters have, and which channels the value has along its last axis.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import jax
import numpy as np

from ..declare.conv_layers import Conv, ConvTranspose, LocalConv
from ..declare.function import Function
from ..declare.layer import Layer
from ..declare.layers import Dense, Flatten, Pool
from ..declare.training_layers.batch_norm import BatchNorm
from ..declare.training_layers.dropout import Dropout, DropPath
from ..declare.training_layers.kernels import WeightNorm, WeightStandardize
from ..declare.training_layers.norms import GroupNorm, InstanceNorm
from .channels import Channels
from .functions import of_function

Axes = Mapping[int, np.ndarray]  # of an array of parameters: the channels of some of its axes, counted from the end


@dataclass(frozen=True)
class Use:
    """One row that is followed."""

    channels: Channels
    entry: Any  # the shapes of its parameters
    specs: Sequence[Any]  # the shapes of its inputs, for one example
    xs: Sequence[np.ndarray]  # the channels of its inputs, along their last axes

    def kernel(self, axis: int) -> int:
        """Return the size of an axis of the kernel."""
        size: int = self.entry["kernel"].shape[axis]
        return size


@dataclass(frozen=True)
class Followed:
    """What a rule finds.

    Attributes:
        value: the channels of the value along its last axis; None if the channels of the inputs are mixed.
        axes: for the arrays of the parameters and the state, by the paths of their names, the channels of their axes.
        made: whether the channels of the value are made here, by a kernel.
    """

    value: np.ndarray | None
    axes: Mapping[str, Axes] = field(default_factory=dict)
    made: bool = False


@singledispatch
def follow(op: Layer, use: Use) -> Followed:
    """Return where a layer takes channels. A layer without a rule mixes them."""
    del op, use
    return Followed(None)


@follow.register
def _(op: Conv | LocalConv, use: Use) -> Followed:
    (x,), out = use.xs, use.channels.new(use.kernel(-1))
    if op.layout is not None:
        return Followed(None)
    kernel = {-1: out}
    if op.groups == 1:
        kernel[-2] = x
    else:
        _join_groups(use.channels, op.groups, x, out)
    return Followed(out, {"kernel": kernel, "bias": {-1: out}}, made=True)


@follow.register
def _(op: ConvTranspose, use: Use) -> Followed:
    (x,), out = use.xs, use.channels.new(use.kernel(-2) * op.groups)
    if op.layout is not None:
        return Followed(None)
    kernel = {-1: x}  # the kernel is that of the convolution whose transpose it is
    if op.groups == 1:
        kernel[-2] = out
    else:
        _join_groups(use.channels, op.groups, x, out)
    return Followed(out, {"kernel": kernel, "bias": {-1: out}}, made=True)


@follow.register
def _(op: Dense, use: Use) -> Followed:
    del op
    (x,), out = use.xs, use.channels.new(use.kernel(-1))
    return Followed(out, {"kernel": {-2: x, -1: out}, "bias": {-1: out}}, made=True)


@follow.register
def _(op: WeightNorm | WeightStandardize, use: Use) -> Followed:
    followed = follow(op.layer, use)
    if followed.value is None:
        return followed
    # Each slice of the kernel along its last axis is normalized as a whole, over all channels of the axis before it.
    whole = followed.value if isinstance(op.layer, ConvTranspose) else use.xs[0]
    use.channels.keep(whole, "is normalized together with other channels of a kernel")
    last = use.xs[0] if isinstance(op.layer, ConvTranspose) else followed.value
    return Followed(followed.value, {**followed.axes, "scale": {-1: last}}, made=True)


@follow.register
def _(op: BatchNorm | InstanceNorm, use: Use) -> Followed:
    del op
    (x,) = use.xs
    return Followed(x, {name: {-1: x} for name in ("scale", "bias", "mean", "var")})


@follow.register
def _(op: GroupNorm, use: Use) -> Followed:
    (x,) = use.xs
    _join_groups(use.channels, op.groups, x)
    return Followed(x, {name: {-1: x} for name in ("scale", "bias")})


@follow.register
def _(op: Pool, use: Use) -> Followed:
    return Followed(None if op.layout is not None or op.return_indices else use.xs[0])


@follow.register
def _(op: Dropout | DropPath, use: Use) -> Followed:
    del op
    return Followed(use.xs[0])


@follow.register
def _(op: Flatten, use: Use) -> Followed:
    (x,), (spec,) = use.xs, use.specs
    if op.layout is not None:
        return Followed(None)
    positions = spec.size // len(x)
    return Followed(np.tile(x, positions) if op.order == "channels_last" else np.repeat(x, positions))


@follow.register
def _(op: Function, use: Use) -> Followed:
    own = jax.tree.map(lambda leaf: use.channels.new(leaf.shape[-1]) if leaf.ndim else np.array(0), use.entry)
    value = of_function(op, use.entry, own, use.specs, use.xs, use.channels)
    return Followed(value, {name_of(path): {-1: leaf} for path, leaf in jax.tree.leaves_with_path(own) if leaf.ndim})


def name_of(path: Any) -> str:
    """Return the name of an array in an entry of the parameters, such as `"kernel"`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _join_groups(channels: Channels, groups: int, *arrays: np.ndarray) -> None:
    """Join the channels of each group; only whole groups can be removed."""
    for array in arrays:
        of_group = array.reshape(groups, -1)
        channels.join(of_group, np.broadcast_to(arrays[0].reshape(groups, -1)[:, :1], of_group.shape))

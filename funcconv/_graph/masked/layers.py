"""A row of a graph on masked inputs: one rule for each kind of layer.

Values at masked positions are zero when a rule gets them, and its result is zero at masked positions too.
"""

from collections.abc import Sequence
from functools import singledispatch
from typing import Any, NamedTuple

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._ops.conv import conv
from ..._ops.conv_transpose import conv_transpose
from ..._ops.masks import Masked, conv_mask
from ..._ops.norms.group import group_norm, instance_norm
from ..._ops.norms.layer import layer_norm, rms_norm
from ..declare.conv_layers import Conv, ConvTranspose
from ..declare.function import Function
from ..declare.layer import Layer
from ..declare.layers import Dense, Pool
from ..declare.training_layers.batch_norm import BatchNorm
from ..declare.training_layers.dropout import Dropout, DropPath
from ..declare.training_layers.kernels import WeightNorm, WeightStandardize
from ..declare.training_layers.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ..declare.training_layers.spectral_norm import SpectralNorm
from .functions import check_channels_last, masked_function
from .values import hidden, joint_mask


class Call(NamedTuple):
    """The evaluation of one row."""

    entry: Any  # its parameters
    state: Any
    xs: Sequence[Any]  # its inputs, some of them `Masked`
    mask: Array  # which positions are real in all of them
    batch: Shape
    key: Array | None
    train: bool

    @property
    def x(self) -> Any:
        """The array of its one input."""
        (masked,) = self.xs
        return masked.x

    @property
    def spatial(self) -> int:
        """The number of axes of the mask that are no batch axes."""
        return self.mask.ndim - len(self.batch)


def run_masked(
    op: Layer, entry: Any, state: Any, xs: Sequence[Any], *, batch: Shape, key: Array | None, train: bool
) -> tuple[Any, Any]:
    """Return the value of a row, `Masked` if positions are left, and its next state.

    Args:
        op: the layer.
        entry: its parameters.
        state: its state.
        xs: its inputs, some of them `Masked`.
        batch: the batch axes.
        key: of what it draws in training.
        train: whether it is evaluated in training.

    Raises:
        FuncconvError: if the op would mix real and masked positions.
    """
    if op.takes_masked:
        return op.run(entry, state, *xs, batch=batch, key=key, train=train)
    return _run(op, Call(entry, state, xs, joint_mask(xs), batch, key, train))


@singledispatch
def _run(op: Layer, call: Call) -> tuple[Any, Any]:
    msg = (
        f"{op!r} would mix real and masked positions, or is not known to compute each position by itself; the mask is "
        f"{call.mask.shape}. Reduce the positions before it, for example with fc.global_pool or fc.adaptive_pool, or "
        "use a function that takes the mask: fc.node(f, node) with def f(x, *, mask=None), which returns an array if "
        "no masked positions are left, and otherwise fc.Masked(array, mask)"
    )
    raise FuncconvError(msg)


@_run.register
def _(op: Conv, call: Call) -> tuple[Any, Any]:
    _check_spatial(op, call, call.entry["kernel"].ndim - 2)
    y = conv(call.entry, call.x, mask=call.mask, **op.options())
    mask = conv_mask(
        call.mask,
        call.entry["kernel"].shape[:-2],
        stride=op.stride,
        padding=op.padding,
        dilation=op.dilation,
        renormalize=op.renormalize,
    )
    return Masked(y, mask), call.state


@_run.register
def _(op: ConvTranspose, call: Call) -> tuple[Any, Any]:
    _check_spatial(op, call, call.entry["kernel"].ndim - 2)
    y = conv_transpose(call.entry, call.x, mask=call.mask, **op.options())
    geometry = {name: getattr(op, name) for name in ("stride", "padding", "dilation", "size", "output_padding")}
    return Masked(y, conv_mask(call.mask, call.entry["kernel"].shape[:-2], transpose=True, **geometry)), call.state


@_run.register
def _(op: WeightNorm | WeightStandardize, call: Call) -> tuple[Any, Any]:
    return _run(op.layer, call._replace(entry=op.normalized(call.entry)))


@_run.register
def _(op: SpectralNorm, call: Call) -> tuple[Any, Any]:
    shape = call.x.shape[len(call.batch) :]
    entry, state = op.with_next_state(call.entry, call.state, shape, train=call.train)
    value, _ = _run(op.layer, call._replace(entry=entry))
    return value, state if call.train else call.state


@_run.register
def _(op: Pool, call: Call) -> tuple[Any, Any]:
    window: Any = op.window if isinstance(op.window, tuple) else (op.window,) * call.spatial
    _check_spatial(op, call, len(window))
    y = op.apply(None, call.x, batch=call.batch, mask=call.mask)
    mask = conv_mask(
        call.mask,
        window,
        stride=window if op.stride is None else op.stride,
        padding=op.padding,
        dilation=op.dilation,
        ceil_mode=op.ceil_mode,
    )
    return Masked(y, mask), call.state


@_run.register
def _(op: LayerNorm, call: Call) -> tuple[Any, Any]:
    y = layer_norm(call.entry, call.x, axes=op.axes, epsilon=op.epsilon, mask=call.mask)
    return Masked(y, call.mask), call.state


@_run.register
def _(op: RMSNorm, call: Call) -> tuple[Any, Any]:
    y = rms_norm(call.entry, call.x, axes=op.axes, epsilon=op.epsilon, mask=call.mask)
    return Masked(y, call.mask), call.state


@_run.register
def _(op: GroupNorm, call: Call) -> tuple[Any, Any]:
    y = group_norm(call.entry, call.x, op.groups, epsilon=op.epsilon, mask=call.mask, spatial=call.spatial)
    return Masked(y, call.mask), call.state


@_run.register
def _(op: InstanceNorm, call: Call) -> tuple[Any, Any]:
    y = instance_norm(call.entry, call.x, epsilon=op.epsilon, mask=call.mask, spatial=call.spatial)
    return Masked(y, call.mask), call.state


@_run.register
def _(op: BatchNorm, call: Call) -> tuple[Any, Any]:
    entry, state, _, mask, batch, key, train = call
    y, state = op.run(entry, state, call.x, batch=batch, key=key, train=train, mask=mask)
    return Masked(y, mask), state


@_run.register
def _(op: Dense | Dropout | DropPath, call: Call) -> tuple[Any, Any]:
    # Each position by itself, or each example as a whole.
    if isinstance(op, Dense):
        _check_spatial(op, call, call.x.ndim - len(call.batch) - 1)
    entry, state, _, mask, batch, key, train = call
    y, state = op.run(entry, state, call.x, batch=batch, key=key, train=train)
    return hidden(Masked(y, mask)), state


@_run.register
def _(op: Function, call: Call) -> tuple[Any, Any]:
    value = masked_function(op, call.entry, call.xs, call.mask, call.batch)
    return (_run.dispatch(Layer)(op, call) if value is None else value), call.state


def _check_spatial(op: Layer, call: Call, spatial: int) -> None:
    """Refuse a mask of other positions than those over which the windows of a layer move."""
    check_channels_last(op, getattr(op, "layout", None))
    if call.spatial != spatial or call.x.ndim != call.mask.ndim + 1:
        msg = (
            f"{op!r} has {spatial} spatial axes, so the mask must be (*batch, *spatial) with {spatial} axes after the "
            f"{len(call.batch)} batch axes; got {call.mask.shape} for an input {call.x.shape}"
        )
        raise FuncconvError(msg)

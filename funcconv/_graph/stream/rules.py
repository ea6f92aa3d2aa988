"""How each kind of node is computed on the chunks of a signal: one rule for each kind of layer.

All arrays have the signal on their first axis after the batch axes. Positions before the signal begins and after it
ends are zero when a rule gets them.
"""

from collections.abc import Callable, Sequence
from functools import partial, singledispatch
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._ops.conv import conv
from ..._ops.conv_transpose import conv_transpose
from ..._ops.pooling.pool import pool
from ..._windows.geometry import Axis, pad_modes, resolve
from ..declare.conv_layers import Conv, ConvTranspose
from ..declare.function import Function
from ..declare.layer import Layer
from ..declare.layers import Dense, Pool
from ..declare.training_layers.batch_norm import BatchNorm
from ..declare.training_layers.dropout import Dropout, DropPath
from ..declare.training_layers.kernels import WeightNorm, WeightStandardize
from ..declare.training_layers.norms import LayerNorm, RMSNorm
from ..declare.training_layers.spectral_norm import SpectralNorm
from .flow import Flow, of_transposed, of_windows


class Chunk(NamedTuple):
    """What a rule computes from: the parameters and the state, and the kept positions with those that are new."""

    entry: Any
    state: Any
    xs: Sequence[Array]
    exists: Sequence[Callable[[], Array]]  # return which positions of each input exist, `(positions,)`
    batch: Shape


class Stage(NamedTuple):
    """One row of a graph along a signal."""

    flow: Flow  # of its value
    kept: tuple[int, ...]  # positions of each input that are kept from one chunk to the next
    compute: Callable[[Chunk], Any] | None  # the new positions of the value; None for copies of a block
    skipped: int = 0  # positions of the value that are computed again with those that are kept


class Inputs(NamedTuple):
    """The inputs of a row for a long signal."""

    flows: Sequence[Flow]
    shapes: Sequence[Shape]  # of one example
    entry: Any  # the shapes of its parameters
    positionwise: bool  # whether it computes each position of the signal by itself


@singledispatch
def stage_of(op: Layer, inputs: Inputs) -> Stage:
    """Return how a row is computed along a signal.

    Raises:
        FuncconvError: if it needs the whole signal.
    """
    del inputs
    msg = (
        f"{op!r} needs the whole signal, or is not known to compute each position by itself, so it cannot be streamed. "
        "Stream the part of the network before it, graph.subgraph(...)"
    )
    raise FuncconvError(msg)


@stage_of.register
def _(op: Dense | Dropout | DropPath | BatchNorm, inputs: Inputs) -> Stage:
    return _by_position(op, inputs)


@stage_of.register
def _(op: LayerNorm | RMSNorm, inputs: Inputs) -> Stage:
    if op.axes >= len(inputs.shapes[0]):
        return stage_of.dispatch(Layer)(op, inputs)
    return _by_position(op, inputs)


@stage_of.register
def _(op: Function, inputs: Inputs) -> Stage:
    if not inputs.positionwise:
        return stage_of.dispatch(Layer)(op, inputs)
    return _by_position(op, inputs)


@stage_of.register
def _(op: WeightNorm | WeightStandardize, inputs: Inputs) -> Stage:
    stage = stage_of(op.layer, inputs)
    of_layer: Any = stage.compute
    return stage._replace(compute=lambda chunk: of_layer(chunk._replace(entry=op.normalized(chunk.entry))))


@stage_of.register
def _(op: SpectralNorm, inputs: Inputs) -> Stage:
    if op.norm != "kernel":  # the norm of the layer depends on the length of the signal
        return stage_of.dispatch(Layer)(op, inputs)
    (shape,), stage = inputs.shapes, stage_of(op.layer, inputs)
    of_layer: Any = stage.compute

    def compute(chunk: Chunk) -> Any:
        entry, _ = op.with_next_state(chunk.entry, chunk.state, shape, train=False)
        return of_layer(chunk._replace(entry=entry))

    return stage._replace(compute=compute)


@stage_of.register
def _(op: Conv, inputs: Inputs) -> Stage:
    (flow,), (shape,) = inputs.flows, inputs.shapes
    axes = op.axes(_spatial(op, shape, inputs.entry["kernel"].ndim - 2))
    _check_zeros(op, axes[0])
    windows = of_windows(axes[0], flow)

    def compute(chunk: Chunk) -> Any:
        axis = len(chunk.batch)
        x, dilation = _whole_windows(chunk.xs[0], axis, axes[0], windows.kept)
        options = op.options() | {
            "padding": ((0, 0), *((each.lo, each.hi) for each in axes[1:])),
            "dilation": (dilation, *(each.dilation for each in axes[1:])),
        }
        if not op.renormalize:
            return conv(chunk.entry, x, **options)
        mask, _ = _whole_windows(chunk.exists[0](), 0, axes[0], windows.kept)
        mask = mask.reshape(mask.shape + (1,) * (x.ndim - axis - 2))
        return conv(chunk.entry, x, mask=jnp.broadcast_to(mask, x.shape[:-1]), **options)

    return Stage(windows.flow, (windows.kept,), compute)


@stage_of.register
def _(op: ConvTranspose, inputs: Inputs) -> Stage:
    (flow,), (shape,) = inputs.flows, inputs.shapes
    sizes = _spatial(op, shape, inputs.entry["kernel"].ndim - 2)
    axes = op.axes(sizes)
    _check_zeros(op, axes[0])
    windows = of_transposed(axes[0], flow)

    def compute(chunk: Chunk) -> Any:
        (x,), axis = chunk.xs, len(chunk.batch)
        options = op.options() | {
            "output_padding": None,
            "padding": ((0, 0), *((each.lo, each.hi) for each in axes[1:])),
        }
        first = (x.shape[axis] - 1) * axes[0].stride + axes[0].extent
        y = conv_transpose(chunk.entry, x, **options | {"size": (first, *(each.size for each in axes[1:]))})
        new = (x.shape[axis] - windows.kept) * axes[0].stride
        missing = max(windows.skipped + new - first, 0)  # positions in the gaps that a large stride leaves
        if missing:
            bias = chunk.entry.get("bias")
            gap = jnp.zeros((*y.shape[:axis], missing, *y.shape[axis + 1 :]), y.dtype)
            gap = gap if bias is None else gap + bias.reshape((1,) * (gap.ndim - 1) + bias.shape)
            y = lax.concatenate([y, gap], axis)
        return lax.slice_in_dim(y, windows.skipped, windows.skipped + new, axis=axis)

    return Stage(windows.flow, (windows.kept,), compute, windows.skipped)


# What a pool finds at positions that do not exist.
_IDENTITY = {"max": -np.inf, "min": np.inf, "lse": -np.inf, "sum": 0.0, "mean": 0.0, "prod": 1.0, "lp": 0.0}


@stage_of.register
def _(op: Pool, inputs: Inputs) -> Stage:
    (flow,), (shape,) = inputs.flows, inputs.shapes
    window: Any = op.window if isinstance(op.window, tuple) else (op.window,) * (len(shape) - 1)
    stride = window if op.stride is None else op.stride
    geometry: dict[str, Any] = {"padding": op.padding, "dilation": op.dilation, "ceil_mode": op.ceil_mode}
    axes = resolve(op.label, _spatial(op, shape, len(window)), window, stride=stride, **geometry)
    _check_zeros(op, axes[0])
    windows, padded = of_windows(axes[0], flow), max(axes[0].lo, axes[0].hi_used) > 0
    fills = pad_modes(op.label, op.pad_mode, len(axes), optional=True)[0] is not None
    # Some windows hold fewer real numbers than others: those of a median, and where the taps beyond the padding, which
    # `ceil_mode` allows, are not as those on the padding.
    fewer = padded and not fills and op.reduce not in _IDENTITY
    beyond = op.ceil_mode and (fills or op.count_include_pad)
    if op.return_indices or fewer or beyond:
        return stage_of.dispatch(Layer)(op, inputs)

    def compute(chunk: Chunk) -> Any:
        axis = len(chunk.batch)
        x, dilation = _whole_windows(chunk.xs[0], axis, axes[0], windows.kept)
        apply = partial(_apply_pool, op, window, axes, stride, dilation)
        if fills or not padded:
            return apply(x, op.reduce)
        exists, _ = _whole_windows(chunk.exists[0](), 0, axes[0], windows.kept)
        exists = exists.reshape(exists.shape + (1,) * (x.ndim - axis - 1))
        if op.reduce != "mean" or op.count_include_pad:
            return apply(jnp.where(exists, x, jnp.asarray(_IDENTITY[str(op.reduce)], x.dtype)), op.reduce)
        ones = jnp.broadcast_to(exists, x.shape).astype(x.dtype)
        share = apply(ones, "mean")  # of the taps that exist
        return apply(x, "mean") / jnp.where(share == 0, 1, share)

    return Stage(windows.flow, (windows.kept,), compute)


def _apply_pool(
    op: Pool, window: Any, axes: Sequence[Axis], stride: Any, dilation: int, x: Array, reduce: Any
) -> Array:
    padding = ((0, 0), *((axis.lo, axis.hi) for axis in axes[1:]))
    options: dict[str, Any] = {
        "ties": op.ties,
        "p": op.p,
        "temperature": op.temperature,
        "count_include_pad": op.count_include_pad,
        "ceil_mode": op.ceil_mode,
        "dilation": (dilation, *(axis.dilation for axis in axes[1:])),
    }
    return pool(  # type: ignore[no-any-return]
        x, window, reduce=reduce, stride=stride, padding=padding, pad_mode=op.pad_mode, **options
    )


def _by_position(op: Layer, inputs: Inputs) -> Stage:
    """Return how a layer that computes each position by itself is computed; it waits for its slowest input."""
    delay = max(flow.delay for flow in inputs.flows)
    rates = {(flow.rate, flow.extra) for flow in inputs.flows}
    if len(rates) > 1:
        msg = (
            f"{op!r} joins values that advance differently along the signal, {sorted(rates)}, so it cannot be streamed"
        )
        raise FuncconvError(msg)
    kept = tuple(delay - flow.delay for flow in inputs.flows)

    def compute(chunk: Chunk) -> Any:
        axis = len(chunk.batch)
        new = chunk.xs[0].shape[axis] - kept[0]
        xs = [lax.slice_in_dim(x, 0, new, axis=axis) for x in chunk.xs]
        return op.run(chunk.entry, chunk.state, *xs, batch=chunk.batch, key=None, train=False)[0]

    return Stage(inputs.flows[0]._replace(delay=delay), kept, compute)


def _whole_windows(x: Array, axis: int, window: Axis, kept: int) -> tuple[Array, int]:
    """Return the positions that the windows of a chunk read, and the dilation of the windows among them."""
    outputs = (x.shape[axis] - kept) // window.stride
    read = (outputs - 1) * window.stride + 1  # by one tap
    if read >= window.dilation:
        return lax.slice_in_dim(x, 0, read - 1 + window.extent, axis=axis), window.dilation
    # No window reads the positions between what one tap reads and what the next one reads.
    firsts = range(0, window.extent, window.dilation)
    return lax.concatenate([lax.slice_in_dim(x, first, first + read, axis=axis) for first in firsts], axis), read


def _spatial(op: Any, shape: Shape, spatial: int) -> Shape:
    """Return the spatial sizes of an input whose first axis must be the signal."""
    if op.layout is not None or len(shape) != spatial + 1:
        msg = (
            f"{op!r} must have the signal on the first of its {spatial} spatial axes, and the channels last, to be "
            f"streamed; its input has shape {shape}, and layout={op.layout!r}"
        )
        raise FuncconvError(msg)
    return shape[:-1]


def _check_zeros(op: Any, axis: Axis) -> None:
    mode = op.pad_mode[0] if isinstance(op.pad_mode, tuple) else op.pad_mode
    if mode not in (None, "zeros") and (axis.lo, axis.hi_used) != (0, 0):
        msg = f"{op!r}: padding along the signal can only contain zeros, to be streamed; got pad_mode={mode!r}"
        raise FuncconvError(msg)

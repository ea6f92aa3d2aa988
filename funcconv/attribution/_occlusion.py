"""How much a number falls when a window of the input is covered."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.errors import FuncconvError
from .._common.types import Array, Params, Shape
from .._derivatives.linear_map import positive
from .._graph.use.graph import Graph
from .._windows.geometry import per_axis
from ._channels import check_channels_last
from ._scores import Scores, scores_of
from ._target import Of


def occlusion(
    graph: Graph,
    params: Params,
    x: Any,
    *,
    of: Of,
    window: Any,
    stride: Any = None,
    fill: Any = 0,
    batch_size: int = 1,
    state: Mapping[str, Any] | None = None,
) -> Any:
    r"""Compute how much a number falls when windows of the input are covered, as a map of the size of the input.

    $$m_i = \frac{1}{|W_i|} \sum_{w \in W_i} \bigl(s(x) - s(x \text{ covered in } w)\bigr)$$

    where `W_i` are the windows over position `i`. They begin at 0, `stride`, `2 * stride` and so on along each axis,
    until one reaches the end, beyond which it is cropped. A window covers all channels, which must be last: to import a
    module of PyTorch, use `fc.interop.trace_torch(..., layout="NHWC")`. All windows are computed by one loop, which is
    one program inside of `jax.jit`.

    Args:
        graph: the graph.
        params: the parameter tree.
        x: the input, `(*batch, *shape)`. If the graph has several inputs, a tuple of them in the order of declaration
            or a dict by name.
        of: what is attributed, one number per example. A function that takes the outputs of one example and returns a
            number, such as `lambda y: y[3]`, or takes those of a batch and returns `(batch,)`, such as
            `lambda y: y[:, 3]`. Or a pair of a node and a channel, such as `("conv3", 5)`: the sum of this channel of
            its value over all positions. The channel is an integer, or integers `(*batch)`, one for each example.
        window: the size of the window. One integer for all spatial axes of an input, the axes between the batch axes
            and the channels, or one per axis; a dict by name for one value for each input.
        stride: step from one window to the next, at most the size of the window. One integer, or one per axis; a dict
            by name for one value for each input. Default: None, the size of the window.
        fill: what covers the window. A number, or an array that broadcasts to `x`, of the same dtype, such as one
            number for each channel; a tuple or a dict like `x` for one value for each input. Default: 0.
        batch_size: how many windows are computed at once. More need more memory, and may be faster. Default: 1.
        state: the state of the layers that keep one, as `init_state` returns it. Default: None, for a graph without
            state. The graph is evaluated in evaluation mode (`train=False`).

    Returns:
        `(*batch, *spatial)`, or a tuple or a dict of these maps like `x`. Each input is covered while the others stay
        as they are. An input without spatial axes is covered as a whole. Maps have the dtype of the number, and float32
        if it has 16 bits.

    Raises:
        FuncconvError: if the parameters, the state or the inputs are not those of the graph, if there is no such node
            or channel, if `of` does not give one real number per example, if the window is larger than the input or
            smaller than the stride, if a node moves the last axis of an input elsewhere, if `fill` does not broadcast
            to `x`, or if `batch_size` is not a positive integer.

    Source: Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional Networks",
    https://arxiv.org/abs/1311.2901.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (4, 1))
        >>> graph = fc.Graph(x, fc.Flatten()(x))
        >>> signal = jnp.array([[1.0], [2.0], [3.0], [4.0]])
        >>> fc.attribution.occlusion(graph, {}, signal, of=lambda y: y.sum(), window=2, stride=1).tolist()
        [3.0, 4.0, 6.0, 7.0]
    """
    method = "attribution.occlusion"
    positive(f"{method}: batch_size", batch_size)
    check_channels_last(graph, method)
    scores = scores_of(graph, params, x, of, state, method)
    inputs = scores.inputs
    windows = inputs.for_each("window", window, by_position=False)
    strides = windows if stride is None else inputs.for_each("stride", stride, by_position=False)
    fills = inputs.arrays_like("fill", fill)
    whole = scores(inputs.arrays)
    maps = []
    for i, array in enumerate(inputs.arrays):
        size = array.shape[len(inputs.batch) : -1]
        grid = _grid(f"{method}: input {inputs.names[i]!r}", size, windows[i], strides[i])
        maps.append(_map(scores, whole, i, fills[i], grid, batch_size))
    return inputs.structured(maps)


class _Grid(NamedTuple):
    """Where windows begin."""

    size: Shape  # of the spatial axes
    window: Shape
    starts: Sequence[np.ndarray]  # along each axis

    def inside(self, start: Array) -> Array:
        """Return which positions are inside of the window that begins there, (*spatial)."""
        inside = jnp.ones(self.size, bool)
        for axis, window in enumerate(self.window):
            positions = lax.broadcasted_iota(jnp.int32, self.size, axis)
            inside &= (positions >= start[axis]) & (positions < start[axis] + window)
        return inside

    def averages(self, axis: int) -> np.ndarray:
        """Return the matrix (windows, positions) that averages over the windows at each position of an axis."""
        positions, starts = np.arange(self.size[axis]), self.starts[axis][:, None]
        covers = (starts <= positions) & (positions < starts + self.window[axis])
        averages: np.ndarray = covers / covers.sum(0)
        return averages


def _grid(what: str, size: Shape, window: Any, stride: Any) -> _Grid:
    windows, strides = (per_axis(what, name, n, len(size), 1) for name, n in (("window", window), ("stride", stride)))
    for axis, (n, one, step) in enumerate(zip(size, windows, strides, strict=True)):
        if one > n or step > one:
            msg = (
                f"{what}: the stride must be at most the window, so that each position is covered, and the window at "
                f"most the size; on spatial axis {axis} got stride={step}, window={one} and the size {n}"
            )
            raise FuncconvError(msg)
    triples = zip(size, windows, strides, strict=True)
    return _Grid(size, windows, [np.arange(-(-(n - one) // step) + 1) * step for n, one, step in triples])


def _map(scores: Scores, whole: Array, i: int, fill: Array, grid: _Grid, batch_size: int) -> Array:
    """Return the average fall of the numbers over the windows of one input, (*batch, *spatial)."""
    arrays, batch = scores.inputs.arrays, scores.inputs.batch

    def covered(start: Array) -> Array:
        channels = arrays[i].ndim - len(batch) - len(grid.size)  # axes of channels: 1, or 0 for single numbers
        inside = grid.inside(start).reshape((1,) * len(batch) + grid.size + (1,) * channels)
        return scores([jnp.where(inside, fill, x) if k == i else x for k, x in enumerate(arrays)])

    counts = [len(starts) for starts in grid.starts]
    starts = np.array(list(product(*grid.starts)), np.int32).reshape(math.prod(counts), len(counts))
    falls = whole[None] - lax.map(covered, jnp.asarray(starts), batch_size=min(batch_size, len(starts)))
    falls = jnp.moveaxis(falls, 0, -1).reshape(*batch, *counts)
    for axis in range(len(counts)):  # each contracts the first axis that is left, and appends the positions
        averages = jnp.asarray(grid.averages(axis), falls.dtype)
        falls = jnp.tensordot(falls, averages, (len(batch), 0), precision=lax.Precision.HIGHEST)
    return falls

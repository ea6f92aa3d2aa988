"""PyTorch functions that change the axes of an array or read its shape.

The handlers have the arguments of the PyTorch functions, in the same order and with the same defaults. The size that a
reshape asks for is not computed here: PyTorch has recorded the shape of each result.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import jax.numpy as jnp

from ..._common.types import Number
from ..._graph.combine.merge import concat
from ..._graph.declare.function import node
from ..._graph.declare.layers import Flatten
from . import ops as ops
from .translation import BatchSize, Translation, Value, as_tuple


def flatten(translation: Translation, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    if start_dim == 1 and end_dim in (-1, len(x.shape)) and len(x.shape) > 1:
        return translation.as_value(Flatten(order="channels_first", name=translation.operation.name)(x.node))
    return reshape(translation, x)


def reshape(translation: Translation, x: Value, *sizes: Any) -> Value:
    del sizes
    shape = translation.shape()
    if prod(shape) != prod(x.shape):
        translation.refuse(f"from {x.shape} to {shape} the batch changes")
    return translation.apply_channels_first(jnp.reshape, x, shape=shape)


def permute(translation: Translation, x: Value, *dims: Any) -> Value:
    order = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
    if not order or order[0] != 0:
        translation.refuse("it moves the batch")
    axes = tuple(translation.axis(x, dim) for dim in order[1:])
    return translation.apply_channels_first(jnp.transpose, x, axes=axes)


def transpose(translation: Translation, x: Value, dim0: int, dim1: int) -> Value:
    axes = {"axis1": translation.axis(x, dim0), "axis2": translation.axis(x, dim1)}
    return translation.apply_channels_first(jnp.swapaxes, x, **axes)


def mean(translation: Translation, x: Value, dim: Any, keepdim: bool = False) -> Value:
    axes = tuple(translation.axis(x, axis) for axis in (dim if isinstance(dim, list | tuple) else (dim,)))
    return translation.apply_channels_first(jnp.mean, x, axis=axes, keepdims=keepdim)


def cat(translation: Translation, tensors: Sequence[Value], dim: int = 0) -> Value:
    if translation.axis(tensors[0], dim) == 0:  # the channels
        return translation.apply(concat, *tensors)
    return translation.apply(ops.concatenate, *tensors, axis=translation.axis_channels_last(tensors[0], dim))


def chunk(translation: Translation, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    axis = translation.axis(x, dim)
    size = -(-x.shape[axis] // chunks)  # rounded up, so that the last chunk may be smaller
    return _parts(x, axis, size)


def split(translation: Translation, x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
    if not isinstance(size, int):
        translation.refuse("parts of several sizes")
    return _parts(x, translation.axis(x, dim), size)


def _parts(x: Value, axis: int, size: int) -> tuple[Value, ...]:
    """Return the parts of an axis, given with channels first, that have this size."""
    parts = []
    for start in range(0, x.shape[axis], size):
        stop = min(start + size, x.shape[axis])
        shape = (*x.shape[:axis], stop - start, *x.shape[axis + 1 :])
        op = partial(ops.part, axis=(axis - 1) % len(x.shape), start=start, stop=stop)
        parts.append(Value(node(op, x.node, batched=False), shape))
    return tuple(parts)


def getitem(translation: Translation, x: Any, index: Any) -> Any:
    if not isinstance(x, Value):  # a shape, or the parts of a split
        return x[index]
    index = index if isinstance(index, tuple) else (index,)
    if not index or index[0] != slice(None) or any(item is Ellipsis or item is None for item in index):
        translation.refuse("an index that is not [:, ...] with slices and numbers")
    # As tuples, because slices have no hash before Python 3.12, and the options of a node need one.
    parts = tuple((item.start, item.stop, item.step) if isinstance(item, slice) else item for item in index[1:])
    return translation.apply_channels_first(ops.index, x, parts=parts)


def size(translation: Translation, x: Value, dim: int | None = None) -> Any:
    del translation
    sizes = (BatchSize(), *x.shape)
    return sizes if dim is None else sizes[dim]


def getattr_(translation: Translation, x: Any, name: str) -> Any:
    if name != "shape" or not isinstance(x, Value):
        translation.refuse(f"the attribute {name!r}")
    return size(translation, x)


def interpolate(
    translation: Translation,
    x: Value,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: Any = None,
    recompute_scale_factor: Any = None,
    antialias: bool = False,
) -> Value:
    del size, align_corners, recompute_scale_factor, antialias  # the other modes use them
    old_sizes, new_sizes = x.shape[1:], translation.shape()[1:]
    times = tuple(new // old for new, old in zip(new_sizes, old_sizes, strict=True))
    is_multiple = all(old * k == new for old, new, k in zip(old_sizes, new_sizes, times, strict=True))
    # PyTorch places samples by scale_factor where it is given, even if the sizes are rounded.
    factors = times if scale_factor is None else as_tuple(scale_factor, len(times))
    is_given = all(factor in (None, k) for factor, k in zip(factors, times, strict=True))
    if mode != "nearest" or not is_multiple or not is_given:
        translation.refuse("only whole multiples by the nearest neighbour")
    return translation.apply(ops.repeat, x, times=times)


def pad(
    translation: Translation, x: Value, pad: Sequence[int], mode: str = "constant", value: Number | None = 0
) -> Value:
    if mode != "constant" or len(pad) > 2 * len(x.shape):
        translation.refuse(f"padding by {mode!r}")
    pairs = [(int(low), int(high)) for low, high in zip(pad[::2], pad[1::2], strict=True)]
    pairs = [(0, 0)] * (len(x.shape) - len(pairs)) + pairs[::-1]  # PyTorch begins with the last axis
    return translation.apply(ops.pad, x, pairs=(*pairs[1:], pairs[0]), value=value or 0)


HANDLERS: dict[str, Callable[..., Any]] = {
    "flatten": flatten,
    "reshape": reshape,
    "permute": permute,
    "transpose": transpose,
    "mean": mean,
    "cat": cat,
    "chunk": chunk,
    "split": split,
    "getitem": getitem,
    "size": size,
    "getattr": getattr_,
    "interpolate": interpolate,
    "pad": pad,
}

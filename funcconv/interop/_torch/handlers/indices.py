"""Operations that take entries by index, or windows of an axis."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from .. import ops
from ..tensors import BATCH, Tensor
from ..translation import Translation, as_tuple
from .parts import pad_


def index_select(translation: Translation, x: Tensor, dim: int, index: Tensor) -> Tensor:
    axis = translation.axis(x, dim)
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    sizes = (*x.sizes[:stored], index.size(0), *x.sizes[stored + 1 :])
    return translation.compute(partial(ops.taken, axis=stored), (x, index), sizes, x.axes)


def index(translation: Translation, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """Translate an index by integer tensors."""
    tensors = [i for i in indices if i is not None]
    if not all(i.is_weight for i in tensors):
        translation.refuse("an index that depends on an input")
    axes = [axis for axis, i in enumerate(indices) if i is not None]
    if len(axes) == 1 and x.batch_axis != axes[0]:
        return _taken(translation, x, axes[0], translation.as_pytorch(tensors[0]))
    if not x.is_weight:
        x = translation.as_pytorch(x)
        if x.batch_axis not in (0, None) or (x.batch_axis == 0 and axes[0] == 0) or translation.extra(x):
            translation.refuse("an index of the batch")
    x = translation.as_pytorch(x)
    batched = x.batch_axis is not None
    pattern = tuple(axis in axes for axis in range(int(batched), x.rank))
    shape = translation.shape()
    sizes = tuple(dim.size for dim in shape if not dim.batched)
    arrays = [translation.as_pytorch(i) for i in tensors]
    new_axes = [(i,) for i in range(len(sizes))]
    if batched:
        new_axes.insert(0, (BATCH,))
    return translation.compute(partial(ops.indexed, pattern=pattern), (x, *arrays), sizes, tuple(new_axes))


def _taken(translation: Translation, x: Tensor, axis: int, index: Tensor) -> Tensor:
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    count = len(index.sizes)
    sizes = (*x.sizes[:stored], *index.sizes, *x.sizes[stored + 1 :])
    moved = [tuple(i if i < stored else i + count - 1 for i in part) for part in x.axes]
    axes = (*moved[:axis], *((stored + i,) for i in range(count)), *moved[axis + 1 :])
    return translation.compute(partial(ops.taken, axis=stored), (x, index), sizes, axes)


def embedding(translation: Translation, weight: Tensor, indices: Tensor, *args: Any, **options: Any) -> Tensor:
    del args, options
    axes = (*indices.axes, (len(indices.sizes),))
    weight = translation.as_pytorch(weight)
    sizes = (*indices.sizes, weight.sizes[1])
    return translation.compute(partial(ops.taken, axis=0), (weight, indices), sizes, axes)


def unfold(translation: Translation, x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    axis = translation.axis(x, dimension)
    x, stored = _windowed(translation, x, axis, size, step, 1)
    moved = x.axes
    return x.with_axes([*moved[:axis], (stored,), *moved[axis + 1 :], (stored + 1,)])


def _windowed(
    translation: Translation, x: Tensor, axis: int, size: int, step: int, dilation: int
) -> tuple[Tensor, int]:
    """Replace the stored axis of an axis by two, the windows and their entries; the axis becomes the windows."""
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    count = (x.sizes[stored] - dilation * (size - 1) - 1) // step + 1
    sizes = (*x.sizes[:stored], count, size, *x.sizes[stored + 1 :])
    axes = tuple(tuple(i + 1 if i > stored else i for i in part) for part in x.axes)
    op = partial(ops.windows, axis=stored, size=size, step=step, dilation=dilation)
    return translation.compute(op, (x,), sizes, axes), stored


def im2col(
    translation: Translation, x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    kernel, dilations, paddings, strides = (as_tuple(value, 2) for value in (kernel_size, dilation, padding, stride))
    x = translation.channels_last(x, 2)
    if any(paddings):
        x = pad_(translation, x, [paddings[1], paddings[1], paddings[0], paddings[0]])
    entries: list[int] = []
    for axis in (2, 3):
        x, stored = _windowed(translation, x, axis, kernel[axis - 2], strides[axis - 2], dilations[axis - 2])
        entries = [i + 1 if i > stored else i for i in entries] + [stored + 1]
    batch, channels, rows, columns = x.axes
    return x.with_axes([batch, (*channels, *entries), (*rows, *columns)])


HANDLERS: dict[str, Callable[..., Any]] = {
    "index_select": index_select,
    "index": index,
    "embedding": embedding,
    "unfold": unfold,
    "im2col": im2col,
}

"""Operations that take entries by index, or windows of an axis."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...._ops.resampling.patches import fold
from ...._ops.resampling.patches import unfold as image_windows
from ...._windows.geometry import resolve
from .. import ops
from ..tensors import BATCH, Dim, Tensor
from ..translation import Translation, as_tuple


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
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    count = (x.sizes[stored] - size) // step + 1
    sizes = (*x.sizes[:stored], count, size, *x.sizes[stored + 1 :])
    axes = [tuple(i + 1 if i > stored else i for i in part) for part in x.axes]
    op = partial(ops.windows, axis=stored, size=size, step=step)
    return translation.compute(op, (x,), sizes, (*axes, (stored + 1,)))


def im2col(
    translation: Translation, x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    x = translation.channels_last(x, 2)
    window, options = as_tuple(kernel_size, 2), _window_options(dilation, padding, stride)
    positions = tuple(axis.outputs for axis in resolve("unfold", x.sizes[-3:-1], window, **options))
    # (*in front, *positions, *window, channels) is (batch, channels * window, positions) for PyTorch.
    front = len(x.sizes) - 3
    axes = (x.axes[0], (front + 4, front + 2, front + 3), (front, front + 1))
    op = partial(image_windows, window=window, **options, spatial=2)
    return translation.compute(op, (x,), (*x.sizes[:-3], *positions, *window, x.sizes[-1]), axes)


def col2im(
    translation: Translation,
    x: Tensor,
    output_size: Any,
    kernel_size: Any,
    dilation: Any = 1,
    padding: Any = 0,
    stride: Any = 1,
) -> Tensor:
    if x.rank != 3:
        translation.refuse(f"its input must have the axes batch, channels and positions; it has {x.rank} axes")
    size, window = as_tuple(output_size, 2), as_tuple(kernel_size, 2)
    options = _window_options(dilation, padding, stride)
    positions = [axis.outputs for axis in resolve("fold", size, window, **options)]
    batch, channels, *_ = translation.shape()
    x = translation.reshaped(x, [batch, channels, *map(Dim, (*window, *positions))])
    x = translation.stored(x, [*([] if x.batch_axis == 0 else [0]), 4, 5, 2, 3, 1])
    front = len(x.sizes) - 5
    axes = (x.axes[0], (front + 2,), (front,), (front + 1,))
    return translation.compute(partial(fold, size=size, **options), (x,), (*x.sizes[:front], *size, x.sizes[-1]), axes)


def _window_options(dilation: Any, padding: Any, stride: Any) -> dict[str, Any]:
    return {"stride": as_tuple(stride, 2), "padding": as_tuple(padding, 2), "dilation": as_tuple(dilation, 2)}


HANDLERS: dict[str, Callable[..., Any]] = {
    "index_select": index_select,
    "index": index,
    "embedding": embedding,
    "unfold": unfold,
    "im2col": im2col,
    "col2im": col2im,
}

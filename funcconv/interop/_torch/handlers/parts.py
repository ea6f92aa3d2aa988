"""Operations that take parts of tensors, join them, repeat them or pad them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...._common.types import Number
from ...._graph.combine.merge import concat as concat_channels
from .. import ops
from ..tensors import BATCH, Tensor
from ..translation import SymbolicSize, Translation, as_tuple


def repeat(translation: Translation, x: Tensor, repeats: Sequence[Any]) -> Tensor:
    x = x.with_axes([*((),) * (len(repeats) - x.rank), *x.axes])
    for axis, times in enumerate(repeats):
        if isinstance(times, SymbolicSize):
            if not x.is_weight or not x.is_unit(axis):
                translation.refuse("a repetition by the batch size")
            x = x.with_axes([(BATCH,) if i == axis else part for i, part in enumerate(x.axes)])
        elif times != 1:
            x = _copied(translation, x, axis, times, together=True)
    return x


def repeat_interleave(
    translation: Translation, x: Tensor, repeats: Any, dim: int | None = None, **options: Any
) -> Tensor:
    del options
    if not isinstance(repeats, int) or dim is None:
        translation.refuse("a repetition by a tensor, or of all axes")
    return _copied(translation, x, translation.axis(x, dim), repeats, together=False)


def _copied(translation: Translation, x: Tensor, axis: int, times: int, *, together: bool) -> Tensor:
    """Repeat the entries of an axis: all of them one after the other if `together`, or else each by itself."""
    sizes = (*x.sizes, times)
    x = translation.compute(partial(ops.reshaped, shape=(*x.sizes, 1)), (x,), (*x.sizes, 1), x.axes)
    copies = len(sizes) - 1
    axes = [*x.axes]
    axes[axis] = (copies, *axes[axis]) if together else (*axes[axis], copies)
    return translation.compute(partial(ops.broadcast, shape=sizes), (x,), sizes, tuple(axes))


def cat(translation: Translation, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    tensors = [x for x in tensors if x.rank != 1 or x.size(0) or x.batch_axis is not None]  # PyTorch skips empty ones
    axis = translation.axis(tensors[0], dim)
    return _joined(translation, [x for x in tensors if x.size(axis)] or tensors[:1], axis)


def stack(translation: Translation, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    axis = dim + tensors[0].rank + 1 if dim < 0 else dim
    return _joined(translation, [x.with_axes([*x.axes[:axis], (), *x.axes[axis:]]) for x in tensors], axis)


def _joined(translation: Translation, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Join tensors along an axis of PyTorch, stored in the order of the largest of them."""
    if len({x.batch_axis for x in tensors}) != 1 or axis == tensors[0].batch_axis:
        translation.refuse(
            f"a join along the axis {axis} of tensors with the batch axes {[x.batch_axis for x in tensors]}"
        )
    largest = max(tensors, key=lambda x: (not x.is_weight, x.size(axis)))
    axes = [i for i in range(largest.rank) if i != largest.batch_axis]
    place = {i: min(largest.factors(i), default=len(largest.sizes)) for i in axes}
    order = sorted(axes, key=lambda i: (place[i], i == axis))
    arrays = [translation.stored(x, order) for x in tensors]
    if len({x.sizes[: translation.extra(x)] for x in arrays}) != 1:
        translation.refuse("a join of tensors with different axes merged with the batch")
    first = arrays[0]
    (stored,) = first.axes[axis]
    sizes = (*first.sizes[:stored], sum(x.size(axis) for x in tensors), *first.sizes[stored + 1 :])
    is_last = stored == len(sizes) - 1 and translation.operand_dtypes_agree()
    op = concat_channels if is_last else partial(ops.concatenate, axis=stored)
    return translation.compute(op, arrays, sizes, first.axes)


def split(translation: Translation, x: Tensor, split_size: Any, dim: int = 0) -> Any:
    lengths = split_size
    axis = translation.axis(x, dim)
    if isinstance(split_size, int):
        size = x.size(axis)
        lengths = [min(split_size, size - start) for start in range(0, size, split_size)]
    return _parts(translation, x, axis, lengths)


def chunk(translation: Translation, x: Tensor, chunks: int, dim: int = 0) -> Any:
    axis = translation.axis(x, dim)
    return split(translation, x, -(-x.size(axis) // chunks), axis)  # rounded up, so that the last one may be smaller


def tensor_split(translation: Translation, x: Tensor, sections: Any, dim: int = 0) -> Any:
    axis = translation.axis(x, dim)
    size = x.size(axis)
    if isinstance(sections, int):
        lengths = [size // sections + (i < size % sections) for i in range(sections)]
    else:
        ends = [*sections, size]
        lengths = [end - start for start, end in zip([0, *sections], ends, strict=True)]
    return _parts(translation, x, axis, lengths)


def unbind(translation: Translation, x: Tensor, dim: int = 0) -> Any:
    axis = translation.axis(x, dim)
    parts = _parts(translation, x, axis, [1] * x.size(axis))
    return [_without(part, axis) for part in parts]


def _without(x: Tensor, axis: int) -> Tensor:
    return x.with_axes([part for i, part in enumerate(x.axes) if i != axis])


def _parts(translation: Translation, x: Tensor, axis: int, lengths: Sequence[int]) -> list[Tensor]:
    if x.batch_axis == axis:
        translation.refuse("parts of the batch")
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [part(translation, x, axis, start, start + n) for start, n in zip(starts, lengths, strict=True)]


def part(translation: Translation, x: Tensor, axis: int, start: int, stop: int, step: int = 1) -> Tensor:
    """Return the entries `start` to `stop` of an axis of PyTorch."""
    size = x.size(axis)
    if (start, stop, step) == (0, size, 1):
        return x
    if x.is_unit(axis):
        translation.refuse("an empty part of an axis")
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    count = max(0, -(-(stop - start) // step))
    sizes = (*x.sizes[:stored], count, *x.sizes[stored + 1 :])
    op = partial(ops.part, axis=stored, start=start, stop=stop, step=step)
    return translation.compute(op, (x,), sizes, x.axes)


def slice_(
    translation: Translation, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Tensor:
    axis = translation.axis(x, dim)
    if axis == x.batch_axis:
        if translation.shape()[axis] != translation.shape(translation.operation.args[0].meta["val"])[axis]:
            translation.refuse("a part of the batch")
        return x
    start, stop, step = slice(start, end, step).indices(x.size(axis))
    return part(translation, x, axis, start, max(start, stop), step)


def narrow(translation: Translation, x: Tensor, dim: int, start: int, length: int) -> Tensor:
    return slice_(translation, x, dim, start, start + length)


def select(translation: Translation, x: Tensor, dim: int, index: int) -> Tensor:
    axis = translation.axis(x, dim)
    if axis == x.batch_axis:
        translation.refuse("one example of the batch")
    index = index % x.size(axis)
    return _without(part(translation, x, axis, index, index + 1), axis)


def flip(translation: Translation, x: Tensor, dims: Sequence[int]) -> Tensor:
    axes = [translation.axis(x, dim) for dim in dims]
    if x.batch_axis in axes:
        translation.refuse("it reverses the batch")
    # To reverse a product of axes is to reverse each of them.
    stored = tuple(i for axis in axes for i in x.factors(axis))
    return translation.like(ops.flipped, x, axes=stored)


def roll(translation: Translation, x: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    axes = [translation.axis(x, dim) for dim in as_tuple(dims, 1)]
    if not axes or x.batch_axis in axes:
        translation.refuse("it rolls all axes, or the batch")
    for axis in axes:
        x = translation.simple(x, axis)
    stored = tuple(x.axes[axis][0] for axis in axes)
    return translation.like(ops.rolled, x, shifts=as_tuple(shifts, len(axes)), axes=stored)


def pad_(
    translation: Translation, x: Tensor, pad: Sequence[int], mode: str = "constant", value: Number | None = None
) -> Tensor:
    modes = {"constant": "", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pairs = [(0, 0)] * len(x.sizes)
    for k, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):  # PyTorch begins with the last axis
        axis = x.rank - 1 - k
        if not (before or after):
            continue
        if axis == x.batch_axis:
            translation.refuse("it pads the batch")
        if len(x.axes[axis]) != 1:
            return pad_(translation, translation.as_pytorch(x), pad, mode, value)
        pairs[x.axes[axis][0]] = (int(before), int(after))
    sizes = tuple(size + lo + hi for size, (lo, hi) in zip(x.sizes, pairs, strict=True))
    if not any(map(any, pairs)):
        return x
    if mode == "constant":
        return translation.compute(partial(ops.pad, pairs=tuple(pairs), value=value or 0), (x,), sizes, x.axes)
    if any(min(pair) < 0 for pair in pairs):
        translation.refuse(f"it crops in the mode {mode!r}")
    return translation.compute(partial(ops.pad_by, pairs=tuple(pairs), mode=modes[mode]), (x,), sizes, x.axes)


def pad_by_mode(mode: str, translation: Translation, x: Tensor, padding: Sequence[int]) -> Tensor:
    return pad_(translation, x, padding, mode)


def getitem(translation: Translation, x: Any, index: Any) -> Any:
    if isinstance(x, Tensor):
        translation.refuse("an index of a tensor")
    return x[index]


HANDLERS: dict[str, Callable[..., Any]] = {
    "repeat": repeat,
    "repeat_interleave": repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), cat),
    "stack": stack,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split"), split),
    **dict.fromkeys(("chunk", "unsafe_chunk"), chunk),
    "tensor_split": tensor_split,
    "unbind": unbind,
    "slice": slice_,
    "narrow": narrow,
    "select": select,
    "flip": flip,
    "roll": roll,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad_),
    "getitem": getitem,
}
for _axes in (1, 2, 3):
    HANDLERS[f"reflection_pad{_axes}d"] = partial(pad_by_mode, "reflect")
    HANDLERS[f"replication_pad{_axes}d"] = partial(pad_by_mode, "replicate")

"""Operations that change the axes of a tensor: reshapes, permutations, parts, joins and padding."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...._common.types import Number
from ...._graph.combine.merge import concat as concat_channels
from .. import ops
from ..tensors import BATCH, Dim, Tensor
from ..translation import SymbolicSize, Translation, as_tuple


def reshape(translation: Translation, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Translate any reshape: the exported program says what the new shape is."""
    del args, options
    return translation.reshaped(x, translation.shape())


def permute(translation: Translation, x: Tensor, dims: Sequence[int]) -> Tensor:
    del translation
    return x.with_axes([x.axes[dim] for dim in dims])


def transpose(translation: Translation, x: Tensor, dim0: int, dim1: int) -> Tensor:
    axes = list(x.axes)
    a, b = translation.axis(x, dim0), translation.axis(x, dim1)
    axes[a], axes[b] = axes[b], axes[a]
    return x.with_axes(axes)


def matrix_transpose(translation: Translation, x: Tensor) -> Tensor:
    return x if x.rank < 2 else transpose(translation, x, -2, -1)


def movedim(translation: Translation, x: Tensor, source: Any, destination: Any) -> Tensor:
    sources = [translation.axis(x, dim) for dim in as_tuple(source, 1)]
    targets = [translation.axis(x, dim) for dim in as_tuple(destination, 1)]
    order = [axis for axis in range(x.rank) if axis not in sources]
    for target, axis in sorted(zip(targets, sources, strict=True)):
        order.insert(target, axis)
    return permute(translation, x, order)


def expand(translation: Translation, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Translate a broadcast to the shape that the exported program says."""
    del args, options
    shape = translation.shape()
    axes: list[tuple[int, ...]] = [*((),) * (len(shape) - x.rank), *x.axes]
    sizes = list(x.sizes)
    for axis, dim in enumerate(shape):
        if dim.batched and BATCH not in axes[axis]:
            if dim.size != 1 or not x.is_weight:
                translation.refuse("a broadcast to the batch size")
            axes[axis] = (BATCH,)  # the same for all examples
        elif dim.size != 1 and BATCH not in axes[axis] and all(sizes[i] == 1 for i in axes[axis]):
            axes[axis] = (len(sizes),)
            sizes.append(dim.size)
    if len(sizes) == len(x.sizes):
        return x.with_axes(axes)
    shape_before = (*x.sizes, *(1,) * (len(sizes) - len(x.sizes)))
    x = translation.compute(partial(ops.reshaped, shape=shape_before), (x,), shape_before, ())
    return translation.compute(partial(ops.broadcast, shape=tuple(sizes)), (x,), tuple(sizes), tuple(axes))


def repeat(translation: Translation, x: Tensor, repeats: Sequence[Any]) -> Tensor:
    x = x.with_axes([*((),) * (len(repeats) - x.rank), *x.axes])
    for axis, times in enumerate(repeats):
        if isinstance(times, SymbolicSize):
            if not x.is_weight or not x.is_unit(axis):
                translation.refuse("a repetition by the batch size")
            x = x.with_axes([(BATCH,) if i == axis else part for i, part in enumerate(x.axes)])
        elif times != 1:
            x = _joined(translation, [x] * times, axis)
    return x


def repeat_interleave(translation: Translation, x: Tensor, repeats: Any, dim: int | None = None, **options: Any) -> Tensor:
    del options
    if not isinstance(repeats, int) or dim is None:
        translation.refuse("a repetition by a tensor, or of all axes")
    x = translation.simple(x, translation.axis(x, dim))
    (stored,) = x.axes[translation.axis(x, dim)]
    sizes = (*x.sizes[:stored], x.sizes[stored] * repeats, *x.sizes[stored + 1 :])
    index = tuple(i for i in range(x.sizes[stored]) for _ in range(repeats))
    return translation.compute(partial(ops.repeated, axis=stored, index=index), (x,), sizes, x.axes)


# joins and parts -----------------------------------------------------------------------------------------------


def cat(translation: Translation, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    tensors = [x for x in tensors if x.rank != 1 or x.size(0) or x.batch_axis is not None]  # PyTorch skips empty ones
    return _joined(translation, tensors, translation.axis(tensors[0], dim))


def stack(translation: Translation, tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    axis = dim + tensors[0].rank + 1 if dim < 0 else dim
    return _joined(translation, [x.with_axes([*x.axes[:axis], (), *x.axes[axis:]]) for x in tensors], axis)


def _joined(translation: Translation, tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Join tensors along an axis of PyTorch, stored in the order of the largest of them."""
    if len({x.batch_axis for x in tensors}) != 1 or axis == tensors[0].batch_axis:
        translation.refuse(f"a join along the axis {axis} of tensors with the batch axes {[x.batch_axis for x in tensors]}")
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
    entries = []
    for axis in (2, 3):
        x, stored = _windowed(translation, x, axis, kernel[axis - 2], strides[axis - 2], dilations[axis - 2])
        entries = [i + 1 if i > stored else i for i in entries] + [stored + 1]
    batch, channels, rows, columns = x.axes
    return x.with_axes([batch, (*channels, *entries), (*rows, *columns)])


def pixel_shuffle(translation: Translation, x: Tensor, upscale_factor: int) -> Tensor:
    batch, channels, height, width = translation.shape(translation.operation.args[0].meta["val"])
    r = upscale_factor
    divided = translation.reshaped(x, (batch, Dim(channels.size // r**2), Dim(r), Dim(r), height, width))
    b, c, i, j, h, w = divided.axes
    return divided.with_axes([b, c, (*h, *i), (*w, *j)])


def pixel_unshuffle(translation: Translation, x: Tensor, downscale_factor: int) -> Tensor:
    batch, channels, height, width = translation.shape(translation.operation.args[0].meta["val"])
    r = downscale_factor
    divided = translation.reshaped(x, (batch, channels, Dim(height.size // r), Dim(r), Dim(width.size // r), Dim(r)))
    b, c, h, i, w, j = divided.axes
    return divided.with_axes([b, (*c, *i, *j), h, w])


def channel_shuffle(translation: Translation, x: Tensor, groups: int) -> Tensor:
    shape = translation.shape()
    divided = translation.reshaped(x, (shape[0], Dim(groups), Dim(shape[1].size // groups), *shape[2:]))
    batch, group, channel, *spatial = divided.axes
    return divided.with_axes([batch, (*channel, *group), *spatial])


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


def size(translation: Translation, x: Tensor, dim: int | None = None) -> Any:
    shape = translation.shape(translation.operation.args[0].meta["val"])
    sizes = [SymbolicSize() if d.batched else d.size for d in shape]
    return tuple(sizes) if dim is None else sizes[dim]


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("reshape", "view", "reshape_as", "view_as", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "_unsafe_view"),
        reshape,
    ),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "mT", "matrix_H", "numpy_T"), matrix_transpose),
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
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
    "index_select": index_select,
    "index": index,
    "embedding": embedding,
    "flip": flip,
    "roll": roll,
    "unfold": unfold,
    "im2col": im2col,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    **dict.fromkeys(("pad", "constant_pad_nd"), pad_),
    "getitem": getitem,
    "sym_size": size,
}
for _axes in (1, 2, 3):
    HANDLERS[f"reflection_pad{_axes}d"] = partial(pad_by_mode, "reflect")
    HANDLERS[f"replication_pad{_axes}d"] = partial(pad_by_mode, "replicate")

"""Operations that change the axes of a tensor and no number."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...._ops.resampling.pixels import pixel_shuffle, pixel_unshuffle
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


def shuffle(translation: Translation, x: Tensor, upscale_factor: int) -> Tensor:
    return _shuffled(translation, x, partial(pixel_shuffle, factor=upscale_factor, spatial=2))


def unshuffle(translation: Translation, x: Tensor, downscale_factor: int) -> Tensor:
    return _shuffled(translation, x, partial(pixel_unshuffle, factor=downscale_factor, spatial=2))


def _shuffled(translation: Translation, x: Tensor, op: Callable[..., Any]) -> Tensor:
    x = translation.channels_last(x, 2)
    channels, *sizes = (dim.size for dim in translation.shape()[1:])
    return translation.compute(op, (x,), (*x.sizes[:-3], *sizes, channels), x.axes)


def channel_shuffle(translation: Translation, x: Tensor, groups: int) -> Tensor:
    shape = translation.shape()
    divided = translation.reshaped(x, (shape[0], Dim(groups), Dim(shape[1].size // groups), *shape[2:]))
    batch, group, channel, *spatial = divided.axes
    return divided.with_axes([batch, (*channel, *group), *spatial])


def size(translation: Translation, x: Tensor, dim: int | None = None) -> Any:
    shape = translation.shape(translation.operation.args[0].meta["val"])
    sizes = [SymbolicSize() if d.batched else d.size for d in shape]
    return tuple(sizes) if dim is None else sizes[dim]


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            "reshape",
            "view",
            "reshape_as",
            "view_as",
            "flatten",
            "unflatten",
            "squeeze",
            "unsqueeze",
            "ravel",
            "_unsafe_view",
        ),
        reshape,
    ),
    "permute": permute,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), transpose),
    **dict.fromkeys(("t", "mT", "matrix_H", "numpy_T"), matrix_transpose),
    **dict.fromkeys(("movedim", "moveaxis"), movedim),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "pixel_shuffle": shuffle,
    "pixel_unshuffle": unshuffle,
    "channel_shuffle": channel_shuffle,
    "native_channel_shuffle": channel_shuffle,
    "sym_size": size,
}

"""Windows of images, and pixel shuffles, on tensors: the counterparts of `funcconv.unfold` and others."""

from collections.abc import Sequence
from math import prod
from typing import Any

from ....._windows.geometry import pad_modes, per_axis, resolve, source
from ....._windows.layout import patches_order
from ..images import image, indices, padded, wide, windows


def unfold(
    x: Any,
    window: Any,
    *,
    pad_mode: Any = "zeros",
    spatial: int | None = None,
    layout: str | None = None,
    **geometry: Any,
) -> Any:
    """Gather the windows of an image, as `funcconv.unfold`.

    Args:
        x: the tensor.
        window: taps of a window.
        pad_mode: values in the padding.
        spatial: number of spatial axes.
        layout: order of the axes.
        **geometry: stride, padding and dilation.

    Returns:
        `(*batch, *positions, *window, channels)`, or the same in another layout.
    """
    inside = image("unfold", x, len(window) if isinstance(window, Sequence) else spatial, layout)
    axes = resolve("unfold", inside.sizes, window, **geometry)
    array = padded(inside.array, axes, pad_modes("unfold", pad_mode, len(axes)))
    y = windows(array, axes).unflatten(-1, [axis.window for axis in axes])
    y = inside._replace(layout=None).restore(y)
    return y if layout is None else y.permute(patches_order(layout, y.ndim, len(axes)))


def fold(patches: Any, size: Any, *, pad_mode: Any = "zeros", layout: str | None = None, **geometry: Any) -> Any:
    """Add windows to an image, as `funcconv.fold`.

    Args:
        patches: the tensor.
        size: spatial sizes of the image.
        pad_mode: values in the padding of `unfold`.
        layout: order of the axes of the image.
        **geometry: stride, padding and dilation.

    Returns:
        `(*batch, *size, channels)`, or the same in another layout.
    """
    if layout is not None:
        n = len(layout.replace("N", "")) - 1
        if "N" not in layout and patches.ndim == 2 * n + 2:  # the graph is called on a batch
            layout = f"N{layout}"
        order = patches_order(layout, patches.ndim, n)
        patches = patches.permute([order.index(axis) for axis in range(patches.ndim)])
    else:
        n = len(size) if isinstance(size, Sequence) else (patches.ndim - 2) // 2
    inside = image("fold", patches, 2 * n)  # (batch, channels, *positions, *window)
    window = tuple(inside.array.shape[2 + n :])
    axes = resolve("fold", per_axis("fold", "size", size, n, least=1), window, **geometry)
    array = wide(inside.array)
    for i, (axis, mode) in enumerate(zip(axes, pad_modes("fold", pad_mode, n), strict=True)):
        # (batch, channels, *sizes, *positions, *window), of which a position and a tap become a place of the image
        array = array.movedim(2 + n, 3 + i).flatten(2 + i, 3 + i)
        places = [
            source(str(mode), o * axis.stride + tap * axis.dilation - axis.lo, axis.size)
            for o in range(axis.outputs)
            for tap in range(axis.window)
        ]
        kept = [k for k, place in enumerate(places) if place is not None]
        shape = [axis.size if dim == 2 + i else length for dim, length in enumerate(array.shape)]
        copies = array.index_select(2 + i, indices(kept, array))
        array = array.new_zeros(shape).index_add(2 + i, indices([places[k] for k in kept], array), copies)
    return inside._replace(layout=layout).restore(array.to(patches.dtype))


def pixel_shuffle(
    x: Any, factor: Any, *, order: str = "pytorch", spatial: int | None = None, layout: str | None = None
) -> Any:
    """Move channels to positions, as `funcconv.pixel_shuffle`.

    Args:
        x: the tensor.
        factor: factor by which an axis becomes longer.
        order: the order of factors and channels.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        The image, in the layout of `x`.
    """
    inside = image("pixel_shuffle", x, len(factor) if isinstance(factor, Sequence) else spatial, layout)
    array, n = inside.array, len(inside.sizes)
    factors = per_axis("pixel_shuffle", "factor", factor, n, least=1)
    if order == "pytorch":
        array = array.unflatten(1, (-1, *factors))
    else:
        array = array.unflatten(1, (*factors, -1)).movedim(1 + n, 1)
    # (batch, channels, *factors, *sizes)
    array = array.permute(0, 1, *(axis for i in range(n) for axis in (2 + n + i, 2 + i)))
    return inside.restore(array.reshape(*array.shape[:2], *map(int.__mul__, inside.sizes, factors)))


def pixel_unshuffle(
    x: Any, factor: Any, *, order: str = "pytorch", spatial: int | None = None, layout: str | None = None
) -> Any:
    """Move positions to channels, as `funcconv.pixel_unshuffle`.

    Args:
        x: the tensor.
        factor: factor by which an axis becomes shorter.
        order: the order of factors and channels.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        The image, in the layout of `x`.
    """
    inside = image("pixel_unshuffle", x, len(factor) if isinstance(factor, Sequence) else spatial, layout)
    array, n = inside.array, len(inside.sizes)
    factors = per_axis("pixel_unshuffle", "factor", factor, n, least=1)
    for i, times in enumerate(factors):
        array = array.unflatten(2 + 2 * i, (-1, times))
    places, shifts = range(2, 2 + 2 * n, 2), range(3, 3 + 2 * n, 2)
    channels = (1, *shifts) if order == "pytorch" else (*shifts, 1)
    array = array.permute(0, *channels, *places)
    return inside.restore(array.reshape(array.shape[0], prod(array.shape[1 : 2 + n]), *array.shape[2 + n :]))

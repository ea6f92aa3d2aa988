"""Resizing and blurs on tensors: the counterparts of `funcconv.resize` and `blur_pool`."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np

from ....._ops.resampling.resize import binomial, scaled_sizes
from ....._windows.geometry import per_axis
from ....._windows.sampling import SELECTIONS, interpolated, samplings, selected
from ..convolutions import conv
from ..images import image, indices, wide
from ..lazy_torch import torch
from ..pools import adaptive_pool


def resize(
    x: Any,
    size: Any = None,
    *,
    scale: Any = None,
    method: str = "nearest",
    align_corners: bool = False,
    antialias: bool = False,
    coordinates: Any = None,
    cubic_coefficient: Any = None,
    exclude_outside: bool | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Resize the spatial axes, as `funcconv.resize`.

    Args:
        x: the tensor.
        size: spatial sizes of the result.
        scale: instead, the factors of the sizes.
        method: how a position is computed.
        align_corners: whether the centres of the ends are the same.
        antialias: whether the kernel is stretched where an axis becomes smaller.
        coordinates: other centres of the positions.
        cubic_coefficient: the coefficient of the cubic kernel.
        exclude_outside: whether inputs beyond the ends have no influence.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        The image, in the layout of `x`.
    """
    given = size if scale is None else scale
    inside = image("resize", x, len(given) if isinstance(given, Sequence) else spatial, layout)
    n = len(inside.sizes)
    scales: Sequence[float | None] = [None] * n
    if scale is None:
        new = per_axis("resize", "size", size, n, least=1)
    else:
        scales, new = scaled_sizes("resize", inside.sizes, scale)
    if method == "area":
        return inside.restore(adaptive_pool(inside.array.movedim(1, -1), new).movedim(-1, 1))
    axes = samplings(
        "resize",
        inside.sizes,
        new,
        scales,
        method=method,
        align_corners=align_corners,
        antialias=antialias,
        coordinates=coordinates,
        cubic_coefficient=cubic_coefficient,
        exclude_outside=exclude_outside,
    )
    array = wide(inside.array)
    for i, axis in enumerate(axes, start=2):
        if method in SELECTIONS:
            array = array.index_select(i, indices(selected(axis), x))
        else:
            array = _sums(array, i, interpolated(axis))
    return inside.restore(array.to(x.dtype))


def _sums(x: Any, dim: int, rows: Sequence[Sequence[tuple[int, float]]]) -> Any:
    """Return weighted sums along an axis, whose rows have pairs of a place and its weight."""
    total: Any = 0
    for term in range(max(map(len, rows))):
        pairs = [row[term] if term < len(row) else (row[0][0], 0.0) for row in rows]
        weights = torch.tensor([weight for _, weight in pairs], dtype=x.dtype, device=x.device)
        places = indices([place for place, _ in pairs], x)
        total = total + x.index_select(dim, places) * weights.reshape(-1, *[1] * (x.ndim - dim - 1))
    return total


def blur_pool(
    x: Any,
    window: Any = 3,
    *,
    stride: Any = 2,
    padding: Any = None,
    pad_mode: Any = "reflect",
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Blur each channel and keep every `stride`-th position, as `funcconv.blur_pool`.

    Args:
        x: the tensor.
        window: length of the filter.
        stride: step from one window to the next.
        padding: positions added before and after each axis.
        pad_mode: values in the padding.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        The image, in the layout of `x`.
    """
    inside = image("blur_pool", x, len(window) if isinstance(window, Sequence) else spatial, layout)
    windows = per_axis("blur_pool", "window", window, len(inside.sizes), least=1)
    if padding is None:
        padding = tuple(((k - 1) // 2, k // 2) for k in windows)
    array = wide(inside.array).movedim(1, -1)
    weights = torch.tensor(reduce(np.multiply.outer, map(binomial, windows)), dtype=array.dtype, device=x.device)
    kernel = weights[..., None, None].expand(*windows, 1, array.shape[-1])
    y = conv({"kernel": kernel}, array, stride=stride, padding=padding, pad_mode=pad_mode, groups=array.shape[-1])
    return inside.restore(y.movedim(-1, 1).to(x.dtype))

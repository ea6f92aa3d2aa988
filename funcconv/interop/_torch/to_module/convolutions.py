"""Convolutions on tensors: the counterparts of `funcconv.conv`, `conv_transpose` and `local_conv`."""

from collections.abc import Mapping, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from ...._common.errors import FuncconvError
from ...._ops.pooling.tap_counts import taking_part, tap_counts
from ...._windows.geometry import Axis, pad_modes, resolve, source
from ...._windows.transposed import transposed_sizes
from .images import Image, image, indices, is_symmetric, padded, torch_dtype, windows
from .lazy_torch import functional, torch

Params = Mapping[str, Any]
_MOST_SPATIAL_AXES = 3  # of PyTorch's convolutions


def conv(
    params: Params,
    x: Any,
    *,
    pad_mode: Any = "zeros",
    groups: int = 1,
    layout: str | None = None,
    flip: bool = False,
    precision: Any = None,
    accumulate_dtype: Any = None,
    renormalize: bool = False,
    implementation: str | None = None,
    **geometry: Any,
) -> Any:
    """Convolve `(*batch, *spatial, channels)`, as `funcconv.conv`.

    Args:
        params: kernel and bias, in the order of axes of the graph.
        x: the tensor.
        pad_mode: values in the padding.
        groups: number of groups of channels.
        layout: order of the axes.
        flip: whether the kernel is reversed.
        precision: has no counterpart in PyTorch, where the backend decides for all operations.
        accumulate_dtype: dtype of the sums.
        renormalize: whether to divide by the share of taps that are not padding.
        implementation: has no counterpart.
        **geometry: stride, padding and dilation.

    Returns:
        The result, in the layout of `x`.
    """
    del precision, implementation
    kernel, bias = _weights(params, accumulate_dtype, flip=flip)
    n = _spatial_axes("conv", kernel)
    inside = image("conv", x, n, layout)
    window = tuple(kernel.shape[:n])
    axes = resolve("conv", inside.sizes, window, **geometry)
    modes = pad_modes("conv", pad_mode, n)
    array = inside.array if accumulate_dtype is None else inside.array.to(kernel.dtype)
    padding = [0] * n
    if is_symmetric(axes, modes, "zeros"):
        padding = [axis.lo for axis in axes]
    else:
        array = padded(array, axes, modes)
    apply = getattr(functional, f"conv{n}d")
    weight = kernel.permute(-1, -2, *range(n))
    if not renormalize:
        y = apply(array, weight, bias, **_steps(axes), padding=padding, groups=groups)
        return inside.restore(y).to(x.dtype)
    counts = [tap_counts(axis, taking_part(axis, padded=False)) / axis.window for axis in axes]
    share = torch.as_tensor(reduce(np.multiply.outer, counts), dtype=array.dtype, device=array.device)
    y = apply(array, weight, None, **_steps(axes), padding=padding, groups=groups)
    y = torch.where(
        share > 0, y / share.clamp(min=1 / prod(window)) + (0 if bias is None else bias.reshape(-1, *[1] * n)), 0
    )
    return inside.restore(y).to(x.dtype)


def conv_transpose(
    params: Params,
    y: Any,
    *,
    size: Any = None,
    output_padding: Any = None,
    pad_mode: Any = "zeros",
    groups: int = 1,
    layout: str | None = None,
    flip: bool = False,
    precision: Any = None,
    accumulate_dtype: Any = None,
    implementation: str | None = None,
    **geometry: Any,
) -> Any:
    """Apply the transpose of a convolution, as `funcconv.conv_transpose`.

    Args:
        params: kernel and bias, in the order of axes of the graph.
        y: the tensor.
        size: spatial sizes of the result.
        output_padding: PyTorch's way to select the size.
        pad_mode: values in the padding of the convolution that is transposed.
        groups: number of groups of channels.
        layout: order of the axes.
        flip: whether the kernel is reversed.
        precision: has no counterpart in PyTorch, where the backend decides for all operations.
        accumulate_dtype: dtype of the sums.
        implementation: has no counterpart.
        **geometry: stride, padding and dilation.

    Returns:
        The result, in the layout of `y`.
    """
    del precision, implementation
    op = "conv_transpose"
    kernel, bias = _weights(params, accumulate_dtype, flip=flip)
    n = _spatial_axes(op, kernel)
    inside = image(op, y, n, layout)
    window = tuple(kernel.shape[:n])
    options = {"stride": 1, "padding": 0, "dilation": 1} | geometry
    sizes = transposed_sizes(op, inside.sizes, window, size=size, output_padding=output_padding, **options)
    axes = resolve(op, sizes, window, **options)
    axes = tuple(axis._replace(outputs=count) for axis, count in zip(axes, inside.sizes, strict=True))
    modes = pad_modes(op, pad_mode, n)
    array = inside.array if accumulate_dtype is None else inside.array.to(kernel.dtype)
    apply = getattr(functional, f"conv_transpose{n}d")
    weight = kernel.permute(-1, -2, *range(n))
    full = [(axis.outputs - 1) * axis.stride + axis.extent for axis in axes]  # without padding
    extra = [axis.size - (length - 2 * axis.lo) for axis, length in zip(axes, full, strict=True)]
    fits = all(0 <= more < max(axis.stride, axis.dilation) for axis, more in zip(axes, extra, strict=True))
    if fits and is_symmetric(axes, modes, "zeros"):
        padding = [axis.lo for axis in axes]
        x = apply(array, weight, bias, **_steps(axes), padding=padding, output_padding=extra, groups=groups)
        return inside.restore(x).to(y.dtype)
    x = apply(array, weight, None, **_steps(axes), groups=groups)
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True)):
        x = _without_padding(x, 2 + i, axis, str(mode))
    x = x if bias is None else x + bias.reshape(-1, *[1] * n)
    return inside.restore(x).to(y.dtype)


def _without_padding(x: Any, dim: int, axis: Axis, mode: str) -> Any:
    """Apply the transpose of padding to one axis: each position gets the sum of its copies."""
    places = [source(mode, position - axis.lo, axis.size) for position in range(x.shape[dim])]
    kept = [i for i, place in enumerate(places) if place is not None]
    shape = [axis.size if i == dim else size for i, size in enumerate(x.shape)]
    copies = x if len(kept) == len(places) else x.index_select(dim, indices(kept, x))
    return x.new_zeros(shape).index_add(dim, indices([places[i] for i in kept], x), copies)


def local_conv(
    params: Params,
    x: Any,
    *,
    pad_mode: Any = "zeros",
    groups: int = 1,
    layout: str | None = None,
    flip: bool = False,
    precision: Any = None,
    accumulate_dtype: Any = None,
    **geometry: Any,
) -> Any:
    """Convolve with another kernel at every position, as `funcconv.local_conv`.

    Args:
        params: kernel and bias, in the order of axes of the graph.
        x: the tensor.
        pad_mode: values in the padding.
        groups: number of groups of channels.
        layout: order of the axes.
        flip: whether the kernels are reversed.
        precision: has no counterpart in PyTorch, where the backend decides for all operations.
        accumulate_dtype: dtype of the sums.
        **geometry: stride, padding and dilation.

    Returns:
        The result, in the layout of `x`.
    """
    del precision
    n = (params["kernel"].ndim - 2) // 2
    kernel, bias = _weights(params, accumulate_dtype, flip=flip, first_axis=n, window_axes=n)
    inside: Image = image("local_conv", x, n, layout)
    axes = resolve("local_conv", inside.sizes, tuple(kernel.shape[n : 2 * n]), **geometry)
    array = inside.array if accumulate_dtype is None else inside.array.to(kernel.dtype)
    taps = windows(padded(array, axes, pad_modes("local_conv", pad_mode, n)), axes)
    # b: batch, g: groups, c: channels of a group, p: positions, t: taps, o: channels of the result in a group
    taps = taps.flatten(2, -2).unflatten(1, (groups, -1))
    weight = kernel.flatten(n, 2 * n - 1).flatten(0, n - 1).unflatten(-1, (groups, -1))
    y = torch.einsum("bgcpt,ptcgo->bgop", taps, weight).flatten(1, 2)
    y = y.unflatten(2, [axis.outputs for axis in axes])
    if bias is not None:
        y = y + (bias.movedim(-1, 0) if bias.ndim > 1 else bias.reshape(-1, *[1] * n))
    return inside.restore(y).to(x.dtype)


def _weights(
    params: Params, accumulate_dtype: Any, *, flip: bool, first_axis: int = 0, window_axes: int | None = None
) -> tuple[Any, Any]:
    """Return the kernel and the bias as they are used."""
    kernel, bias = params["kernel"], params.get("bias")
    if flip:
        n = kernel.ndim - 2 if window_axes is None else window_axes
        kernel = kernel.flip(tuple(range(first_axis, first_axis + n)))
    if accumulate_dtype is not None:
        dtype = torch_dtype(accumulate_dtype)
        kernel, bias = kernel.to(dtype), None if bias is None else bias.to(dtype)
    return kernel, bias


def _spatial_axes(op: str, kernel: Any) -> int:
    n = kernel.ndim - 2
    if not 1 <= n <= _MOST_SPATIAL_AXES:
        msg = f"{op}: PyTorch has convolutions of 1 to 3 spatial axes; the kernel has {n}"
        raise FuncconvError(msg)
    return int(n)


def _steps(axes: Sequence[Axis]) -> dict[str, list[int]]:
    return {"stride": [axis.stride for axis in axes], "dilation": [axis.dilation for axis in axes]}

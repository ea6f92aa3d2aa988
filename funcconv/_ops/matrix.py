"""Convolutions as matrices and as dense layers, and dense layers as convolutions."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.dtypes import in_wide, wide
from .._common.errors import FuncconvError, suggest
from .._common.types import Array, Padding, PadMode, Params, Shape, Sizes
from .._windows.geometry import Axis, pad_modes, per_axis, resolve, source
from .._windows.layout import channels_last_order, spatial_of_layout
from .parameters import check_groups, entry

_ORDERS = ("channels_last", "channels_first")


def conv_matrix(
    params: Params,
    spatial_shape: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: str | None = None,
    flip: bool = False,
    sparse: bool = False,
) -> Any:
    """Write a convolution as the matrix `M` with `conv(params, x).ravel() == M @ x.ravel()`.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`, the parameters of the convolution. The
            matrix leaves out the bias, which is not linear.
        spatial_shape: sizes of the spatial axes of the image. One integer for all of them, or one per axis.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the convolution gives
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        layout: order in which the axes of `x` and of the result are flattened by `ravel`, such as `"CHW"`: `C` is the
            channels, and each other letter is a spatial axis. `N` is ignored. Default: None, channels last.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        sparse: whether to return a `jax.experimental.sparse.BCOO` matrix, sorted by rows, that stores only the entries
            to which the kernel contributes. Default: False.

    Returns:
        The matrix, `(positions * out, size * in)`, with the dtype of the kernel. It is differentiable with respect to
        the kernel.

    Raises:
        FuncconvError: if there is no kernel, if groups do not match it, if an option has another value than listed
            above, or if a window does not fit.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.conv_matrix({"kernel": jnp.array([3, 2]).reshape(2, 1, 1)}, (4,)).tolist()
        [[3, 2, 0, 0], [0, 3, 2, 0], [0, 0, 3, 2]]
    """
    op = "conv_matrix"
    kernel, _ = entry(op, params)
    n = kernel.ndim - 2
    if n < 1 or 0 in kernel.shape:
        msg = f"{op}: the kernel must be (*window, in // groups, out), with no axis empty; got shape {kernel.shape}"
        raise FuncconvError(msg)
    check_groups(op, groups, kernel.shape)
    sizes = per_axis(op, "spatial_shape", spatial_shape, n, least=1)
    axes = resolve(op, sizes, kernel.shape[:n], stride=stride, padding=padding, dilation=dilation)
    if flip:
        kernel = lax.rev(kernel, range(n))
    *window, inputs, outputs = kernel.shape
    positions, channels = tuple(axis.outputs for axis in axes), inputs * groups
    layout = _layout_of_one_image(op, n, layout)

    # The entries of the matrix, as a table over (positions, taps, channels of a group, outputs). Each has a row (the
    # output at a position), a column (the input that the tap reads) and a weight of the kernel.
    sources = [_sources(axis, mode) for axis, mode in zip(axes, pad_modes(op, pad_mode, n), strict=True)]
    position_output = np.indices((*positions, outputs)).reshape(n + 1, -1, 1, 1, outputs)
    tap_channel = np.indices((*window, inputs)).reshape(n + 1, 1, -1, inputs, 1)
    pixel = [sources[i][position_output[i], tap_channel[i]] for i in range(n)]
    channel = tap_channel[n] + position_output[n] // (outputs // groups) * inputs
    shape = np.broadcast_shapes(
        *(index.shape for index in (*pixel, channel)), position_output[0].shape, tap_channel[0].shape
    )
    on_image = np.broadcast_to(functools.reduce(np.logical_and, [index >= 0 for index in pixel]), shape)
    columns = _ravel([*pixel, channel], (*sizes, channels), layout, on_image)
    rows = _ravel(position_output, (*positions, outputs), layout, on_image)
    weights = np.ravel_multi_index([*tap_channel, position_output[n]], kernel.shape)
    weights = np.broadcast_to(weights, shape)[on_image]

    order = np.lexsort((columns, rows))
    # In float32 for 16-bit kernels: taps that read the same input are added up (padding can repeat inputs), and the
    # gradient of a weight is the sum over all windows.
    data = kernel.astype(wide(kernel.dtype)).ravel()[weights[order]]
    indices = np.stack([rows[order], columns[order]], axis=1)
    matrix_shape = (math.prod(positions) * outputs, math.prod(sizes) * channels)
    if sparse:
        return _sparse(data.astype(kernel.dtype), indices, matrix_shape)
    return jnp.zeros(matrix_shape, data.dtype).at[indices[:, 0], indices[:, 1]].add(data).astype(kernel.dtype)


def _sparse(data: Array, indices: np.ndarray, shape: Shape) -> Any:
    """Return a sparse matrix with these entries, sorted by rows."""
    from jax.experimental.sparse import BCOO

    unique = len(np.unique(indices, axis=0)) == len(indices)  # padding can make two taps read the same input
    return BCOO((data, jnp.asarray(indices)), shape=shape, indices_sorted=True, unique_indices=unique)


def conv_to_dense(
    params: Params, spatial_shape: Sizes | None = None, *, order: str = "channels_last", **options: Any
) -> dict[str, Array]:
    """Turn a convolution into the dense layer that gives the same result for the flattened image.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`, the parameters of the convolution. The bias
            may be missing.
        spatial_shape: sizes of the spatial axes of the image. One integer for all of them, or one per axis. Default:
            None, the window, which leaves one position.
        order: order of the features of the input and of the result, as in `flatten`: `"channels_last"` or
            `"channels_first"`. Default: `"channels_last"`.
        **options: the other options of the convolution. `stride`, `dilation` and `padding` are numbers, one for all
            spatial axes or one per axis (`padding` also a name, such as `"SAME"`, or pairs). `groups` is the number of
            groups of channels, `pad_mode` the values in the padding, and `flip=True` reverses the kernel. Defaults:
            stride 1, dilation 1, padding 0, 1 group, `"zeros"`, False.

    Returns:
        `{"kernel": (size * in, positions * out), "bias": (positions * out,)}`, without the bias if the convolution has
        none.

    Raises:
        FuncconvError: if groups do not match the kernel, if an option or the order is unknown, or if a window does not
            fit.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params, x = fc.init_conv(jax.random.key(0), 3, 8, (3, 3)), jnp.ones((1, 5, 5, 3))
        >>> y = fc.dense(fc.conv_to_dense(params, (5, 5)), fc.flatten(x))
        >>> bool(jnp.allclose(y, fc.flatten(fc.conv(params, x)), atol=1e-5))
        True
    """
    _check_order("conv_to_dense", order)
    kernel, bias = entry("conv_to_dense", params)
    n = kernel.ndim - 2
    channels_first = order == "channels_first"
    if spatial_shape is None and not options:  # one window that covers the image: the kernel is the matrix
        kernel = jnp.moveaxis(kernel, -2, 0) if channels_first else kernel
        return _params(kernel.reshape(-1, kernel.shape[-1]), bias)
    letters = _layout_of_one_image("conv_to_dense", n, None)
    layout = "C" + letters.replace("C", "") if channels_first else None
    matrix = conv_matrix(params, kernel.shape[:n] if spatial_shape is None else spatial_shape, layout=layout, **options)
    if bias is not None:
        positions = matrix.shape[0] // bias.shape[0]
        repeated = jnp.repeat if channels_first else jnp.tile
        bias = in_wide(lambda bias: repeated(bias, positions), bias)
    return _params(matrix.T, bias)


def dense_to_conv(params: Params, spatial_shape: Sizes, *, order: str = "channels_last") -> dict[str, Array]:
    """Turn a dense layer on a flattened image into the convolution whose window is that image.

    For an image of that size the convolution gives the same result, at its one position. On a larger image the window
    slides and gives one result at each position.

    Args:
        params: `{"kernel": (features, out), "bias": (out,)}`, the parameters of the dense layer. The bias may be
            missing.
        spatial_shape: sizes of the spatial axes of the image that was flattened, a tuple with one integer per axis.
        order: order in which the image was flattened: `"channels_last"` (Keras, Flax) or `"channels_first"` (PyTorch).
            Default: `"channels_last"`.

    Returns:
        `{"kernel": (*spatial_shape, in, out), "bias": (out,)}`, without the bias if the dense layer has none.

    Raises:
        FuncconvError: if the number of features is not a multiple of the number of positions, or the order is unknown.

    Source: Long, Shelhamer and Darrell, "Fully convolutional networks", 2015, arXiv:1411.4038.

    Example:
        >>> import funcconv as fc, jax
        >>> params = fc.init_dense(jax.random.key(0), 5 * 5 * 3, 10)
        >>> fc.dense_to_conv(params, (5, 5))["kernel"].shape
        (5, 5, 3, 10)
    """
    op = "dense_to_conv"
    _check_order(op, order)
    kernel, bias = entry(op, params)
    if isinstance(spatial_shape, int):
        msg = f"{op}: spatial_shape must be a tuple, one size for each spatial axis; got {spatial_shape}"
        raise FuncconvError(msg)
    sizes = per_axis(op, "spatial_shape", spatial_shape, len(spatial_shape), least=1)
    if kernel.ndim != 2 or kernel.shape[0] % math.prod(sizes):
        msg = (
            f"{op}: a kernel of shape {kernel.shape} is not (features, out) with features a multiple of {sizes}, "
            f"which has {math.prod(sizes)} positions"
        )
        raise FuncconvError(msg)
    channels = kernel.shape[0] // math.prod(sizes)
    if order == "channels_last":
        return _params(kernel.reshape(*sizes, channels, -1), bias)
    return _params(jnp.moveaxis(kernel.reshape(channels, *sizes, -1), 0, -2), bias)


def _params(kernel: Array, bias: Array | None) -> dict[str, Array]:
    return {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias}


def _sources(axis: Axis, mode: str | None) -> np.ndarray:
    """Return the input that each tap of each window reads, `(outputs, window)`, with -1 for a zero of the padding."""
    starts = [position * axis.stride - axis.lo for position in range(axis.outputs)]
    inputs = (source(str(mode), start + t * axis.dilation, axis.size) for start in starts for t in range(axis.window))
    return np.array([-1 if i is None else i for i in inputs]).reshape(axis.outputs, axis.window)


def _ravel(index: Any, shape: Shape, layout: str, mask: np.ndarray) -> np.ndarray:
    """Return the flat indices of `(*spatial, channel)` indices, where `mask` holds, in an array with this layout."""
    channels_last = channels_last_order("conv_matrix", layout, len(shape))
    order = [channels_last.index(axis) for axis in range(len(shape))]
    indices = [np.broadcast_to(index[i], mask.shape)[mask] for i in order]
    return np.asarray(np.ravel_multi_index(indices, [shape[i] for i in order]))


def _layout_of_one_image(op: str, n: int, layout: str | None) -> str:
    """Return the layout without batch axes; the default is channels last."""
    if layout is None:  # any distinct letters name the spatial axes
        return "".join(chr(ord("a") + i) for i in range(n)) + "C"
    if spatial_of_layout(op, layout) != n:
        msg = f"{op}: layout must have {n} spatial axes, as many as the kernel; got {layout!r}"
        raise FuncconvError(msg)
    return layout.replace("N", "")


def _check_order(op: str, order: str) -> None:
    if order not in _ORDERS:
        msg = f"{op}: unknown order {order!r}{suggest(order, _ORDERS)}"
        raise FuncconvError(msg)

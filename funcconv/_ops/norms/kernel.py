"""Normalization of kernels, for each output channel."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import scale_of, wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, Number, Params
from ..._windows.layout import as_array
from .standardize import check_epsilon, kernel_of, scaled, standardized


def weight_standardize(params: Params, /, *, spatial: int | None = None, epsilon: Number = 1e-5) -> dict[str, Any]:
    """Normalize a kernel: `kernel = (kernel - mean) / sqrt(var + epsilon)` for each output channel.

    Mean and variance (with the divisor n) are computed over the window and the input channels.

    Args:
        params: `{"kernel": (*window, in // groups, out), ...}`, the parameters of `conv` or `dense`; other entries are
            returned unchanged. Do not use it for `conv_transpose`, whose kernel does not have its output channels last.
        spatial: number of window axes. Give it for `local_conv`, whose kernel has the positions before the window.
            Default: None, all axes but the last two.
        epsilon: positive number added to the variance. Default: 1e-5.

    Returns:
        Parameters of the same shapes and dtypes.

    Raises:
        FuncconvError: if there is no kernel, if it is not floating, if it has fewer than `spatial + 2` axes, or if
            `epsilon` is not positive.

    Source: Qiao et al., "Micro-batch training with batch-channel normalization and weight standardization", 2019,
    arXiv:1903.10520.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0, 10.0], [3.0, 30.0]])}
        >>> fc.weight_standardize(params)["kernel"].round(3).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    kernel = kernel_of("weight_standardize", params)
    check_epsilon("weight_standardize", epsilon)
    window_axes = kernel.ndim - 2 if spatial is None else spatial
    if not 0 <= window_axes <= kernel.ndim - 2:
        window = "*window" if spatial is None else f"{spatial} window axes"
        msg = f"weight_standardize: the kernel must be ({window}, in // groups, out); got shape {kernel.shape}"
        raise FuncconvError(msg)
    normalized_axes = tuple(range(kernel.ndim - 2 - window_axes, kernel.ndim - 1))
    y, _, _ = standardized(kernel.astype(wide(kernel.dtype)), normalized_axes, epsilon)
    return {**params, "kernel": y.astype(kernel.dtype)}


def weight_norm(params: Params, /, *, axis: int | Sequence[int] | None = -1) -> dict[str, Any]:
    """Compute a kernel from its direction and its norm: `kernel = scale * v / ||v||` for each output channel.

    `v` is the entry `"kernel"`, and the norm is the root of the sum of the squares over the window and the input
    channels. The lengths of `v` and of its gradient do not matter then. `init_weight_norm` makes the first scale.

    Args:
        params: `{"kernel": (*window, in // groups, out), "scale": (out,), ...}`, the parameters of `conv` or `dense`
            with a scale; other entries are returned unchanged.
        axis: axis of the kernel, or a tuple of axes, along which each slice has a norm and a scale of its own; the
            scale has their sizes, in the order of the kernel. None: the whole kernel has one norm, and the scale has
            shape `()`. Pass `(0, 1, -1)` for a `local_conv` with two spatial axes, whose kernel has the positions
            before the window. Default: -1, the output channels of `conv` and `dense`.

    Returns:
        The parameters without the scale. The kernel has the shape and dtype of `v`. For float16 and bfloat16, the norm
        is computed in float32. If `||v||` is 0, where the direction is not defined, the kernel is 0 and all its
        derivatives are 0.

    Raises:
        FuncconvError: if there is no kernel or no scale, if the kernel is not floating, or if the scale has a wrong
            shape or dtype.

    Source: Salimans and Kingma, "Weight normalization", 2016, arXiv:1602.07868.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, -4.0]]), "scale": jnp.array([10.0, 1.0])}
        >>> fc.weight_norm(params)["kernel"].tolist()
        [[10.0, 0.0], [0.0, -1.0]]
    """
    kernel = kernel_of("weight_norm", params)
    if params.get("scale") is None:
        msg = (
            'weight_norm: params must be {"kernel": array, "scale": array, ...}; they have no scale. '
            "fc.init_weight_norm(params) adds the one with which the kernel does not change"
        )
        raise FuncconvError(msg)
    scale = as_array("weight_norm", "the scale", params["scale"])
    if scale.dtype not in (kernel.dtype, wide(kernel.dtype)):
        msg = f"weight_norm: the kernel is {kernel.dtype} but the scale is {scale.dtype}; cast one of them"
        raise FuncconvError(msg)
    kept = _kept_axes("weight_norm", axis, kernel.ndim)
    shape = tuple(kernel.shape[i] for i in kept)
    if scale.shape != shape:
        msg = (
            f"weight_norm: with axis={axis!r}, the scale of a kernel of shape {kernel.shape} must have shape {shape}; "
            f"got {scale.shape}"
        )
        raise FuncconvError(msg)
    order = (*(i for i in range(kernel.ndim) if i not in kept), *kept)
    slices = kernel.astype(wide(kernel.dtype)).transpose(order)
    summed = range(kernel.ndim - len(kept))
    slices, squares, _ = _squares(slices, tuple(summed))
    is_zero = squares == 0
    inverse = jnp.where(is_zero, 0, lax.rsqrt(jnp.where(is_zero, 1, squares)))
    y = scaled(slices * inverse, scale, None).transpose([order.index(i) for i in range(kernel.ndim)])
    others = {name: value for name, value in params.items() if name != "scale"}
    return {**others, "kernel": y.astype(kernel.dtype)}


def init_weight_norm(params: Params, /, *, axis: int | Sequence[int] | None = -1) -> dict[str, Any]:
    """Add the scale of `weight_norm` to parameters: the norm of each slice, so that the kernel does not change.

    Args:
        params: `{"kernel": (*window, in // groups, out), ...}`, such as `init_conv` returns.
        axis: axis of the kernel, or a tuple of axes, along which each slice has a norm of its own. None: the whole
            kernel has one. Default: -1, the output channels of `conv` and `dense`.

    Returns:
        The parameters and `"scale"`, with the sizes of these axes and the dtype of the kernel.

    Raises:
        FuncconvError: if there is no kernel, it is not floating, or it does not have the axes.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.init_weight_norm({"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]])})["scale"].tolist()
        [5.0, 2.0]
    """
    kernel = kernel_of("init_weight_norm", params)
    kept = _kept_axes("init_weight_norm", axis, kernel.ndim)
    summed = tuple(i for i in range(kernel.ndim) if i not in kept)
    _, squares, size = _squares(kernel.astype(wide(kernel.dtype)), summed)
    scale = (jnp.sqrt(squares) * size).reshape([kernel.shape[i] for i in kept])
    return {**params, "scale": scale.astype(kernel.dtype)}


def _kept_axes(op: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return axes of a kernel as sorted numbers from 0."""
    axes = () if axis is None else tuple(axis) if isinstance(axis, Sequence) else (axis,)
    valid = all(isinstance(i, int) and not isinstance(i, bool) and -ndim <= i < ndim for i in axes)
    if not valid or len({i % ndim for i in axes}) < len(axes):
        msg = (
            f"{op}: axis must be None, an integer or a tuple of different integers from {-ndim} to {ndim - 1}, the "
            f"axes of the kernel; got {axis!r}"
        )
        raise FuncconvError(msg)
    return tuple(sorted(i % ndim for i in axes))


def _squares(x: Array, axes: Sequence[int]) -> tuple[Array, Array, Array]:
    """Return numbers divided by a constant for each slice, the sums of their squares, and the constants.

    The constant is the largest number of a slice, so that no square overflows or underflows.
    """
    size = scale_of(x, axes, keepdims=True)
    x = x / size
    return x, jnp.square(x).sum(axes, keepdims=True), size

"""Normalization of kernels, for each output channel."""

from collections.abc import Mapping
from typing import Any

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Number, Params
from ..._windows.layout import as_array
from .standardize import check_epsilon, check_floating, standardized


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
    if not isinstance(params, Mapping) or params.get("kernel") is None:
        shown = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        msg = f'weight_standardize: params must be {{"kernel": array, ...}}; got {shown}'
        raise FuncconvError(msg)
    kernel = as_array("weight_standardize", "the kernel", params["kernel"])
    check_floating("weight_standardize", "the kernel", kernel)
    check_epsilon("weight_standardize", epsilon)
    window_axes = kernel.ndim - 2 if spatial is None else spatial
    if not 0 <= window_axes <= kernel.ndim - 2:
        window = "*window" if spatial is None else f"{spatial} window axes"
        msg = f"weight_standardize: the kernel must be ({window}, in // groups, out); got shape {kernel.shape}"
        raise FuncconvError(msg)
    normalized_axes = tuple(range(kernel.ndim - 2 - window_axes, kernel.ndim - 1))
    y, _, _ = standardized(kernel.astype(wide(kernel.dtype)), normalized_axes, epsilon)
    return {**params, "kernel": y.astype(kernel.dtype)}

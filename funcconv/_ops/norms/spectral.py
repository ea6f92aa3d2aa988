"""Kernels divided by an operator norm, which a power iteration follows through training."""

from collections.abc import Mapping
from typing import Any

import jax

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Padding, PadMode, Params, Sizes
from ..._windows.geometry import pad_modes, per_axis, resolve
from ..conv import conv
from ..parameters import check_groups, check_kernel
from .power_iteration import BilinearMap, kernel_matrix, normalized, unit
from .standardize import kernel_of

_NORMS = ("kernel", "conv")


def spectral_norm(
    params: Params,
    state: Mapping[str, Any],
    /,
    *,
    norm: str = "kernel",
    spatial_shape: Sizes | None = None,
    train: bool = False,
    iterations: int = 1,
    axis: int = -1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
) -> tuple[dict[str, Any], dict[str, Array]]:
    r"""Divide a kernel by an operator norm, so that the norm of the result is 1 as soon as the state has converged.

    The state holds unit vectors `left` and `right`. A power iteration replaces `left` by the linear map `A` applied to
    `right`, and then `right` by the transpose of `A` applied to `left`, both divided by their length. Then

    $$kernel \leftarrow kernel / \sigma, \qquad \sigma = \langle left, A(right) \rangle$$

    Args:
        params: `{"kernel": array, ...}`, the parameters of `conv` or `dense`; other entries are returned unchanged.
        state: `{"left": array, "right": array}`. `init_spectral_norm` makes the first one.
        norm: the linear map `A` whose norm is used. `"kernel"`: the kernel as a matrix from all its axes but `axis` to
            `axis`, as in PyTorch. `"conv"`: the convolution, from images of size `spatial_shape` to its results; this
            is the norm that bounds how much the convolution can enlarge a difference of images. Default: `"kernel"`.
        spatial_shape: sizes of the spatial axes of the image, for `norm="conv"`. One integer for all of them, or one
            per axis. Default: None, for `norm="kernel"`.
        train: whether to run the power iteration and to return a new state; a Python bool. Default: False.
        iterations: number of power iterations with `train=True`, at least 1. Default: 1.
        axis: axis of the kernel that is the output of the matrix, for `norm="kernel"`. PyTorch's choice is -1 for
            `conv` and `dense`, and -2 for `conv_transpose`, whose kernel is that of the convolution that it
            transposes. Default: -1.
        stride: for `norm="conv"`: step from one window to the next, in positions. One integer for all spatial axes, or
            one per axis. Default: 1.
        padding: for `norm="conv"`: positions added before and after each spatial axis, as in `conv`: one integer, one
            integer per axis, one pair `(before, after)` per axis, or one of the names `"VALID"`, `"SAME"`,
            `"SAME_LOWER"`, `"HALF"`, `"FULL"` and `"CAUSAL"`. Default: 0.
        dilation: for `norm="conv"`: step from one tap of a window to the next, in positions. One integer for all
            spatial axes, or one per axis. Default: 1.
        groups: for `norm="conv"`: number of groups of channels. Default: 1.
        pad_mode: for `norm="conv"`: values in the padding: `"zeros"`, `"reflect"`, `"symmetric"`, `"replicate"` or
            `"circular"`. One mode for all spatial axes, or one per axis. Default: `"zeros"`.

    Returns:
        A pair `(params, state)`: parameters of the same shapes and dtypes, and the next state. Derivatives treat `left`
        and `right` as constants, as in PyTorch: the first derivative of the norm is exact once they have converged. A
        kernel of zeros is returned unchanged.

    Raises:
        FuncconvError: if there is no floating kernel, if the state does not fit the kernel and the options, or if an
            option has another value than listed above.

    Source: Miyato et al., "Spectral normalization for generative adversarial networks", 2018, arXiv:1802.05957. The
        norm of the convolution: Gouk et al., "Regularisation of neural networks by enforcing Lipschitz continuity",
        2018, arXiv:1804.04368.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
        >>> state = fc.init_spectral_norm(jax.random.key(0), params)
        >>> params, state = fc.spectral_norm(params, state, train=True, iterations=20)
        >>> params["kernel"].round(3).tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    op = "spectral_norm"
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    options |= {"groups": groups, "pad_mode": pad_mode}
    linear_map = _linear_map(op, kernel_of(op, params), norm, spatial_shape, axis, options)
    return normalized(op, params, state, linear_map, train=train, iterations=iterations)


def init_spectral_norm(
    key: Array,
    params: Params,
    /,
    *,
    norm: str = "kernel",
    spatial_shape: Sizes | None = None,
    iterations: int = 15,
    axis: int = -1,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
) -> dict[str, Array]:
    """Return the first state of `spectral_norm`: random unit vectors after some power iterations.

    Args:
        key: random key.
        params: `{"kernel": array, ...}`, the parameters of `conv` or `dense`.
        norm: `"kernel"`, the norm of the kernel as a matrix, or `"conv"`, the norm of the convolution as a linear map
            on images of size `spatial_shape`. Default: `"kernel"`.
        spatial_shape: sizes of the spatial axes of the image, for `norm="conv"`. One integer for all of them, or one
            per axis. Default: None, for `norm="kernel"`.
        iterations: number of power iterations, at least 1. Default: 15, as in PyTorch.
        axis: axis of the kernel that is the output of the matrix, for `norm="kernel"`. Default: -1.
        stride: for `norm="conv"`, as the other options that follow: the stride of the convolution. Default: 1.
        padding: the padding of the convolution. Default: 0.
        dilation: the dilation of the convolution. Default: 1.
        groups: the number of groups of channels. Default: 1.
        pad_mode: the values in the padding. Default: `"zeros"`.

    Returns:
        `{"left": (out,), "right": (*window, in // groups)}` for `norm="kernel"`, and
        `{"left": (*positions, out), "right": (*spatial, in)}` for `norm="conv"`; float32 for a kernel of 16 bits,
        otherwise with the dtype of the kernel.

    Raises:
        FuncconvError: if there is no floating kernel, or an option has another value than listed above.

    Example:
        >>> import funcconv as fc, jax
        >>> params = fc.init_conv(jax.random.key(0), 3, 8, (5, 5))
        >>> state = fc.init_spectral_norm(jax.random.key(1), params, norm="conv", spatial_shape=(32, 32), padding=2)
        >>> state["left"].shape, state["right"].shape
        ((32, 32, 8), (32, 32, 3))
    """
    op = "init_spectral_norm"
    kernel = kernel_of(op, params)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    options |= {"groups": groups, "pad_mode": pad_mode}
    linear_map = _linear_map(op, kernel, norm, spatial_shape, axis, options)
    left_key, right_key = jax.random.split(key)
    state = {
        "left": unit(jax.random.normal(left_key, linear_map.left_shape, wide(kernel.dtype))),
        "right": unit(jax.random.normal(right_key, linear_map.right_shape, wide(kernel.dtype))),
    }
    return normalized(op, params, state, linear_map, train=True, iterations=iterations)[1]


def check_norm(op: str, norm: Any) -> None:
    """Raise an error if there is no norm of this name."""
    if norm not in _NORMS:
        msg = f"{op}: unknown norm {norm!r}{suggest(norm, _NORMS)}"
        raise FuncconvError(msg)


def _linear_map(
    op: str, kernel: Array, norm: str, spatial_shape: Sizes | None, axis: int, options: dict[str, Any]
) -> BilinearMap:
    """Return the linear map whose norm is used."""
    check_norm(op, norm)
    if (spatial_shape is None) != (norm == "kernel"):
        msg = (
            f'{op}: norm="conv" needs spatial_shape, the sizes of the image, and norm="kernel" does not use it; got '
            f"norm={norm!r} and spatial_shape={spatial_shape!r}"
        )
        raise FuncconvError(msg)
    if norm == "kernel":
        return kernel_matrix(op, kernel, axis)
    check_kernel(op, kernel)
    groups = options["groups"]
    check_groups(op, groups, kernel.shape)
    sizes = per_axis(op, "spatial_shape", spatial_shape, kernel.ndim - 2, least=1)  # type: ignore[arg-type]
    pad_mode = pad_modes(op, options["pad_mode"], len(sizes))
    axes = resolve(op, sizes, kernel.shape[:-2], **{name: options[name] for name in ("stride", "padding", "dilation")})
    resolved = (*axes, pad_mode, groups)
    positions = tuple(axis.outputs for axis in axes)
    return BilinearMap(_convolved, resolved, (*positions, kernel.shape[-1]), (*sizes, kernel.shape[-2] * groups))


def _convolved(resolved: tuple[Any, ...], kernel: Array, x: Array) -> Array:
    *axes, pad_mode, groups = resolved
    return conv(
        {"kernel": kernel},
        x,
        stride=[axis.stride for axis in axes],
        padding=[(axis.lo, axis.hi) for axis in axes],
        dilation=[axis.dilation for axis in axes],
        groups=groups,
        pad_mode=pad_mode,
        precision="highest",
    )

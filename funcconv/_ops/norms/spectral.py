"""Kernels divided by an operator norm, which a power iteration follows through training."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import scale_of, wide
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Padding, PadMode, Params, Shape, Sizes
from ..._windows.geometry import per_axis, resolve
from ..._windows.layout import as_array
from ..conv import conv
from ..parameters import check_groups, check_kernel
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
    kernel = kernel_of(op, params)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    options |= {"groups": groups, "pad_mode": pad_mode}
    forward, left_shape, right_shape = _linear_map(op, kernel, norm, spatial_shape, axis, options)
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        msg = f"{op}: iterations must be an integer of at least 1; got {iterations!r}"
        raise FuncconvError(msg)
    left = _vector(op, state, "left", left_shape)
    right = _vector(op, state, "right", right_shape)
    wide_kernel = kernel.astype(wide(kernel.dtype))
    scale = scale_of(wide_kernel)  # so that no square of a number overflows
    unit_kernel = wide_kernel / scale
    left, right = left.astype(unit_kernel.dtype), right.astype(unit_kernel.dtype)
    if train:
        left, right = _iterated(forward, lax.stop_gradient(unit_kernel), left, right, iterations)
    left, right = lax.stop_gradient(left), lax.stop_gradient(right)
    sigma = jnp.vdot(left, forward(unit_kernel, right), precision="highest")
    # For a kernel of zeros, and only there, the norm is 0.
    normalized = unit_kernel / jnp.where(sigma == 0, 1, sigma)
    return {**params, "kernel": normalized.astype(kernel.dtype)}, {
        "left": left.astype(state["left"].dtype),
        "right": right.astype(state["right"].dtype),
    }


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
    _, left_shape, right_shape = _linear_map(op, kernel, norm, spatial_shape, axis, options)
    left_key, right_key = jax.random.split(key)
    state = {
        "left": _unit(jax.random.normal(left_key, left_shape, wide(kernel.dtype))),
        "right": _unit(jax.random.normal(right_key, right_shape, wide(kernel.dtype))),
    }
    return spectral_norm(
        params, state, norm=norm, spatial_shape=spatial_shape, axis=axis, train=True, iterations=iterations, **options
    )[1]


def _linear_map(
    op: str, kernel: Array, norm: str, spatial_shape: Sizes | None, axis: int, options: dict[str, Any]
) -> tuple[Callable[[Array, Array], Array], Shape, Shape]:
    """Return the linear map as a function of the kernel and an input, and the shapes of its output and its input."""
    if norm not in _NORMS:
        msg = f"{op}: unknown norm {norm!r}{suggest(norm, _NORMS)}"
        raise FuncconvError(msg)
    if (spatial_shape is None) != (norm == "kernel"):
        msg = (
            f'{op}: norm="conv" needs spatial_shape, the sizes of the image, and norm="kernel" does not use it; got '
            f"norm={norm!r} and spatial_shape={spatial_shape!r}"
        )
        raise FuncconvError(msg)
    if norm == "kernel":
        if kernel.ndim < 2 or 0 in kernel.shape or not -kernel.ndim <= axis < kernel.ndim:
            msg = f"{op}: the kernel must have at least two axes, none empty, and the axis {axis}; got {kernel.shape}"
            raise FuncconvError(msg)
        axis = axis % kernel.ndim
        right_shape = kernel.shape[:axis] + kernel.shape[axis + 1 :]

        def product(kernel: Array, right: Array) -> Array:
            columns = jnp.moveaxis(kernel, axis, -1)
            return jnp.tensordot(right, columns, right.ndim, precision="highest")

        return product, kernel.shape[axis : axis + 1], right_shape
    check_kernel(op, kernel)
    groups = options["groups"]
    check_groups(op, groups, kernel.shape)
    sizes = per_axis(op, "spatial_shape", spatial_shape, kernel.ndim - 2, least=1)  # type: ignore[arg-type]
    geometry = {name: options[name] for name in ("stride", "padding", "dilation")}
    positions = tuple(axis.outputs for axis in resolve(op, sizes, kernel.shape[:-2], **geometry))
    right_shape = (*sizes, kernel.shape[-2] * groups)
    return lambda kernel, x: conv({"kernel": kernel}, x, **options), (*positions, kernel.shape[-1]), right_shape


def _vector(op: str, state: Mapping[str, Any], name: str, shape: Shape) -> Array:
    given = state.get(name) if isinstance(state, Mapping) else None
    if given is None or getattr(given, "shape", None) != shape:
        described = getattr(given, "shape", type(given).__name__)
        msg = f"{op}: the state must have {name!r} of shape {shape}; got {described}. init_spectral_norm makes a state"
        raise FuncconvError(msg)
    return as_array(op, f"the state {name!r}", given)


def _iterated(
    forward: Callable[[Array, Array], Array], kernel: Array, left: Array, right: Array, iterations: int
) -> tuple[Array, Array]:
    """Return both vectors after some power iterations."""
    transpose: Callable[[Array], tuple[Array]] = jax.linear_transpose(lambda x: forward(kernel, x), right)

    def iteration(_: Any, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        left = _unit(forward(kernel, vectors[1]))
        (right,) = transpose(left)
        return left, _unit(right)

    if iterations == 1:
        return iteration(0, (left, right))
    vectors: tuple[Array, Array] = lax.fori_loop(0, iterations, iteration, (left, right))
    return vectors


def _unit(x: Array) -> Array:
    """Return `x` divided by its length, or zeros as they are."""
    length = jnp.linalg.norm(x.ravel())
    return x / jnp.where(length == 0, 1, length)

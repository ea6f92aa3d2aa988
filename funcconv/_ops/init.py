"""Initial parameters of convolutions and dense layers."""

import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.nn import initializers

from .._common.errors import FuncconvError, suggest
from .._common.initializers import glorot_uniform, normal, uniform
from .._common.types import Array, DTypeLike, Initializer, Shape, Sizes
from .._windows.geometry import per_axis

INITS: dict[str, Callable[..., Array]] = {
    "lecun_normal": normal(1, initializers.lecun_normal()),
    "glorot_uniform": glorot_uniform,
    "he_normal": normal(2, initializers.he_normal()),
}


def init_conv(
    key: Array,
    in_channels: int,
    out_channels: int,
    window: Sizes,
    *,
    groups: int = 1,
    bias: bool = True,
    init: Initializer = "lecun_normal",
    dtype: DTypeLike | None = None,
    spatial: int | None = None,
) -> dict[str, Array]:
    """Draw random initial parameters of a convolution.

    Args:
        key: a JAX random key. The keys of kernel and bias are derived from it and their names.
        in_channels: number of channels of the input.
        out_channels: number of channels of the result.
        window: taps of the kernel (PyTorch's `kernel_size`). A tuple with one integer per spatial axis, or one integer
            for all axes together with `spatial`.
        groups: number of groups of channels, which must divide both numbers of channels. Default: 1.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups` and `fan_out = taps * out_channels`.
            Except for `"torch"` the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        spatial: number of spatial axes. Give it if `window` is an integer. Default: None.

    Returns:
        `{"kernel": (*window, in // groups, out), "bias": (out,)}`.

    Raises:
        FuncconvError: if a number is not positive, if the groups do not divide the channels, if `init` is unknown, or
            if `window` is one integer and `spatial` is None.

    Source: LeCun et al., "Efficient backprop", 1998; Glorot and Bengio, 2010; He et al., 2015, arXiv:1502.01852.

    Example:
        >>> import funcconv as fc, jax
        >>> params = fc.init_conv(jax.random.key(0), 3, 8, (5, 5))
        >>> params["kernel"].shape, params["bias"].shape
        ((5, 5, 3, 8), (8,))
    """
    window, shape = _conv_kernel("init_conv", in_channels, out_channels, window, groups, spatial)
    return _draw("init_conv", key, shape, shape[-1:] if bias else None, init, dtype)


def init_conv_transpose(
    key: Array,
    in_channels: int,
    out_channels: int,
    window: Sizes,
    *,
    groups: int = 1,
    bias: bool = True,
    init: Initializer = "lecun_normal",
    dtype: DTypeLike | None = None,
    spatial: int | None = None,
) -> dict[str, Array]:
    """Draw random initial parameters of a transposed convolution.

    Args:
        key: a JAX random key. The keys of kernel and bias are derived from it and their names.
        in_channels: number of channels of the input.
        out_channels: number of channels of the result.
        window: taps of the kernel (PyTorch's `kernel_size`). A tuple with one integer per spatial axis, or one integer
            for all axes together with `spatial`.
        groups: number of groups of channels, which must divide both numbers of channels. Default: 1.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups`, but for `"torch"` it is
            `taps * out_channels // groups`, as PyTorch counts; `fan_out = taps * out_channels`. Except for `"torch"`
            the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        spatial: number of spatial axes. Give it if `window` is an integer. Default: None.

    Returns:
        `{"kernel": (*window, out // groups, in), "bias": (out,)}`, the kernel of the convolution that is transposed.

    Raises:
        FuncconvError: if a number is not positive, if the groups do not divide the channels, if `init` is unknown, or
            if `window` is one integer and `spatial` is None.

    Example:
        >>> import funcconv as fc, jax
        >>> params = fc.init_conv_transpose(jax.random.key(0), 8, 3, (4, 4))
        >>> params["kernel"].shape, params["bias"].shape
        ((4, 4, 3, 8), (3,))
    """
    op = "init_conv_transpose"
    window, shape = _conv_kernel(op, in_channels, out_channels, window, groups, spatial)
    fan_in = math.prod(window) * out_channels // groups
    params = _draw(op, key, shape, (out_channels,) if bias else None, init, dtype, torch_fan_in=fan_in)
    # The kernel is drawn with the fan-in of the transposed map; then the channels of each group change places:
    # (*window, in // groups, groups * out // groups) -> (*window, out // groups, groups * in // groups)
    kernel = params["kernel"].reshape(*shape[:-1], groups, out_channels // groups)
    kernel = jnp.moveaxis(kernel, (-3, -1), (-1, -3))
    return params | {"kernel": kernel.reshape(*window, out_channels // groups, in_channels)}


def init_local_conv(
    key: Array,
    in_channels: int,
    out_channels: int,
    window: Sizes,
    positions: Sequence[int],
    *,
    groups: int = 1,
    bias: bool = True,
    init: Initializer = "lecun_normal",
    dtype: DTypeLike | None = None,
) -> dict[str, Array]:
    """Draw random initial parameters of a convolution with unshared weights.

    Args:
        key: a JAX random key. The keys of kernel and bias are derived from it and their names.
        in_channels: number of channels of the input.
        out_channels: number of channels of the result.
        window: taps of each kernel (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
        positions: number of windows on each spatial axis, a tuple.
        groups: number of groups of channels, which must divide both numbers of channels. Default: 1.
        bias: whether to add a bias, a separate one at every position. Default: True.
        init: how to draw the kernel of each position: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance
            `2 / fan_in`), `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform
            within `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = taps * in_channels // groups` and `fan_out = taps * out_channels`.
            Except for `"torch"` the bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.

    Returns:
        `{"kernel": (*positions, *window, in // groups, out), "bias": (*positions, out)}`.

    Raises:
        FuncconvError: if a number is not positive, the groups do not divide the channels, or `init` is unknown.

    Example:
        >>> import funcconv as fc, jax
        >>> fc.init_local_conv(jax.random.key(0), 1, 4, 3, (6, 6))["kernel"].shape
        (6, 6, 3, 3, 1, 4)
    """
    op = "init_local_conv"
    positions = per_axis(op, "positions", positions, len(positions), least=1)
    _, shape = _conv_kernel(op, in_channels, out_channels, window, groups, len(positions))
    bias_shape = shape[-1:] if bias else None

    def draw(position: Array) -> dict[str, Array]:
        return _draw(op, jax.random.fold_in(key, position), shape, bias_shape, init, dtype)

    # A loop, so that the fan-in is the one of a single position and the program does not grow with their number.
    params = jax.lax.map(draw, jnp.arange(math.prod(positions)))
    return {name: array.reshape(*positions, *array.shape[1:]) for name, array in params.items()}


def init_dense(
    key: Array,
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    init: Initializer = "lecun_normal",
    dtype: DTypeLike | None = None,
) -> dict[str, Array]:
    """Draw random initial parameters of a dense layer.

    Args:
        key: a JAX random key. The keys of kernel and bias are derived from it and their names.
        in_features: number of features of the input.
        out_features: number of features of the result.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = in_features` and `fan_out = out_features`. Except for `"torch"` the
            bias is zero. Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.

    Returns:
        `{"kernel": (in, out), "bias": (out,)}`.

    Raises:
        FuncconvError: if a number is not positive or `init` is unknown.

    Example:
        >>> import funcconv as fc, jax
        >>> fc.init_dense(jax.random.key(0), 10, 2, bias=False)["kernel"].shape
        (10, 2)
    """
    shape = per_axis("init_dense", "features", (in_features, out_features), 2, least=1)
    return _draw("init_dense", key, shape, shape[1:] if bias else None, init, dtype)


def fold_in_name(key: Array, name: str) -> Array:
    """Derive a key from `key` and a name only, so that the order in which parameters are drawn does not matter."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))  # not hash(), which differs from process to process


def _conv_kernel(
    op: str, in_channels: int, out_channels: int, window: Sizes, groups: int, spatial: int | None
) -> tuple[Shape, Shape]:
    """Return the window and the shape `(*window, in // groups, out)` of the kernel."""
    if not isinstance(window, Sequence) and spatial is None:
        msg = (
            f"{op}: the number of spatial axes must be known; got window={window!r}. Pass a tuple, such as "
            f"{(window,) * 2}, or spatial="
        )
        raise FuncconvError(msg)
    axes = spatial if spatial is not None else len(window)  # type: ignore[arg-type]
    window = per_axis(op, "window", window, axes, least=1)
    in_channels, out_channels, _ = per_axis(op, "channels and groups", (in_channels, out_channels, groups), 3, least=1)
    if in_channels % groups or out_channels % groups:
        msg = f"{op}: {groups} groups must divide the {in_channels} input and the {out_channels} output channels"
        raise FuncconvError(msg)
    return window, (*window, in_channels // groups, out_channels)


def _draw(
    op: str,
    key: Array,
    shape: Shape,
    bias_shape: Shape | None,
    init: Initializer,
    dtype: DTypeLike | None,
    torch_fan_in: int | None = None,
) -> dict[str, Array]:
    """Draw a kernel and, unless `bias_shape` is None, a bias."""
    dtype = jnp.result_type(float) if dtype is None else dtype
    kernel_init: Callable[..., Array] = init if callable(init) else initializers.zeros
    bias_init: Callable[..., Array] = initializers.zeros
    if init == "torch":
        bound = 1 / math.sqrt(torch_fan_in or math.prod(shape[:-1]))
        kernel_init = bias_init = partial(uniform, bound=bound)
    elif not callable(init):
        if not isinstance(init, str) or init not in INITS:
            msg = f"{op}: unknown init {init!r}{suggest(init, (*INITS, 'torch'))}"
            raise FuncconvError(msg)
        kernel_init = INITS[init]
    params = {"kernel": kernel_init(fold_in_name(key, "kernel"), shape, dtype)}
    if bias_shape is not None:
        params["bias"] = bias_init(fold_in_name(key, "bias"), bias_shape, dtype)
    return params

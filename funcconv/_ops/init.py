"""Drawing parameters."""

import math
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn import initializers

from .._common.errors import FuncconvError, suggest
from .._common.initializers import glorot_uniform, normal
from .._common.types import Array, DTypeLike, Initializer, Shape, Sizes
from .._windows.geometry import per_axis

INITS = {
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
    """Draw the parameters of a convolution.

    Args:
        key: a JAX random key; kernel and bias have keys folded from it by their names.
        in_channels: channels of the input.
        out_channels: channels of the result.
        window: taps on each spatial axis; with an integer, `spatial` says how many axes there are.
        groups: see `conv`.
        bias: whether there is one.
        init: how to draw the kernel, where `fan_in = taps * in_channels // groups`. `"lecun_normal"` has variance
            1 / fan_in, `"he_normal"` 2 / fan_in, `"glorot_uniform"` 2 / (fan_in + fan_out). `"torch"` draws kernel
            and bias uniformly from ±1 / sqrt(fan_in), as PyTorch's layers do. Or a function of `(key, shape, dtype)`
            such as those of `jax.nn.initializers`. The bias is otherwise zero.
        dtype: of the parameters; None is JAX's default float.
        spatial: the number of spatial axes, where an integer window leaves it open.

    Returns:
        `{"kernel": (*window, in // groups, out), "bias": (out,)}`.

    Raises:
        FuncconvError: if a number is not positive, the groups do not divide the channels, or `init` is unknown.

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
    """Draw the parameters of a transposed convolution.

    Args:
        key: a JAX random key.
        in_channels: channels that the transposed convolution takes.
        out_channels: channels that it gives.
        window: see `init_conv`.
        groups: see `conv`.
        bias: whether there is one.
        init: see `init_conv`; the fan-in is `taps * in_channels // groups`, though a stride lets each output see only
            some of the taps. For `"torch"` it is `taps * out_channels // groups`, PyTorch's own count.
        dtype: see `init_conv`.
        spatial: see `init_conv`.

    Returns:
        `{"kernel": (*window, out // groups, in), "bias": (out,)}`: the kernel of the convolution that is transposed.

    Raises:
        FuncconvError: as `init_conv`.

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
    """Draw the parameters of a convolution with unshared weights.

    Args:
        key: a JAX random key.
        in_channels: channels of the input.
        out_channels: channels of the result.
        window: taps on each spatial axis.
        positions: windows on each spatial axis.
        groups: see `conv`.
        bias: whether there is one, of its own at every position.
        init: see `init_conv`; each position's kernel is drawn by itself.
        dtype: see `init_conv`.

    Returns:
        `{"kernel": (*positions, *window, in // groups, out), "bias": (*positions, out)}`.

    Raises:
        FuncconvError: as `init_conv`.

    Example:
        >>> import funcconv as fc, jax
        >>> fc.init_local_conv(jax.random.key(0), 1, 4, 3, (6, 6))["kernel"].shape
        (6, 6, 3, 3, 1, 4)
    """
    op = "init_local_conv"
    positions = per_axis(op, "positions", positions, len(positions), least=1)
    _, shape = _conv_kernel(op, in_channels, out_channels, window, groups, len(positions))
    bias_shape = shape[-1:] if bias else None

    def at(position: Array) -> dict[str, Array]:
        return _draw(op, jax.random.fold_in(key, position), shape, bias_shape, init, dtype)

    params = jax.lax.map(at, jnp.arange(math.prod(positions)))
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
    """Draw the parameters of a dense layer.

    Args:
        key: a JAX random key.
        in_features: features of the input.
        out_features: features of the result.
        bias: whether there is one.
        init: see `init_conv`; the fan-in is `in_features`.
        dtype: see `init_conv`.

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


def init_norm(
    shape: Sizes, *, scale: bool = True, bias: bool = True, dtype: DTypeLike | None = None
) -> dict[str, Array]:
    """Return the parameters that a normalization starts from: it neither scales nor shifts.

    Args:
        shape: the number of channels, or for `layer_norm` the sizes of the last axes.
        scale: whether there is one.
        bias: whether there is one.
        dtype: see `init_conv`.

    Returns:
        `{"scale": ones, "bias": zeros}` of that shape.

    Raises:
        FuncconvError: if a size is not positive.

    Example:
        >>> import funcconv as fc
        >>> {name: array.tolist() for name, array in fc.init_norm(2).items()}
        {'scale': [1.0, 1.0], 'bias': [0.0, 0.0]}
    """
    sizes = per_axis("init_norm", "shape", shape, len(shape) if isinstance(shape, Sequence) else 1, least=1)
    dtype = jnp.result_type(float) if dtype is None else dtype
    params = {"scale": jnp.ones(sizes, dtype)} if scale else {}
    return params | ({"bias": jnp.zeros(sizes, dtype)} if bias else {})


def init_batch_stats(channels: int, *, dtype: DTypeLike | None = None) -> dict[str, Array]:
    """Return the state that `batch_norm` starts from: mean 0 and variance 1.

    Args:
        channels: of its input.
        dtype: of the state, float32 even if the input is narrower; None is JAX's default float.

    Returns:
        `{"mean": (channels,), "var": (channels,)}`.

    Raises:
        FuncconvError: if the number is not positive.

    Example:
        >>> import funcconv as fc
        >>> fc.init_batch_stats(2)["var"].tolist()
        [1.0, 1.0]
    """
    sizes = per_axis("init_batch_stats", "channels", channels, 1, least=1)
    dtype = jnp.result_type(float) if dtype is None else dtype
    return {"mean": jnp.zeros(sizes, dtype), "var": jnp.ones(sizes, dtype)}


def fold_in_name(key: Array, name: str) -> Array:
    """Return a key that depends on `key` and a name, and on nothing that happened before."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def _conv_kernel(
    op: str, in_channels: int, out_channels: int, window: Sizes, groups: int, spatial: int | None
) -> tuple[Shape, Shape]:
    """Return the window and the shape `(*window, in // groups, out)`."""
    if not isinstance(window, Sequence) and spatial is None:
        msg = (
            f"{op}: how many spatial axes has the window {window!r}? Give a tuple, such as {(window,) * 2}, or spatial="
        )
        raise FuncconvError(msg)
    n = spatial if spatial is not None else len(window)  # type: ignore[arg-type]
    window = per_axis(op, "window", window, n, least=1)
    channels = per_axis(op, "channels and groups", (in_channels, out_channels, groups), 3, least=1)
    if in_channels % groups or out_channels % groups:
        msg = f"{op}: {groups} groups must divide the {in_channels} input and the {out_channels} output channels"
        raise FuncconvError(msg)
    return window, (*window, channels[0] // groups, channels[1])


def _draw(
    op: str,
    key: Array,
    shape: Shape,
    bias_shape: Shape | None,
    init: Initializer,
    dtype: DTypeLike | None,
    torch_fan_in: int | None = None,
) -> dict[str, Array]:
    dtype = jnp.result_type(float) if dtype is None else dtype
    kernel_init: Callable[..., Array] = init if callable(init) else initializers.zeros
    bias_init: Callable[..., Array] = initializers.zeros
    if init == "torch":
        bound = 1 / math.sqrt(torch_fan_in or math.prod(shape[:-1]))

        def uniform(key: Array, shape: Shape, dtype: DTypeLike) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        kernel_init = bias_init = uniform
    elif isinstance(init, str):
        if init not in INITS:
            msg = f"{op}: unknown init {init!r}{suggest(init, (*INITS, 'torch'))}"
            raise FuncconvError(msg)
        kernel_init = INITS[init]
    params = {"kernel": kernel_init(fold_in_name(key, "kernel"), shape, dtype)}
    if bias_shape is not None:
        params["bias"] = bias_init(fold_in_name(key, "bias"), bias_shape, dtype)
    return params

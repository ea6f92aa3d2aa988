"""Normalization of activations and kernels: subtract the mean, divide by the standard deviation, scale and shift."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import wide
from .._common.errors import FuncconvError, suggest
from .._common.mesh_axes import axis_size
from .._common.types import Array, ArrayLike, Number, Params
from .._windows.geometry import channels_last_order
from .._windows.layout import as_array, image
from .standardize import standardized

_ENTRIES = ("scale", "bias")


def layer_norm(params: Params, x: ArrayLike, /, *, axes: int | None = None, epsilon: Number = 1e-5) -> Array:
    """Normalize over the last axes: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the last axes of `x`, the axes that scale and bias have. So
    each example, or each position of it, is normalized separately.

    Args:
        params: `{"scale": shape, "bias": shape}`, where `shape` is the sizes of the last axes of `x`; either may be
            missing.
        x: `(*batch, *shape)`, floating. An input `(*batch, *spatial, channels)` is normalized at each position if the
            scale has shape `(channels,)`, and over the whole image if it has shape `(*spatial, channels)`.
        axes: number of last axes to normalize over. Default: None, as many as scale or bias have, or 1 without them.
        epsilon: positive number added to the variance. Default: 1e-5.

    Returns:
        An array like `x`. For float16 and bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if scale or bias have a wrong shape or dtype, or the input is not floating.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.layer_norm({}, jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    x, scale, bias = _read("layer_norm", params, x, epsilon)
    shapes = {each.shape for each in (scale, bias) if each is not None}
    count = (len(next(iter(shapes))) if shapes else 1) if axes is None else axes
    if isinstance(count, bool) or not 1 <= count <= x.ndim:
        msg = f"layer_norm: axes must be from 1 to {x.ndim}, the axes of the input {x.shape}; got {count}"
        raise FuncconvError(msg)
    if shapes - {x.shape[x.ndim - count :]}:
        found = " and ".join(map(str, sorted(shapes)))
        msg = f"layer_norm: scale and bias must have the last {count} axes of the input {x.shape}; got {found}"
        raise FuncconvError(msg)
    over = tuple(range(x.ndim - count, x.ndim))
    y, _, _ = standardized(x.astype(wide(x.dtype)), over, epsilon)
    return _scaled(y, scale, bias).astype(x.dtype)


def group_norm(
    params: Params,
    x: ArrayLike,
    /,
    groups: int,
    *,
    epsilon: Number = 1e-5,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    """Normalize each example by groups of channels: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the positions and the channels of a group. One group gives
    layer norm over the whole image, and one group per channel gives instance norm.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing.
        x: `(*batch, *spatial, channels)`, floating. Pass `layout` for another order.
        groups: number of groups, which must divide the number of channels. Each group consists of neighbouring
            channels.
        epsilon: positive number added to the variance. Default: 1e-5.
        spatial: number of spatial axes. Give it if there is not exactly one batch axis. Default: None, all axes but the
            first and the last.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        An array like `x`. For float16 and bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if the groups do not divide the channels, or scale or bias have a wrong shape or dtype.

    Source: Wu and He, "Group normalization", 2018, arXiv:1803.08494.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one example, two positions, two channels
        >>> fc.group_norm({}, x, 2).round(3).tolist()
        [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    x, scale, bias = _read("group_norm", params, x, epsilon)
    inside = image("group_norm", x, spatial, "spatial=", layout, least=0)
    array = inside.array
    channels = array.shape[-1]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        msg = f"group_norm: groups must be a positive integer that divides the {channels} channels; got {groups!r}"
        raise FuncconvError(msg)
    _check_channels("group_norm", channels, scale=scale, bias=bias)
    high = array.astype(wide(x.dtype)).reshape(*array.shape[:-1], groups, channels // groups)
    over = (*range(1, array.ndim - 1), array.ndim)
    y, _, _ = standardized(high, over, epsilon)
    return inside.restore(_scaled(y.reshape(array.shape), scale, bias).astype(x.dtype))


def batch_norm(
    params: Params,
    state: Mapping[str, Any],
    x: ArrayLike,
    /,
    *,
    train: bool = False,
    momentum: Number = 0.9,
    epsilon: Number = 1e-5,
    unbiased: bool = True,
    axis_name: Hashable | None = None,
    layout: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Normalize each channel over the batch: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    With `train=True`, mean and variance (with the divisor n) are computed over all axes but the channels, and the
    running ones are updated: `running = momentum * running + (1 - momentum) * batch`. With `train=False`, the running
    mean and variance are used. A large mean costs no accuracy, and no intermediate result overflows or underflows. A
    running variance that is too large for its dtype becomes the largest number of that dtype.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing.
        state: the running `{"mean": (channels,), "var": (channels,)}`. `init_batch_stats` makes the first one.
        x: `(*batch, *spatial, channels)`, floating. Pass `layout` for another order.
        train: whether to normalize by the mean and variance of the batch and to update the running ones; a Python bool.
            Default: False, normalize by the running ones.
        momentum: share of the old running mean and variance that is kept, from 0 to 1. PyTorch calls `1 - momentum`
            momentum. Default: 0.9.
        epsilon: positive number added to the variance. Default: 1e-5.
        unbiased: whether the running variance follows the batch variance with the divisor n - 1, as in PyTorch, instead
            of n, as in Flax and Keras. Default: True.
        axis_name: name of a mapped axis (`jax.vmap`, `jax.shard_map`) over which the batch is also distributed, or a
            tuple of names. Arrays that are sharded under `jax.jit` need none. Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        A pair `(y, state)`: an array like `x`, and the next state, with the dtype of the old one. For float16 and
        bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if an entry of `params` or `state` has a wrong shape or dtype, or if `train=True` and a channel has
            fewer than two numbers, which would all become the bias.

    Source: Ioffe and Szegedy, "Batch normalization", 2015, arXiv:1502.03167.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x, state = jnp.array([[1.0], [3.0]]), fc.init_batch_stats(1)
        >>> y, state = fc.batch_norm({}, state, x, train=True)
        >>> y.round(3).tolist(), round(float(state["mean"][0]), 3)
        ([[-1.0], [1.0]], 0.2)
    """
    x, scale, bias = _read("batch_norm", params, x, epsilon)
    if not 0 <= momentum <= 1:
        msg = f"batch_norm: momentum must be from 0 to 1; got {momentum!r}"
        raise FuncconvError(msg)
    order = range(x.ndim) if layout is None else channels_last_order("batch_norm", layout, x.ndim)
    if not x.ndim:
        msg = "batch_norm: the input must be (*batch, *spatial, channels); got one number"
        raise FuncconvError(msg)
    array = x.transpose(order)
    high = array.astype(wide(x.dtype))
    running = _running(state, array.shape[-1])
    _check_channels("batch_norm", array.shape[-1], scale=scale, bias=bias)
    if train:
        over = tuple(range(high.ndim - 1))
        count = high.size // max(high.shape[-1], 1) * (1 if axis_name is None else axis_size("batch_norm", axis_name))
        if count < 2:
            msg = (
                f"batch_norm: to train on, each channel needs two numbers or more; the input {x.shape} has {count}. "
                "Give a larger batch, or train=False to normalize by the running figures"
            )
            raise FuncconvError(msg)
        standard, mean, var = standardized(high, over, epsilon, axis_name)
        seen = {"mean": mean, "var": var * (count / (count - 1)) if unbiased else var}
        running = {name: _moved(old, seen[name].reshape(-1), momentum) for name, old in running.items()}
    else:
        mean, var = (_last(running[name], high) for name in ("mean", "var"))
        standard = (high - mean) * lax.rsqrt(var + epsilon)
    y = _scaled(standard, scale, bias).astype(x.dtype)
    return y.transpose([list(order).index(i) for i in range(y.ndim)]), running


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
        FuncconvError: if there is no kernel, it is not floating, or it has fewer than `spatial + 2` axes.

    Source: Qiao et al., "Micro-batch training with batch-channel normalization and weight standardization", 2019,
    arXiv:1903.10520.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0, 10.0], [3.0, 30.0]])}
        >>> fc.weight_standardize(params)["kernel"].round(3).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """
    if not isinstance(params, Mapping) or params.get("kernel") is None:
        msg = 'weight_standardize: params must be {"kernel": array, ...}'
        raise FuncconvError(msg)
    kernel = as_array("weight_standardize", "the kernel", params["kernel"])
    _check_floating("weight_standardize", "the kernel", kernel)
    _check_epsilon("weight_standardize", epsilon)
    n = kernel.ndim - 2 if spatial is None else spatial
    if not 0 <= n <= kernel.ndim - 2:
        msg = f"weight_standardize: a kernel of shape {kernel.shape} has not {max(n, 0)} axes of window, in and out"
        raise FuncconvError(msg)
    high = kernel.astype(wide(kernel.dtype))
    over = tuple(range(kernel.ndim - 2 - n, kernel.ndim - 1))
    return {**params, "kernel": standardized(high, over, epsilon)[0].astype(kernel.dtype)}


def _moved(old: Array, seen: Array, momentum: Number) -> Array:
    """Return a running figure after a batch; if it is beyond the largest number of its dtype, that number."""
    largest = jnp.finfo(old.dtype).max  # type: ignore[no-untyped-call]
    seen = seen.astype(old.dtype)
    new = momentum * old + (1 - momentum) * jnp.where(seen > largest, largest, seen)
    return jnp.where(new > largest, largest, new)


def _scaled(x: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        x = x * _last(scale, x)
    return x if bias is None else x + _last(bias, x)


def _last(values: Array, x: Array) -> Array:
    """Return what is given for the last axes of `x`, with as many axes and of its dtype."""
    return values.astype(x.dtype).reshape((1,) * (x.ndim - values.ndim) + values.shape)


def _read(op: str, params: Params, x: ArrayLike, epsilon: Number) -> tuple[Array, Array | None, Array | None]:
    """Return the input, the scale and the bias, of one dtype or of that in which figures are computed."""
    if not isinstance(params, Mapping):
        msg = f'{op}: params must be {{"scale": array, "bias": array}}, either of which may be missing; got {params!r}'
        raise FuncconvError(msg)
    for name in params:
        if name not in _ENTRIES:
            msg = f"{op}: params have an unknown entry {name!r}{suggest(name, _ENTRIES)}"
            raise FuncconvError(msg)
    x = as_array(op, "the input", x)
    _check_floating(op, "the input", x)
    _check_epsilon(op, epsilon)
    found: list[Array | None] = []
    for name in _ENTRIES:
        array = None if params.get(name) is None else as_array(op, f"the {name}", params[name])
        if array is not None and array.dtype not in (x.dtype, wide(x.dtype)):
            msg = f"{op}: the input is {x.dtype} but the {name} is {array.dtype}; cast one of them"
            raise FuncconvError(msg)
        found.append(array)
    return x, *found  # type: ignore[return-value]


def _running(state: Mapping[str, Any], channels: int) -> dict[str, Array]:
    if not isinstance(state, Mapping) or set(state) != {"mean", "var"}:
        shown = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        msg = (
            f'batch_norm: the state must be {{"mean": array, "var": array}}, as init_batch_stats makes it; got {shown}'
        )
        raise FuncconvError(msg)
    running = {name: as_array("batch_norm", f"the running {name}", state[name]) for name in ("mean", "var")}
    for name, array in running.items():
        _check_floating("batch_norm", f"the running {name}", array)
    _check_channels("batch_norm", channels, **{f"running {name}": array for name, array in running.items()})
    return running


def _check_channels(op: str, channels: int, **arrays: Array | None) -> None:
    for name, array in arrays.items():
        if array is not None and array.shape != (channels,):
            msg = f"{op}: the input has {channels} channels, but the {name} has shape {array.shape}"
            raise FuncconvError(msg)


def _check_floating(op: str, name: str, array: Array) -> None:
    if not jnp.issubdtype(array.dtype, jnp.floating):
        msg = f"{op}: {name} is {array.dtype}, but must be floating"
        raise FuncconvError(msg)


def _check_epsilon(op: str, epsilon: Number) -> None:
    if not epsilon > 0:
        msg = f"{op}: epsilon must be above 0; got {epsilon!r}"
        raise FuncconvError(msg)

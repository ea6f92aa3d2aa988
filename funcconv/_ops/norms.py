"""Normalization of activations and kernels: subtract the mean, divide by the standard deviation, scale and shift."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.mesh_axes import axis_size, last_axes_like
from .._common.types import Array, ArrayLike, Number, Params
from .._windows.layout import as_array, channels_last_order, image
from .standardize import (
    as_last_axes,
    check_channels,
    check_epsilon,
    check_floating,
    read_inputs,
    scaled,
    standardized,
)


def layer_norm(params: Params, x: ArrayLike, /, *, axes: int | None = None, epsilon: Number = 1e-5) -> Array:
    """Normalize over the last axes: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the last axes of `x`, the axes that scale and bias have. So
    each example, or each position of it, is normalized separately.

    Args:
        params: `{"scale": shape, "bias": shape}`, where `shape` is the sizes of the last axes of `x`; either may be
            missing. They have the dtype of `x`, or float32 if `x` has 16 bits.
        x: `(*batch, *shape)`, floating. An input `(*batch, *spatial, channels)` is normalized at each position if the
            scale has shape `(channels,)`, and over the whole image if it has shape `(*spatial, channels)`.
        axes: number of last axes to normalize over. Default: None, as many as scale or bias have, or 1 without them.
        epsilon: positive number added to the variance. Default: 1e-5.

    Returns:
        An array like `x`. For float16 and bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if scale or bias have a wrong shape or dtype, if the input is not floating, or if `axes` or
            `epsilon` is out of range.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.layer_norm({}, jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    x, scale, bias = read_inputs("layer_norm", params, x, epsilon)
    shapes = {array.shape for array in (scale, bias) if array is not None}
    count = (len(next(iter(shapes))) if shapes else 1) if axes is None else axes
    if isinstance(count, bool) or not 1 <= count <= x.ndim:
        msg = f"layer_norm: axes must be from 1 to {x.ndim}, the axes of the input {x.shape}; got {count}"
        raise FuncconvError(msg)
    if shapes - {x.shape[x.ndim - count :]}:
        shape_texts = " and ".join(map(str, sorted(shapes)))
        msg = f"layer_norm: scale and bias must have the last {count} axes of the input {x.shape}; got {shape_texts}"
        raise FuncconvError(msg)
    normalized_axes = tuple(range(x.ndim - count, x.ndim))
    y, _, _ = standardized(x.astype(wide(x.dtype)), normalized_axes, epsilon)
    return scaled(y, scale, bias).astype(x.dtype)


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
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing. They have the dtype of `x`, or
            float32 if `x` has 16 bits.
        x: `(*batch, *spatial, channels)`, floating. Pass `layout` for another order.
        groups: number of groups, which must divide the number of channels. Each group consists of neighbouring
            channels.
        epsilon: positive number added to the variance. Default: 1e-5.
        spatial: number of spatial axes. Give it if there is not exactly one batch axis. Default: None, all axes but the
            first and the last.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. The letters also set the number of spatial axes.
            Default: None, channels last.

    Returns:
        An array like `x`. For float16 and bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if the groups do not divide the channels, if scale or bias have a wrong shape or dtype, if the
            input is not floating, or if `epsilon` is not positive.

    Source: Wu and He, "Group normalization", 2018, arXiv:1803.08494.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one example, two positions, two channels
        >>> fc.group_norm({}, x, 2).round(3).tolist()
        [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    x, scale, bias = read_inputs("group_norm", params, x, epsilon)
    inside = image("group_norm", x, spatial, "spatial=", layout, least=0)
    array = inside.array
    channels = array.shape[-1]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        msg = f"group_norm: groups must be a positive integer that divides the {channels} channels; got {groups!r}"
        raise FuncconvError(msg)
    check_channels("group_norm", channels, scale=scale, bias=bias)
    # (batch, *spatial, groups, channels // groups), normalized over all axes but the batch and the groups
    grouped = array.astype(wide(x.dtype)).reshape(*array.shape[:-1], groups, channels // groups)
    y, _, _ = standardized(grouped, (*range(1, array.ndim - 1), array.ndim), epsilon)
    return inside.restore(scaled(y.reshape(array.shape), scale, bias).astype(x.dtype))


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
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing. They have the dtype of `x`, or
            float32 if `x` has 16 bits.
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
        FuncconvError: if an entry of `params` or `state` has a wrong shape or dtype, if the input is not floating, if
            `momentum` or `epsilon` is out of range, or if `train=True` and a channel has fewer than two numbers, which
            would all become the bias.

    Source: Ioffe and Szegedy, "Batch normalization", 2015, arXiv:1502.03167.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x, state = jnp.array([[1.0], [3.0]]), fc.init_batch_stats(1)
        >>> y, state = fc.batch_norm({}, state, x, train=True)
        >>> y.round(3).tolist(), round(float(state["mean"][0]), 3)
        ([[-1.0], [1.0]], 0.2)
    """
    x, scale, bias = read_inputs("batch_norm", params, x, epsilon)
    if not 0 <= momentum <= 1:
        msg = f"batch_norm: momentum must be from 0 to 1; got {momentum!r}"
        raise FuncconvError(msg)
    order = range(x.ndim) if layout is None else channels_last_order("batch_norm", layout, x.ndim)
    if not x.ndim:
        msg = "batch_norm: the input must be (*batch, *spatial, channels); got shape ()"
        raise FuncconvError(msg)
    channels_last = x.transpose(order)
    channels = channels_last.shape[-1]
    wide_x = channels_last.astype(wide(x.dtype))
    running = _running(state, channels)
    check_channels("batch_norm", channels, scale=scale, bias=bias)
    if train:
        devices = 1 if axis_name is None else axis_size("batch_norm", axis_name)
        count = wide_x.size // max(channels, 1) * devices
        if count < 2:
            msg = (
                f"batch_norm: with train=True each channel needs two numbers or more; the input {x.shape} has {count}. "
                "Give a larger batch, or train=False to normalize by the running mean and variance"
            )
            raise FuncconvError(msg)
        y, mean, var = standardized(wide_x, tuple(range(wide_x.ndim - 1)), epsilon, axis_name)
        batch_stats = {"mean": mean, "var": var * (count / (count - 1)) if unbiased else var}
        running = {name: _updated(old, batch_stats[name].reshape(-1), momentum) for name, old in running.items()}
    else:
        mean, var = (as_last_axes(running[name], wide_x) for name in ("mean", "var"))
        y = (wide_x - mean) * lax.rsqrt(var + epsilon)
    y = scaled(y, scale, bias).astype(x.dtype)
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


def _updated(old: Array, batch_value: Array, momentum: Number) -> Array:
    """Return a running mean or variance after a batch."""
    # A variance that overflows becomes the largest number of its dtype. An infinity would stay for all later batches.
    largest = jnp.finfo(old.dtype).max  # type: ignore[no-untyped-call]
    batch_value = last_axes_like(batch_value, old).astype(old.dtype)
    new = momentum * old + (1 - momentum) * jnp.where(batch_value > largest, largest, batch_value)
    return jnp.where(new > largest, largest, new)


def _running(state: Mapping[str, Any], channels: int) -> dict[str, Array]:
    """Return the running mean and variance."""
    if not isinstance(state, Mapping) or set(state) != {"mean", "var"}:
        shown = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        msg = (
            f'batch_norm: the state must be {{"mean": array, "var": array}}, as init_batch_stats makes it; got {shown}'
        )
        raise FuncconvError(msg)
    running = {name: as_array("batch_norm", f"the running {name}", state[name]) for name in ("mean", "var")}
    for name, array in running.items():
        check_floating("batch_norm", f"the running {name}", array)
    check_channels("batch_norm", channels, **{f"running {name}": array for name, array in running.items()})
    return running

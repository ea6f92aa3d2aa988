"""Normalization of activations and of kernels: subtract a mean, divide by a standard deviation, scale and shift."""

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
    """Normalize each example, or each position of it, by itself: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are taken over the last axes of `x`, those that scale and bias have.

    Args:
        params: `{"scale": shape, "bias": shape}`, where `shape` is that of the last axes of `x`; either may be missing.
        x: `(*batch, *shape)`, floating. `(*batch, *spatial, channels)` with a scale of `(channels,)` is normalized at
            each position; with one of `(*spatial, channels)` as a whole.
        axes: how many last axes are normalized over; by default as many as scale or bias have, or 1 without them.
        epsilon: is added to the variance; above 0.

    Returns:
        Like `x`. In float16 and bfloat16 the figures are computed in float32.

    Raises:
        FuncconvError: if scale or bias do not fit, have another dtype, or the input is not floating.

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

    Mean and variance (with the divisor n) are taken over the positions and over the channels of a group. One group is
    layer norm over the whole image; as many as channels is instance norm.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing.
        x: `(*batch, *spatial, channels)`, floating.
        groups: how many; they divide the channels, and each has neighbours.
        epsilon: is added to the variance; above 0.
        spatial: how many axes are spatial; by default there is exactly one batch axis.
        layout: see `conv`.

    Returns:
        Like `x`. In float16 and bfloat16 the figures are computed in float32.

    Raises:
        FuncconvError: if the groups do not divide the channels, scale or bias do not fit, or dtypes differ.

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

    In training mean and variance (with the divisor n) are those of the batch, over all axes but the channels, and the
    running ones follow them: `running = momentum * running + (1 - momentum) * batch`. Otherwise they are the running
    ones. Channels far from zero lose no digits, and numbers of any size neither overflow nor underflow; a running
    variance beyond the largest number of its dtype is that number.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing.
        state: the running `{"mean": (channels,), "var": (channels,)}`; `init_batch_stats` makes the first.
        x: `(*batch, *spatial, channels)`, floating.
        train: whether the figures are those of the batch; a Python bool.
        momentum: what is kept of the running figures, from 0 to 1. PyTorch calls `1 - momentum` by that name.
        epsilon: is added to the variance; above 0.
        unbiased: whether the variance that the running one follows has the divisor n - 1, as in PyTorch, instead of n,
            as in Flax and Keras.
        axis_name: of the mapped axis (`jax.vmap`, `jax.shard_map`) over which the batch is spread as well, or several.
            Arrays that are sharded under `jax.jit` need none.
        layout: see `conv`.

    Returns:
        `(y, state)`: like `x`, and the next state, in the dtype it had. In float16 and bfloat16 the figures are
        computed in float32.

    Raises:
        FuncconvError: if an entry does not fit, dtypes differ, or a batch to train on has less than two numbers in a
            channel, which would all become the bias.

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
    """Give the kernel of each output mean 0 and variance 1: `kernel = (kernel - mean) / sqrt(var + epsilon)`.

    Mean and variance (with the divisor n) are taken over window and inputs, all axes but the last.

    Args:
        params: `{"kernel": (*window, in // groups, out), ...}`, of `conv` or `dense`; other entries stay as they are.
            The outputs of a transposed convolution are not the last axis of its kernel, so it is not one of them.
        spatial: how many axes the window has, where others lie before it, as the positions of `local_conv`; by default
            all axes but the last two.
        epsilon: is added to the variance; above 0.

    Returns:
        Parameters of the same shapes and dtypes.

    Raises:
        FuncconvError: if there is no floating kernel, or it has fewer axes than `spatial` says.

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

"""Normalization over the batch, with running statistics."""

from collections.abc import Hashable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.mesh_axes import axis_size, last_axes_like
from ..._common.types import Array, ArrayLike, Number, Params
from ..._windows.layout import as_array, channels_last_order
from ..._windows.masks import read_mask, zero_masked
from .standardize import as_last_axes, check_channels, check_floating, count_real, read_inputs, scaled, standardized


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
    mask: ArrayLike | None = None,
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
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. With
            `train=True` and fewer than two real positions, the running mean and variance stay as they are.
            Default: None, all.
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
    real = None if mask is None else read_mask("batch_norm", mask, x.shape, layout).transpose(order)
    channels_last = zero_masked(x.transpose(order), real)
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
        over = tuple(range(wide_x.ndim - 1))
        y, mean, var = standardized(wide_x, over, epsilon, axis_name, real)
        of_one: Any = count / (count - 1)
        if real is not None:
            real_count = count_real(real, wide_x, over, axis_name).reshape(())
            of_one = real_count / jnp.maximum(real_count - 1, 1)
        batch_stats = {"mean": mean, "var": var * of_one if unbiased else var}
        new = {name: _updated(old, batch_stats[name].reshape(-1), momentum) for name, old in running.items()}
        running = new if real is None else {name: jnp.where(real_count > 1, new[name], running[name]) for name in new}
    else:
        mean, var = (as_last_axes(running[name], wide_x) for name in ("mean", "var"))
        y = (wide_x - mean) * lax.rsqrt(var + epsilon)
    y = zero_masked(scaled(y, scale, bias).astype(x.dtype), real)
    return y.transpose([list(order).index(i) for i in range(y.ndim)]), running


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

"""Normalization over the positions of each example, by groups of channels or by single channels."""

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, ArrayLike, Number, Params
from ..._windows.layout import image
from ..._windows.masks import image_mask, zero_masked
from .standardize import check_channels, read_inputs, scaled, standardized


def group_norm(
    params: Params,
    x: ArrayLike,
    /,
    groups: int,
    *,
    epsilon: Number = 1e-5,
    mask: ArrayLike | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    """Normalize each example by groups of channels: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the positions and the channels of a group. One group gives
    layer norm over the whole image, and one group per channel gives `instance_norm`.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing. They have the dtype of `x`, or
            float32 if `x` has 16 bits.
        x: `(*batch, *spatial, channels)`, floating. Pass `layout` for another order.
        groups: number of groups, which must divide the number of channels. Each group consists of neighbouring
            channels.
        epsilon: positive number added to the variance. Default: 1e-5.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. Default: None,
            all.
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
    real = None if mask is None else image_mask("group_norm", mask, x.shape, len(inside.spatial), layout)
    array = zero_masked(inside.array, real)
    channels = array.shape[-1]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or channels % groups:
        msg = f"group_norm: groups must be a positive integer that divides the {channels} channels; got {groups!r}"
        raise FuncconvError(msg)
    check_channels("group_norm", channels, scale=scale, bias=bias)
    # (batch, *spatial, groups, channels // groups), normalized over all axes but the batch and the groups
    grouped = array.astype(wide(x.dtype)).reshape(*array.shape[:-1], groups, channels // groups)
    over = (*range(1, array.ndim - 1), array.ndim)
    y, _, _ = standardized(grouped, over, epsilon, real=None if real is None else real[..., None])
    return inside.restore(zero_masked(scaled(y.reshape(array.shape), scale, bias).astype(x.dtype), real))


def instance_norm(
    params: Params,
    x: ArrayLike,
    /,
    *,
    epsilon: Number = 1e-5,
    mask: ArrayLike | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    """Normalize each channel of each example: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the positions. This is `group_norm` with one group per
    channel. There are no running statistics.

    Args:
        params: `{"scale": (channels,), "bias": (channels,)}`; either may be missing.
        x: `(*batch, *spatial, channels)`, floating, with at least one spatial axis. Pass `layout` for another order.
        epsilon: positive number added to the variance. Default: 1e-5.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. Default: None,
            all.
        spatial: number of spatial axes. Give it if there is not exactly one batch axis. Default: None, all axes but the
            first and the last.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        An array like `x`. A channel of equal numbers becomes the bias. For float16 and bfloat16 inputs, mean and
        variance are computed in float32.

    Raises:
        FuncconvError: if there is only one position, whose numbers would all become the bias, or if scale or bias have
            a wrong shape or dtype.

    Source: Ulyanov, Vedaldi and Lempitsky, "Instance normalization", 2016, arXiv:1607.08022.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])  # one example, two positions, two channels
        >>> fc.instance_norm({}, x).round(3).tolist()
        [[[-1.0, -1.0], [1.0, 1.0]]]
    """
    x, scale, bias = read_inputs("instance_norm", params, x, epsilon)
    inside = image("instance_norm", x, spatial, "spatial=", layout)
    real = None if mask is None else image_mask("instance_norm", mask, x.shape, len(inside.spatial), layout)
    array = zero_masked(inside.array, real)
    check_channels("instance_norm", array.shape[-1], scale=scale, bias=bias)
    if all(size == 1 for size in inside.spatial):
        msg = (
            f"instance_norm: each channel needs two positions or more; the input {x.shape} has one. Give a larger "
            "image, or normalize over the channels too: layer_norm or group_norm"
        )
        raise FuncconvError(msg)
    y, _, _ = standardized(array.astype(wide(x.dtype)), tuple(range(1, array.ndim - 1)), epsilon, real=real)
    return inside.restore(zero_masked(scaled(y, scale, bias).astype(x.dtype), real))

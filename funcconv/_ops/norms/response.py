"""Normalization by the channels nearby."""

import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.mesh_axes import sharded_like, whole_along
from ..._common.types import Array, ArrayLike, Number
from ..._windows.layout import as_array, channels_last_order
from ..._windows.masks import read_mask, zero_masked
from ..._windows.taps import fold
from .standardize import check_floating


def local_response_norm(
    x: ArrayLike,
    /,
    size: int,
    *,
    alpha: Number = 1e-4,
    beta: Number = 0.75,
    k: Number = 1.0,
    mask: ArrayLike | None = None,
    layout: str | None = None,
) -> Array:
    r"""Divide each number by a power of the mean square of the channels nearby, as in AlexNet.

    $$y_c = x_c \, \Big(k + \frac{\alpha}{size} \sum_{j = c - before}^{c + after} x_j^2\Big)^{-\beta},
    \quad before = \lfloor size / 2 \rfloor, \quad after = \lfloor (size - 1) / 2 \rfloor$$

    The sum is over the channels at the same position. Channels beyond the first and the last one count as zeros, so the
    divisor is always `size`.

    Args:
        x: `(*batch, *spatial, channels)`, floating. Pass `layout` for another order.
        size: number of channels in the mean, a positive integer.
        alpha: factor of the mean, not negative. AlexNet and TensorFlow multiply the sum instead: their alpha is this
            one divided by `size`. Default: 1e-4.
        beta: exponent. Default: 0.75.
        k: positive number added to the mean. Default: 1.0.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. Default: None,
            all.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        An array like `x`. Zeros give zeros, with the derivative `(k + alpha * mean)^(-beta)`. For float16 and bfloat16
        inputs, the mean is computed in float32. Numbers above 1e19 overflow in float32 when they are squared.

    Raises:
        FuncconvError: if an option has another value than listed above, or the input is not floating.

    Source: Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural networks", 2012,
    section 3.3; PyTorch's documentation of `LocalResponseNorm` for the mean.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.local_response_norm(jnp.array([[1.0, 2.0, 3.0]]), 2, alpha=2.0, beta=1.0, k=3.0).tolist()
        [[0.25, 0.25, 0.1875]]
    """
    op = "local_response_norm"
    x = as_array(op, "the input", x)
    check_floating(op, "the input", x)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        msg = f"{op}: size must be a positive integer, the number of channels in the mean; got {size!r}"
        raise FuncconvError(msg)
    if not k > 0 or not alpha >= 0:
        msg = f"{op}: k must be above 0 and alpha not negative, so that the power exists; got k={k!r}, alpha={alpha!r}"
        raise FuncconvError(msg)
    if not x.ndim:
        msg = f"{op}: the input must be (*batch, *spatial, channels); got shape ()"
        raise FuncconvError(msg)
    axis = x.ndim - 1 if layout is None else channels_last_order(op, layout, x.ndim)[-1]
    channels = x.shape[axis]
    x = x if mask is None else zero_masked(x, read_mask(op, mask, x.shape, layout))
    wide_x = x.astype(wide(x.dtype))
    # Windows that extend beyond all channels add nothing.
    before, after = (min(count, max(channels - 1, 0)) for count in (size // 2, (size - 1) // 2))
    squares = jnp.square(whole_along(wide_x, (axis,)))
    padded = jnp.pad(squares, [(before, after) if i == axis else (0, 0) for i in range(x.ndim)])
    total = sharded_like(fold(jnp.add, padded, axis, before + 1 + after, 1, 1, channels), wide_x)
    return (wide_x * (k + alpha / size * total) ** -beta).astype(x.dtype)

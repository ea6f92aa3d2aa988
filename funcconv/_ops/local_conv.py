"""Convolution with unshared weights: a kernel of its own at every position."""

from functools import partial

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import in_wide
from .._common.errors import FuncconvError
from .._common.mesh_axes import whole_along
from .._common.types import Array, ArrayLike, DTypeLike, Padding, PadMode, Params, Precision, Sizes
from .._windows.geometry import pad_modes, resolve
from .._windows.layout import image
from .._windows.padding import pad
from .._windows.taps import merge, patches, split
from .parameters import add_bias, check_accumulate, check_bias, check_channels, check_groups, kernel_and_bias


def local_conv(
    params: Params,
    x: ArrayLike,
    /,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: str | None = None,
    flip: bool = False,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
) -> Array:
    r"""Slide a window over `x` as `conv` does, with other weights at each position.

    $$y_{i,d} = b_{i,d} + \sum_{t} \sum_{c} x_{i \cdot stride - lo + t \cdot dilation,\, c}\; w_{i,t,c,d}$$

    Args:
        params: `{"kernel": (*positions, *window, in // groups, out), "bias": (*positions, out) or (out,)}`; a
            missing or None bias means none.
        x: `(*batch, *spatial, in)`, or as `layout` says.
        stride: see `conv`.
        padding: see `conv`.
        dilation: see `conv`.
        groups: see `conv`.
        pad_mode: see `conv`.
        layout: see `conv`.
        flip: reverse each kernel along its window axes.
        precision: see `conv`.
        accumulate_dtype: see `conv`.

    Returns:
        `(*batch, *positions, out)`, the positions being those of `conv`.

    Raises:
        FuncconvError: as `conv`, and if the kernel has not one window for each position.

    Source: LeCun, "Generalization and network design strategies", 1989 (locally connected layers).

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [2.0], [3.0], [4.0]])
        >>> kernel = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).reshape(3, 2, 1, 1)
        >>> fc.local_conv({"kernel": kernel}, x)[:, 0].tolist()
        [1.0, 3.0, 7.0]
    """
    op = "local_conv"
    kernel, bias, x = kernel_and_bias(op, params, x)
    n, odd = divmod(kernel.ndim - 2, 2)
    if n < 1 or odd or 0 in kernel.shape:
        msg = (
            f"{op}: the kernel must be (*positions, *window, in // groups, out), as many positions as window axes "
            f"and none empty; got shape {kernel.shape}"
        )
        raise FuncconvError(msg)
    check_groups(op, groups, kernel.shape)
    check_accumulate(op, accumulate_dtype, x.dtype)
    inside = image(op, x, n, f"a kernel of shape {kernel.shape}", layout).whole()
    check_channels(op, inside, kernel.shape[-2] * groups, "takes")
    axes = resolve(op, inside.spatial, kernel.shape[n : 2 * n], stride=stride, padding=padding, dilation=dilation)
    positions = tuple(axis.outputs for axis in axes)
    if kernel.shape[:n] != positions:
        msg = f"{op}: the windows have positions {positions}, but the kernel is for {kernel.shape[:n]}"
        raise FuncconvError(msg)
    check_bias(op, bias, kernel.shape[-1:], (*positions, kernel.shape[-1]))

    if flip:
        kernel = lax.rev(kernel, range(n, 2 * n))
    batch, group, inputs, outputs = range(2 * n, 2 * n + 4)  # after the positions and the taps
    array = inside.array
    if groups > 1:  # JAX cannot split sharded channels that the devices do not divide
        array, kernel = (whole_along(each, [each.ndim - 1]) for each in (array, kernel))
    padded = pad(array, axes, pad_modes(op, pad_mode, n))
    windows = in_wide(partial(patches, axes=axes), padded)  # (batch, *positions, *window, in)
    y = jnp.einsum(
        split(windows, windows.ndim - 1, (groups, kernel.shape[-2])), [batch, *range(2 * n), group, inputs],
        split(kernel, kernel.ndim - 1, (groups, kernel.shape[-1] // groups)), [*range(2 * n), inputs, group, outputs],
        [batch, *range(n), group, outputs],
        precision=precision, preferred_element_type=accumulate_dtype,
    )  # fmt: skip
    y = merge(y, y.ndim - 2, 2)
    return inside.restore(add_bias(y, bias).astype(x.dtype))

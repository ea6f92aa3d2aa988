"""Pixel shuffles: channels become positions, and positions channels."""

import math

from ..._common.eager import one_program
from ..._common.errors import FuncconvError, suggest
from ..._common.mesh_axes import whole_along
from ..._common.types import Array, ArrayLike, Shape, Sizes
from ..._windows.geometry import per_axis, resolve
from ..._windows.layout import Image, as_array, image, spatial_axes
from ..._windows.taps import merge, split

_ORDERS = ("pytorch", "tensorflow")


@one_program
def pixel_shuffle(
    x: ArrayLike,
    factor: Sizes,
    *,
    order: str = "pytorch",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Move channels to positions: upsampling without computing (sub-pixel convolution, depth to space).

    Each position becomes a block of `factor` positions on every spatial axis. With one spatial axis and the default
    order,

    $$y_{i \cdot factor + j,\, c} = x_{i,\, c \cdot factor + j}, \qquad 0 \le j < factor$$

    Args:
        x: `(*batch, *spatial, channels)` of any dtype. The channels must be a multiple of the product of the factors.
            Pass `layout` for another order.
        factor: factor by which an axis becomes longer. One integer for all spatial axes, or one per axis; a tuple also
            sets the number of spatial axes.
        order: what a channel of `x` means. `"pytorch"`: the channels are `(out_channels, *factors)` in row-major order,
            as in `torch.nn.PixelShuffle` and ONNX's `DepthToSpace` with `mode="CRD"`. `"tensorflow"`: they are
            `(*factors, out_channels)`, as in `tf.nn.depth_to_space` and the mode `"DCR"`. Default: `"pytorch"`.
        spatial: number of spatial axes. Give it if `factor` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        `(*batch, *positions, out_channels)`, with the dtype of `x`: each axis is `factor` times as long, and there are
        `channels / prod(factors)` channels.

    Raises:
        FuncconvError: if the channels are not a multiple of the product of the factors, a factor is below 1, or the
            order is unknown.

    Source: Shi and others, "Real-time single image and video super-resolution using an efficient sub-pixel
    convolutional neural network", 2016, arXiv:1609.05158.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.arange(4).reshape(1, 1, 1, 4)  # one example, one position, four channels
        >>> fc.pixel_shuffle(x, 2)[0, :, :, 0].tolist()
        [[0, 1], [2, 3]]
    """
    op = "pixel_shuffle"
    inside, factors = _image(op, x, factor, order, spatial, layout)
    array, n, times = inside.array, len(factors), math.prod(factors)
    channels = array.shape[-1]
    if channels % times:
        product = " * ".join(map(str, factors))
        msg = (
            f"{op}: the number of channels must be a multiple of {product}{f' = {times}' if n > 1 else ''}, the "
            f"product of the factors; got {channels} channels"
        )
        raise FuncconvError(msg)
    if order == "pytorch":
        array = split(array, n + 1, (channels // times, *factors))
        first, last = n + 2, n + 1  # the axes of the first factor, and of the channels
    else:
        array = split(array, n + 1, (*factors, channels // times))
        first, last = n + 1, 2 * n + 1
    array = array.transpose(0, *(axis for i in range(n) for axis in (1 + i, first + i)), last)
    for i in range(n):
        array = merge(array, 1 + i, 2)
    return inside.restore(array)


@one_program
def pixel_unshuffle(
    x: ArrayLike,
    factor: Sizes,
    *,
    order: str = "pytorch",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Move positions to channels: downsampling without loss, the inverse of `pixel_shuffle` (space to depth).

    Each block of `factor` positions on every spatial axis becomes one position. With one spatial axis and the default
    order,

    $$y_{i,\, c \cdot factor + j} = x_{i \cdot factor + j,\, c}, \qquad 0 \le j < factor$$

    Args:
        x: `(*batch, *spatial, channels)` of any dtype. Each spatial size must be a multiple of its factor. Pass
            `layout` for another order.
        factor: factor by which an axis becomes shorter. One integer for all spatial axes, or one per axis; a tuple also
            sets the number of spatial axes.
        order: what a channel of the result means. `"pytorch"`: the channels are `(channels, *factors)` in row-major
            order, as in `torch.nn.PixelUnshuffle`. `"tensorflow"`: they are `(*factors, channels)`, as in
            `tf.nn.space_to_depth` and ONNX's `SpaceToDepth`. Default: `"pytorch"`.
        spatial: number of spatial axes. Give it if `factor` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        `(*batch, *positions, channels * prod(factors))`, with the dtype of `x`.

    Raises:
        FuncconvError: if a spatial size is not a multiple of its factor, a factor is below 1, or the order is unknown.

    Source: PyTorch's documentation of `PixelUnshuffle`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.arange(4).reshape(1, 2, 2, 1)
        >>> fc.pixel_unshuffle(x, 2).tolist()
        [[[[0, 1, 2, 3]]]]
    """
    op = "pixel_unshuffle"
    inside, factors = _image(op, x, factor, order, spatial, layout)
    array, n = inside.array, len(factors)
    for i, (size, times) in enumerate(zip(inside.spatial, factors, strict=True)):
        if size % times:
            msg = (
                f"{op}: the size of spatial axis {i} must be a multiple of its factor {times}; got {size} positions. "
                f"Pad or crop the axis first"
            )
            raise FuncconvError(msg)
        array = split(array, 1 + 2 * i, (size // times, times))
    # (batch, position, factor, position, factor, ..., channels)
    factor_axes, channels = range(2, 2 * n + 1, 2), 2 * n + 1
    last = (channels, *factor_axes) if order == "pytorch" else (*factor_axes, channels)
    array = array.transpose(0, *range(1, 2 * n, 2), *last)
    return inside.restore(merge(array, n + 1, n + 1))


def _image(
    op: str, x: ArrayLike, factor: Sizes, order: str, spatial: int | None, layout: str | None
) -> tuple[Image, Shape]:
    """Return the image, without axes that are sharded over explicit mesh axes, and the factor of each spatial axis."""
    if order not in _ORDERS:
        msg = f"{op}: unknown order {order!r}{suggest(order, _ORDERS)}"
        raise FuncconvError(msg)
    inside = image(op, as_array(op, "the input", x), *spatial_axes(op, "factor", factor, spatial), layout)
    factors = per_axis(op, "factor", factor, len(inside.spatial), least=1)
    resolve(op, inside.spatial, 1)  # raises an error for empty axes
    # JAX has no sharding rule for reshapes of sharded axes.
    return inside._replace(array=whole_along(inside.array, range(1, inside.array.ndim))), factors

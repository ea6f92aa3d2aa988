"""Convolution with unshared weights: every position has a separate kernel."""

from functools import partial

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import in_wide
from .._common.errors import FuncconvError
from .._common.mesh_axes import only_outputs_sharded, whole_along
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
    r"""Convolve the spatial axes of `x` with a separate kernel at each position (a locally connected layer).

    $$y_{i,d} = b_{i,d} + \sum_{t} \sum_{c} x_{i \cdot stride - lo + t \cdot dilation,\, c}\; w_{i,t,c,d}$$

    for every position `i`, output channel `d` and tap `t` of the window. The sum is over the input channels `c` of the
    group of `d`, and `lo` is the padding before the axis.

    Args:
        params: `{"kernel": (*positions, *window, in // groups, out), "bias": (*positions, out) or (out,)}`. Omit the
            bias, or set it to None, for none.
        x: `(*batch, *spatial, in)`, floating or complex, with any number of batch axes. Pass `layout` for another
            order.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the result has
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.
        flip: whether to reverse each kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold `x.dtype`.
            The result always has the dtype of `x`. Default: None, the platform's choice, at least float32 for 16-bit
            inputs.

    Returns:
        `(*batch, *positions, out)`, with the dtype of `x`. Each spatial axis has
        `1 + (size + before + after - extent) // stride` positions, where `extent = 1 + (window - 1) * dilation` is the
        number of positions that a window spans.

    Raises:
        FuncconvError: if `params` has no kernel or an unknown entry, if `x`, kernel and bias differ in dtype or are
            integers, if the kernel does not have one window for each position, if channels, groups or bias do not match
            the kernel, if an option has another value than listed above, or if a window does not fit.
        ValueError: from JAX, if `precision` is unknown.

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
    n, odd = divmod(kernel.ndim - 2, 2)  # n spatial axes: the kernel has one axis of positions and one of taps for each
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
        msg = (
            f"{op}: the windows have positions {positions}, but the kernel is for {kernel.shape[:n]}. "
            "Draw the kernel for these positions, or change the image or its padding"
        )
        raise FuncconvError(msg)
    check_bias(op, bias, kernel.shape[-1:], (*positions, kernel.shape[-1]))

    if flip:
        kernel = lax.rev(kernel, range(n, 2 * n))
    array = inside.array
    kernel = only_outputs_sharded(kernel, array)  # the image is not sharded along the positions either
    if groups > 1:  # JAX cannot split sharded channels if the number of devices does not divide the channels of a group
        array, kernel = (whole_along(operand, [operand.ndim - 1]) for operand in (array, kernel))
    padded = pad(array, axes, pad_modes(op, pad_mode, n))
    # Windows overlap, so the gradient of an input is a sum over copies, computed in float32 for 16-bit inputs.
    windows = in_wide(partial(patches, axes=axes), padded)  # (batch, *positions, *window, in)
    windows = split(windows, windows.ndim - 1, (groups, kernel.shape[-2]))
    kernel = split(kernel, kernel.ndim - 1, (groups, kernel.shape[-1] // groups))
    # Labels of the axes for einsum: 0 to n - 1 are the positions, n to 2n - 1 the taps of the window.
    batch, group, inputs, outputs = range(2 * n, 2 * n + 4)
    y = jnp.einsum(
        windows,
        [batch, *range(2 * n), group, inputs],
        kernel,
        [*range(2 * n), inputs, group, outputs],
        [batch, *range(n), group, outputs],
        precision=precision,
        preferred_element_type=accumulate_dtype,
    )
    y = merge(y, y.ndim - 2, 2)
    return inside.restore(add_bias(y, bias).astype(x.dtype))

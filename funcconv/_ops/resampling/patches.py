"""Windows of an image as an array (im2col), and its transpose, which adds windows to an image (col2im)."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from ..._common.dtypes import in_wide
from ..._common.eager import one_program
from ..._common.errors import FuncconvError
from ..._common.types import Array, ArrayLike, Padding, PadMode, Sizes
from ..._windows.geometry import Axis, pad_modes, per_axis, resolve
from ..._windows.layout import as_array, image, patches_order, spatial_axes, spatial_of_layout
from ..._windows.padding import pad
from ..._windows.taps import merge, patches, shifted, split

# Up to so many taps are added in one loop over the image. More are added axis by axis, which needs less code.
_MOST_ADDED_TAPS = 32


@one_program
def unfold(
    x: ArrayLike,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    pad_mode: PadMode = "zeros",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Gather the windows that a convolution sees (im2col, image patches).

    $$y_{i,t,c} = x_{i \cdot stride - lo + t \cdot dilation,\, c}$$

    for every position `i` and tap `t` of the window, where `lo` is the padding before the axis. A convolution is the
    product of these windows with its kernel, summed over taps and channels.

    Args:
        x: `(*batch, *spatial, channels)` of any dtype. Pass `layout` for another order.
        window: taps of a window. One integer for all spatial axes, or one per axis; a tuple also sets the number of
            spatial axes.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: there are
            `ceil(size / stride)` windows; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        pad_mode: values in the padding: `"zeros"`, `"reflect"` (mirrored, without repeating the edge), `"symmetric"`
            (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or `"circular"` (periodic). One
            mode for all spatial axes, or one per axis. Padding wider than the axis continues as in `numpy.pad`.
            Default: `"zeros"`.
        spatial: number of spatial axes. Give it if `window` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x`, such as `"NCHW"`: `C` is the channels, `N` stands for all batch axes, and each
            other letter is a spatial axis. The result has the positions in the place of the spatial axes. The axes of
            the window follow the channels, as in `(batch, channels, *window, *positions)` for `"NCHW"`; if the channels
            are the last axis, the window is before them. Default: None, channels last.

    Returns:
        `(*batch, *positions, *window, channels)`, with the dtype of `x`. Each spatial axis has
        `1 + (size + before + after - extent) // stride` positions, where `extent = 1 + (window - 1) * dilation` is the
        number of positions that a window spans. With `layout="NCHW"`, merging the axes of channels and window, and
        those of the positions, gives the result of `torch.nn.functional.unfold`.

    Raises:
        FuncconvError: if an option has another value than listed above, or if a window does not fit.

    Source: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing",
    2006.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.arange(4).reshape(1, 4, 1)  # one example, four positions, one channel
        >>> fc.unfold(x, 2)[0, :, :, 0].tolist()
        [[0, 1], [1, 2], [2, 3]]
    """
    op = "unfold"
    x = as_array(op, "the input", x)
    inside = image(op, x, *spatial_axes(op, "window", window, spatial), layout).whole()
    axes = resolve(op, inside.spatial, window, stride=stride, padding=padding, dilation=dilation)
    modes = pad_modes(op, pad_mode, len(axes))
    y = inside._replace(layout=None).restore(in_wide(partial(_windows, axes=axes, modes=modes), inside.array))
    if layout is None:
        return y
    return y.transpose(patches_order(layout, y.ndim, len(axes)))


@one_program
def fold(
    patches: ArrayLike,
    size: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    pad_mode: PadMode = "zeros",
    layout: str | None = None,
) -> Array:
    r"""Add windows to an image at their positions (col2im): the transpose of `unfold` with the same options.

    For every image `x` of this size and every array of patches `p`,

    $$\langle unfold(x),\, p \rangle = \langle x,\, fold(p) \rangle$$

    for each padding, pad mode, stride and dilation. So each position of the image is the sum of the taps that read it.

    Args:
        patches: `(*batch, *positions, *window, channels)`, as `unfold` returns them. Pass `layout` for another order.
        size: spatial sizes of the image. One integer for all spatial axes, or one per axis; a tuple also sets the
            number of spatial axes. With one integer, and without `layout`, there is exactly one batch axis.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: padding of `unfold`: positions added before and after each spatial axis; negative numbers crop. One
            integer, one integer per axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding.
            `"SAME"`: there are `ceil(size / stride)` windows; if the total is odd, the extra position comes after.
            `"SAME_LOWER"`: the same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on
            both sides. `"FULL"`: `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before,
            none after. Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        pad_mode: values in the padding of `unfold`: `"zeros"`, `"reflect"`, `"symmetric"`, `"replicate"` or
            `"circular"`, for all spatial axes or one per axis. A position whose value the padding repeats receives the
            sum of all its copies. Default: `"zeros"`.
        layout: order of the axes of the image, such as `"NCHW"`: `C` is the channels, `N` stands for all batch axes,
            and each other letter is a spatial axis. The patches have the order of axes that `unfold` returns with this
            layout, which is `(batch, channels, *window, *positions)` for `"NCHW"`. Default: None, channels last.

    Returns:
        `(*batch, *size, channels)`, with the dtype of the patches. Floats of 16 bits and fewer are summed in float32.
        The implementation has no scatter, so taps are added in the same order on every run.

    Raises:
        FuncconvError: if the number of axes does not fit, if an image of this size does not have as many windows as
            there are patches, if the patches are booleans, or if an option has another value than listed above.

    Source: PyTorch's documentation of `torch.nn.functional.fold`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> patches = fc.unfold(jnp.arange(1.0, 5.0).reshape(1, 4, 1), 2)
        >>> fc.fold(patches, 4).ravel().tolist()  # the two positions inside are in two windows each
        [1.0, 4.0, 6.0, 4.0]
    """
    op = "fold"
    array = as_array(op, "patches", patches)
    n = _spatial_of_patches(op, array, size, layout)
    if array.dtype == bool:
        msg = f"{op}: a sum of booleans is no boolean; cast the patches first, as in patches.astype(jnp.int32)"
        raise FuncconvError(msg)
    if layout is not None:
        order = patches_order(layout, array.ndim, n)
        array = array.transpose([order.index(axis) for axis in range(array.ndim)])
    inside = image(op, array, 2 * n, "the shape of the patches", None).whole()
    positions, windows = inside.spatial[:n], inside.spatial[n:]
    sizes = per_axis(op, "size", size, n, least=1)
    axes = resolve(op, sizes, windows, stride=stride, padding=padding, dilation=dilation)
    if (counts := tuple(axis.outputs for axis in axes)) != positions:
        msg = (
            f"{op}: an image of {sizes} has {counts} windows of {windows} with these "
            f"options, but there are {positions} patches; pass the size and the options of unfold"
        )
        raise FuncconvError(msg)
    modes = pad_modes(op, pad_mode, n)

    def added(array: Array) -> Array:
        # An array with the axes of the image says how its type is sharded.
        like = jax.typeof(merge(array, n, n + 1))
        image_type = like.update(shape=(array.shape[0], *sizes, array.shape[-1]))
        unfolded = _windows_by_taps if math.prod(windows) <= _MOST_ADDED_TAPS else _windows
        (x,) = jax.linear_transpose(partial(unfolded, axes=axes, modes=modes), image_type)(array)
        return x  # type: ignore[no-any-return]

    return inside._replace(layout=layout).restore(in_wide(added, inside.array))


def _windows(x: Array, axes: Sequence[Axis], modes: Sequence[str | None]) -> Array:
    return patches(pad(x, axes, modes), axes)


def _windows_by_taps(x: Array, axes: Sequence[Axis], modes: Sequence[str | None]) -> Array:
    """Return the same windows from one slice for each tap, whose transpose is one sum of padded taps."""
    position = 1 + len(axes)
    taps = jnp.stack(shifted(pad(x, axes, modes), axes), position)
    return split(taps, position, [axis.window for axis in axes])


def _spatial_of_patches(op: str, patches: Array, size: Sizes, layout: str | None) -> int:
    """Return the number of spatial axes of the image that patches were taken from."""
    n, said_by = spatial_axes(op, "size", size, None)
    if layout is not None:
        named = spatial_of_layout(op, layout)
        if n not in (None, named):
            msg = f"{op}: layout {layout!r} has {named} spatial axes, but {said_by} says {n}; pass a letter for each"
            raise FuncconvError(msg)
        n = named
    if n is None:  # one batch axis, the channels, and as many positions as axes of the window
        n, rest = divmod(patches.ndim - 2, 2)
        if rest or n < 1:
            msg = (
                f"{op}: patches must be (batch, *positions, *window, channels), with as many axes of positions as of "
                f"the window; got shape {patches.shape}. Pass one size for each spatial axis if there is not exactly "
                "one batch axis"
            )
            raise FuncconvError(msg)
    batch = patches.ndim - 2 * n - 1
    if n < 1 or batch < 0 or (batch > 0 and layout is not None and "N" not in layout):
        names = "*batch, " if layout is None or "N" in layout else ""
        msg = (
            f"{op}: with {n} spatial axes, patches must have {n} axes of positions, {n} of the window and one of "
            f"channels, ({names}*positions, *window, channels) in some order; got shape {patches.shape}"
        )
        raise FuncconvError(msg)
    return n

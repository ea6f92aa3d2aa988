"""Arrays with a mask, and the mask of the result of a convolution or a pool."""

from typing import Any, NamedTuple

from .._common.errors import FuncconvError
from .._common.types import Array, ArrayLike, Padding, Sizes
from .._windows.geometry import per_axis, resolve
from .._windows.layout import as_array, image, spatial_axes
from .._windows.masks import any_tap, padded_real, transposed_mask, windows_mask
from .._windows.transposed import transposed_sizes


class Masked(NamedTuple):
    """An array whose positions are not all real: images or sequences of different sizes in one batch.

    A graph takes it in place of an array: `graph(params, fc.Masked(x, mask))`. The result is that of each example on
    its own, and zero at positions that are not real. With `masked=True` outputs that still have positions are `Masked`
    too. Layers with another layout than channels last are refused.

    Args:
        x: `(*batch, *spatial, channels)`. Numbers at masked positions may be anything, also NaN.
        mask: `(*batch, *spatial)`, boolean, True at real positions.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 2))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3, padding=1), fc.global_pool)(x))
        >>> params = graph.init(jax.random.key(0))
        >>> sequences = jnp.ones((3, 8, 2))
        >>> mask = jnp.arange(8)[None] < jnp.array([[5], [8], [1]])  # sequences of 5, 8 and 1 positions
        >>> graph(params, fc.Masked(sequences, mask)).shape
        (3, 4)
        >>> alone = graph.subgraph("conv1")  # declared for 8 positions
        >>> y = alone(params, fc.Masked(sequences, mask), masked=True)
        >>> y.x.shape, y.mask.sum(-1).tolist()
        ((3, 8, 4), [5, 8, 1])
    """

    x: Any
    mask: Any


def conv_mask(
    mask: ArrayLike,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
    renormalize: bool = False,
    transpose: bool = False,
    size: Sizes | None = None,
    output_padding: Sizes | None = None,
    spatial: int | None = None,
) -> Array:
    """Return which positions of the result of a convolution or a pool are real.

    A position of the result is real if all taps of its window are on real positions or on their padding. A position is
    in the padding if, on each axis, it is at most `before` positions before a real one or `after` positions after one.
    So images that begin at position 0 get the positions that they have on their own, and a gap between real positions
    that is wider than the padding stays masked. With the paddings `"SAME"` and `"SAME_LOWER"` a position of the result
    is real if the position `i * stride` is.

    Args:
        mask: `(*batch, *spatial)`, boolean, True at real positions.
        window: taps of a window. One integer for all spatial axes, or one per axis; a tuple also sets the number of
            spatial axes.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: as in `conv`: numbers, pairs, `"VALID"`, `"SAME"`, `"SAME_LOWER"`, `"HALF"`, `"FULL"` or `"CAUSAL"`.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        ceil_mode: whether a last window may extend beyond the padding, as in `pool`. Default: False.
        renormalize: whether a position of the result is already real if one tap of its window is on a real position, as
            in partial convolution. Default: False.
        transpose: whether the op is `conv_transpose` with these options. Default: False.
        size: spatial sizes of the result of `conv_transpose`. Default: None, as there.
        output_padding: PyTorch's way to select the size of the result of `conv_transpose`. Default: None.
        spatial: number of spatial axes. Give it if `window` is an integer and there is not exactly one batch axis.
            Default: None.

    Returns:
        `(*batch, *positions)`, boolean.

    Raises:
        FuncconvError: if the mask is not boolean, if an option has another value than listed above, if a window does
            not fit, or if the padding before an image depends on its size, as that of `"SAME"` can if the stride is
            above 1.

    Source: Liu and others, "Image inpainting for irregular holes using partial convolutions", 2018, arXiv:1804.07723,
    for `renormalize`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> mask = jnp.arange(6)[None] < jnp.array([[3], [6]])  # two sequences, of 3 and 6 positions
        >>> fc.conv_mask(mask, 3, padding=1, stride=2).astype(int).tolist()
        [[1, 1, 0], [1, 1, 1]]
        >>> fc.conv_mask(mask, 3).astype(int).tolist()
        [[1, 0, 0, 0], [1, 1, 1, 1]]
    """
    op = "conv_mask"
    mask = as_array(op, "the mask", mask)
    if mask.dtype != bool:
        msg = f"{op}: the mask must be boolean, True at real positions; got {mask.dtype}. Pass mask.astype(bool)"
        raise FuncconvError(msg)
    if transpose and (ceil_mode or renormalize):
        msg = f"{op}: conv_transpose has neither ceil_mode nor renormalize; leave them out, or transpose=True"
        raise FuncconvError(msg)
    if not transpose and (size is not None or output_padding is not None):
        msg = f"{op}: size and output_padding belong to conv_transpose; pass transpose=True, or leave them out"
        raise FuncconvError(msg)
    inside = image(op, mask[..., None], *spatial_axes(op, "window", window, spatial), None).whole()
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    sizes = inside.spatial
    if transpose:
        windows = per_axis(op, "window", window, len(sizes), least=1)
        sizes = transposed_sizes(op, sizes, windows, size=size, output_padding=output_padding, **geometry)
    axes = resolve(op, sizes, window, ceil_mode=ceil_mode, **geometry)
    if transpose:
        axes = tuple(axis._replace(outputs=count) for axis, count in zip(axes, inside.spatial, strict=True))
        return inside.restore(transposed_mask(inside.array, axes))[..., 0]
    if renormalize:
        return inside.restore(any_tap(padded_real(inside.array, axes), axes))[..., 0]
    return inside.restore(windows_mask(op, inside.array, axes, padding, ceil_mode=ceil_mode))[..., 0]

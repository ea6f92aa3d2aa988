"""Convolution and its transpose."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError, suggest
from .._common.types import Array, ArrayLike, DTypeLike, Padding, PadMode, Params, Precision, Sizes
from .._primitives import conv as _family
from .._primitives.forms import Form, library, reference
from .._windows.geometry import Axis, pad_modes, parted, resolve, transposed_sizes
from .._windows.layout import image
from .._windows.padding import pad
from .parameters import (
    add_bias,
    check_accumulate,
    check_bias,
    check_channels,
    check_groups,
    kernel_and_bias,
    other_order,
    other_order_transposed,
)

Map: TypeAlias = Callable[[Array, Array, Form], Array]


def conv(
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
    implementation: str | None = None,
) -> Array:
    r"""Convolve the spatial axes of `x` with a kernel: the field's cross-correlation.

    $$y_{i,d} = b_d + \sum_{t} \sum_{c} x_{i \cdot stride - lo + t \cdot dilation,\, c}\; w_{t,c,d}$$

    for every position `i` and tap `t` of the window, over the channels `c` of the group that `d` belongs to.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`; a missing or None bias means none. The
            number of spatial axes is the kernel's rank less two.
        x: `(*batch, *spatial, in)`, with any number of batch axes, or as `layout` says. Floating or complex.
        stride: places from one window to the next.
        padding: places added before and after each spatial axis; negative ones crop. An integer, one for each axis,
            one pair `(before, after)` for each axis, or a name. `"VALID"`: none. `"SAME"`: so many that there are
            `ceil(size / stride)` windows, the odd one after; `"SAME_LOWER"`: the odd one before. `"HALF"`:
            `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides.
            `"CAUSAL"`: as many before, none after.
        dilation: places from one tap of a window to the next.
        groups: the channels are cut into so many groups that do not see each other; as many groups as input
            channels make a depthwise convolution.
        pad_mode: what the padding shows: `"zeros"`, `"reflect"` (without the edge), `"symmetric"` (with it),
            `"replicate"`, `"circular"`; one for all spatial axes or one for each. Wider than the axis allows, it goes
            on as `numpy.pad` does.
        layout: the order of the axes of `x` and of the result, such as `"NCHW"`; `N` stands for all batch axes. The
            default is channels last.
        flip: reverse the kernel along its window axes: the convolution of mathematics.
        precision: of the products, as for `jax.lax.conv_general_dilated`.
        accumulate_dtype: the dtype in which products are summed and the bias added; the default is the platform's,
            at least float32 where sums of 16-bit products are formed by XLA. The result has the dtype of `x` anyway.
        implementation: None computes it by the family of maps to which all its derivatives belong, each in a form that
            fits its shape and the platform (`funcconv.explain` says which); `"lax"` leaves the operations of `jax.lax`
            in the traced program, for tools that know no others.

    Returns:
        `(*batch, *positions, out)` with `1 + (size + before + after - extent) // stride` positions on each axis,
        where a window's extent is `1 + (window - 1) * dilation`.

    Raises:
        FuncconvError: if dtypes differ or are integers, if the channels, groups or bias do not match the kernel, if
            an option is not one of the above, or if the window does not fit.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, arXiv:1603.07285.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[1.0], [2.0], [3.0], [4.0]])  # four positions, one channel, no batch axis
        >>> kernel = jnp.array([3.0, 2.0]).reshape(2, 1, 1)
        >>> fc.conv({"kernel": kernel}, x)[:, 0].tolist()
        [7.0, 12.0, 17.0]
    """
    kernel, bias, x = kernel_and_bias("conv", params, x)
    options = _options("conv", kernel, groups, pad_mode, precision, accumulate_dtype, implementation, x.dtype)
    window = kernel.shape[:-2]
    inside = image("conv", x, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends:
        inside = inside.whole()
    order = other_order(kernel.shape, groups, inside.array.shape[-1])
    check_channels("conv", inside, kernel.shape[-2] * groups, "takes", order)
    check_bias("conv", bias, kernel.shape[-1:])
    try:
        axes = resolve("conv", inside.spatial, window, stride=stride, padding=padding, dilation=dilation)
    except FuncconvError as error:
        first = inside.spatial[0]
        if not order or not isinstance(first, int) or window[0] <= first:
            raise
        msg = f"{error}{order}"
        raise FuncconvError(msg) from None
    shown, left = parted(axes, options.modes)
    forward, _ = options.maps
    y = forward(pad(inside.array, shown, options.modes), _flipped(kernel, flip), options.form(left))
    return inside.restore(add_bias(y, bias).astype(x.dtype))


def conv_transpose(
    params: Params,
    y: ArrayLike,
    /,
    *,
    size: Sizes | None = None,
    output_padding: Sizes | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    layout: str | None = None,
    flip: bool = False,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> Array:
    r"""Apply the transpose of a convolution: the linear map that takes its outputs back to its inputs.

    With the same kernel and the same options, for every `x` and `y`,

    $$\langle conv(x), y \rangle = \langle x, conv\_transpose(y) \rangle$$

    where the convolution has no bias and nothing is conjugated. It is the backward pass of `conv` by its input.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (in,)}`, the kernel being that of the convolution
            that is transposed; the bias is added to the result.
        y: `(*batch, *positions, out)`, or as `layout` says.
        size: the spatial sizes of the result. A stride above one takes images of several sizes to the same
            positions; this says which is meant. By default the smallest, or `positions * stride` for the paddings
            `"SAME"`, `"SAME_LOWER"` and `"CAUSAL"`.
        output_padding: the same said in PyTorch's way: by how much the result exceeds the smallest, below the larger
            of `stride` and `dilation`. From `stride` on, the convolution takes the result to more positions than
            those of `y`, and the equation above holds for the positions of `y`.
        stride: of the convolution that is transposed, like all that follow.
        padding: see `conv`.
        dilation: see `conv`.
        groups: see `conv`.
        pad_mode: see `conv`; values that the convolution saw several times receive the sum.
        layout: see `conv`.
        flip: see `conv`.
        precision: see `conv`.
        accumulate_dtype: see `conv`.
        implementation: see `conv`.

    Returns:
        `(*batch, *size, in)`, the smallest size being `(positions - 1) * stride + extent - before - after`.

    Raises:
        FuncconvError: as `conv`, and if the convolution takes no image of that size to the positions of `y`.

    Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> y = fc.conv({"kernel": kernel}, jnp.ones((1, 5, 5, 1)), stride=2)
        >>> y.shape, fc.conv_transpose({"kernel": kernel}, y, stride=2).shape
        ((1, 2, 2, 1), (1, 5, 5, 1))
    """
    op = "conv_transpose"
    kernel, bias, y = kernel_and_bias(op, params, y)
    options = _options(op, kernel, groups, pad_mode, precision, accumulate_dtype, implementation, y.dtype)
    window = kernel.shape[:-2]
    inside = image(op, y, len(window), f"a kernel of shape {kernel.shape}", layout)
    if options.extends:
        inside = inside.whole()
    order = other_order_transposed(kernel.shape, groups, inside.array.shape[-1])
    check_channels(op, inside, kernel.shape[-1], "gives", order)
    channels = kernel.shape[-2] * groups
    check_bias(op, bias, (channels,))
    sizes = transposed_sizes(
        op, inside.spatial, window,
        size=size, output_padding=output_padding, stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip
    axes = resolve(op, sizes, window, stride=stride, padding=padding, dilation=dilation)
    # With an output_padding of the stride and more the convolution has windows after those of y.
    axes = tuple(axis._replace(outputs=count) for axis, count in zip(axes, inside.spatial, strict=True))
    shown, left = parted(axes, options.modes)
    _, backward = options.maps
    summing = options.accumulate_dtype or y.dtype
    x = backward(_flipped(kernel, flip).astype(summing), inside.array.astype(summing), options.form(left))
    if options.extends:
        image_type = jax.typeof(x).update(shape=(x.shape[0], *sizes, channels))
        (x,) = jax.linear_transpose(lambda x: pad(x, shown, options.modes), image_type)(x)
    return inside.restore(add_bias(x, bias).astype(y.dtype))


class _Options(NamedTuple):
    """What does not depend on the sizes of the image."""

    modes: tuple[str | None, ...]
    groups: int
    precision: Precision
    accumulate_dtype: DTypeLike | None
    maps: tuple[Map, Map]  # a convolution and its transpose by the image

    @property
    def extends(self) -> bool:
        """Whether the padding of an axis shows inputs."""
        return any(mode != "zeros" for mode in self.modes)

    def form(self, axes: tuple[Axis, ...]) -> Form:
        """Return the convolution over these axes."""
        return Form(axes, self.groups, self.precision, self.accumulate_dtype, library.get())


def _options(
    op: str,
    kernel: Array,
    groups: int,
    pad_mode: PadMode,
    precision: Precision,
    accumulate_dtype: DTypeLike | None,
    implementation: str | None,
    dtype: DTypeLike,
) -> _Options:
    """Check what the two share."""
    spatial = kernel.ndim - 2
    if spatial < 1 or 0 in kernel.shape:
        msg = (
            f"{op}: the kernel must be (*window, in // groups, out), with at least one window axis and none empty; "
            f"got shape {kernel.shape}"
        )
        raise FuncconvError(msg)
    check_groups(op, groups, kernel.shape)
    if implementation not in _MAPS:
        msg = f"{op}: unknown implementation {implementation!r}{suggest(implementation, IMPLEMENTATIONS)}"
        raise FuncconvError(msg)
    check_accumulate(op, accumulate_dtype, dtype)
    accumulate = None if accumulate_dtype is None else jnp.dtype(accumulate_dtype)
    return _Options(pad_modes(op, pad_mode, spatial), groups, precision, accumulate, _MAPS[implementation])


def _flipped(kernel: Array, flip: bool) -> Array:  # noqa: FBT001
    return lax.rev(kernel, range(kernel.ndim - 2)) if flip else kernel


def _transposed_reference(kernel: Array, g: Array, form: Form) -> Array:
    image_type = jax.typeof(g).update(shape=form.image(g, kernel), dtype=kernel.dtype)
    return jax.linear_transpose(lambda x: reference(x, kernel, form), image_type)(g)[0]  # type: ignore[no-any-return]


_MAPS: dict[str | None, tuple[Map, Map]] = {
    None: (_family.conv, _family.conv_input_grad),
    "lax": (reference, _transposed_reference),
}
IMPLEMENTATIONS = tuple(name for name in _MAPS if name is not None)

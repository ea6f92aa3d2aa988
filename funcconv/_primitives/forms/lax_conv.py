"""XLA's own convolution: the reference, which the other forms must equal, and a way to the faster of two of them."""

from jax import lax

from ..._common.types import Array
from ..._windows.geometry import Axis
from ..._windows.padding import pad
from .form import Form


def reference(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation in the dtype of accumulation. Which padding is left to XLA, see `spare`."""
    n = len(form.axes)
    margins = [spare(axis) for axis in form.axes]
    return lax.conv_general_dilated(
        pad(image, form.axes, ("zeros",) * n, spare=margins),
        kernel,
        window_strides=[axis.stride for axis in form.axes],
        padding=margins,
        rhs_dilation=[axis.dilation for axis in form.axes],
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, n + 1, *range(1, n + 1)),  # image: (batch, *spatial, in)
            (n + 1, n, *range(n)),  # kernel: (*window, in // groups, out)
            (0, n + 1, *range(1, n + 1)),  # result: (batch, *positions, out)
        ),
        feature_group_count=form.groups,
        precision=form.precision,
        preferred_element_type=form.accumulate_dtype,
    )


def longer(image: Array, kernel: Array, form: Form) -> Array:
    """Return the same by a convolution whose result has a line more.

    XLA 0.10 for the CPU has three ways for two axes. Without padding it uses a library that gathers all windows, which
    takes up to thirty times as long; with padding, and a result that is not larger than the image, a way that is slow
    for some numbers of channels. The line leads it to another one.
    """
    i = form.overlapping or 0
    axis = form.axes[i]
    lines = 1 + (max(axis.size, axis.outputs) if form.padded else axis.outputs)
    more = axis._replace(outputs=lines)
    axes = (*form.axes[:i], more._replace(hi=more.reach), *form.axes[i + 1 :])
    y = reference(image, kernel, form._replace(axes=axes))
    return lax.slice_in_dim(y, 0, axis.outputs, axis=1 + i)


def spare(axis: Axis) -> tuple[int, int]:
    """Return how many of the zeros before and after an axis XLA is to add, so that it stays on ground that holds.

    Only zeros that some window with a tap on the image reads, and only up to the last place that is read: then no
    padding is negative, in this contraction or in its two transposes, which have `extent - 1 - spare` zeros. (XLA for
    the CPU has read out of bounds where a negative padding comes before an axis and a positive one after it.)

    And not all of those on both sides: where a transpose has no padding at all, XLA takes an axis with a window of two
    and a stride of two for groups when it swaps the operands, and aborts the process.
    """
    most = axis.extent - 1
    before, after = (min(max(margin, 0), most) for margin in (axis.lo, axis.reach))
    return before, after - 1 if before == after == most > 0 else after

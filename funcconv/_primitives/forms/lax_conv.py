"""XLA's own convolution: the reference for all other forms, and variants that avoid XLA's slow paths."""

import jax
from jax import lax

from ..._common.types import Array
from ..._windows.geometry import Axis
from ..._windows.padding import pad
from .form import Form


def reference(image: Array, kernel: Array, form: Form, *, symmetric: bool = False) -> Array:
    """Return the convolution, in the dtype of accumulation. XLA adds the padding that `spare` returns.

    Args:
        image: `(batch, *spatial, in)`.
        kernel: `(*window, in // groups, out)`.
        form: the convolution.
        symmetric: whether both sides of an axis get the same padding if a stride leaves the last zeros unread. cuDNN
            has no other padding, so that XLA for a GPU would first copy the image.
    """
    n = len(form.axes)
    equal = [symmetric and _fits_equal_padding(axis) for axis in form.axes]
    axes = [axis.pointwise if is_equal else axis for axis, is_equal in zip(form.axes, equal, strict=True)]
    margins = [spare(axis) for axis in axes]
    pairs = zip(form.axes, margins, equal, strict=True)
    padding = [(axis.lo, axis.lo) if is_equal else margin for axis, margin, is_equal in pairs]
    return lax.conv_general_dilated(
        pad(image, axes, ("zeros",) * n, spare=margins),
        kernel,
        window_strides=[axis.stride for axis in form.axes],
        padding=padding,
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


def reference_input_grad(kernel: Array, g: Array, form: Form) -> Array:
    """Return the transpose of `image -> reference(image, kernel, form)` at the cotangent `g`."""
    image_type = jax.typeof(g).update(shape=form.image(g, kernel), dtype=kernel.dtype)
    return jax.linear_transpose(lambda image: reference(image, kernel, form), image_type)(g)[0]  # type: ignore[no-any-return]


def conv_with_extra_row(image: Array, kernel: Array, form: Form) -> Array:
    """Return the convolution by one whose result has an extra row, which is dropped.

    XLA of jax 0.10 has three paths for two axes on the CPU. Without padding it calls a library that gathers all
    windows, which takes up to thirty times as long. With padding, and a result that is not larger than the image, its
    path is slow for some numbers of channels. The extra row makes XLA choose the fast path.
    """
    i = form.overlapping or 0
    axis = form.axes[i]
    rows = 1 + (max(axis.size, axis.outputs) if form.padded else axis.outputs)
    longer = axis._replace(outputs=rows)
    axes = (*form.axes[:i], longer._replace(hi=longer.hi_used), *form.axes[i + 1 :])
    y = reference(image, kernel, form._replace(axes=axes))
    return lax.slice_in_dim(y, 0, axis.outputs, axis=1 + i)


def kernel_grad_with_exchanged_axes(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient as a convolution of the image with the cotangents.

    Batch and channels are exchanged. The stride becomes the dilation of the cotangents and the dilation the stride. XLA
    computes the transpose of its own convolution in the same way. Here the axes have the order that its fast path
    needs; inside loops XLA does not transpose them itself.
    """
    n = len(form.axes)
    margins = [spare(axis) for axis in form.axes]
    x = pad(image, form.axes, ("zeros",) * n, spare=margins)
    channels_last = (0, n + 1, *range(1, n + 1))
    w = lax.conv_general_dilated(
        x.transpose(n + 1, *range(1, n + 1), 0),  # (in, *spatial, batch)
        g.transpose(*range(1, n + 1), 0, n + 1),  # (*positions, batch, out)
        window_strides=[axis.dilation for axis in form.axes],
        padding=margins,
        rhs_dilation=[axis.stride for axis in form.axes],
        dimension_numbers=lax.ConvDimensionNumbers(channels_last, (n + 1, n, *range(n)), channels_last),
        precision=form.precision,
    )
    return w.transpose(*range(1, n + 1), 0, n + 1)


def _fits_equal_padding(axis: Axis) -> bool:
    """Return whether `lo` zeros on both sides of an axis give the same windows, and avoid the bugs of `spare`."""
    outputs = (axis.size + 2 * axis.lo - axis.extent) // axis.stride + 1
    return outputs == axis.outputs and 0 <= axis.lo < max(axis.extent - 1, 1)


def spare(axis: Axis) -> tuple[int, int]:
    """Return the zeros before and after an axis that XLA adds itself, so that two of its bugs are avoided.

    1. XLA for the CPU (jax 0.10.2) reads out of bounds if an axis has negative padding before it and positive padding
       after it. So XLA adds at most `extent - 1` zeros, and none beyond the last position that is read. Then no padding
       is negative, neither here nor in the two transposes, which have `extent - 1 - spare` zeros.
    2. If a transpose has no padding at all, XLA mistakes an axis with a window of two and a stride of two for groups
       when it swaps the operands, and aborts the process. So XLA does not add all zeros on both sides.
    """
    most = axis.extent - 1
    before, after = (min(max(margin, 0), most) for margin in (axis.lo, axis.hi_used))
    return before, after - 1 if before == after == most > 0 else after

"""The kernel gradient as a convolution of the image with the cotangents, batch and channels exchanged.

That is what XLA makes of it too; but with the axes in the order that its fast path takes, which XLA does not bring them
to inside of loops.
"""

from jax import lax

from ..._common.types import Array
from ..._windows.padding import pad
from .form import Form
from .lax_conv import spare


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose of the convolution by its kernel."""
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

"""The kernel gradient as a convolution of the image with the cotangents, with batch and channels exchanged.

XLA computes the transpose of its own convolution in the same way. Here the axes have the order that its fast path
needs; inside loops XLA does not transpose them itself.
"""

from jax import lax

from ..._common.types import Array
from ..._windows.padding import pad
from .form import Form
from .lax_conv import spare


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient. The stride becomes the dilation of the cotangents and the dilation the stride."""
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

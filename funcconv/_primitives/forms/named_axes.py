"""Convolutions for programs that are converted to other formats: XLA's own, with axes in orders that have names.

Converters know convolutions along one or two axes only, so a convolution along more axes is a sum of those along two.
The input gradient is one convolution of the cotangents, dilated by the stride, as in other libraries.
"""

from jax import lax

from ..._common.types import Array
from . import lax_conv as _lax
from . import maps as _maps
from . import planes as _depth
from . import stride_phases as _phases
from .form import Form, Type
from .problem import Where

_NAMED = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def named_conv(image: Array, kernel: Array, *, form: Form, stack: int, out: Type) -> Array:
    """Return the convolution. `stack` leading axes of both operands give each image its own kernel."""
    if stack:
        return _maps.conv(image, kernel, form=form, stack=stack, out=out, where=Where(None))
    return _conv(image, kernel, form).astype(out.dtype)


def named_input_grad(kernel: Array, g: Array, *, form: Form, stack: int, out: Type) -> Array:
    """Return the input gradient."""
    if stack:
        return _maps.conv_input_grad(kernel, g, form=form, stack=stack, out=out, where=Where(None))
    if len(form.axes) not in _NAMED:
        return _phases.input_grad(kernel, g, form, _conv).astype(out.dtype)
    margins = [
        (axis.extent - 1 - axis.lo, axis.size + axis.lo - (axis.outputs - 1) * axis.stride - 1) for axis in form.axes
    ]
    if all(axis.stride == 1 for axis in form.axes):  # an ordinary convolution, which is cropped before it is padded
        g = lax.pad(g, g.dtype.type(0), [(0, 0, 0), *((min(lo, 0), min(hi, 0), 0) for lo, hi in margins), (0, 0, 0)])
        margins = [(max(lo, 0), max(hi, 0)) for lo, hi in margins]
    return lax.conv_general_dilated(
        g,
        lax.rev(_phases.swapped(kernel, form.groups), range(len(form.axes))),
        window_strides=[1 for _ in form.axes],
        padding=margins,
        lhs_dilation=[axis.stride for axis in form.axes],
        rhs_dilation=[axis.dilation for axis in form.axes],
        dimension_numbers=_NAMED[len(form.axes)],
        feature_group_count=form.groups,
        precision=form.precision,
        preferred_element_type=form.accumulate_dtype,
    ).astype(out.dtype)


def _conv(image: Array, kernel: Array, form: Form) -> Array:
    if len(form.axes) in _NAMED:
        return _lax.reference(image, kernel, form)
    return _depth.conv_by_taps(image, kernel, form, dense=_conv, loop=False)

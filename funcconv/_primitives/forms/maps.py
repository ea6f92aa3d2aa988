"""The three maps of a convolution, in the forms that are chosen for them."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.types import Array
from . import block_diagonal_groups as _groups
from . import blocked_im2col as _blocks
from . import exchanged_axes as _turned
from . import im2col as _windows
from . import lax_conv as _lax
from . import matrix_product as _pointwise
from . import planes as _depth
from . import shifted_sum as _depthwise
from . import stride_phases as _phases
from .choice import CONV, INPUT_GRAD, KERNEL_GRAD, choose
from .form import Form, Map, Type
from .problem import Problem, Where


def conv(image: Array, kernel: Array, *, form: Form, stack: int, out: Type, where: Where, phases: int = 1) -> Array:
    """Return the convolution of an image with a kernel; with `stack` axes in front of both, of each with its own."""
    kernel, form = _seen(kernel, form), form.trimmed
    problem = Problem.of(form, image.shape, kernel.shape, kernel.dtype, stack, where)._replace(phases=phases)
    name = choose(CONV, problem).form
    if name == "lax":
        return _gathered(_lax.reference(_gathered(image, where), _gathered(kernel, where, kernel=True), form), where)
    if name == "windows":
        return _stacked(form, stack)(image, kernel)
    dense = partial(dense_conv, where=where)
    forms: dict[str, Map] = {
        "taps": partial(_depthwise.conv, old=where.old, blocks=problem.countable),
        "rows": partial(_depthwise.conv_by_blocks, blocks=problem.countable),
        "product": _pointwise.conv,
        "groups": partial(_groups.conv, dense=dense, loop=where.devices == 1),
        "planes": partial(_depth.conv, dense=dense),
        "depth": partial(_depth.conv_by_taps, dense=dense),
        "longer": _lax.longer,
        "blocks": _blocks.conv,
    }
    return forms[name](_widened(image, form), _widened(kernel, form), form).astype(out.dtype)


def conv_input_grad(kernel: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `image -> conv(image, kernel)`, which gives an image of type `out`."""
    kernel, form = _seen(kernel, form), form.trimmed
    name = choose(INPUT_GRAD, Problem.of(form, out.shape, kernel.shape, kernel.dtype, stack, where)).form
    if name == "lax":
        kernel, g = _gathered(kernel, where, kernel=True), _gathered(g, where)
        return _gathered(jax.linear_transpose(lambda image: _lax.reference(image, kernel, form), out)(g)[0], where)
    if name == "windows":
        return jax.linear_transpose(lambda image: _stacked(form, stack)(image, kernel), out)(g)[0]  # type: ignore[no-any-return]
    dense = partial(dense_conv, where=where, phases=_phases.convolutions(form, kernel.shape[-2]))
    return _phases.input_grad(_widened(kernel, form), _widened(g, form), form, dense).astype(out.dtype)


def conv_kernel_grad(image: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `kernel -> conv(image, kernel)`, which gives a kernel of type `out`."""
    if form.trimmed != form:
        seen = out.update(shape=(*out.shape[:stack], *form.trimmed.window, *out.shape[-2:]))
        w = conv_kernel_grad(image, g, form=form.trimmed, stack=stack, out=seen, where=where)
        margins = [(taps.start, axis.window - taps.stop) for taps, axis in zip(form.seen, form.axes, strict=True)]
        return jnp.pad(w, [*[(0, 0)] * stack, *margins, (0, 0), (0, 0)])
    problem = Problem.of(form, image.shape, out.shape, out.dtype, stack, where)
    name = choose(KERNEL_GRAD, problem).form
    if name == "lax":
        image, g = _gathered(image, where), _gathered(g, where)
        (w,) = jax.linear_transpose(lambda kernel: _lax.reference(image, kernel, form), out)(g)
        return _gathered(w, where, kernel=True)
    if name == "windows":
        return jax.linear_transpose(lambda kernel: _stacked(form, stack)(image, kernel), out)(g)[0]  # type: ignore[no-any-return]
    forms: dict[str, Map] = {
        "taps": partial(_depthwise.kernel_grad, old=where.old, blocks=problem.countable),
        "product": _pointwise.kernel_grad,
        "groups": partial(_groups.kernel_grad, dense=partial(_kernel_grad, where=where)),
        "turned": _turned.kernel_grad,
        "blocks": _blocks.kernel_grad,
        "exchanged": _blocks.exchanged,
        "mixed": _blocks.mixed,
        "slices": _groups.kernel_grad_by_taps,
    }
    return forms[name](_widened(image, form), _widened(g, form), form).astype(out.dtype)


def dense_conv(image: Array, kernel: Array, form: Form, *, where: Where, phases: int = 1) -> Array:
    """Return a convolution of which another one is made, or one of so many."""
    return conv(image, kernel, form=form, stack=0, out=jax.typeof(image), where=where, phases=phases)


def _kernel_grad(image: Array, g: Array, form: Form, *, where: Where) -> Array:
    """Return a kernel gradient of which another one is made."""
    out = jax.typeof(image).update(shape=form.kernel(image, g))
    return conv_kernel_grad(image, g, form=form, stack=0, out=out, where=where)


def _seen(kernel: Array, form: Form) -> Array:
    """Return the taps of a kernel that some window has on the image."""
    return kernel if form.trimmed == form else kernel[(..., *form.seen, slice(None), slice(None))]


def _gathered(array: Array, where: Where, *, kernel: bool = False) -> Array:
    """Return an array whose spatial axes, or the window axes of a kernel, each device has as a whole.

    XLA's partitioner returns wrong convolutions of a kernel whose window is spread over devices, and of an image that
    is spread along space while channels are spread over other devices. An axis that is read by indices is gathered.
    That takes time for images, so on GPU and TPU it is done for kernels only.
    """
    first, last = (0, array.ndim - 2) if kernel else (1, array.ndim - 1)
    places = math.prod(array.shape[first:last])
    if where.parts in (None, 1) or places <= 1 or not (kernel or where.platform == "cpu"):
        return array
    merged = array.reshape(*array.shape[:first], places, *array.shape[last:])
    return jnp.take(merged, jnp.arange(places), axis=first, mode="clip").reshape(array.shape)


def _stacked(form: Form, stack: int) -> Callable[[Array, Array], Array]:
    """Return the product of windows, mapped over the stack."""
    forward: Callable[[Array, Array], Array] = partial(_windows.conv, form=form)
    for _ in range(stack):
        forward = jax.vmap(forward)
    return forward


def _widened(operand: Array, form: Form) -> Array:
    """Return an operand in the dtype in which its products are to be summed: float32 for 16 bits."""
    return operand.astype(form.accumulate_dtype or wide(operand.dtype))

"""The three maps of a convolution, each computed in the form that is chosen for it."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.types import Array
from . import block_diagonal_groups as _groups
from . import fft as _fft
from . import lax_conv as _lax_conv
from . import planes as _planes
from . import shifted_sum as _shifted_sum
from . import stride_phases as _phases
from .choice import CONV, INPUT_GRAD, KERNEL_GRAD, choose
from .form import Form, Map, Type
from .problem import Problem, Where
from .products import blocked_im2col as _blocks
from .products import im2col as _im2col
from .products import matrix_product as _matrix_product
from .products import single_position as _single_position


def conv(image: Array, kernel: Array, *, form: Form, stack: int, out: Type, where: Where, phases: int = 1) -> Array:
    """Return the convolution of an image with a kernel.

    Args:
        image: `(*stack, batch, *spatial, in)`.
        kernel: `(*stack, *window, in // groups, out)`.
        form: the geometry and the options.
        stack: number of leading axes along which each image has its own kernel.
        out: type of the result.
        where: where the program will run.
        phases: number of convolutions with parts of the same kernel that are computed beside this one.

    Returns:
        `(*stack, batch, *positions, out)`.
    """
    kernel, form = _active(kernel, form), form.trimmed
    problem = Problem.of(form, image.shape, kernel.shape, kernel.dtype, stack, where)._replace(phases=phases)
    name = choose(CONV, problem).form
    if name == "lax":
        return _gathered(_by_xla(_gathered(image, where), _gathered(kernel, where, kernel=True), form, where), where)
    if name == "batched_product":
        return _stacked(form, stack)(image, kernel)
    if name == "fft":
        return _by_fft(_fft.conv, image, kernel, form, stack, where).astype(out.dtype)
    dense, on_cpu = partial(dense_conv, where=where), where.platform == "cpu"
    forms: dict[str, Map] = {
        "shifted_sum": partial(_shifted_sum.conv, old=where.old and on_cpu, blocks=problem.can_cut_batch),
        "shifted_sum_by_rows": partial(_shifted_sum.conv_by_blocks, blocks=problem.can_cut_batch),
        "matrix_product": _matrix_product.conv,
        "single_position": _single_position.conv,
        "block_diagonal_groups": partial(_groups.conv, dense=dense, loop=where.devices == 1),
        "planes": partial(_planes.conv, dense=dense),
        "sum_of_planes": partial(_planes.conv_by_taps, dense=dense),
        "lax_with_extra_row": _lax_conv.conv_with_extra_row,
        "blocked_im2col": _blocks.conv,
    }
    return forms[name](_widened(image, form), _widened(kernel, form), form).astype(out.dtype)


def conv_input_grad(kernel: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `image -> conv(image, kernel)`, an image of type `out`."""
    kernel, form = _active(kernel, form), form.trimmed
    name = choose(INPUT_GRAD, Problem.of(form, out.shape, kernel.shape, kernel.dtype, stack, where)).form
    if name == "lax":
        kernel, g = _gathered(kernel, where, kernel=True), _gathered(g, where)
        return _gathered(jax.linear_transpose(lambda image: _by_xla(image, kernel, form, where), out)(g)[0], where)
    if name == "batched_product":
        return jax.linear_transpose(lambda image: _stacked(form, stack)(image, kernel), out)(g)[0]  # type: ignore[no-any-return]
    if name == "fft":
        return _by_fft(_fft.input_grad, kernel, g, form, stack, where).astype(out.dtype)
    if name == "single_position":
        return _single_position.input_grad(_widened(kernel, form), _widened(g, form), form).astype(out.dtype)
    dense = partial(dense_conv, where=where, phases=_phases.convolutions(form, kernel.shape[-2]))
    return _phases.input_grad(_widened(kernel, form), _widened(g, form), form, dense).astype(out.dtype)


def conv_kernel_grad(image: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `kernel -> conv(image, kernel)`, a kernel of type `out`."""
    if form.trimmed != form:  # taps that read only padding have gradient zero
        trimmed_out = out.update(shape=(*out.shape[:stack], *form.trimmed.window, *out.shape[-2:]))
        w = conv_kernel_grad(image, g, form=form.trimmed, stack=stack, out=trimmed_out, where=where)
        pairs = zip(form.active_taps, form.axes, strict=True)
        margins = [(taps.start, axis.window - taps.stop) for taps, axis in pairs]
        return jnp.pad(w, [*[(0, 0)] * stack, *margins, (0, 0), (0, 0)])
    problem = Problem.of(form, image.shape, out.shape, out.dtype, stack, where)
    name = choose(KERNEL_GRAD, problem).form
    if name == "lax":
        image, g = _gathered(image, where), _gathered(g, where)
        (w,) = jax.linear_transpose(lambda kernel: _by_xla(image, kernel, form, where), out)(g)
        return _gathered(w, where, kernel=True)
    if name == "batched_product":
        return jax.linear_transpose(lambda kernel: _stacked(form, stack)(image, kernel), out)(g)[0]  # type: ignore[no-any-return]
    if name == "fft":
        return _by_fft(_fft.kernel_grad, image, g, form, stack, where).astype(out.dtype)
    forms: dict[str, Map] = {
        "shifted_sum": partial(_shifted_sum.kernel_grad, old=where.old, blocks=problem.can_cut_batch),
        "matrix_product": _matrix_product.kernel_grad,
        "single_position": _single_position.kernel_grad,
        "block_diagonal_groups": partial(_groups.kernel_grad, dense=partial(_kernel_grad, where=where)),
        "exchanged_axes": _lax_conv.kernel_grad_with_exchanged_axes,
        "blocked_im2col": _blocks.kernel_grad,
        "blocked_im2col_of_cotangents": _blocks.kernel_grad_by_cotangent_windows,
        "blocked_im2col_of_both": _blocks.kernel_grad_by_both_windows,
        "product_per_tap": _groups.kernel_grad_by_taps,
    }
    return forms[name](_widened(image, form), _widened(g, form), form).astype(out.dtype)


def dense_conv(image: Array, kernel: Array, form: Form, *, where: Where, phases: int = 1) -> Array:
    """Return a convolution without groups or a stack, which is a part of another convolution."""
    return conv(image, kernel, form=form, stack=0, out=jax.typeof(image), where=where, phases=phases)


def _kernel_grad(image: Array, g: Array, form: Form, *, where: Where) -> Array:
    """Return a kernel gradient without groups or a stack, which is a part of another one."""
    out = jax.typeof(image).update(shape=form.kernel(image, g))
    return conv_kernel_grad(image, g, form=form, stack=0, out=out, where=where)


def _by_xla(image: Array, kernel: Array, form: Form, where: Where) -> Array:
    return _lax_conv.reference(image, kernel, form, symmetric=where.platform != "cpu")


def _active(kernel: Array, form: Form) -> Array:
    """Return the taps of a kernel that are on the image in some window."""
    return kernel if form.trimmed == form else kernel[(..., *form.active_taps, slice(None), slice(None))]


def _gathered(array: Array, where: Where, *, kernel: bool = False) -> Array:
    """Return an array whose spatial axes, or the window axes of a kernel, are not sharded over devices.

    XLA's partitioner (jax 0.10.2 and 0.12.0.1) returns wrong convolutions if the window of a kernel is sharded, or if
    an image is sharded along space and channels are sharded over other devices. Gathering costs time for images, so on
    GPU and TPU only kernels are gathered.
    """
    first, last = (0, array.ndim - 2) if kernel else (1, array.ndim - 1)
    positions = math.prod(array.shape[first:last])
    if where.parts in (None, 1) or positions <= 1 or not (kernel or where.platform == "cpu"):
        return array
    # The partitioner gathers an axis that is indexed, here by all its indices.
    merged = array.reshape(*array.shape[:first], positions, *array.shape[last:])
    return jnp.take(merged, jnp.arange(positions), axis=first, mode="clip").reshape(array.shape)


def _by_fft(fft: Callable[..., Array], a: Array, b: Array, form: Form, stack: int, where: Where) -> Array:
    """Return one of the maps, computed by FFT. XLA has FFTs of at least 32 bits only."""
    a, b = (operand.astype(wide(form.accumulate_dtype or operand.dtype)) for operand in (a, b))
    return fft(a, b, form, stack=stack, blocks=where.devices == 1)


def _stacked(form: Form, stack: int) -> Callable[[Array, Array], Array]:
    """Return the im2col form, mapped over the stack."""
    forward: Callable[[Array, Array], Array] = partial(_im2col.conv, form=form)
    for _ in range(stack):
        forward = jax.vmap(forward)
    return forward


def _widened(operand: Array, form: Form) -> Array:
    """Return an operand in the dtype in which its products are summed: float32 for 16-bit operands."""
    return operand.astype(form.accumulate_dtype or wide(operand.dtype))

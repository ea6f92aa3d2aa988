"""The three maps of a convolution, in the forms that are chosen for them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from .._dtypes import wide
from .._typing import Array
from . import _blocks, _depth, _depthwise, _groups, _lax, _phases, _pointwise, _turned, _windows
from ._choice import CONV, INPUT_GRAD, KERNEL_GRAD, choose
from ._form import Form, Map, Type
from ._problem import Problem, Where


def conv(image: Array, kernel: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the convolution of an image with a kernel; with `stack` axes in front of both, of each with its own."""
    kernel, form = _seen(kernel, form), form.trimmed
    problem = Problem.of(form, image.shape, kernel.shape, kernel.dtype, stack, where)
    name = choose(CONV, problem).form
    if name in ("lax", "windows"):
        return _stacked(name, form, stack)(image, kernel)
    dense = partial(dense_conv, where=where)
    forms: dict[str, Map] = {
        "taps": partial(_depthwise.conv, old=where.old, blocks=problem.countable),
        "rows": partial(_depthwise.conv_by_rows, blocks=problem.countable),
        "product": _pointwise.conv,
        "groups": partial(_groups.conv, dense=dense, loop=where.devices == 1),
        "planes": partial(_depth.conv, dense=dense),
        "depth": partial(_depth.conv_by_taps, dense=dense),
        "longer": _lax.longer,
        "blocks": _blocks.conv,
    }
    return forms[name](_widened(image), _widened(kernel), form).astype(out.dtype)


def conv_input_grad(kernel: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `image -> conv(image, kernel)`, which gives an image of type `out`."""
    kernel, form = _seen(kernel, form), form.trimmed
    name = choose(INPUT_GRAD, Problem.of(form, out.shape, kernel.shape, kernel.dtype, stack, where)).form
    if name in ("lax", "windows"):
        forward = lambda image: _stacked(name, form, stack)(image, kernel)  # noqa: E731
        return jax.linear_transpose(forward, out)(g)[0]  # type: ignore[no-any-return]
    return _phases.input_grad(_widened(kernel), _widened(g), form, partial(dense_conv, where=where)).astype(out.dtype)


def conv_kernel_grad(image: Array, g: Array, *, form: Form, stack: int, out: Type, where: Where) -> Array:
    """Return the transpose of `kernel -> conv(image, kernel)`, which gives a kernel of type `out`."""
    if form.trimmed != form:
        seen = out.update(shape=(*out.shape[:stack], *form.trimmed.window, *out.shape[-2:]))
        w = conv_kernel_grad(image, g, form=form.trimmed, stack=stack, out=seen, where=where)
        margins = [(taps.start, axis.window - taps.stop) for taps, axis in zip(form.seen, form.axes, strict=True)]
        return jnp.pad(w, [*[(0, 0)] * stack, *margins, (0, 0), (0, 0)])
    problem = Problem.of(form, image.shape, out.shape, out.dtype, stack, where)
    name = choose(KERNEL_GRAD, problem).form
    if name in ("lax", "windows"):
        forward = lambda kernel: _stacked(name, form, stack)(image, kernel)  # noqa: E731
        return jax.linear_transpose(forward, out)(g)[0]  # type: ignore[no-any-return]
    forms: dict[str, Map] = {
        "taps": partial(_depthwise.kernel_grad, old=where.old, blocks=problem.countable),
        "product": _pointwise.kernel_grad,
        "groups": partial(_groups.kernel_grad, dense=partial(_kernel_grad, where=where)),
        "turned": _turned.kernel_grad,
        "blocks": _blocks.kernel_grad,
        "exchanged": _blocks.exchanged,
        "mixed": _blocks.mixed,
    }
    return forms[name](_widened(image), _widened(g), form).astype(out.dtype)


def dense_conv(image: Array, kernel: Array, form: Form, *, where: Where) -> Array:
    """Return a convolution of which another one is made."""
    return conv(image, kernel, form=form, stack=0, out=jax.typeof(image), where=where)


def _kernel_grad(image: Array, g: Array, form: Form, *, where: Where) -> Array:
    """Return a kernel gradient of which another one is made."""
    out = jax.typeof(image).update(shape=form.kernel(image, g))
    return conv_kernel_grad(image, g, form=form, stack=0, out=out, where=where)


def _seen(kernel: Array, form: Form) -> Array:
    """Return the taps of a kernel that some window has on the image."""
    return kernel if form.trimmed == form else kernel[(..., *form.seen, slice(None), slice(None))]


def _stacked(name: str, form: Form, stack: int) -> Callable[[Array, Array], Array]:
    """Return XLA's own convolution, or the product of windows, mapped over the stack."""
    forward: Callable[[Array, Array], Array] = partial(_lax.reference if name == "lax" else _windows.conv, form=form)
    for _ in range(stack):
        forward = jax.vmap(forward)
    return forward


def _widened(operand: Array) -> Array:
    """Return a 16-bit operand in float32, in which its products are to be summed."""
    return operand.astype(wide(operand.dtype))

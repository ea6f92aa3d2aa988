"""The three maps of a convolution, in the form that is chosen for them."""

from collections.abc import Callable
from typing import TypeAlias

import jax

from .._typing import Array
from . import _lax, _windows
from ._form import Form, Type

Forward: TypeAlias = Callable[[Array, Array, Form], Array]


def conv(image: Array, kernel: Array, *, form: Form, stack: int, out: Type) -> Array:
    """Return the convolution of an image with a kernel; with `stack` axes in front of both, of each with its own."""
    del out
    form_of_conv = _choose(stack)
    forward: Callable[[Array, Array], Array] = lambda image, kernel: form_of_conv(image, kernel, form)  # noqa: E731
    for _ in range(stack):
        forward = jax.vmap(forward)
    return forward(image, kernel)


def conv_input_grad(kernel: Array, g: Array, *, form: Form, stack: int, out: Type) -> Array:
    """Return the transpose of `image -> conv(image, kernel)`, which gives an image of type `out`."""
    forward = lambda image: conv(image, kernel, form=form, stack=stack, out=None)  # noqa: E731
    return jax.linear_transpose(forward, out)(g)[0]  # type: ignore[no-any-return]


def conv_kernel_grad(image: Array, g: Array, *, form: Form, stack: int, out: Type) -> Array:
    """Return the transpose of `kernel -> conv(image, kernel)`, which gives a kernel of type `out`."""
    forward = lambda kernel: conv(image, kernel, form=form, stack=stack, out=None)  # noqa: E731
    return jax.linear_transpose(forward, out)(g)[0]  # type: ignore[no-any-return]


def _choose(stack: int) -> Forward:
    """Return XLA's own convolution, but for a stack of kernels one product of windows."""
    return _windows.conv if stack else _lax.reference

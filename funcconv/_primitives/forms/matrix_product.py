"""Windows of one tap: a convolution is a product of matrices."""

import functools
import math

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..._windows.padding import pad
from .form import Form

_PARTS = 4  # a long sum is formed in so many parts at most, as one batched product


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation."""
    return jnp.dot(_read(image, form), kernel.reshape(kernel.shape[-2:]), precision=form.precision)


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose by the kernel."""
    x = _read(image, form)
    count = math.prod(x.shape[:-1])
    parts = math.gcd(count, _PARTS)
    x, right = (each.reshape(parts, count // parts, each.shape[-1]) for each in (x, g))
    products = jnp.einsum("pni,pno->pio", x, right, precision=form.precision)
    return functools.reduce(jnp.add, jnp.unstack(products)).reshape(form.kernel(image, g))  # XLA's sum can be slow


def _read(image: Array, form: Form) -> Array:
    """Return the places that the windows read."""
    n = len(form.axes)
    x = pad(image, form.axes, ("zeros",) * n)
    stops = [(axis.outputs - 1) * axis.stride + 1 for axis in form.axes]
    strides = (1, *(axis.stride for axis in form.axes), 1)
    return lax.slice(x, (0,) * x.ndim, (x.shape[0], *stops, x.shape[-1]), strides)

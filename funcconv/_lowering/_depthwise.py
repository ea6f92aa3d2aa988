"""Groups of one input channel: sums over taps, each a slice of the image that is scaled channel by channel."""

import functools
import math

import jax.numpy as jnp
from jax import lax

from .._padding import pad
from .._taps import shifted
from .._typing import Array
from ._form import Form


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation."""
    taps = shifted(_repeated(image, kernel.shape[-1], form), form.axes)
    weights = kernel.reshape(len(taps), *(1,) * (image.ndim - 1), kernel.shape[-1])
    y: Array = functools.reduce(jnp.add, (tap * weight for tap, weight in zip(taps, weights, strict=True)))
    return y


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose by the kernel: row by row of the positions, and summed over these and the batch at last."""
    x = _repeated(image, g.shape[-1], form)
    first, rest = form.axes[0], form.axes[1:]

    def add_row(position: Array, sums: list[Array]) -> list[Array]:
        here = lax.dynamic_index_in_dim(g, position, axis=1, keepdims=False)
        found = []
        for tap in range(first.window):
            place = position * first.stride + tap * first.dilation
            found += shifted(lax.dynamic_index_in_dim(x, place, axis=1, keepdims=False), rest)
        return [total + here * part for total, part in zip(sums, found, strict=True)]

    zero = jnp.zeros((g.shape[0], *g.shape[2:]), g.dtype)
    sums = lax.fori_loop(0, first.outputs, add_row, [zero] * math.prod(form.window))
    totals = [total.reshape(-1, g.shape[-1]).sum(0) for total in sums]
    return jnp.stack(totals).reshape(form.kernel(image, g))


def _repeated(image: Array, outputs: int, form: Form) -> Array:
    """Return the padded image with each channel as often as it has outputs."""
    return pad(jnp.repeat(image, outputs // form.groups, axis=-1), form.axes, ("zeros",) * len(form.axes))

"""Groups of one input channel: sums over taps, each a slice of the image that is scaled channel by channel.

The rows of a large kernel are taken one after another.
"""

import functools
import math

import jax.numpy as jnp
from jax import lax

from .._geometry import Axis
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


def conv_by_rows(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation as a sum over the rows of the kernel, in a loop."""
    first, row = form.axes[0], _row(form)
    x = pad(image, form.axes, ("zeros",) * len(form.axes))

    def add_row(tap: Array, y: Array) -> Array:
        lines = lax.dynamic_slice_in_dim(x, tap * first.dilation, row.axes[0].size, axis=1)
        return y + conv(lines, lax.dynamic_slice_in_dim(kernel, tap, 1, axis=0), row)

    zero = jnp.zeros(form.result(image, kernel), image.dtype)
    return lax.fori_loop(0, first.window, add_row, zero)  # type: ignore[no-any-return]


def kernel_grad_by_rows(image: Array, g: Array, form: Form) -> Array:
    """Return the transpose by the kernel, each row of it by itself."""
    first, row = form.axes[0], _row(form)
    x = pad(image, form.axes, ("zeros",) * len(form.axes))

    def one_row(tap: Array) -> Array:
        lines = lax.dynamic_slice_in_dim(x, tap * first.dilation, row.axes[0].size, axis=1)
        return kernel_grad(lines, g, row)[0]

    return lax.map(one_row, jnp.arange(first.window))  # type: ignore[no-any-return]


def _row(form: Form) -> Form:
    """Return the convolution of the lines that one row of the kernel reads, which are padded, with this row."""
    first, *rest = form.axes
    lines = Axis((first.outputs - 1) * first.stride + 1, 1, first.stride, 1, 0, 0, first.outputs)
    others = (axis._replace(size=axis.lo + axis.size + axis.reach, lo=0, hi=0) for axis in rest)
    return form._replace(axes=(lines, *others))


def _repeated(image: Array, outputs: int, form: Form) -> Array:
    """Return the padded image with each channel as often as it has outputs."""
    return pad(jnp.repeat(image, outputs // form.groups, axis=-1), form.axes, ("zeros",) * len(form.axes))

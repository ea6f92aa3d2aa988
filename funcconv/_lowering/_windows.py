"""A convolution as one product of gathered windows with the kernel.

Under a stack of kernels this is one batched product, where XLA's own way is a convolution with as many groups.
"""

import jax.numpy as jnp

from .._padding import pad
from .._taps import patches
from .._typing import Array
from ._form import Form


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation in the dtype of accumulation."""
    n = len(form.axes)
    windows = patches(pad(image, form.axes, ("zeros",) * n), form.axes)  # (batch, *positions, *window, in)
    windows = windows.reshape(*windows.shape[:-1], form.groups, kernel.shape[-2])
    kernels = kernel.reshape(*kernel.shape[:-1], form.groups, -1)
    batch, group, channel, output = range(4)
    positions, taps = range(4, 4 + n), range(4 + n, 4 + 2 * n)
    result = jnp.einsum(
        windows, [batch, *positions, *taps, group, channel],
        kernels, [*taps, channel, group, output],
        [batch, *positions, group, output],
        precision=form.precision, preferred_element_type=form.accumulate_dtype,
    )  # fmt: skip
    return result.reshape(form.result(image, kernel))

"""A convolution as one product of gathered windows with the kernel.

Under a stack of kernels this is one batched product, where XLA's own way is a convolution with as many groups. With few
channels it is faster than XLA's, and what is gathered is little.
"""

from functools import partial

import jax.numpy as jnp

from ..._common.dtypes import in_wide
from ..._common.types import Array
from ..._windows.padding import pad
from ..._windows.taps import patches
from .form import Form


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the correlation in the dtype of accumulation."""
    n = len(form.axes)
    batch, group, inputs, outputs = range(2 * n, 2 * n + 4)  # after the positions and the taps
    padded = pad(image, form.axes, ("zeros",) * n)
    windows = in_wide(partial(patches, axes=form.axes), padded)  # (batch, *positions, *window, in)
    y = jnp.einsum(
        windows.reshape(*windows.shape[:-1], form.groups, kernel.shape[-2]), [batch, *range(2 * n), group, inputs],
        kernel.reshape(*kernel.shape[:-1], form.groups, -1), [*range(n, 2 * n), inputs, group, outputs],
        [batch, *range(n), group, outputs],
        precision=form.precision, preferred_element_type=form.accumulate_dtype,
    )  # fmt: skip
    return y.reshape(form.result(image, kernel))

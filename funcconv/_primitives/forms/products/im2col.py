"""im2col: a convolution as one product of gathered windows with the kernel.

Under `jax.vmap` over both operands this is one batched product. XLA's own form would be a convolution with one group
per example, which is slow.
"""

from functools import partial

import jax.numpy as jnp

from ...._common.dtypes import in_wide
from ...._common.types import Array
from ...._windows.padding import pad
from ...._windows.taps import patches
from ..form import Form


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the convolution, in the dtype of accumulation."""
    n = len(form.axes)
    padded = pad(image, form.axes, ("zeros",) * n)
    # Windows overlap, so the gradient of an input is a sum over copies, computed in float32 for 16-bit inputs.
    windows = in_wide(partial(patches, axes=form.axes), padded)  # (batch, *positions, *window, in)
    # Labels of the axes for einsum: 0 to n - 1 are the positions, n to 2n - 1 the taps of the window.
    batch, group, inputs, outputs = range(2 * n, 2 * n + 4)
    y = jnp.einsum(
        windows.reshape(*windows.shape[:-1], form.groups, kernel.shape[-2]),
        [batch, *range(2 * n), group, inputs],
        kernel.reshape(*kernel.shape[:-1], form.groups, -1),
        [*range(n, 2 * n), inputs, group, outputs],
        [batch, *range(n), group, outputs],
        precision=form.precision,
        preferred_element_type=form.accumulate_dtype,
    )
    return y.reshape(form.result(image, kernel))

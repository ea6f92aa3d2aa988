"""Block-diagonal groups: several groups are computed as one dense convolution, which is wide enough to be fast.

The groups of a bundle are the blocks on the diagonal of a dense kernel, whose other entries are zero.
"""

import math

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..._windows.padding import pad
from ..._windows.pieces import piece
from ..._windows.taps import shifted
from .form import Form, Map

# Measured limits (see docs/lowerings.md).
_BUNDLE_CHANNELS = 16  # input channels of a bundle, if the number of groups allows it
_MOST_SLICED_TAPS = 128  # taps up to which each is read by a slice; more are read in a loop
_MOST_UNROLLED_BUNDLES = 4  # more are computed in a loop, so that the program does not grow with the groups


def conv(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool) -> Array:
    """Return the convolution. `dense` computes a convolution without groups; `loop` allows a loop over bundles."""
    *window, inputs, outputs = kernel.shape
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles  # groups of a bundle
    # (*window, in, bundles, group, out) -> block-diagonal (*window, bundles, group * in, group * out)
    blocks = kernel.reshape(*window, inputs, bundles, width, outputs // form.groups)
    diagonal = jnp.einsum("...isno,mn->...smino", blocks, jnp.eye(width, dtype=kernel.dtype))
    diagonal = diagonal.reshape(*window, bundles, width * inputs, outputs // bundles)
    ungrouped = form._replace(groups=1)
    if bundles <= _MOST_UNROLLED_BUNDLES or not loop:
        pairs = zip(jnp.split(image, bundles, axis=-1), jnp.unstack(diagonal, axis=-3), strict=True)
        return jnp.concatenate([dense(*pair, ungrouped) for pair in pairs], axis=-1)

    def put(nth: Array, y: Array) -> Array:
        bundle_kernel = piece(diagonal, nth, 1, axis=-3).squeeze(-3)
        result = dense(_bundle(image, nth, bundles), bundle_kernel, ungrouped)
        return lax.dynamic_update_slice_in_dim(y, result, nth * result.shape[-1], axis=-1, allow_negative_indices=False)

    return lax.fori_loop(0, bundles, put, jnp.zeros(form.result(image, kernel), image.dtype))  # type: ignore[no-any-return]


def kernel_grad(image: Array, g: Array, form: Form, dense: Map) -> Array:
    """Return the kernel gradient. `dense` computes a kernel gradient without groups."""
    inputs, outputs = image.shape[-1] // form.groups, g.shape[-1] // form.groups
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles
    ungrouped = form._replace(groups=1)
    if bundles <= _MOST_UNROLLED_BUNDLES:
        pairs = zip(jnp.split(image, bundles, axis=-1), jnp.split(g, bundles, axis=-1), strict=True)
        dense_kernels = jnp.stack([dense(*pair, ungrouped) for pair in pairs])
    else:

        def put(nth: Array, dense_kernels: Array) -> Array:
            result = dense(_bundle(image, nth, bundles), _bundle(g, nth, bundles), ungrouped)
            return lax.dynamic_update_slice_in_dim(
                dense_kernels, result[None], nth, axis=0, allow_negative_indices=False
            )

        zero = jnp.zeros((bundles, *form.window, width * inputs, width * outputs), g.dtype)
        dense_kernels = lax.fori_loop(0, bundles, put, zero)
    # Only the blocks on the diagonal are gradients of weights.
    dense_kernels = dense_kernels.reshape(bundles, *form.window, width, inputs, width, outputs)
    return jnp.einsum("s...nino->...isno", dense_kernels).reshape(form.kernel(image, g))


def kernel_grad_by_taps(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient with one product for each tap, of its shifted slice and the cotangents.

    The product is batched over the groups; with one input channel each it is a sum, which XLA fuses. There is no
    convolution, which XLA's partitioner would compute wrongly.
    """
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    grouped_g = g.reshape(*g.shape[:-1], form.groups, g.shape[-1] // form.groups)

    def product(shifted_image: Array) -> Array:
        grouped = shifted_image.reshape(*shifted_image.shape[:-1], form.groups, shifted_image.shape[-1] // form.groups)
        if grouped.shape[-1] == 1:
            return (grouped * grouped_g).sum(tuple(range(g.ndim - 1)))[None]
        return jnp.einsum("...ni,...no->ino", grouped, grouped_g, precision=form.precision)

    if math.prod(form.window) <= _MOST_SLICED_TAPS:
        return jnp.stack([product(x_tap) for x_tap in shifted(x, form.axes)]).reshape(form.kernel(image, g))
    taps = jnp.stack(jnp.meshgrid(*map(jnp.arange, form.window), indexing="ij"), -1).reshape(-1, len(form.axes))
    one_tap = tuple(axis._replace(size=0, window=1) for axis in form.axes)
    sizes = [(axis.outputs - 1) * axis.stride + 1 for axis in form.axes]

    def of_tap(tap: Array) -> Array:
        starts = [tap[i] * axis.dilation for i, axis in enumerate(form.axes)]
        read = lax.dynamic_slice(x, (0, *starts, 0), (len(x), *sizes, x.shape[-1]), allow_negative_indices=False)
        return product(*shifted(read, one_tap))

    kernel: Array = lax.map(of_tap, taps)
    return kernel.reshape(form.kernel(image, g))


def _bundles(inputs: int, groups: int) -> int:
    """Return the number of bundles, all of the same number of groups.

    A bundle has at least `_BUNDLE_CHANNELS` input channels if a divisor of the groups gives at most twice as many.
    """
    fewest = min(math.ceil(_BUNDLE_CHANNELS / inputs), groups)
    divisors = [width for width in range(1, min(2 * fewest, groups) + 1) if groups % width == 0]
    return groups // min((width for width in divisors if width >= fewest), default=divisors[-1])


def _bundle(array: Array, nth: Array, bundles: int) -> Array:
    """Return the channels of the nth bundle."""
    width = array.shape[-1] // bundles
    return piece(array, nth * width, width, axis=-1)

"""Groups as convolutions of their own, of which some are put together into one that is wide enough to be fast.

Of the kernel of such a bundle all is zero but for the blocks on its diagonal.
"""

import math

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..._windows.padding import pad
from ..._windows.pieces import piece
from ..._windows.taps import shifted
from .form import Form, Map

_WIDTH = 16  # input channels of a bundle, if the groups allow it
_TAPS = 128  # of a kernel that are read by a slice each; more are read in a loop
_UNROLLED = 4  # so many bundles are computed side by side, more in a loop


def conv(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool) -> Array:
    """Return the correlation; `dense` computes those without groups, and `loop` says whether in a loop over them."""
    *window, inputs, outputs = kernel.shape
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles
    blocks = kernel.reshape(*window, inputs, bundles, width, outputs // form.groups)
    whole = jnp.einsum("...isno,mn->...smino", blocks, jnp.eye(width, dtype=kernel.dtype))
    whole = whole.reshape(*window, bundles, width * inputs, outputs // bundles)
    single = form._replace(groups=1)
    if bundles <= _UNROLLED or not loop:
        pairs = zip(jnp.split(image, bundles, axis=-1), jnp.unstack(whole, axis=-3), strict=True)
        return jnp.concatenate([dense(*pair, single) for pair in pairs], axis=-1)

    def put(nth: Array, y: Array) -> Array:
        taps = piece(whole, nth, 1, axis=-3).squeeze(-3)
        found = dense(_bundle(image, nth, bundles), taps, single)
        return lax.dynamic_update_slice_in_dim(y, found, nth * found.shape[-1], axis=-1, allow_negative_indices=False)

    return lax.fori_loop(0, bundles, put, jnp.zeros(form.result(image, kernel), image.dtype))  # type: ignore[no-any-return]


def kernel_grad(image: Array, g: Array, form: Form, dense: Map) -> Array:
    """Return the transpose by the kernel; `dense` computes those without groups."""
    inputs, outputs = image.shape[-1] // form.groups, g.shape[-1] // form.groups
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles
    single = form._replace(groups=1)
    if bundles <= _UNROLLED:
        pairs = zip(jnp.split(image, bundles, axis=-1), jnp.split(g, bundles, axis=-1), strict=True)
        whole = jnp.stack([dense(*pair, single) for pair in pairs])
    else:

        def put(nth: Array, whole: Array) -> Array:
            found = dense(_bundle(image, nth, bundles), _bundle(g, nth, bundles), single)
            return lax.dynamic_update_slice_in_dim(whole, found[None], nth, axis=0, allow_negative_indices=False)

        zero = jnp.zeros((bundles, *form.window, width * inputs, width * outputs), g.dtype)
        whole = lax.fori_loop(0, bundles, put, zero)
    whole = whole.reshape(bundles, *form.window, width, inputs, width, outputs)
    return jnp.einsum("s...nino->...isno", whole).reshape(form.kernel(image, g))


def kernel_grad_by_taps(image: Array, g: Array, form: Form) -> Array:
    """Return the same as a product for each tap, batched over the groups: of what it reads and the cotangents."""
    x = pad(image, form.axes, ("zeros",) * len(form.axes))
    right = g.reshape(*g.shape[:-1], form.groups, g.shape[-1] // form.groups)

    def product(read: Array) -> Array:
        left = read.reshape(*read.shape[:-1], form.groups, read.shape[-1] // form.groups)
        return jnp.einsum("...ni,...no->ino", left, right, precision=form.precision)

    if math.prod(form.window) <= _TAPS:
        return jnp.stack([product(read) for read in shifted(x, form.axes)]).reshape(form.kernel(image, g))
    taps = jnp.stack(jnp.meshgrid(*map(jnp.arange, form.window), indexing="ij"), -1).reshape(-1, len(form.axes))
    first = tuple(axis._replace(size=0, window=1) for axis in form.axes)
    sizes = [(axis.outputs - 1) * axis.stride + 1 for axis in form.axes]

    def at(tap: Array) -> Array:
        starts = [tap[i] * axis.dilation for i, axis in enumerate(form.axes)]
        read = lax.dynamic_slice(x, (0, *starts, 0), (len(x), *sizes, x.shape[-1]), allow_negative_indices=False)
        return product(*shifted(read, first))

    kernel: Array = lax.map(at, taps)
    return kernel.reshape(form.kernel(image, g))


def _bundles(inputs: int, groups: int) -> int:
    """Return into how many bundles of equally many groups they are put."""
    least = min(math.ceil(_WIDTH / inputs), groups)
    divisors = [width for width in range(1, min(2 * least, groups) + 1) if groups % width == 0]
    return groups // min((width for width in divisors if width >= least), default=divisors[-1])


def _bundle(array: Array, nth: Array, bundles: int) -> Array:
    """Return the channels of one of the bundles."""
    width = array.shape[-1] // bundles
    return piece(array, nth * width, width, axis=-1)

"""Groups as convolutions of their own, of which some are put together into one that is wide enough to be fast.

Of the kernel of such a bundle all is zero but for the blocks on its diagonal.
"""

import math

import jax.numpy as jnp
from jax import lax

from .._typing import Array
from ._form import Form, Map

_WIDTH = 16  # input channels of a bundle, if the groups allow it
_UNROLLED = 8  # so many bundles are computed side by side, more in a loop


def conv(image: Array, kernel: Array, form: Form, dense: Map, *, loop: bool) -> Array:
    """Return the correlation; `dense` computes those without groups, and `loop` says whether in a loop over them."""
    *window, inputs, outputs = kernel.shape
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles
    blocks = kernel.reshape(*window, inputs, bundles, width, outputs // form.groups)
    whole = jnp.einsum("...isno,mn->...smino", blocks, jnp.eye(width, dtype=kernel.dtype))
    whole = whole.reshape(*window, bundles, width * inputs, outputs // bundles)
    form = form._replace(groups=1)
    if bundles <= _UNROLLED or not loop:
        parts = zip(_parts(image, bundles), jnp.unstack(whole, axis=-3), strict=True)
        return jnp.concatenate([dense(part, taps, form) for part, taps in parts], axis=-1)
    y = lax.map(lambda pair: dense(pair[0], pair[1], form), (_stacked(image, bundles), jnp.moveaxis(whole, -3, 0)))
    y = jnp.moveaxis(y, 0, -2)
    return y.reshape(*y.shape[:-2], outputs)


def kernel_grad(image: Array, g: Array, form: Form, dense: Map) -> Array:
    """Return the transpose by the kernel; `dense` computes those without groups."""
    inputs, outputs = image.shape[-1] // form.groups, g.shape[-1] // form.groups
    bundles = _bundles(inputs, form.groups)
    width = form.groups // bundles
    single = form._replace(groups=1)
    if bundles <= _UNROLLED:
        whole = jnp.stack(
            [dense(*pair, single) for pair in zip(_parts(image, bundles), _parts(g, bundles), strict=True)]
        )
    else:
        whole = lax.map(lambda pair: dense(pair[0], pair[1], single), (_stacked(image, bundles), _stacked(g, bundles)))
    whole = whole.reshape(bundles, *form.window, width, inputs, width, outputs)
    return jnp.einsum("s...nino->...isno", whole).reshape(form.kernel(image, g))


def _bundles(inputs: int, groups: int) -> int:
    """Return into how many bundles of equally many groups they are put."""
    least = min(math.ceil(_WIDTH / inputs), groups)
    divisors = [width for width in range(1, min(2 * least, groups) + 1) if groups % width == 0]
    return groups // min((width for width in divisors if width >= least), default=divisors[-1])


def _parts(array: Array, bundles: int) -> list[Array]:
    return jnp.split(array, bundles, axis=-1)


def _stacked(array: Array, bundles: int) -> Array:
    return jnp.moveaxis(array.reshape(*array.shape[:-1], bundles, -1), -2, 0)

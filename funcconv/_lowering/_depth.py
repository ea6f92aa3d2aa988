"""Three and more axes: the taps along the first one as convolutions over the others, added up.

XLA for the CPU has a fast path for two axes only.
"""

import functools
from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax

from .._padding import pad
from .._typing import Array
from ._form import Form

Map: TypeAlias = Callable[[Array, Array, Form], Array]


def conv(image: Array, kernel: Array, form: Form, dense: Map) -> Array:
    """Return the correlation; `dense` computes those over one axis less."""
    first, rest = form.axes[0], form.axes[1:]
    x = pad(image, (first, *(axis.plain for axis in rest)), ("zeros",) * len(form.axes))
    parts = []
    for tap in range(first.window):
        begin = tap * first.dilation
        planes = lax.slice_in_dim(x, begin, begin + (first.outputs - 1) * first.stride + 1, first.stride, axis=1)
        planes = planes.reshape(-1, *planes.shape[2:])
        parts.append(dense(planes, kernel[tap], form._replace(axes=rest)))
    return functools.reduce(jnp.add, parts).reshape(form.result(image, kernel))

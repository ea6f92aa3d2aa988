"""Circles: convolutions whose indices are taken modulo a length along each axis, as discrete Fourier transforms do.

With stride 1 and without dilation, a convolution is defined by the trilinear form

    T(x, w, g) = sum over positions o and taps t of x[o + t - lo] . w[t] . g[o]

Indices can be taken modulo a length without changing its value, if the length is so large that no index of padding
becomes an index of the image. A stride is removed first: the remainders of positions and taps modulo the stride become
channels. A dilation becomes zeros between the taps.
"""

import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from ..._common.types import Array
from ..._windows.geometry import Axis
from .form import Form

_FAST_FACTORS = (2, 3, 5, 7)  # FFTs are fast if their length is a product of these

# The axes of each array in front of the spatial axes, after it is arranged: the batch b, the groups g, and the input
# and output channels i and o of a group.
LABELS = {"image": "bgi", "kernel": "gio", "result": "bgo"}


class Circle(NamedTuple):
    """One spatial axis with stride 1 and without dilation, whose indices are taken modulo `length`."""

    image: int  # the sizes of the three arrays
    kernel: int
    result: int
    lo: int  # padding before the image
    length: int

    @classmethod
    def of(cls, axis: Axis) -> "Circle":
        """Return an axis with its stride removed: position `p` of the padded image becomes `p // stride`."""
        lo = max(axis.lo, 0)
        inputs = _inputs(axis)
        image = -(-(lo % axis.stride + inputs.stop - inputs.start) // axis.stride)
        kernel = -(-axis.extent // axis.stride)
        lo //= axis.stride
        # Windows read from -lo up to this index. None of these outside the image may be inside it modulo the length.
        last = axis.outputs + kernel - 2 - lo
        return cls(image, kernel, axis.outputs, lo, fast_length(max(image + lo, last + 1, kernel, axis.outputs)))


def fast_length(least: int) -> int:
    """Return the smallest length of at least `least` whose FFT is fast."""
    return next(length for length in itertools.count(least) if _without_factors(length) == 1)


def _without_factors(length: int) -> int:
    for factor in _FAST_FACTORS:
        while length % factor == 0:
            length //= factor
    return length


def arranged(array: Array, role: str, form: Form, stack: int) -> Array:
    """Return an array with the axes of its labels first, and then one axis for each circle, not yet padded.

    The map is linear; its transpose arranges a result back.

    Args:
        array: `(*stack, batch, *spatial, in)`, `(*stack, *window, in // groups, out)` or
            `(*stack, batch, *positions, out)`.
        role: `"image"`, `"kernel"` or `"result"`.
        form: the convolution.
        stack: number of leading axes, which become groups.

    Returns:
        The array, with axes `(*LABELS[role], *circles)`.
    """
    lead, channels = {"image": ("sb", "gi"), "kernel": ("s", "igo"), "result": ("sb", "go")}[role]
    array = array.reshape(math.prod(array.shape[:stack]), *array.shape[stack:])
    margins, split = [(0, 0, 0)] * array.ndim, []
    for i, axis in enumerate(form.axes, start=len(lead)):
        size, stride = getattr(Circle.of(axis), role), 1 if role == "result" else axis.stride
        split += [size, stride]
        if role == "kernel":
            margins[i] = (0, size * stride - axis.extent, axis.dilation - 1)
        elif role == "image":
            inputs, before = _inputs(axis), max(axis.lo, 0) % stride
            array = lax.slice_in_dim(array, inputs.start, inputs.stop, axis=i)
            margins[i] = (before, size * stride - before - array.shape[i], 0)
    array = lax.pad(array, jnp.zeros((), array.dtype), margins)
    inner = array.shape[-2:-1] if role == "kernel" else ()
    array = array.reshape(*array.shape[: len(lead)], *split, *inner, form.groups, array.shape[-1] // form.groups)
    # Name the axes: of each circle the place p and the remainder r modulo the stride.
    places, remainders = ([f"{kind}{i}" for i in range(len(form.axes))] for kind in "pr")
    names = [*lead, *itertools.chain(*zip(places, remainders, strict=True)), *channels]
    merged = {"b": ["b"], "g": ["s", "g"], "i": [*remainders, "i"], "o": ["o"]}
    if role == "result":
        merged["o"] = [*remainders, "o"]  # of size 1
    sizes = dict(zip(names, array.shape, strict=True))
    order = [*itertools.chain(*(merged[label] for label in LABELS[role])), *places]
    shape = [math.prod(sizes[name] for name in merged[label]) for label in LABELS[role]]
    return array.transpose([names.index(name) for name in order]).reshape(*shape, *(sizes[place] for place in places))


def read(array: Array, role: str, circles: tuple[Circle, ...]) -> Array:
    """Return the numbers of the array `role` from the result of a circular convolution or correlation."""
    n = len(circles)
    axes = range(array.ndim - n, array.ndim)
    if role == "image":  # image[p] is at p + lo
        starts = [circle.lo for circle in circles]
    else:  # result[o] is at o - lo, and kernel[t] at t - lo
        array = jnp.roll(array, [circle.lo for circle in circles], axes)
        starts = [0] * n
    for axis, start, circle in zip(axes, starts, circles, strict=True):
        array = lax.slice_in_dim(array, start, start + getattr(circle, role), axis=axis)
    return array


def _inputs(axis: Axis) -> slice:
    """Return the range of inputs that negative padding does not remove."""
    return slice(max(-axis.lo, 0), axis.size - max(-axis.hi_used, 0))

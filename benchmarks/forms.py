"""Every form that dense convolutions and their kernel gradients can take, on shapes drawn at random.

How far the chosen form is from the fastest. The limits of the choice were fitted to other shapes that were drawn so.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from funcconv._primitives.forms import Form, Where
from funcconv._primitives.forms import lax_conv as _lax
from funcconv._primitives.forms import maps as _maps
from funcconv._primitives.forms import planes as _depth
from funcconv._primitives.forms.choice import CONV, KERNEL_GRAD, choose
from funcconv._primitives.forms.problem import Problem
from funcconv._primitives.forms.products import blocked_im2col as _blocks
from funcconv._primitives.forms.products import matrix_product as _pointwise
from funcconv._windows.geometry import resolve

from .tables import Table, with_mean
from .timing import quartiles, timed

Forms = dict[str, Callable[..., Any]]

SHAPES = 150
SEED = 4  # neither a rule nor a limit of the choice was made by what it draws
LEAST, MOST = 2e6, 1e9  # products of two numbers in a map
LARGEST = 2**22  # numbers in an array
SIDES = {1: 2**13, 2: 2**8, 3: 2**5}  # the largest image, by the number of its axes


def drawn(rng: np.random.Generator) -> tuple[tuple[int, ...], int, Form]:
    """Return the shape of an image, the number of outputs, and a convolution without groups.

    Every other one has numbers of images and channels as networks have them, which XLA is faster with than with any.
    """
    while True:
        n = int(rng.choice([1, 2, 2, 2, 2, 3]))
        batch, side, inputs, outputs = (round(most ** rng.uniform()) for most in (2**8, SIDES[n], 2**8, 2**8))
        if rng.uniform() < 0.5:
            batch, inputs, outputs = 2 ** round(math.log2(batch)), 8 * -(-inputs // 8), 8 * -(-outputs // 8)
        window = int(rng.choice([2, 3, 3, 3, 4, 5, 5, 7, 11]))
        stride, dilation = int(rng.choice([1, 1, 1, 1, 2, 3])), int(rng.choice([1, 1, 1, 1, 1, 2]))
        padding = int(rng.choice([0, dilation * (window - 1) // 2]))
        if side + 2 * padding <= (window - 1) * dilation:
            continue
        axes = resolve("conv", (side,) * n, (window,) * n, stride=stride, padding=padding, dilation=dilation)
        form = Form(tuple(axes))
        products = batch * math.prod(form.positions) * math.prod(form.window) * inputs * outputs
        largest = batch * max(side**n * inputs, math.prod(form.positions) * outputs)
        if LEAST < products < MOST and largest < LARGEST:
            return (batch, *form.spatial, inputs), outputs, form


def convs(form: Form) -> Forms:
    """Return the forms that such a convolution can be computed in."""
    forms: Forms = {"lax": _lax.reference, "blocked_im2col": _blocks.conv}
    if len(form.axes) == 2 and form.overlapping is not None:
        forms["lax_with_extra_row"] = _lax.conv_with_extra_row
    if len(form.axes) > 2:
        dense = partial(_maps.dense_conv, where=Where("cpu"))
        forms["planes"] = partial(_depth.conv, dense=dense)
        forms["sum_of_planes"] = partial(_depth.conv_by_taps, dense=dense)
    if math.prod(form.window) == 1:
        forms["matrix_product"] = _pointwise.conv
    return forms


def kernel_grads(form: Form) -> Forms:
    """Return the forms that its kernel gradient can be computed in."""
    forms: Forms = {"lax": transposed, "blocked_im2col": _blocks.kernel_grad}
    if len(form.axes) < 3:
        forms["exchanged_axes"] = _lax.kernel_grad_with_exchanged_axes
    if form.axes[0].stride == 1:
        forms["blocked_im2col_of_both"] = _blocks.kernel_grad_by_both_windows
    if not form.strided:
        forms["blocked_im2col_of_cotangents"] = _blocks.kernel_grad_by_cotangent_windows
    if math.prod(form.window) == 1:
        forms["matrix_product"] = _pointwise.kernel_grad
    return forms


def transposed(image: Any, g: Any, form: Form) -> Any:
    """Return the kernel gradient that JAX makes of XLA's convolution."""
    kernel = jax.ShapeDtypeStruct(form.kernel(image, g), image.dtype)
    return jax.linear_transpose(lambda kernel: _lax.reference(image, kernel, form), kernel)(g)[0]


def named(image: tuple[int, ...], outputs: int, form: Form) -> str:
    """Return a short name of a problem."""
    axis = form.axes[0]
    name = f"{'x'.join(map(str, image))} to {outputs} k{axis.window}"
    name += f" stride {axis.stride}" if axis.stride > 1 else ""
    name += f" padding {axis.lo}" if axis.lo else ""
    return name + (f" dilation {axis.dilation}" if axis.dilation > 1 else "")


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table for each map: milliseconds, and how many times those of lax and of the fastest form."""
    rng = np.random.default_rng(SEED)
    tables: dict[str, Table] = {}
    for _ in range(4 if quick else SHAPES):
        image, outputs, form = drawn(rng)
        shapes = image, (*form.window, image[-1], outputs), (image[0], *form.positions, outputs)
        x, kernel, g = (jax.device_put(rng.normal(size=shape).astype(np.float32)) for shape in shapes)
        problem = Problem.of(form, x.shape, kernel.shape, x.dtype, 0, Where("cpu"))
        seen = kernel[form.active_taps]
        for which, choice, forms, operands, whole in (
            ("conv", CONV, convs(form.trimmed), (x, seen), (x, kernel)),
            ("kernel_grad", KERNEL_GRAD, kernel_grads(form.trimmed), (x, g), (x, g)),
        ):
            ways = {name: partial(jax.jit(partial(f, form=form.trimmed)), *operands) for name, f in forms.items()}
            if form.trimmed != form:
                ways["with all taps"] = partial(jax.jit(partial(forms["lax"], form=form)), *whole)
            times = timed(ways, rounds=3 if quick else 7, patience=2)
            lax = times.pop("with all taps", times["lax"])
            seconds = {way: statistics.median(each) for way, each in times.items()}
            chosen, fastest = choose(choice, problem).form, min(seconds, key=lambda name: seconds[name])
            name = f"{named(image, outputs, form)}: {chosen}" + (f", not {fastest}" if chosen != fastest else "")
            tables.setdefault(f"the choice for {which}", {})[name] = {
                "ms": 1e3 * seconds[chosen],
                "times faster than lax": statistics.median(lax) / seconds[chosen],
                "times slower than the fastest": seconds[chosen] / seconds[fastest],
                **quartiles(lax, times[chosen]),
            }
    return {title: with_mean(table) for title, table in tables.items()}

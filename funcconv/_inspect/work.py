"""The floating-point operations of a program's convolutions and products."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from .._primitives import conv as _family
from .._windows.geometry import Axis


class Flops(NamedTuple):
    """A multiplication and an addition are two; biases, activations and pools do not count.

    `real` leaves out the multiplications by padding and by the zeros that a transposed convolution puts between.
    """

    all: int
    real: int

    def __add__(self, other: Any) -> "Flops":
        return Flops(self.all + other.all, self.real + other.real)

    def __sub__(self, other: "Flops") -> "Flops":
        return Flops(self.all - other.all, self.real - other.real)

    def __mul__(self, times: Any) -> "Flops":
        return Flops(self.all * times, self.real * times)


NONE = Flops(0, 0)


def flops(jaxpr: Any) -> Flops:
    """Return those of a traced program, of a loop as often as it runs, of a `while_loop` once."""
    total = NONE
    for eqn in jaxpr.eqns:
        if eqn.primitive in _family.PRIMITIVES:
            total += _of_family(eqn)
        elif eqn.primitive.name == "dot_general":
            total += _of_product(eqn)
        elif eqn.primitive.name == "conv_general_dilated":
            total += _of_lax(eqn)
        else:
            passes = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in core.jaxprs_in_params(eqn.params):
                total += flops(getattr(inner, "jaxpr", inner)) * passes
    return total


def _of_family(eqn: Any) -> Flops:
    """Count the trilinear form, of which each of the three maps forms all products but one factor's."""
    types = [*(operand.aval for operand in eqn.invars), eqn.outvars[0].aval]
    shapes = {part: array.shape for part, array in zip(_family.PRIMITIVES[eqn.primitive], types, strict=True)}
    axes, n = eqn.params["form"].axes, len(eqn.params["form"].axes)
    images, channels = math.prod(shapes["x"][: -n - 1]), math.prod(shapes["w"][-2:])
    return _counted(images * channels, [(axis.outputs * axis.window, axis.inside) for axis in axes])


def _counted(array: int, pairs: Sequence[tuple[int, int]]) -> Flops:
    """Return two operations for each pair of a window and a tap, of all on an axis, and of those not on padding."""
    return Flops(2 * array * math.prod(a for a, _ in pairs), 2 * array * math.prod(b for _, b in pairs))


def _of_product(eqn: Any) -> Flops:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    sizes = eqn.invars[0].aval.shape
    count = 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(sizes[axis] for axis in contracted)
    return Flops(count, count)


def _of_lax(eqn: Any) -> Flops:
    params, (x, w), y = eqn.params, (var.aval.shape for var in eqn.invars), eqn.outvars[0].aval.shape
    numbers = params["dimension_numbers"]
    array = y[numbers.out_spec[0]] * y[numbers.out_spec[1]] * w[numbers.rhs_spec[1]]
    pairs = []
    for i, (lo, hi) in enumerate(params["padding"]):
        size, window, outputs = x[numbers.lhs_spec[2 + i]], w[numbers.rhs_spec[2 + i]], y[numbers.out_spec[2 + i]]
        stride, between, dilation = (params[name][i] for name in ("window_strides", "lhs_dilation", "rhs_dilation"))
        if between == 1:
            axis = Axis(size, window, stride, dilation, lo, hi, outputs)
            pairs.append((outputs * window, axis.inside))
        else:  # of a transposed convolution: windows on the result, or, by its kernel, of its image's places
            axis = Axis(outputs, window, between, dilation, (window - 1) * dilation - lo, 0, size)
            pairs.append((size * min(window, outputs), axis.inside))
    return _counted(array, pairs)

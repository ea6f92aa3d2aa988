"""How far one long axis of a traced function's result reaches, without arrays of its length.

The program is run on reaches: an array of the program depends, along one of its axes at most, on places of the one axis
of the one input that is asked for. Borders of the maps on the way are left out, as in any `Reach`. Operations without a
rule see everything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from .._common.traced_programs import ELEMENTWISE, REDUCED, called
from .._common.types import Shape
from .._primitives import conv as _family
from .._primitives import select as _select
from .._primitives import take as _take
from .._windows.reach import IDENTITY, LARGE, NOWHERE, Reach, merged, of_table, of_transpose, of_window


class Seen(NamedTuple):
    """What a value sees of one axis of an input, or an operation of one axis of an operand."""

    axis: int | None  # along which of its own axes; None: all positions see the same
    reach: Reach
    mixes: bool = False  # whether these are the channels that a convolution sums over


def follow(jaxpr: Any, leaf: int, axis: int) -> list[Seen | None]:
    """Return what the results of a program see of an axis of one of its arguments."""
    arguments: list[Seen | None] = [None] * len(jaxpr.invars)
    arguments[leaf] = Seen(axis, IDENTITY)
    return _run(jaxpr, arguments)


def joined(ways: Sequence[Seen], shape: Shape) -> Any:
    """Return what all ways together see, None where there is no way."""
    if not ways:
        return None
    one, *others = ways
    for other in others:
        if one.axis == other.axis and one.axis is not None:
            one = Seen(one.axis, merged(one.reach, other.reach, shape[one.axis]))
        else:  # along no axis is it less than for all positions together
            (first, last), (start, stop) = (places(seen, shape) for seen in (one, other))
            wraps = one.reach.wraps or other.reach.wraps
            one = Seen(None, Reach(0, (min(first, start),), (max(last, stop),), wraps=wraps))
    return one


def places(seen: Seen, shape: Shape) -> tuple[int, int]:
    """Return the first and the last place that any position of a value of this shape sees."""
    count = 1 if seen.axis is None else shape[seen.axis]
    return seen.reach.of((0, count - 1))


def composed(before: Seen, step: Seen, shape: Shape) -> Seen:
    """Return what an operation sees that sees, by `step`, a value of this shape that sees by `before`."""
    # Every transposed convolution multiplies the number of phases, so many of them are merged into one interval.
    if step.axis is not None and len(before.reach.firsts) * len(step.reach.firsts) > LARGE:
        first, last = places(before, shape)
        return Seen(None, before.reach._replace(jump=0, firsts=(first,), lasts=(last,)))
    return Seen(step.axis, before.reach.after(step.reach))


def _run(jaxpr: Any, arguments: Sequence[Seen | None]) -> list[Seen | None]:
    known: dict[Any, Seen | None] = dict(zip(jaxpr.invars, arguments, strict=True))

    def read(var: Any) -> Seen | None:
        return None if isinstance(var, core.Literal) else known.get(var)

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        if any(operand is not None for operand in operands):
            known.update(zip(eqn.outvars, _results(eqn, operands), strict=True))
    return [read(var) for var in jaxpr.outvars]


def _results(eqn: Any, operands: Sequence[Seen | None]) -> list[Seen | None]:
    inner = called(eqn)
    if inner is not None:
        return _run(inner, operands)
    name, shape = eqn.primitive.name, eqn.outvars[0].aval.shape
    if name in ELEMENTWISE:
        return [joined([operand for operand in operands if operand], shape)]
    if name == "optimization_barrier":
        return list(operands)
    # An operation that is not known sees the whole axis, which is always right, if not exact.
    rule = _RULES.get(name, _reduced if name in REDUCED else None)
    ways = []
    for i, (seen, var) in enumerate(zip(operands, eqn.invars, strict=True)):
        if seen is None:
            continue
        if seen.axis is None:
            ways.append(seen)
            continue
        step = rule and rule(eqn, i, seen.axis)
        if step:
            ways.append(composed(seen, step, var.aval.shape))
        else:
            first, last = places(seen, var.aval.shape)
            ways.append(Seen(None, seen.reach._replace(jump=0, firsts=(first,), lasts=(last,))))
    return [joined(ways, var.aval.shape) for var in eqn.outvars]


# Each rule tells what the result sees along an axis of an operand; None: all of it.


def _reduced(eqn: Any, _: int, axis: int) -> Seen | None:
    axes = eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"]
    return None if axis in axes else Seen(axis - sum(other < axis for other in axes), IDENTITY)


def _broadcast(eqn: Any, _: int, axis: int) -> Seen:
    return Seen(eqn.params["broadcast_dimensions"][axis], IDENTITY)


def _reshape(eqn: Any, _: int, axis: int) -> Seen | None:
    """Follow an axis that stays one, with as many numbers before it and after it."""
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    for i, size in enumerate(new):
        if size == old[axis] and math.prod(old[:axis]) == math.prod(new[:i]):
            return Seen(i, IDENTITY)
    return None


def _transpose(eqn: Any, _: int, axis: int) -> Seen:
    return Seen(eqn.params["permutation"].index(axis), IDENTITY)


def _along_others(eqn: Any, _: int, axis: int) -> Seen | None:
    own = eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"]
    return None if axis == own else Seen(axis, IDENTITY)


def _slice(eqn: Any, _: int, axis: int) -> Seen:
    start, strides = eqn.params["start_indices"][axis], eqn.params["strides"]
    return Seen(axis, Reach(strides[axis] if strides else 1, (start,), (start,)))


def _pad(eqn: Any, i: int, axis: int) -> Seen | None:
    before, _, between = eqn.params["padding_config"][axis]
    return None if between or i else Seen(axis, Reach(1, (-before,), (-before,)))


def _dot_general(eqn: Any, i: int, axis: int) -> Seen | None:
    contracted, batched = eqn.params["dimension_numbers"]
    if axis in contracted[i]:
        return None
    if axis in batched[i]:
        return Seen(batched[i].index(axis), IDENTITY)
    taken = (*contracted[i], *batched[i])
    others = len(eqn.invars[0].aval.shape) - len(contracted[0]) if i else len(batched[0])
    return Seen(others + len([other for other in range(axis) if other not in taken]), IDENTITY)


def _convolution(reach: Callable[..., Reach], image: int, eqn: Any, i: int, axis: int) -> Seen | None:
    axes = eqn.params["form"].axes
    number = axis - (len(eqn.outvars[0].aval.shape) - 1 - len(axes))
    if i != image or number == len(axes):
        return None
    return Seen(axis, reach(axes[number]) if number >= 0 else IDENTITY)


def _lax_convolution(eqn: Any, i: int, axis: int) -> Seen | None:
    params, (image, _, result) = eqn.params, eqn.params["dimension_numbers"]
    at = image.index(axis) if not i else 1
    if at == 1 or (at >= 2 and params["lhs_dilation"][at - 2] != 1):
        return None
    if not at:
        return Seen(result[0], IDENTITY)
    stride, lo = params["window_strides"][at - 2], params["padding"][at - 2][0]
    window = eqn.invars[1].aval.shape[params["dimension_numbers"].rhs_spec[at]]
    return Seen(result[at], Reach(stride, (-lo,), ((window - 1) * params["rhs_dilation"][at - 2] - lo,)))


def _reduce_window(eqn: Any, i: int, axis: int) -> Seen | None:
    params = eqn.params
    if i or params["base_dilation"][axis] != 1:
        return None
    lo, last = params["padding"][axis][0], (params["window_dimensions"][axis] - 1) * params["window_dilation"][axis]
    return Seen(axis, Reach(params["window_strides"][axis], (-lo,), (last - lo,)))


def _selection(eqn: Any, i: int, axis: int) -> Seen:
    axes = eqn.params["axes"]
    number = axis - (len(eqn.outvars[0].aval.shape) - 1 - len(axes))
    return Seen(axis, of_window(axes[number]) if 0 <= number < len(axes) and not i else IDENTITY)


def _stack(eqn: Any, _: int, axis: int) -> Seen:
    return Seen(axis + (axis >= eqn.params["axis"]), IDENTITY)


def _sums_of_places(eqn: Any, _: int, axis: int) -> Seen:
    shape = eqn.invars[0].aval.shape
    if axis != len(shape) + eqn.params["axis"]:
        return Seen(axis, IDENTITY)
    places = [[place for place in row if place >= 0] for row in eqn.params["table"]]
    intervals = [(min(row, default=NOWHERE), max(row, default=-NOWHERE)) for row in places]
    return Seen(axis, of_table(intervals, shape[axis]))


_RULES: dict[str, Callable[[Any, int, int], Seen | None]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _reduced,
    "rev": lambda eqn, i, axis: None if axis in eqn.params["dimensions"] else Seen(axis, IDENTITY),  # noqa: ARG005
    "slice": _slice,
    "split": _along_others,
    "pad": _pad,
    "concatenate": _along_others,
    "dot_general": _dot_general,
    "stack": _stack,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"), _along_others),
    "conv_general_dilated": _lax_convolution,
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window"), _reduce_window),
    _family.conv_p.name: lambda eqn, i, axis: _convolution(of_window, 0, eqn, i, axis),
    _family.conv_input_grad_p.name: lambda eqn, i, axis: _convolution(of_transpose, 1, eqn, i, axis),
    _select.extreme_p.name: _selection,
    _select.pick_p.name: _selection,
    _take.take_p.name: _sums_of_places,
}

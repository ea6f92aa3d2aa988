"""Which places of an input each place of a traced function's result can depend on.

The program is run on the pairs of `intervals.py`, for one axis of one input. Operations without a rule are taken to
depend on everything that goes into them. So are those whose pair would have more than `LARGE` places along an axis: the
memory is bounded, whatever the sizes of the arrays.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax.extend import core

from .._common.traced_programs import ELEMENTWISE, REDUCED, called
from .._primitives import conv as _family
from .._primitives import select as _select
from .._primitives import take as _take
from .._windows.geometry import Axis
from .._windows.reach import LARGE, NOWHERE
from . import moved_places
from .intervals import Seen, over, places_or_none, stacked, sums, taken, union, windows, windows_back


def run(jaxpr: Any, seen: Sequence[Seen]) -> list[Seen]:
    """Return the pairs of a program's results, for those of its arguments."""
    known: dict[Any, Seen] = dict(zip(jaxpr.invars, seen, strict=True))

    def read(var: Any) -> Seen:
        return None if isinstance(var, core.Literal) else known.get(var)

    for eqn in jaxpr.eqns:
        operands = [read(var) for var in eqn.invars]
        if any(operand is not None for operand in operands):
            results = _RULES.get(eqn.primitive.name, _inner)(eqn, operands)
            known.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _elementwise(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    rank = len(eqn.outvars[0].aval.shape)
    spread = [operand and (_ranked(operand[0], rank), _ranked(operand[1], rank)) for operand in operands]
    return [union(spread)] * len(eqn.outvars)


def _ranked(low: np.ndarray, rank: int) -> np.ndarray:
    return low if low.ndim == rank else low.reshape((1,) * rank)  # a number beside an array


def _everything(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    low = min((operand[0].min(initial=NOWHERE) for operand in operands if operand), default=NOWHERE)
    high = max((operand[1].max(initial=-NOWHERE) for operand in operands if operand), default=-NOWHERE)
    ranks = (len(var.aval.shape) for var in eqn.outvars)
    return [(np.full((1,) * rank, low), np.full((1,) * rank, high)) for rank in ranks]


def _inner(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    """Run the program of a call; of any other operation everything depends on everything."""
    inner = called(eqn)
    return _everything(eqn, operands) if inner is None else run(inner, operands)


def _pad(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    seen, value = operands
    if value is not None:  # what is padded with depends on the input itself
        return _everything(eqn, operands)
    for axis, (before, after, between) in enumerate(eqn.params["padding_config"]):
        if before == after == between == 0:
            continue
        if eqn.outvars[0].aval.shape[axis] > LARGE:
            seen = over(seen, axis)
            continue
        place, rest = np.divmod(np.arange(eqn.outvars[0].aval.shape[axis]) - before, between + 1)
        seen = taken(seen, axis, np.where(rest == 0, places_or_none(place, eqn.invars[0].aval.shape[axis]), -1))
    return [seen]


def _concatenate(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    axis, before, whole = eqn.params["dimension"], 0, eqn.outvars[0].aval.shape
    if whole[axis] > LARGE:
        return _along(eqn, operands)
    parts = []
    for seen, var in zip(operands, eqn.invars, strict=True):
        size = var.aval.shape[axis]
        parts.append(taken(seen, axis, places_or_none(np.arange(whole[axis]) - before, size)))
        before += size
    return [union(parts)]


def _reduced(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    axes = tuple(eqn.params["axes"] if "axes" in eqn.params else eqn.params["dimensions"])
    seen = over(union(operands[: len(eqn.outvars)]), axes)
    return [seen and (seen[0].squeeze(axes), seen[1].squeeze(axes))] * len(eqn.outvars)


def _along(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    axis = eqn.params["axis"] if "axis" in eqn.params else eqn.params["dimension"]
    return [over(union(operands), axis)] * len(eqn.outvars)


def _dot_general(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    contracted, batched = eqn.params["dimension_numbers"]
    free = [
        [axis for axis in range(len(var.aval.shape)) if axis not in (*contracted[i], *batched[i])]
        for i, var in enumerate(eqn.invars)
    ]
    found = []
    for i, seen in enumerate(operands):
        if seen is None:
            continue
        rest = over(seen, contracted[i])
        order = (*batched[i], *free[i], *contracted[i])
        sizes = [rest[0].shape[axis] for axis in order[: len(order) - len(contracted[i])]]  # type: ignore[index]
        middle = len(batched[i])
        others = [1] * len(free[1 - i])
        shape = sizes[:middle] + (others + sizes[middle:] if i else sizes[middle:] + others)
        found.append(tuple(array.transpose(order).reshape(shape) for array in rest))  # type: ignore[union-attr]
    return [union(found)]  # type: ignore[arg-type]


def _reduce_window(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen, *_), (var, *_), params = operands, eqn.invars, eqn.params
    if any(step != 1 for step in params["base_dilation"]):
        return _everything(eqn, operands)
    for axis, (lo, hi) in enumerate(params["padding"]):
        seen = windows(
            seen,
            axis,
            Axis(
                var.aval.shape[axis],
                params["window_dimensions"][axis],
                params["window_strides"][axis],
                params["window_dilation"][axis],
                lo,
                hi,
                eqn.outvars[0].aval.shape[axis],
            ),
        )
    return [seen]


def _select_window(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    """Follow the windows of `extreme`, and of `pick` by its image."""
    seen, *numbers = operands
    for i, axis in enumerate(reversed(eqn.params["axes"]), start=2):
        seen = seen and windows(seen, seen[0].ndim - i, axis)
    return [union([seen, *numbers])]


def _convolution(moved: Callable[..., Seen], eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    """Follow windows on the image, or back from them; all channels are summed, and all of a kernel is used."""
    seen, kernel = operands if moved is windows else reversed(operands)
    if kernel is not None:  # a kernel that is computed from the input: every tap is used everywhere
        return _everything(eqn, operands)
    seen = seen and over(seen, seen[0].ndim - 1)
    for i, axis in enumerate(reversed(eqn.params["form"].axes), start=2):
        seen = seen and moved(seen, seen[0].ndim - i, axis)
    return [seen]


def _lax_convolution(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen, kernel), params, shapes = operands, eqn.params, [var.aval.shape for var in eqn.invars]
    if seen is None or kernel is not None or any(step != 1 for step in params["lhs_dilation"]):
        return _everything(eqn, operands)
    numbers = params["dimension_numbers"]
    # Groups are not kept apart: an interval that is too large is still right, and channels are not asked for.
    seen = over(seen, numbers.lhs_spec[1])
    for i, (axis, (lo, hi)) in enumerate(zip(numbers.lhs_spec[2:], params["padding"], strict=True)):
        seen = windows(
            seen,
            axis,
            Axis(
                shapes[0][axis],
                shapes[1][numbers.rhs_spec[2 + i]],
                params["window_strides"][i],
                params["rhs_dilation"][i],
                lo,
                hi,
                eqn.outvars[0].aval.shape[numbers.out_spec[2 + i]],
            ),
        )
    axes = [numbers.lhs_spec[numbers.out_spec.index(i)] for i in range(len(numbers.out_spec))]
    return [seen and (seen[0].transpose(axes), seen[1].transpose(axes))]


def _scan(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    """Run the program of a loop as often as it runs, or until what it carries sees nothing new."""
    jaxpr = eqn.params["jaxpr"]
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    # The parameters that count constants and carried values differ between versions of JAX. What is sliced or stacked
    # has one axis less inside.
    carried = sum(map(_has_equal_rank, jaxpr.outvars, eqn.outvars))
    consts = sum(map(_has_equal_rank, jaxpr.invars, eqn.invars)) - carried
    fixed, carry, sliced = operands[:consts], operands[consts : consts + carried], operands[consts + carried :]
    slices = [seen and (seen[0][0], seen[1][0]) for seen in (over(seen, 0) for seen in sliced)]
    results: list[Seen] = [None] * (len(eqn.outvars) - carried)  # of all passes together
    for _ in range(eqn.params["length"]):
        before = carry
        found = run(jaxpr, [*fixed, *carry, *slices])
        carry, results = found[:carried], [union(pair) for pair in zip(results, found[carried:], strict=True)]
        if all(map(_same, before, carry)):
            break
    return [*carry, *(seen and (seen[0][None], seen[1][None]) for seen in results)]


def _has_equal_rank(inner: Any, outer: Any) -> bool:
    return len(inner.aval.shape) == len(outer.aval.shape)


def _same(one: Seen, other: Seen) -> bool:
    if one is None or other is None:
        return one is other
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


_RULES: dict[str, Callable[[Any, Sequence[Seen]], list[Seen]]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCED, _reduced),
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "sort"), _along),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _reduce_window),
    "broadcast_in_dim": moved_places.broadcast_in_dim,
    "reshape": moved_places.reshape,
    "transpose": moved_places.transpose,
    "squeeze": moved_places.squeeze,
    "rev": moved_places.rev,
    "slice": moved_places.slice_,
    "split": moved_places.split,
    "pad": _pad,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "conv_general_dilated": _lax_convolution,
    "scan": _scan,
    "optimization_barrier": lambda _, operands: list(operands),
    "stack": lambda eqn, operands: [stacked(operands, eqn.params["axis"])],
    _family.conv_p.name: partial(_convolution, windows),
    _family.conv_input_grad_p.name: partial(_convolution, windows_back),
    _select.extreme_p.name: _select_window,
    _select.pick_p.name: _select_window,
    _take.take_p.name: lambda eqn, operands: [sums(operands[0], eqn.params["axis"], eqn.params["table"])],
}

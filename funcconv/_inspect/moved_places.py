"""Rules for operations that move the numbers of an array: what each place of the result sees.

Each rule takes an equation and the pairs of its operands, and returns the pairs of its results.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._common.types import Shape
from .._windows.reach import LARGE
from .intervals import Seen, over, taken


def broadcast_in_dim(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen, *_), shape = operands, [1] * len(eqn.params["shape"])
    if seen is None:
        return [None]
    for size, axis in zip(seen[0].shape, eqn.params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return [(seen[0].reshape(shape), seen[1].reshape(shape))]


def reshape(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen, *_), old, new = operands, eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if seen is None:
        return [None]
    low, high = seen
    if 0 in old:
        return [(np.broadcast_to(low, old).reshape(new), np.broadcast_to(high, old).reshape(new))]
    target: list[int] = []
    for before, after in _groups(old, new):
        sizes, own = [old[axis] for axis in before], [low.shape[axis] for axis in before]
        lengths = [[size for size in group if size != 1] for group in (sizes, [new[axis] for axis in after])]
        if math.prod(own) == 1 or [len(group) for group in lengths] == [1, 1]:  # nothing changes along it, or one axis
            target += [1 if new[axis] == 1 else math.prod(own) for axis in after]
        elif math.prod(sizes) > LARGE:
            low, high = over((low, high), before)  # type: ignore[misc]
            target += [1] * len(after)
        else:
            spread = [old[axis] if axis in before else size for axis, size in enumerate(low.shape)]
            low, high = np.broadcast_to(low, spread), np.broadcast_to(high, spread)
            target += [new[axis] for axis in after]
    low, high = low.reshape(target), high.reshape(target)
    # An axis along which all places see the same gets size 1 again, so that later rules can keep it small.
    for axis, size in enumerate(target):
        if size > 1:
            first = (slice(None),) * axis + (slice(0, 1),)
            if (low == low[first]).all() and (high == high[first]).all():
                low, high = low[first], high[first]
    return [(low, high)]


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Part the axes before and after a reshape into groups of the same size, which have as few axes as can be."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [i][: len(old) - i], [j][: len(new) - j]
        while math.prod(old[axis] for axis in before) != math.prod(new[axis] for axis in after):
            if math.prod(old[axis] for axis in before) < math.prod(new[axis] for axis in after):
                before.append(i + len(before))
            else:
                after.append(j + len(after))
        groups.append((before, after))
        i, j = i + len(before), j + len(after)
    return groups


def transpose(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen,), order = operands, eqn.params["permutation"]
    return [seen and (seen[0].transpose(order), seen[1].transpose(order))]


def squeeze(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen,), axes = operands, tuple(eqn.params["dimensions"])
    return [seen and (seen[0].squeeze(axes), seen[1].squeeze(axes))]


def rev(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen,), axes = operands, tuple(eqn.params["dimensions"])
    return [seen and (np.flip(seen[0], axes), np.flip(seen[1], axes))]


def slice_(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen,), starts = operands, eqn.params["start_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis, (start, stop, step) in enumerate(zip(starts, eqn.params["limit_indices"], strides, strict=True)):
        if seen is not None and seen[0].shape[axis] != 1:
            seen = taken(seen, axis, np.arange(start, stop, step))
    return [seen]


def split(eqn: Any, operands: Sequence[Seen]) -> list[Seen]:
    (seen,), before, parts, axis = operands, 0, [], eqn.params["axis"]
    for size in eqn.params["sizes"]:
        constant = seen is None or seen[0].shape[axis] == 1
        parts.append(seen if constant else taken(seen, axis, np.arange(before, before + size)))
        before += size
    return parts

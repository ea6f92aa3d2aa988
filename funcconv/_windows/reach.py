"""Receptive fields along one axis, in integers: which inputs a position of a value depends on.

Position `o` of a value depends on the inputs `first(o)` to `last(o)`. With `n` phases and `o = q * n + r`, these are

    first(o) = q * jump + firsts[r],      last(o) = q * jump + lasts[r].

A window with stride `s` has one phase and `jump = s`; a transposed convolution has `s` phases and `jump = 1`. The
composition of two reaches is again a reach. Reaches ignore the border, as if the image continued beyond it.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .geometry import Axis

NOWHERE = 1 << 60  # the interval from NOWHERE to -NOWHERE is empty
LARGE = 1 << 15  # positions of an axis, or phases; larger tables are not made
_MOST_PHASES = 16  # number of phases up to which a table is searched for a period


class Reach(NamedTuple):
    """The inputs that each position depends on."""

    jump: int
    firsts: tuple[int, ...]
    lasts: tuple[int, ...]
    aligned: bool = True  # whether all merged branches have the same stride, and the same centres or the same ends
    wraps: bool = False  # whether positions beyond one border are those at the other end (circular padding)

    @property
    def stride(self) -> Fraction:
        """The mean distance between the inputs of one position and those of the next."""
        return Fraction(self.jump, len(self.firsts))

    @property
    def size(self) -> int:
        """The largest number of inputs from the first to the last that a position depends on."""
        return max(max(last - first + 1 for first, last in zip(self.firsts, self.lasts, strict=True)), 0)

    def interval(self, position: int) -> tuple[int, int]:
        """Return the first and the last input that a position depends on."""
        q, r = divmod(position, len(self.firsts))
        return q * self.jump + self.firsts[r], q * self.jump + self.lasts[r]

    def of(self, positions: tuple[int, int]) -> tuple[int, int]:
        """Return the first and the last input of the positions from `positions[0]` to `positions[1]`."""
        start, stop = positions
        if start > stop:
            return NOWHERE, -NOWHERE
        n = len(self.firsts)
        # The smallest first is among the first n positions, one per phase, and the largest last among the last n.
        head, tail = range(start, min(stop, start + n - 1) + 1), range(max(start, stop - n + 1), stop + 1)
        return min(self.interval(o)[0] for o in head), max(self.interval(o)[1] for o in tail)

    def after(self, own: "Reach") -> "Reach":
        """Return the composition: `own` leads to positions of a value whose own inputs are given by this reach."""
        n, m = len(self.firsts), len(own.firsts)
        passes = n // math.gcd(n, own.jump)  # periods of `own` after which the phases of this reach repeat as well
        pairs = [self.of(own.interval(o)) for o in range(m * passes)]
        firsts, lasts = zip(*pairs, strict=True)
        jump = self.jump * (own.jump * passes // n)
        return simplest(Reach(jump, firsts, lasts, self.aligned and own.aligned, self.wraps or own.wraps))


IDENTITY = Reach(1, (0,), (0,))


def everything(size: int) -> Reach:
    """Return the reach of positions that all depend on the whole axis."""
    return Reach(0, (0,), (size - 1,))


def of_window(axis: Axis, *, wraps: bool = False) -> Reach:
    """Return the reach of the windows of a convolution or pool into the image."""
    return Reach(axis.stride, (-axis.lo,), (axis.extent - 1 - axis.lo,), wraps=wraps)


def of_transpose(axis: Axis, *, wraps: bool = False) -> Reach:
    """Return the reach of the positions of the image into the windows, as in a transposed convolution."""
    if axis.stride > LARGE:
        return everything(axis.outputs)
    common = math.gcd(axis.dilation, axis.stride)
    # Position `place` of the padded image is read by tap t if place - t * dilation is a multiple of the stride. The
    # smallest such tap is found with the modular inverse of the dilation; the others follow in steps of `period`.
    period = axis.stride // common
    inverse = pow(axis.dilation // common, -1, period)
    pairs = []
    for place in range(axis.lo, axis.lo + axis.stride):
        tap, rest = place // common * inverse % period, place % common
        if rest or tap >= axis.window:
            pairs.append((NOWHERE, -NOWHERE))
            continue
        last = tap + (axis.window - 1 - tap) // period * period
        pairs.append(((place - last * axis.dilation) // axis.stride, (place - tap * axis.dilation) // axis.stride))
    firsts, lasts = zip(*pairs, strict=True)
    return simplest(Reach(1, firsts, lasts, wraps=wraps))


def of_table(intervals: Sequence[tuple[int, int]], size: int) -> Reach:
    """Return a reach with these intervals, one for each position.

    If the intervals repeat after a few positions, apart from what the border cuts off, the reach has as many phases. At
    the border it may then include the gaps of a dilation.
    """
    count = len(intervals)
    if count == size and all(interval == (o, o) for o, interval in enumerate(intervals)):
        return IDENTITY
    if all(interval == (0, size - 1) for interval in intervals):
        return everything(size)
    for n in range(1, min(count // 2, _MOST_PHASES) + 1):
        reach = _periodic(intervals, n)
        if reach and _agrees(reach, intervals, size):
            return reach
    firsts, lasts = zip(*intervals, strict=True)
    return Reach(size, firsts, lasts)


def _periodic(intervals: Sequence[tuple[int, int]], n: int) -> Reach | None:
    """Return the reach with `n` phases and the jump of the intervals in the middle that covers all intervals."""
    middle = (len(intervals) - n) // 2
    (first, last), (_, after) = intervals[middle], intervals[middle + n]
    if first > last or abs(after) == NOWHERE or after == last:
        return None
    jump = after - last
    phases: list[list[tuple[int, int]]] = [[] for _ in range(n)]
    for o, (first, last) in enumerate(intervals):
        if first <= last:
            phases[o % n].append((first - o // n * jump, last - o // n * jump))
    firsts = tuple(min((first for first, _ in phase), default=NOWHERE) for phase in phases)
    return Reach(jump, firsts, tuple(max((last for _, last in phase), default=-NOWHERE) for phase in phases))


def _agrees(reach: Reach, intervals: Sequence[tuple[int, int]], size: int) -> bool:
    """Return whether the intervals are those of the reach, cut off at the border; in each phase one must be uncut."""
    exact_phases = set()
    for o, interval in enumerate(intervals):
        uncut = reach.interval(o)
        if not _is_cut(uncut, interval, size):
            return False
        if uncut == interval or interval[0] > interval[1]:
            exact_phases.add(o % len(reach.firsts))
    return len(exact_phases) == len(reach.firsts)


def _is_cut(whole: tuple[int, int], part: tuple[int, int], size: int) -> bool:
    """Return whether `part` is the interval `whole`, cut off at the border."""
    (first, last), (start, stop) = whole, part
    if start > stop:
        return clipped(whole, size) == (NOWHERE, -NOWHERE)
    return (start == first or first < 0 <= start) and (stop == last or last >= size > stop)


def clipped(interval: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the part of an interval that is on an axis."""
    first, last = max(interval[0], 0), min(interval[1], size - 1)
    return (first, last) if first <= last else (NOWHERE, -NOWHERE)


def merged(a: Reach, b: Reach, count: int) -> Reach:
    """Return the union of two reaches of the same `count` positions."""
    aligned, wraps = a.aligned and b.aligned, a.wraps or b.wraps
    if a.stride == b.stride:
        n = math.lcm(len(a.firsts), len(b.firsts))
        jump = int(a.stride * n)
        causal = all(a.interval(o)[1] == b.interval(o)[1] for o in range(n))
        aligned = aligned and (causal or _centre(a, n) == _centre(b, n))
    else:  # the strides differ, so the only period is the whole axis
        n, jump = count, math.ceil(max(a.stride, b.stride) * count)
        aligned = aligned and 0 in (a.stride, b.stride)
    if n > LARGE:  # too many phases: take the union of all intervals for every position
        (first, last), (start, stop) = a.of((0, count - 1)), b.of((0, count - 1))
        return Reach(0, (min(first, start),), (max(last, stop),), aligned, wraps)
    pairs = [(a.interval(o), b.interval(o)) for o in range(n)]
    firsts, lasts = tuple(min(x[0], y[0]) for x, y in pairs), tuple(max(x[1], y[1]) for x, y in pairs)
    return simplest(Reach(jump, firsts, lasts, aligned, wraps))


def _centre(reach: Reach, n: int) -> int:
    """Return the sum of the first and last inputs of `n` positions, which is equal for equal centres."""
    return sum(sum(reach.interval(o)) for o in range(n))


def simplest(reach: Reach) -> Reach:
    """Return the same reach with the smallest number of phases."""
    n = len(reach.firsts)
    for m in range(1, n):
        if n % m == 0 and reach.jump * m % n == 0:
            short = reach._replace(jump=reach.jump * m // n, firsts=reach.firsts[:m], lasts=reach.lasts[:m])
            if all(short.interval(o) == reach.interval(o) for o in range(n)):
                return short
    return reach

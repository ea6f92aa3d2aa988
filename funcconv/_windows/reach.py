"""How far one axis of a value reaches into an axis of what it is computed from, in integers.

Position `o` of a value sees the places `first(o)` to `last(o)`. With `n` phases, `o = q * n + r`, these are

    first(o) = q * jump + firsts[r],      last(o) = q * jump + lasts[r],

so a window of stride `s` has one phase and jumps `s`; a transposed one has `s` phases and jumps 1. Reaches compose, and
the composition is of the same kind. They go on beyond the border, as if the image did.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from .geometry import Axis

NOWHERE = 1 << 60  # from NOWHERE to -NOWHERE lies nothing
LARGE = 1 << 15  # places of an axis, or phases: tables of no more are made
_PHASES = 16  # that are looked for in a table


class Reach(NamedTuple):
    """The places that each position sees."""

    jump: int
    firsts: tuple[int, ...]
    lasts: tuple[int, ...]
    aligned: bool = True  # whether the branches that were merged advance alike, with the same centres or the same ends
    wraps: bool = False  # whether places beyond the border are those of the other end

    @property
    def stride(self) -> Fraction:
        """The places from one position's to the next's, on the average."""
        return Fraction(self.jump, len(self.firsts))

    @property
    def size(self) -> int:
        """The most places that a position sees, holes included."""
        return max(max(last - first + 1 for first, last in zip(self.firsts, self.lasts, strict=True)), 0)

    def interval(self, position: int) -> tuple[int, int]:
        """Return the first and the last place that a position sees."""
        q, r = divmod(position, len(self.firsts))
        return q * self.jump + self.firsts[r], q * self.jump + self.lasts[r]

    def of(self, places: tuple[int, int]) -> tuple[int, int]:
        """Return the first and the last place that any of the positions from `places[0]` to `places[1]` sees."""
        start, stop = places
        if start > stop:
            return NOWHERE, -NOWHERE
        n = len(self.firsts)
        near, far = range(start, min(stop, start + n - 1) + 1), range(max(start, stop - n + 1), stop + 1)
        return min(self.interval(o)[0] for o in near), max(self.interval(o)[1] for o in far)

    def after(self, own: "Reach") -> "Reach":
        """Return the reach of positions that see, by `own`, positions that reach as this one does."""
        n, m = len(self.firsts), len(own.firsts)
        passes = n // math.gcd(n, own.jump)  # of the phases of `own`, until those of this one return as well
        pairs = [self.of(own.interval(o)) for o in range(m * passes)]
        firsts, lasts = zip(*pairs, strict=True)
        jump = self.jump * (own.jump * passes // n)
        return simplest(Reach(jump, firsts, lasts, self.aligned and own.aligned, self.wraps or own.wraps))


IDENTITY = Reach(1, (0,), (0,))


def everything(size: int) -> Reach:
    """Return the reach of positions that all see a whole axis."""
    return Reach(0, (0,), (size - 1,))


def of_window(axis: Axis, *, wraps: bool = False) -> Reach:
    """Return what the windows of a convolution or pool see of the image."""
    return Reach(axis.stride, (-axis.lo,), (axis.extent - 1 - axis.lo,), wraps=wraps)


def of_transpose(axis: Axis, *, wraps: bool = False) -> Reach:
    """Return what the places of the image see of the windows, as in a transposed convolution."""
    if axis.stride > LARGE:
        return everything(axis.outputs)
    common = math.gcd(axis.dilation, axis.stride)
    period = axis.stride // common  # of the taps that lie on a window's first place
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
    """Return a reach that sees these intervals of an axis, position by position.

    Where the intervals, but for what the border cuts off, return after a few positions, so does the reach. At the
    border it may then include the holes of a dilation.
    """
    count = len(intervals)
    if count == size and all(interval == (o, o) for o, interval in enumerate(intervals)):
        return IDENTITY
    if all(interval == (0, size - 1) for interval in intervals):
        return everything(size)
    for n in range(1, min(count // 2, _PHASES) + 1):
        reach = _periodic(intervals, n)
        if reach and _agrees(reach, intervals, size):
            return reach
    firsts, lasts = zip(*intervals, strict=True)
    return Reach(size, firsts, lasts)


def _periodic(intervals: Sequence[tuple[int, int]], n: int) -> Reach | None:
    """Return the reach of `n` phases that jumps as the intervals in the middle do, and sees what any of them sees."""
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
    """Return whether the intervals are those of the reach but for what the border cuts off, and some of a phase are."""
    exact = set()
    for o, interval in enumerate(intervals):
        seen = reach.interval(o)
        if not _cut(seen, interval, size):
            return False
        if seen == interval or interval[0] > interval[1]:
            exact.add(o % len(reach.firsts))
    return len(exact) == len(reach.firsts)


def _cut(whole: tuple[int, int], part: tuple[int, int], size: int) -> bool:
    """Return whether a part is an interval but for what the border cuts off."""
    (first, last), (start, stop) = whole, part
    if start > stop:
        return clipped(whole, size) == (NOWHERE, -NOWHERE)
    return (start == first or first < 0 <= start) and (stop == last or last >= size > stop)


def clipped(interval: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the part of an interval that lies on an axis."""
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
    else:  # no period but the whole axis
        n, jump = count, math.ceil(max(a.stride, b.stride) * count)
        aligned = aligned and 0 in (a.stride, b.stride)
    if n > LARGE:  # too many phases: then each position sees what any does
        (first, last), (start, stop) = a.of((0, count - 1)), b.of((0, count - 1))
        return Reach(0, (min(first, start),), (max(last, stop),), aligned, wraps)
    pairs = [(a.interval(o), b.interval(o)) for o in range(n)]
    firsts, lasts = tuple(min(x[0], y[0]) for x, y in pairs), tuple(max(x[1], y[1]) for x, y in pairs)
    return simplest(Reach(jump, firsts, lasts, aligned, wraps))


def _centre(reach: Reach, n: int) -> int:
    """Return the sum of all first and last places of `n` positions, which tells centres apart."""
    return sum(sum(reach.interval(o)) for o in range(n))


def simplest(reach: Reach) -> Reach:
    """Return the same reach with as few phases as can be."""
    n = len(reach.firsts)
    for m in range(1, n):
        if n % m == 0 and reach.jump * m % n == 0:
            short = reach._replace(jump=reach.jump * m // n, firsts=reach.firsts[:m], lasts=reach.lasts[:m])
            if all(short.interval(o) == reach.interval(o) for o in range(n)):
                return short
    return reach

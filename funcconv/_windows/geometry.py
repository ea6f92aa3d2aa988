"""The positions of windows on spatial axes: padding, stride and dilation, in integers only.

All convolutions and pools use this module. An axis of `size` inputs has `lo` positions of padding before it and `hi`
after it. Window number `o` reads the positions

    o * stride - lo + tap * dilation,      tap = 0, ..., window - 1,

counted from the first input.
"""

import operator
from collections.abc import Sequence
from typing import NamedTuple

from .._common.errors import FuncconvError, suggest
from .._common.types import Padding, PadMode, Shape, Sizes

PAD_MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")
PADDINGS = ("VALID", "SAME", "SAME_LOWER", "HALF", "FULL", "CAUSAL")
SAME_SIZE = ("SAME", "SAME_LOWER", "CAUSAL")  # these give ceil(size / stride) windows for every window


class Axis(NamedTuple):
    """One spatial axis of a window op."""

    size: int
    window: int
    stride: int
    dilation: int
    lo: int
    hi: int
    outputs: int

    @property
    def extent(self) -> int:
        """The positions from the first tap of a window to its last: `1 + (window - 1) * dilation`."""
        return 1 + (self.window - 1) * self.dilation

    @property
    def hi_used(self) -> int:
        """The positions after the axis up to the last tap of the last window.

        It is below `hi` if the stride leaves padding unread, negative if the stride leaves inputs unread (at least one
        input is kept), and above `hi` if `ceil_mode` lets the last window extend beyond the padding.
        """
        return max((self.outputs - 1) * self.stride + self.extent - self.lo - self.size, 1 - self.size)

    @property
    def inside(self) -> int:
        """The number of taps of all windows that are on the axis, not on padding."""
        return self._taps_before(self.lo + self.size) - self._taps_before(self.lo)

    @property
    def active_taps(self) -> slice:
        """The taps from the first to the last that is on the axis in some window, or all taps if none is."""
        first = next(filter(self._windows_with, range(self.window)), None)
        if first is None:
            return slice(0, self.window)
        return slice(first, next(filter(self._windows_with, reversed(range(self.window)))) + 1)

    @property
    def trimmed(self) -> "Axis":
        """The same windows with only the active taps."""
        first, stop = self.active_taps.start, self.active_taps.stop
        if stop - first == self.window:
            return self
        dilation = self.dilation if stop - first > 1 else 1
        axis = self._replace(window=stop - first, dilation=dilation, lo=self.lo - first * self.dilation)
        return axis._replace(hi=axis.hi_used)

    def _windows_with(self, tap: int) -> int:
        """Return the number of windows that have this tap on the axis."""
        first = tap * self.dilation - self.lo  # in window o this tap is at o * stride + first
        start = max(-(first // self.stride), 0)
        stop = min((self.size - 1 - first) // self.stride, self.outputs - 1)
        return max(stop - start + 1, 0)

    def _taps_before(self, position: int) -> int:
        """Return the number of taps of all windows before a position, counted from the first tap of the first window.

        The result is in closed form: axes of a million positions, and symbolic summaries, need no loop over windows.
        """
        in_all = -(-(position - (self.outputs - 1) * self.stride) // self.dilation)  # taps before it in every window
        in_some = -(-position // self.dilation)  # taps before it in at least one window
        in_all, in_some = (min(max(taps, 0), self.window) for taps in (in_all, in_some))
        # Tap t is before the position in ceil((position - t * dilation) / stride) windows; the sum over the taps is one
        # over floors.
        start = position - in_all * self.dilation + self.stride - 1
        count = in_some - in_all
        rest = _sum_of_floors(count, start - (count - 1) * self.dilation, self.dilation, self.stride)
        return in_all * self.outputs + rest

    @property
    def pointwise(self) -> "Axis":
        """The same axis without padding, where each position is a window."""
        return Axis(self.size, 1, 1, 1, 0, 0, self.size)


def split_padding(axes: Sequence[Axis], modes: Sequence[str | None]) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """Separate the padding from the windows, except for zeros, which stay with the windows.

    Returns:
        The axes that are padded first, and the axes of the padded image on which the windows are.
    """
    pairs = tuple(zip(axes, modes, strict=True))
    extended = tuple(axis.pointwise if mode == "zeros" else axis for axis, mode in pairs)
    windows = tuple(
        axis if mode == "zeros" else axis._replace(size=axis.size + axis.lo + axis.hi_used, lo=0, hi=0)
        for axis, mode in pairs
    )
    return extended, windows


def per_axis(op: str, name: str, value: Sizes, n: int, least: int) -> Shape:
    """Return `value`, one integer for all axes or one for each, as a tuple of `n` integers."""
    entries = tuple(value) if isinstance(value, Sequence) else (value,) * n
    sizes = _integers(entries)
    if sizes is None or len(sizes) != n:
        msg = f"{op}: {name} must be an integer or {n} of them, one for each spatial axis; got {value!r}"
        raise FuncconvError(msg)
    if any(size < least for size in sizes):
        msg = f"{op}: {name} must be at least {least} on every spatial axis; got {value!r}"
        raise FuncconvError(msg)
    return sizes


def resolve(
    op: str,
    sizes: Shape,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> tuple[Axis, ...]:
    """Return the geometry of each axis. Windows that do not fit raise `FuncconvError`."""
    n = len(sizes)
    if not all(isinstance(size, int) for size in sizes):
        msg = f"{op}: the sizes of spatial axes must be known integers, only batch axes can be symbolic; got {sizes}"
        raise FuncconvError(msg)
    windows = per_axis(op, "window", window, n, least=1)
    strides = per_axis(op, "stride", stride, n, least=1)
    dilations = per_axis(op, "dilation", dilation, n, least=1)
    axes = []
    for i, (size, k, s, d) in enumerate(zip(sizes, windows, strides, dilations, strict=True)):
        if size < 1:
            msg = f"{op}: spatial axis {i} is empty, but needs at least one position; the sizes are {tuple(sizes)}"
            raise FuncconvError(msg)
        extent = 1 + (k - 1) * d
        lo, hi = padding_pair(op, padding, i, n, size, extent, s)
        padded = size + lo + hi
        if max(-lo, 0) + max(-hi, 0) >= size:
            msg = f"{op}: the padding ({lo}, {hi}) crops away all {size} positions of spatial axis {i}; pad more"
            raise FuncconvError(msg)
        if padded < extent and not (ceil_mode and extent - padded < s):
            span = f"{k}" if d == 1 else f"{k} with dilation {d}, which spans 1 + ({k} - 1) * {d} = {extent},"
            msg = (
                f"{op}: a window of {span} does not fit on spatial axis {i}, "
                f"which has {size} + {lo} + {hi} = {padded} positions (size + padding); pad more"
            )
            raise FuncconvError(msg)
        outputs = 1 + (padded - extent) // s
        if ceil_mode and (padded - extent) % s and outputs * s < size + lo + min(hi, 0):
            outputs += 1  # as in PyTorch, the last window must start before the right padding
        # A window of one tap has no dilation, so that equal geometries compare as equal and reuse compiled code.
        axes.append(Axis(size, k, s, d if k > 1 else 1, lo, hi, outputs))
    return tuple(axes)


def pad_modes(op: str, pad_mode: PadMode | None, n: int, *, optional: bool = False) -> tuple[str | None, ...]:
    """Return one of `PAD_MODES` for each of `n` axes; with `optional`, None is allowed too."""
    modes = tuple(pad_mode) if isinstance(pad_mode, Sequence) and not isinstance(pad_mode, str) else (pad_mode,) * n
    if len(modes) != n:
        msg = f"{op}: pad_mode must be one name or {n} of them, one for each spatial axis; got {pad_mode!r}"
        raise FuncconvError(msg)
    for mode in modes:
        if mode not in PAD_MODES and not (mode is None and optional):
            msg = f"{op}: unknown pad_mode {mode!r}{suggest(mode, PAD_MODES)}"
            raise FuncconvError(msg)
    return modes


def source(mode: str, position: int, size: int) -> int | None:
    """Return the input, of `size`, whose value a pad mode gives to a position; None for a zero.

    A mode extends the axis over all integers, with the same values as `numpy.pad`.
    """
    if 0 <= position < size:
        return position
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(position, 0), size - 1)
    if mode == "circular":
        return position % size
    # A mirrored axis repeats with the period of the axis forwards and backwards. "reflect" does not repeat the ends.
    last = 2 * size - 1 if mode == "symmetric" else max(2 * size - 2, 1)
    period = last + 1 if mode == "symmetric" else last
    return min(position % period, last - position % period) if size > 1 else 0


def _sum_of_floors(count: int, start: int, step: int, divisor: int) -> int:
    """Return the sum of `(start + i * step) // divisor` for i below `count`, with O(log) operations."""
    total, sign = 0, 1
    while count > 0:
        total += sign * (count * (start // divisor) + count * (count - 1) // 2 * (step // divisor))
        start, step = start % divisor, step % divisor
        # As in Euclid's algorithm. The remaining sum counts the lattice points under a line: the points of a rectangle
        # without those above the line, which are a sum of the same kind with `step` and `divisor` exchanged.
        height = (start + (count - 1) * step) // divisor
        total += sign * count * height
        count, start, step, divisor, sign = height, divisor - start - 1 + step, divisor, step, -sign
    return total


def _integers(values: Sequence[object]) -> Shape | None:
    """Return the values as Python integers, or None if one is not an integer (True and 2.0 are not)."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        return tuple(operator.index(value) for value in values)  # type: ignore[arg-type]
    except TypeError:
        return None


def padding_pair(op: str, padding: Padding, axis: int, n: int, size: int, extent: int, stride: int) -> tuple[int, int]:
    """Return the positions of padding before and after one axis. Negative numbers crop."""
    if not isinstance(padding, str):
        return _numeric_pair(op, padding, axis, n)
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)  # so that there are ceil(size / stride) windows
    pairs = {
        "VALID": (0, 0),
        "SAME": (total // 2, total - total // 2),
        "SAME_LOWER": (total - total // 2, total // 2),
        "HALF": ((extent - 1) // 2, (extent - 1) // 2),
        "FULL": (extent - 1, extent - 1),
        "CAUSAL": (extent - 1, 0),
    }
    if padding not in pairs:
        msg = f"{op}: unknown padding {padding!r}{suggest(padding, PADDINGS)}"
        raise FuncconvError(msg)
    return pairs[padding]


def _numeric_pair(op: str, padding: Padding, axis: int, n: int) -> tuple[int, int]:
    entries = tuple(padding) if isinstance(padding, Sequence) else (padding,) * n
    entry = entries[axis] if len(entries) == n else None
    pair = _integers(tuple(entry) if isinstance(entry, Sequence) else (entry, entry))
    if pair is None or len(pair) != 2:
        msg = (
            f"{op}: padding must be an integer, {n} integers, {n} pairs (before, after), one for each spatial axis, "
            f"or one of {', '.join(PADDINGS)}; got {padding!r}"
        )
        raise FuncconvError(msg)
    return pair

"""Where windows lie: extents, paddings, strides and layouts, in integers only.

Convolutions and pools of every kind share this page. An axis of `size` inputs is extended by `lo` places before
and `hi` places after it; window number `o` then reads the places

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
_SAME_SIZE = ("SAME", "SAME_LOWER", "CAUSAL")  # ceil(size / stride) windows, whatever the window


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
        """The places from a window's first tap to its last: `1 + (window - 1) * dilation`."""
        return 1 + (self.window - 1) * self.dilation

    @property
    def reach(self) -> int:
        """The padding after the axis up to the last tap of the last window.

        Below `hi` where the stride leaves places unread, negative where it leaves inputs unread (though one is kept),
        and above `hi` where `ceil_mode` lets the last window hang over.
        """
        return max((self.outputs - 1) * self.stride + self.extent - self.lo - self.size, 1 - self.size)

    @property
    def inside(self) -> int:
        """How many taps of all windows lie on the axis, rather than on padding."""
        return self._taps_before(self.lo + self.size) - self._taps_before(self.lo)

    @property
    def seen(self) -> slice:
        """The taps from the first to the last that lies on the axis in some window; all if none does."""
        first = next(filter(self._windows_with, range(self.window)), None)
        if first is None:
            return slice(0, self.window)
        return slice(first, next(filter(self._windows_with, reversed(range(self.window)))) + 1)

    @property
    def trimmed(self) -> "Axis":
        """The same windows with the taps that are `seen`."""
        first, stop = self.seen.start, self.seen.stop
        if stop - first == self.window:
            return self
        dilation = self.dilation if stop - first > 1 else 1
        axis = self._replace(window=stop - first, dilation=dilation, lo=self.lo - first * self.dilation)
        return axis._replace(hi=axis.reach)

    def _windows_with(self, tap: int) -> int:
        """Return how many windows have this tap on the axis."""
        first = tap * self.dilation - self.lo  # of the places o * stride + first, those from 0 to size - 1
        start = max(-(first // self.stride), 0)
        stop = min((self.size - 1 - first) // self.stride, self.outputs - 1)
        return max(stop - start + 1, 0)

    def _taps_before(self, place: int) -> int:
        """Return how many taps of all windows lie before a place, which is counted from the first tap of all."""
        whole = -(-(place - (self.outputs - 1) * self.stride) // self.dilation)  # taps that do so in every window
        some = -(-place // self.dilation)  # in some window
        whole, some = (min(max(taps, 0), self.window) for taps in (whole, some))
        # Tap number t does so in the windows below (place - t * dilation) / stride, rounded up.
        most = place - whole * self.dilation + self.stride - 1
        rest = _sum_of_floors(some - whole, most - (some - whole - 1) * self.dilation, self.dilation, self.stride)
        return whole * self.outputs + rest

    @property
    def plain(self) -> "Axis":
        """The same places without padding, each a window of its own."""
        return Axis(self.size, 1, 1, 1, 0, 0, self.size)


def parted(axes: Sequence[Axis], modes: Sequence[str | None]) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """Part the padding from the windows, except for zeros, which stay with the windows.

    Returns:
        The axes to extend by what the modes show, and those on which the windows then lie.
    """
    pairs = tuple(zip(axes, modes, strict=True))
    extended = tuple(axis.plain if mode == "zeros" else axis for axis, mode in pairs)
    windows = tuple(
        axis if mode == "zeros" else axis._replace(size=axis.size + axis.lo + axis.reach, lo=0, hi=0)
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
    """Lay windows over axes of the given sizes; what does not fit raises."""
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
            msg = f"{op}: spatial axis {i} is empty; sizes are {tuple(sizes)}"
            raise FuncconvError(msg)
        extent = 1 + (k - 1) * d
        lo, hi = _pair(op, padding, i, n, size, extent, s)
        padded = size + lo + hi
        if max(-lo, 0) + max(-hi, 0) >= size:
            msg = f"{op}: the padding ({lo}, {hi}) crops away all {size} positions of spatial axis {i}"
            raise FuncconvError(msg)
        if padded < extent and not (ceil_mode and extent - padded < s):
            span = f"{k}" if d == 1 else f"{k} with dilation {d}, which spans 1 + ({k} - 1) * {d} = {extent},"
            msg = (
                f"{op}: a window of {span} does not fit on spatial axis {i}, "
                f"which has {size} + {lo} + {hi} = {padded} positions (size + padding)"
            )
            raise FuncconvError(msg)
        outputs = 1 + (padded - extent) // s
        if ceil_mode and (padded - extent) % s and outputs * s < size + lo + min(hi, 0):
            outputs += 1  # as in PyTorch, the window that hangs over must start before the right padding
        axes.append(Axis(size, k, s, d if k > 1 else 1, lo, hi, outputs))
    return tuple(axes)


def transposed_sizes(
    op: str,
    outputs: Shape,
    window: Shape,
    *,
    size: Sizes | None,
    output_padding: Sizes | None,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
) -> Shape:
    """Return the sizes of the image that a convolution of these options takes to `outputs`.

    Where the stride folds several into one, `size` says which, or `output_padding` by how much it exceeds the
    smallest. By default it is the smallest, or `outputs * stride` for the paddings that keep the size. An
    `output_padding` may be as large as `dilation - 1` too, as in PyTorch: the convolution then has further windows.
    """
    n = len(window)
    if 0 in outputs:
        msg = f"{op}: spatial axis {outputs.index(0)} of the input is empty; its sizes are {tuple(outputs)}"
        raise FuncconvError(msg)
    if size is not None and output_padding is not None:
        msg = f"{op}: size and output_padding say the same thing; give one of them, not both"
        raise FuncconvError(msg)
    strides = per_axis(op, "stride", stride, n, least=1)
    dilations = per_axis(op, "dilation", dilation, n, least=1)
    extents = tuple(1 + (k - 1) * d for k, d in zip(window, dilations, strict=True))
    smallest = tuple(_smallest(op, padding, i, n, count, extents[i], strides[i]) for i, count in enumerate(outputs))
    if size is not None:
        sizes = per_axis(op, "size", size, n, least=1)
    elif output_padding is not None:
        extra = per_axis(op, "output_padding", output_padding, n, least=0)
        sizes = tuple(map(operator.add, smallest, extra))
    elif padding in _SAME_SIZE:
        sizes = tuple(map(operator.mul, outputs, strides))
    else:
        sizes = tuple(max(least, 1) for least in smallest)
    fixed = output_padding is not None and padding not in ("SAME", "SAME_LOWER")  # theirs depends on the size
    for i, (chosen, least, count, step) in enumerate(zip(sizes, smallest, outputs, strides, strict=True)):
        most = least + (max(step, dilations[i]) if fixed else step) - 1
        if most < 1:
            msg = f"{op}: no image has {count} windows on spatial axis {i} with the padding {padding!r}: it crops all"
            raise FuncconvError(msg)
        if fixed and not max(least, 1) <= chosen <= most:
            msg = (
                f"{op}: output_padding on spatial axis {i} can be {max(1 - least, 0)} to {most - least}, below the "
                f"larger of stride and dilation and so that a position is left; got {chosen - least}"
            )
            raise FuncconvError(msg)
        if not max(least, 1) <= chosen <= most:
            msg = (
                f"{op}: the result on spatial axis {i} can have {max(least, 1)} to {most} positions, those that the "
                f"convolution takes to the {count} given; got {chosen}"
            )
            raise FuncconvError(msg)
    return sizes


def pad_modes(op: str, pad_mode: PadMode | None, n: int, *, optional: bool = False) -> tuple[str | None, ...]:
    """Return one of `PAD_MODES`, or None where that is an option, for each of `n` axes."""
    modes = tuple(pad_mode) if isinstance(pad_mode, Sequence) and not isinstance(pad_mode, str) else (pad_mode,) * n
    if len(modes) != n:
        msg = f"{op}: pad_mode must be one name or {n} of them, one for each spatial axis; got {pad_mode!r}"
        raise FuncconvError(msg)
    for mode in modes:
        if mode not in PAD_MODES and not (mode is None and optional):
            msg = f"{op}: unknown pad_mode {mode!r}{suggest(mode, PAD_MODES)}"
            raise FuncconvError(msg)
    return modes


def source(mode: str, place: int, size: int) -> int | None:
    """Return which of an axis' `size` inputs the pad mode shows at `place`; None for a zero.

    A mode extends the axis over all integers; `numpy.pad` shows the same values.
    """
    if 0 <= place < size:
        return place
    if mode == "zeros":
        return None
    if mode == "replicate":
        return min(max(place, 0), size - 1)
    if mode == "circular":
        return place % size
    last = 2 * size - 1 if mode == "symmetric" else max(2 * size - 2, 1)  # the axis there and back
    period = last + 1 if mode == "symmetric" else last
    return min(place % period, last - place % period) if size > 1 else 0


def adaptive_bins(size: int, outputs: int) -> list[tuple[int, int]]:
    """Return `outputs` ranges that cover `size` places as PyTorch does: from floor(i n / m) to ceil((i + 1) n / m)."""
    return [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]


def spatial_of_layout(op: str, layout: str) -> int:
    """Return the number of spatial axes that a layout such as `"NCHW"` names."""
    letters = layout if isinstance(layout, str) else ""
    if not letters.isalpha() or letters.count("C") != 1 or len(set(letters)) != len(letters):
        msg = (
            f"{op}: a layout is a word such as 'NCHW' or 'NHWC': C once for the channels, N for all batch axes, "
            f"and a letter for each spatial axis; got {layout!r}"
        )
        raise FuncconvError(msg)
    return len(set(letters) - {"N", "C"})


def channels_last_order(op: str, layout: str, ndim: int) -> Shape:
    """Return the order in which the axes of an array of this layout are `(*batch, *spatial, channels)`."""
    batch = ndim - len(layout.replace("N", ""))
    if batch < 0 or (batch > 0 and "N" not in layout):
        msg = f"{op}: an array of layout {layout!r} cannot have {ndim} axes"
        raise FuncconvError(msg)
    start, at = 0, {}
    for letter in layout:
        at[letter] = start
        start += batch if letter == "N" else 1
    first = at.get("N", 0)
    spatial = (at[letter] for letter in layout if letter not in "NC")
    return (*range(first, first + batch), *spatial, at["C"])


def _sum_of_floors(count: int, start: int, step: int, divisor: int) -> int:
    """Return the sum of `(start + i * step) // divisor` for i below `count`, in as many steps as Euclid's algorithm."""
    total, sign = 0, 1
    while count > 0:
        total += sign * (count * (start // divisor) + count * (count - 1) // 2 * (step // divisor))
        start, step = start % divisor, step % divisor
        # What is left are the lattice points under a line: all in its rectangle but those above it.
        height = (start + (count - 1) * step) // divisor
        total += sign * count * height
        count, start, step, divisor, sign = height, divisor - start - 1 + step, divisor, step, -sign
    return total


def _integers(values: Sequence[object]) -> Shape | None:
    """Return the values as plain integers, or None where one is not an integer (True and 2.0 are not)."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        return tuple(operator.index(value) for value in values)  # type: ignore[arg-type]
    except TypeError:
        return None


def _pair(op: str, padding: Padding, axis: int, n: int, size: int, extent: int, stride: int) -> tuple[int, int]:
    """Return the places before and after one axis that `padding` means."""
    if not isinstance(padding, str):
        return _numeric_pair(op, padding, axis, n)
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
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


def _smallest(op: str, padding: Padding, axis: int, n: int, outputs: int, extent: int, stride: int) -> int:
    """Return the smallest size that has `outputs` windows, which may be below 1."""
    if padding in _SAME_SIZE:
        return (outputs - 1) * stride + 1
    lo, hi = _pair(op, padding, axis, n, 1, extent, stride)  # the other paddings do not depend on the size
    return (outputs - 1) * stride + extent - lo - hi

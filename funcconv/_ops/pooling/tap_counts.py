"""How many taps of each window take part in a pool: those on the image, or also those on its padding."""

from collections.abc import Sequence

import numpy as np

from ..._common.errors import FuncconvError
from ..._windows.geometry import Axis


def check_counts(axes: Sequence[Axis], counts: Sequence[np.ndarray], *, needs_all: bool) -> bool:
    """Return whether all taps of all windows take part.

    A window without any such tap is an error, and if `needs_all`, one without all of them.
    """
    for i, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        position = int(np.argmin(count))
        if count[position] and not (needs_all and count[position] < axis.window):
            continue
        first = position * axis.stride - axis.lo
        last = first + (axis.window - 1) * axis.dilation
        steps = f" in steps of {axis.dilation}" if axis.dilation > 1 else ""
        which = f"window {position} on spatial axis {i}"
        where = f"it reads the positions {first} to {last}{steps}, and the inputs are at 0 to {axis.size - 1}"
        if not count[position]:
            msg = f"pool: {which} has only padding, which takes no part: {where}. Pad less, or pass pad_mode="
            raise FuncconvError(msg)
        msg = (
            f"pool: a function given as reduce needs all taps of a window, because padding has no neutral value for "
            f"it; {which} has only {count[position]} of {axis.window}: {where}. Pass pad_mode= to fill the padding"
        )
        raise FuncconvError(msg)
    return all((count == axis.window).all() for axis, count in zip(axes, counts, strict=True))


def taking_part(axis: Axis, *, padded: bool) -> range:
    """Return the positions that take part: the image, or the image and its padding. Negative padding crops both."""
    if padded:
        return range(-axis.lo, axis.size + axis.hi)
    return range(max(-axis.lo, 0), axis.size + min(axis.hi, 0))


def tap_counts(axis: Axis, part: range) -> np.ndarray:
    """Count the taps of each window that are on positions that take part."""
    start = np.arange(axis.outputs) * axis.stride - axis.lo
    # -((a - b) // d) is ceil((b - a) / d): the first tap at or after a position.
    first_tap = -((start - part.start) // axis.dilation)
    stop_tap = -((start - part.stop) // axis.dilation)
    return np.clip(stop_tap, 0, axis.window) - np.clip(first_tap, 0, axis.window)

"""When the positions of a value are known while a signal arrives, in integers only.

The signal arrives in chunks, and each value of the graph advances by a fixed number of positions with each of them. The
position that a value delivers as its `k`-th is `k - delay`: before the first `delay` of them come positions that do not
exist. A signal of `n` samples has `n * rate + extra` positions, for every `n` that the strides allow.
"""

from fractions import Fraction
from typing import NamedTuple

from ..._windows.geometry import Axis


class Flow(NamedTuple):
    """How a value advances along the signal."""

    rate: Fraction  # positions for each sample of the signal
    delay: int
    extra: int

    @property
    def left(self) -> int:
        """How many positions are not yet delivered when the signal ends."""
        return self.extra + self.delay


SIGNAL = Flow(Fraction(1), 0, 0)


class Windows(NamedTuple):
    """The windows of one layer along a signal."""

    flow: Flow  # of the result
    kept: int  # positions of the input that are kept from one chunk to the next
    skipped: int  # positions of the result for the kept input and the chunk, before those that are new


def of_windows(axis: Axis, flow: Flow) -> Windows:
    """Return how the windows of a convolution or pool move along a value.

    Args:
        axis: the windows on a long signal, without the positions that are kept.
        flow: of the value.
    """
    size = axis.size - flow.extra  # the positions that are delivered with the signal
    extra = axis.outputs - size // axis.stride
    # Result `k` is computed with inputs up to the delivered number (k + 1) * stride - 1, and reads those from
    # (k - delay) * stride - lo + flow.delay on; none may be cropped that was delivered.
    needed = max(axis.extent - axis.lo - axis.stride + flow.delay, flow.delay - axis.lo, 0)
    delay = max(-(-needed // axis.stride), -extra)
    kept = delay * axis.stride + axis.lo - flow.delay
    return Windows(Flow(flow.rate / axis.stride, delay, extra), kept, 0)


def of_transposed(axis: Axis, flow: Flow) -> Windows:
    """Return how the result of a transposed convolution moves along with its input.

    Args:
        axis: the windows of the convolution that is transposed, with as many outputs as a long signal has positions.
        flow: of the input.
    """
    size = axis.outputs - flow.extra
    extra = axis.size - size * axis.stride
    delay = max(axis.lo + flow.delay * axis.stride, 0, -extra)
    before = delay - axis.lo  # positions of the whole result before the new ones, from the first of the chunk's on
    kept = max((before + axis.extent - 1) // axis.stride, -(-before // axis.stride)) - flow.delay
    skipped = (flow.delay + kept) * axis.stride - delay + axis.lo
    return Windows(Flow(flow.rate * axis.stride, delay, extra), kept, skipped)

"""Windows on axes, checked by walking over places and counting."""

from itertools import pairwise

import numpy as np
import oracles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funcconv._common.errors import FuncconvError
from funcconv._ops.pooling.adaptive import adaptive_bins
from funcconv._windows import geometry as geometry
from funcconv._windows.layout import channels_last_order, spatial_of_layout
from funcconv._windows.transposed import transposed_sizes

sizes, windows, strides = st.integers(1, 12), st.integers(1, 5), st.integers(1, 4)


def axis_of(size, window, **options):
    (axis,) = geometry.resolve("op", (size,), window, **options)
    return axis


@given(sizes, windows, strides, strides, st.integers(-3, 4), st.integers(-3, 4), st.booleans())
def test_windows_are_those_that_fit(size, window, stride, dilation, lo, hi, ceil_mode):
    padded, extent = size + lo + hi, (window - 1) * dilation + 1
    cropped = max(-lo, 0) + max(-hi, 0)
    last = size + lo + min(hi, 0) if ceil_mode else None
    expected = oracles.starts(padded, window, stride, dilation, last=last)
    options = {"stride": stride, "dilation": dilation, "padding": ((lo, hi),), "ceil_mode": ceil_mode}
    if cropped >= size or padded < extent - (stride - 1 if ceil_mode else 0):
        with pytest.raises(FuncconvError, match=r"does not fit|crops away"):
            axis_of(size, window, **options)
        return
    axis = axis_of(size, window, **options)
    assert axis.outputs == len(expected)
    last_place_read = expected[-1] + extent - 1 - lo
    assert axis.hi_used == max(last_place_read - (size - 1), 1 - size)  # one input is kept


@given(sizes, windows, strides, st.integers(1, 14), st.integers(-3, 16), st.integers(-3, 16))
def test_taps_on_the_image(size, window, stride, dilation, lo, hi):
    if max(-lo, 0) + max(-hi, 0) >= size or size + lo + hi < (window - 1) * dilation + 1:
        return
    axis = axis_of(size, window, stride=stride, dilation=dilation, padding=((lo, hi),))

    def places(axis, tap):
        return [position * axis.stride - axis.lo + tap * axis.dilation for position in range(axis.outputs)]

    counts = [sum(0 <= place < size for place in places(axis, tap)) for tap in range(window)]
    assert axis.inside == sum(counts)
    on = [tap for tap, count in enumerate(counts) if count] or list(range(window))
    assert axis.active_taps == slice(on[0], on[-1] + 1)
    trimmed = axis.trimmed
    assert trimmed.window == on[-1] + 1 - on[0]
    for tap in range(trimmed.window):
        assert places(trimmed, tap) == places(axis, on[0] + tap)
    assert trimmed.trimmed == trimmed
    assert trimmed.outputs == 1 + (trimmed.lo + size + trimmed.hi_used - trimmed.extent) // stride


@given(sizes, windows, strides, strides)
def test_named_paddings(size, window, stride, dilation):
    extent = (window - 1) * dilation + 1
    options = {"stride": stride, "dilation": dilation}
    for name in ("SAME", "SAME_LOWER"):
        axis = axis_of(size, window, padding=name, **options)
        assert axis.outputs == len(range(0, size, stride))
        fewer = axis.lo + axis.hi - 1
        assert axis.lo + axis.hi == 0 or (size + fewer - extent) // stride + 1 < axis.outputs  # no more than needed
        assert (axis.hi - axis.lo if name == "SAME" else axis.lo - axis.hi) in (0, 1)
    causal = axis_of(size, window, padding="CAUSAL", **options)
    assert all(
        o * stride - causal.lo + extent - 1 == o * stride for o in range(causal.outputs)
    )  # ends at its own place
    assert causal.outputs == len(range(0, size, stride))
    full = axis_of(size, window, padding="FULL", dilation=dilation)
    assert full.outputs == size + extent - 1
    half = axis_of(size, 2 * window - 1, padding="HALF", dilation=dilation)
    assert (half.outputs, half.lo) == (size, half.hi)
    if extent <= size:
        assert axis_of(size, window, padding="VALID") == axis_of(size, window)


@given(st.sampled_from(geometry.PAD_MODES), sizes, st.integers(0, 30), st.integers(0, 30))
def test_pad_modes_are_numpys(mode, size, lo, hi):
    places = [geometry.source(mode, i, size) for i in range(-lo, size + hi)]
    expected = np.pad(np.arange(1, size + 1), (lo, hi), oracles.NUMPY_MODES[mode])
    assert [0 if place is None else place + 1 for place in places] == expected.tolist()


@given(sizes, st.integers(1, 15))
def test_adaptive_bins_cover_in_order(size, outputs):
    bins = adaptive_bins(size, outputs)
    assert (bins[0][0], bins[-1][1], len(bins)) == (0, size, outputs)
    assert all(start < stop for start, stop in bins)
    assert all(a[0] <= b[0] <= a[1] <= b[1] for a, b in pairwise(bins))
    if size % outputs == 0:
        assert {stop - start for start, stop in bins} == {size // outputs}


@given(
    sizes,
    windows,
    strides,
    strides,
    st.sampled_from([0, 1, 2, "VALID", "SAME", "SAME_LOWER", "HALF", "FULL", "CAUSAL"]),
)
def test_transposed_sizes_are_those_that_come_out(outputs, window, stride, dilation, padding):
    def sizes_for(**choice):
        return transposed_sizes(
            "op",
            (outputs,),
            (window,),
            stride=stride,
            padding=padding,
            dilation=dilation,
            **{"size": None, "output_padding": None} | choice,
        )

    def count(size):
        try:
            return axis_of(size, window, stride=stride, padding=padding, dilation=dilation).outputs
        except FuncconvError:
            return None

    fitting = [size for size in range(1, 60) if count(size) == outputs]
    for size in range(1, 60):
        if size in fitting:
            assert sizes_for(size=size) == (size,)
        else:
            with pytest.raises(FuncconvError, match=r"the result on spatial axis 0 can have|crops all"):
                sizes_for(size=size)
    if fitting and padding not in ("SAME", "SAME_LOWER", "CAUSAL"):
        assert sizes_for() == (fitting[0],)
        least = (
            (outputs - 1) * stride
            + (window - 1) * dilation
            + 1
            - 2 * axis_of(99, window, dilation=dilation, padding=padding).lo
        )
        assert [sizes_for(output_padding=size - least) for size in fitting] == [(size,) for size in fitting]
    elif fitting and padding in ("SAME", "SAME_LOWER", "CAUSAL"):
        assert sizes_for() == (outputs * stride,)


@pytest.mark.parametrize(
    ("layout", "ndim", "order"),
    [
        ("NHWC", 4, (0, 1, 2, 3)),
        ("NCHW", 4, (0, 2, 3, 1)),
        ("NCHW", 6, (0, 1, 2, 4, 5, 3)),
        ("NCHW", 3, (1, 2, 0)),
        ("CWN", 4, (2, 3, 1, 0)),
        ("CHW", 3, (1, 2, 0)),
        ("NCDHW", 5, (0, 2, 3, 4, 1)),
    ],
)
def test_layouts(layout, ndim, order):
    assert channels_last_order("op", layout, ndim) == order
    assert spatial_of_layout("op", layout) == len(set(layout) - {"N", "C"})

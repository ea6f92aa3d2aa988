"""Receptive fields are where gradients are."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CHIEF, each
from compare import rounding
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from published import PUBLISHED

import funcconv as fc
from funcconv._windows.reach import Reach, merged

pytestmark = pytest.mark.once


def of(layer, shape=(32, 32, 3)):
    x = fc.Input("x", shape)
    return fc.receptive_field(fc.Graph(x, layer(x)))["x"]


def supports(graph):
    """Return the first and the last pixel that each position's gradient reaches, with positive weights; of one axis."""
    spec = graph.shapes()["x"]
    params = jax.tree.map(lambda leaf: 0.1 + jnp.abs(leaf), graph.init(jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, spec.shape))
    jacobian = jax.jit(jax.jacrev(lambda x: graph(params, x).sum(-1)))(x).sum(-1)
    places = [np.nonzero(row)[0] for row in np.asarray(jacobian)]
    return [(int(each[0]), int(each[-1])) if len(each) else None for each in places]


@st.composite
def layers(draw):
    """Return a layer on one spatial axis."""
    kind = draw(st.sampled_from(["conv", "pool", "transposed", "function", "up"]))
    if kind == "function":
        return draw(
            st.sampled_from([jnp.sqrt, lambda x: 2 * x + x.mean(-1, keepdims=True), partial(jnp.multiply, 3.0)])
        )
    if kind == "up":
        return lambda x: jnp.repeat(x, 2, -2)
    window = draw(st.integers(1, 4))
    options = {"stride": draw(st.integers(1, 3)), "dilation": draw(st.integers(1, 2))}
    extent = 1 + (window - 1) * options["dilation"]
    options["padding"] = draw(st.sampled_from(["VALID", "SAME", "HALF", "CAUSAL", extent // 2]))
    if kind == "pool":
        return fc.Pool((window,), reduce=draw(st.sampled_from(["mean", "lse"])), **options)
    return (fc.Conv if kind == "conv" else fc.ConvTranspose)(2, (window,), **options)


@st.composite
def networks(draw):
    """Return a network with branches."""
    values = [fc.Input("x", (draw(st.integers(24, 40)), 2))]
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(layers())
        values.append(fc.serial(layer)(draw(st.sampled_from(values))))
    try:
        sizes = [fc.Graph(values[0], value + 0.0).shapes()["add1"].shape[0] for value in values]
    except fc.FuncconvError:
        reject()
    last = values[-1]
    alike = [value for value, size in zip(values, sizes, strict=True) if size == sizes[-1]]
    merged = last + fc.Conv(2, (1,))(draw(st.sampled_from(alike)))
    return fc.Graph(values[0], draw(st.sampled_from([last * 2.0, merged])))


@given(networks())
@settings(max_examples=20, deadline=None)
def test_is_the_support_of_the_gradient(graph):
    if max(spec.shape[0] for spec in graph.shapes().values()) > 100:
        reject()
    (axis,) = fc.receptive_field(graph)["x"]
    positions = graph.shapes()[graph.outputs[0]].shape[0]
    assert [axis.interval(o) for o in range(positions)] == supports(graph)


@each(rows=CHIEF)
def test_no_gradient_beyond(case, rng):
    """Of every op, whatever its options are."""
    x = fc.Input("x", case.x)
    graph = fc.Graph(x, fc.node(case.op, x, params="p"))
    params, array = case.draw(rng)
    jacobian = np.abs(np.asarray(jax.jit(jax.jacfwd(partial(case.op, params)))(array)))
    fields = fc.receptive_field(graph, params={"p": params})
    rank = jacobian.ndim - array.ndim
    least = rounding(np.float64) * jacobian.max(initial=0)  # an FFT returns rounding errors where others return zeros
    for axis, record in enumerate(fields.get("x", ())):
        others = tuple(i for i in range(jacobian.ndim) if i not in (rank + axis, record.axis))
        seen = jacobian.sum(others) if record.axis is not None else jacobian.sum(others)[None]
        for position, row in enumerate(seen):
            places = np.nonzero(row > least)[0]
            interval = record.interval(position)
            assert not len(places) or interval[0] <= places[0] <= places[-1] <= interval[1]


def test_by_hand():
    (height, width) = of(fc.serial(fc.Conv(8, 3, stride=2, padding=1), jax.nn.relu, fc.Conv(8, (3, 5))))
    assert (height.size, height.stride, height.offset, height.padding) == (7, 2, 2.0, (1, 0))
    assert (width.size, width.stride, width.offset, width.padding) == (11, 2, 4.0, (1, 0))
    assert [height.interval(o) for o in (0, 1, 13)] == [(0, 5), (1, 7), (25, 31)]
    assert height.reaches(0) == (-1, 5)
    assert height.aligned
    assert not height.whole


def test_dense_sees_everything_behind_flatten_and_pixels_without():
    assert all(axis.whole and axis.size == 32 for axis in of(fc.serial(fc.Conv(2, 3), fc.flatten, fc.Dense(2))))
    assert all(axis.size == 3 for axis in of(fc.serial(fc.Conv(2, 3), fc.Dense(2))))
    assert all(axis.whole for axis in of(fc.serial(fc.Conv(2, 3), fc.global_pool)))


@pytest.mark.parametrize(
    ("function", "size", "stride", "offset"),
    [
        (jax.nn.relu, 1, 1, 0),
        (lambda x: x - x.mean(-1, keepdims=True), 1, 1, 0),
        (lambda x: x * x.mean((-3, -2), keepdims=True), 32, 0, 15.5),
        (lambda x: x[1::2, 1::2], 1, 2, 1),
        (lambda x: x[::-1, ::-1], 1, -1, 31),
        (lambda x: jnp.pad(x, ((2, 2), (2, 2), (0, 0))), 1, 1, -2),
        (lambda x: jnp.repeat(jnp.repeat(x, 2, 0), 2, 1), 1, Fraction(1, 2), 0),
        (lambda x: x.reshape(16, 2, 16, 2, 3).max((1, 3)), 2, 2, 0.5),
        (lambda x: x.reshape(16, 2, 16, 2, 3).swapaxes(1, 2).reshape(16, 16, 12), 2, 2, 0.5),
        (lambda x: jnp.cumsum(x, 0) + jnp.cumsum(x, 1), 32, 0, 15.5),
        (lambda x: jnp.sort(x, (-1)), 1, 1, 0),
        (partial(fc.max_pool, window=3, stride=2, padding=1), 3, 2, 0),
        (partial(fc.pool, window=3, reduce="median"), 3, 3, 1),
        (partial(fc.avg_pool, window=5, stride=1, dilation=2), 9, 1, 4),
        (partial(fc.adaptive_pool, output_size=8), 4, 4, 1.5),
        (lambda x: fc.conv({"kernel": np.ones((5, 5, 3, 2))}, x, dilation=2, padding="SAME"), 9, 1, 0),
        (lambda x: fc.conv({"kernel": np.ones((5, 5, 3, 2))}, x, stride=3, implementation="lax"), 5, 3, 2),
        (jax.checkpoint(lambda x: jnp.tanh(x[:30, :30])), 1, 1, 0),
    ],
)
def test_functions_are_known_by_their_programs(function, size, stride, offset):
    for axis in of(fc.node(function, batched=False)):
        assert (axis.size, axis.stride, axis.offset) == (size, stride, offset)


def test_an_operation_without_a_rule_sees_everything():
    assert all(axis.whole for axis in of(fc.serial(lambda x: jnp.fft.fft(x, axis=-1).real)))


def test_transposed_convolutions_have_phases():
    (axis,) = of(fc.ConvTranspose(2, (3,), stride=2, padding=1), (10, 2))
    assert (axis.size, axis.stride) == (2, Fraction(1, 2))
    assert [axis.interval(o) for o in range(4)] == [(0, 0), (0, 1), (1, 1), (1, 2)]
    up = fc.serial(fc.Conv(2, (2,), stride=2), fc.ConvTranspose(2, (2,), stride=2))
    (axis,) = of(up, (16, 2))
    assert (axis.size, axis.stride, axis.aligned) == (2, 1, True)
    assert [axis.interval(o) for o in range(4)] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    (axis,) = of(fc.ConvTranspose(2, (1,), stride=3, output_padding=2), (4, 2))
    assert [axis.interval(o) for o in range(4)] == [(0, 0), None, None, (1, 1)]


def test_branches():
    half = lambda x: x[..., 1:-1, :]  # noqa: E731
    (axis,) = of(fc.residual(fc.Conv(2, (3,)), half), (10, 2))
    assert (axis.size, axis.aligned) == (3, True)
    (axis,) = of(fc.residual(fc.Conv(2, (3,)), lambda x: x[..., :-2, :]), (10, 2))
    assert (axis.size, axis.aligned) == (3, False)
    (axis,) = of(fc.parallel(fc.Conv(2, (3,), stride=2), lambda x: x[..., :4, :], merge=fc.add), (9, 2))
    assert not axis.aligned
    assert [axis.interval(o) for o in range(4)] == [(0, 2), (1, 4), (2, 6), (3, 8)]
    (axis,) = of(fc.parallel(fc.Conv(2, (3,), padding=1), fc.Conv(2, (7,), padding=3), merge=fc.concat), (20, 2))
    assert (axis.size, axis.offset, axis.padding, axis.aligned) == (7, 0, (3, 3), True)


def test_causal_branches_are_aligned():
    layers = [fc.residual(fc.Conv(2, (2,), dilation=2**i, padding="CAUSAL")) for i in range(4)]
    (axis,) = of(fc.serial(*layers), (100, 2))
    assert (axis.size, axis.stride, axis.padding, axis.aligned) == (16, 1, (15, 0), True)


def test_circular_padding_wraps():
    (axis,) = of(fc.serial(*[fc.Conv(2, (3,), padding=1, pad_mode="circular")] * 2), (10, 2))
    assert (axis.size, axis.wraps, axis.reaches(0)) == (5, True, (-2, 2))
    assert [axis.interval(o) for o in (0, 5)] == [(0, 9), (3, 7)]
    (axis,) = of(fc.Conv(2, (3,), pad_mode="circular"), (10, 2))
    assert not axis.wraps


def test_channels_first():
    layers = [fc.Conv(4, 3, layout="CHW"), fc.Pool(2, layout="CHW")]
    height, width = of(fc.serial(*layers), (3, 20, 30))
    assert (height.size, width.size, height.stride) == (4, 4, 2)


def test_any_node_by_any_input():
    a, b = fc.Input("a", (16, 2)), fc.Input("b", (8, 2))
    c = fc.Conv(2, (3,), padding=1, name="c")(a)
    d = fc.node(jnp.add, fc.Pool((2,))(c), b, name="d")
    graph = fc.Graph((a, b), (d, c))
    with pytest.raises(fc.FuncconvError, match="several outputs, d, c"):
        fc.receptive_field(graph)
    fields = fc.receptive_field(graph, of="d")
    assert {name: axes[0].size for name, axes in fields.items()} == {"a": 4, "b": 1}
    assert list(fc.receptive_field(graph, of="c")) == ["a"]
    assert list(fc.receptive_field(graph, of="d", wrt="b")) == ["b"]
    assert fc.receptive_field(graph, of="c", wrt="b") == {}
    features = fc.Input("features", (7,))
    assert fc.receptive_field(fc.Graph(features, fc.Dense(2)(features))) == {"features": ()}
    with pytest.raises(fc.FuncconvError, match="no node 'e'"):
        fc.receptive_field(graph, of="e")
    with pytest.raises(fc.FuncconvError, match="no input 'c'"):
        fc.receptive_field(graph, of="d", wrt="c")


def test_published_sizes():
    """Those of Araujo, Norris and Sim 2019, table 1: AlexNet 195, VGG-16 212, ResNet-18 435."""
    for name, node, size in (("AlexNet", "pool3", 195), ("VGG-16", "max_pool5", 212), ("ResNet-18", "add8", 435)):
        graph = PUBLISHED[name][0]()
        assert fc.receptive_field(graph, of=node)["image"][0].size == size


@st.composite
def reaches(draw):
    firsts = draw(st.lists(st.integers(-5, 5), min_size=1, max_size=4))
    return Reach(draw(st.integers(1, 4)), tuple(firsts), tuple(first + draw(st.integers(0, 6)) for first in firsts))


@given(reaches(), reaches())
@settings(max_examples=100, deadline=None)
def test_reaches_compose_and_merge_as_sets(a, b):
    both, union = a.after(b), merged(a, b, 12)
    for o in range(12):
        start, stop = b.interval(o)
        seen = [a.interval(p) for p in range(start, stop + 1)]
        assert both.interval(o) == (min(first for first, _ in seen), max(last for _, last in seen))
        assert union.interval(o) == (min(a.interval(o)[0], b.interval(o)[0]), max(a.interval(o)[1], b.interval(o)[1]))


def test_a_long_axis_that_is_rolled():
    x = fc.Input("x", (40_000, 1))
    graph = fc.Graph(x, fc.node(lambda x: jnp.roll(x, 1, axis=-2), x, batched=True))
    assert fc.receptive_field(graph) is not None

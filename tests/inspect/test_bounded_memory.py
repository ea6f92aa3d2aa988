"""A graph of any size is described in little memory, without compiling and without an array."""

import json
import sys
import tracemalloc
from functools import partial

import jax
import jax.numpy as jnp
import pytest

import funcconv as fc
from funcconv._command_line import main
from funcconv._graph.declare.arithmetic import _Arithmetic
from funcconv._graph.declare.layer import Layer
from funcconv._windows.geometry import Axis

HUGE = 10**8
LIMIT = 8_000_000  # bytes: a hundredth of what one number for each channel takes


def serial(*layers):
    """Return layers after one that makes many channels of few."""
    return fc.serial(fc.Conv(HUGE, 1), *layers)


LAYERS = {
    "Conv": fc.Conv(HUGE, 3, padding="SAME"),
    "Conv of many channels, in many groups": serial(fc.Conv(HUGE, 3, groups=HUGE, padding=1, pad_mode="reflect")),
    "Conv with a layout": fc.serial(
        fc.node(partial(jnp.moveaxis, source=-1, destination=-3), batched=False), fc.Conv(HUGE, 3, layout="NCHW")
    ),
    "ConvTranspose": serial(fc.ConvTranspose(HUGE, 3, stride=2)),
    "LocalConv": serial(fc.LocalConv(HUGE, 3)),
    "WeightStandardize": serial(fc.WeightStandardize(fc.Conv(HUGE, 3))),
    "WeightNorm": serial(fc.WeightNorm(fc.Conv(HUGE, 3))),
    "SpectralNorm": serial(fc.SpectralNorm(fc.Conv(HUGE, 3)), fc.SpectralNorm(fc.Conv(HUGE, 2), norm="conv")),
    "Dense": serial(fc.Dense(HUGE)),
    "Flatten": serial(jax.nn.relu, fc.Flatten(), fc.Dense(10)),
    "Pool, BatchNorm": serial(fc.BatchNorm(), fc.Pool(2)),
    "Pool of means, LayerNorm": serial(fc.LayerNorm(), fc.Pool(3, reduce="mean", padding=1, stride=1)),
    "GroupNorm, Dropout": serial(fc.GroupNorm(HUGE // 2), fc.Dropout(), partial(fc.max_pool, window=2)),
    "InstanceNorm, RMSNorm, DropPath": serial(fc.InstanceNorm(), fc.RMSNorm(), fc.DropPath(0.1)),
    "Function": fc.serial(fc.residual(serial(jax.nn.softmax, fc.Conv(2, 1))), fc.global_pool),
    "_Arithmetic, of many channels": lambda x: (2 * fc.Conv(HUGE, 1)(x) - 1) * fc.Conv(HUGE, 1)(x),
    "concat": fc.parallel(fc.Conv(HUGE, 1), fc.Conv(HUGE, 1), merge=fc.concat),
    "Repeat": serial(fc.repeat(fc.residual(fc.serial(fc.Conv(HUGE, 3, padding=1), fc.BatchNorm())), 100)),
    "many features": fc.serial(fc.Flatten(), fc.Dense(HUGE), fc.Dense(HUGE), jnp.tanh, fc.Dropout()),
}

WIDE = 10**6
SPATIAL = {
    "convolutions": fc.serial(fc.Conv(8, 3, stride=2, padding=1), jax.nn.relu, fc.Conv(8, 5, pad_mode="circular")),
    "a residual": fc.residual(fc.serial(fc.Conv(3, 3, padding=1), fc.BatchNorm(), jax.nn.relu)),
    "transposed": fc.serial(fc.Conv(4, 4, stride=4), fc.ConvTranspose(4, 4, stride=4)),
    "windows as wide": fc.Conv(3, WIDE - 5, padding=WIDE // 2, dilation=2),
    "flattened": fc.serial(fc.LayerNorm(3), fc.Flatten(), fc.Dense(3)),
    "one kernel for each position": fc.LocalConv(2, 3, stride=2),
    "a repeat": fc.repeat(fc.residual(fc.Conv(3, 3, padding=1)), 100),
    "a function": fc.node(lambda x: jnp.pad(x[1:-1, ::2], ((1, 1), (0, 0), (0, 0))), batched=False),
}


def described(graph):
    """Describe a graph in each way, and return the summary."""
    graph.shapes(), graph.entry_shapes(), repr(graph.rows), repr(graph)
    fc.to_dot(graph), fc.to_mermaid(graph), fc.to_text(graph), fc.receptive_field(graph)
    summary = fc.summary(graph, batch=1000)
    str(summary), summary.to_json(), summary._repr_html_()
    return summary


def check_memory(make, compilations):
    """Make a graph and describe it, in little memory; return the summary."""
    jax.clear_caches()
    before = {id(array) for array in jax.live_arrays()}
    tracemalloc.start()
    try:
        summary = described(make())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LIMIT
    assert not compilations
    assert {id(array) for array in jax.live_arrays()} <= before
    return summary


def over(layers, shape):
    x = fc.Input("x", shape)
    return fc.Graph(x, layers(x))


def kinds(layer=Layer):
    """Return the public layers."""
    return {each for own in layer.__subclasses__() for each in ({own} | kinds(own))}


@pytest.mark.parametrize("name", LAYERS)
def test_channels(name, compilations):
    summary = check_memory(lambda: over(LAYERS[name], (6, 6, 2)), compilations)
    numbers = (row.bytes for row in summary.rows)
    assert max(numbers) >= 1000 * HUGE
    assert all(type(n) is int for row in summary.rows for n in (row.bytes, row.flops, row.gradient_flops))


def test_each_layer_is_in_the_table():
    x = fc.Input("x", (6, 6, 2))
    used = {type(row.op) for layers in LAYERS.values() for row in fc.Graph(x, layers(x)).rows}
    known = {each for each in kinds() if each.__module__.startswith("funcconv.") and not each.__name__.startswith("_")}
    assert used >= known | {_Arithmetic}


@pytest.mark.parametrize("name", SPATIAL)
def test_spatial_sizes(name, compilations):
    check_memory(lambda: over(SPATIAL[name], (WIDE, WIDE, 3)), compilations)


def test_counts_are_exact_where_they_exceed_64_bits():
    graph = over(fc.serial(fc.Conv(HUGE, 3), fc.Conv(HUGE, 3)), (6, 6, 2))
    summary = fc.summary(graph, batch=10**9)
    assert summary.parameters == 9 * 2 * HUGE + HUGE + 9 * HUGE * HUGE + HUGE
    assert summary.flops == 10**9 * 2 * (16 * 9 * 2 * HUGE + 4 * 9 * HUGE * HUGE) > 2**64


def test_a_long_axis_is_seen_as_a_short_one():
    layers = fc.serial(
        fc.Conv(4, 3, stride=2, padding=1),
        jax.nn.relu,
        fc.Pool(2),
        fc.ConvTranspose(4, 4, stride=2, padding=1),
        jnp.tanh,
        fc.residual(fc.Conv(4, 3, padding="SAME")),
        lambda node: 2 * node,
    )
    long, short = (fc.receptive_field(over(layers, (size, 8, 2)))["x"][0] for size in (2**20, 64))
    assert (long.size, long.stride, long.offset, long.padding) == (
        short.size,
        short.stride,
        short.offset,
        short.padding,
    )
    for position in (10, 11, 12, 13):
        assert long.interval(position) == short.interval(position)
    end = 2**20 - 64
    assert long.interval(-12) == tuple(end + place for place in short.interval(-12))
    with pytest.raises(IndexError):
        long.interval(2**20)


def test_taps_on_an_axis_are_counted_by_arithmetic(rng):
    for _ in range(300):
        size, window, stride, dilation, outputs = rng.integers(1, 10, 5).tolist()
        axis = Axis(size, window, stride, dilation, int(rng.integers(-8, 12)), 0, outputs)
        places = [[o * stride - axis.lo + tap * dilation for o in range(outputs)] for tap in range(window)]
        on = [[0 <= place < size for place in tap] for tap in places]
        assert axis.inside == sum(map(sum, on))
        taps = [tap for tap in range(window) if any(on[tap])] or range(window)
        assert axis.active_taps == slice(taps[0], taps[-1] + 1)
    assert Axis(10**12, 10**9, 3, 7, 0, 0, 10**9).inside == 10**18


@pytest.mark.parametrize("size", [700, WIDE])
def test_how_a_function_is_written_is_found_out_in_little_memory(size):
    x = fc.Input("x", (size, size, 64))
    tracemalloc.start()
    try:
        agrees = fc.node(lambda x: jnp.median(x, -2), x)
        with pytest.raises(fc.FuncconvError, match=r"(?s)values differ by up to.*batched=False"):
            fc.node(lambda x: x - x.mean((0, 1), keepdims=True), x)
        for function in (
            lambda x: jnp.roll(x, 1, 0)[..., :400, :],  # which has no slice where the axis is shorter
            lambda x: jnp.roll(x + jnp.zeros((size, 1)), 1, 0),  # which takes no other size
        ):
            with pytest.raises(fc.FuncconvError, match=r"(?s)were not run.*4,194,304.*batched=False"):
                fc.node(function, x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert agrees.shape == (size, 64)
    assert peak < LIMIT


def test_the_command_line(tmp_path, capsys, compilations):
    graph = over(fc.serial(fc.Conv(10**9, 3), fc.BatchNorm(), jax.nn.relu, fc.Flatten(), fc.Dense(10)), (8, 8, 3))
    path = tmp_path / "graph.json"
    path.write_text(graph.to_json())
    tracemalloc.start()
    try:
        assert main(["summary", str(path)]) == 0
        assert main(["summary", str(path), "--json"]) == 0
        assert main(["draw", str(path), "-o", str(tmp_path / "graph.dot")]) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < LIMIT
    assert not compilations
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["parameters"] == fc.summary(graph).parameters


def calls(function, *args):
    """Count the calls that Python makes while it runs a function, those of generators included."""
    count = 0

    def profile(frame, event, arg):
        nonlocal count
        del frame, arg
        count += event == "call"

    sys.setprofile(profile)
    try:
        function(*args)
    finally:
        sys.setprofile(None)
    return count


def test_work_is_linear_in_the_nodes():
    def chain(n):
        x = node = fc.Input("x", (3,))
        nodes = []
        for _ in range(n):
            node = abs(node)
            nodes.append(node)
        return fc.Graph(x, {f"y{i}": each for i, each in enumerate(nodes)})

    def described(graph):
        graph.shapes(), graph.init_state(), repr(graph.rows), repr(graph), graph.outputs
        fc.to_dot(graph), fc.to_text(graph), fc.summary(graph)
        assert fc.Graph.from_json(graph.to_json()) == graph

    few, many = chain(100), chain(400)
    described(few), described(many)  # shapes are remembered
    assert calls(described, many) < 5 * calls(described, few)

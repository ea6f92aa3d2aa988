"""Streams: chunk by chunk, a graph computes what it computes on the whole signal."""

import random
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

PADDINGS = (0, 1, 2, "SAME", "CAUSAL", "HALF", "FULL", "VALID", ((2, 0),), ((-1, 3),), ((1, -1),))


def random_layer(draw):
    window, dilation, stride = draw.randint(1, 4), draw.randint(1, 3), draw.choice([1, 1, 2, 3])
    kind = draw.choice(["conv", "conv", "conv", "transpose", "pool", "function", "norm", "dense", "residual"])
    if kind == "conv":
        return fc.Conv(draw.randint(1, 3), (window,), stride=stride, padding=draw.choice(PADDINGS), dilation=dilation)
    if kind == "transpose":
        padding = draw.choice([0, 1, "SAME", ((1, 0),)])
        return fc.ConvTranspose(2, (window,), stride=draw.choice([1, 2, 4]), padding=padding)
    if kind == "pool":
        reduce, ceil_mode = draw.choice(["max", "min", "mean", "sum", "lse", "prod", "lp"]), draw.random() < 0.3
        padding = draw.randint(0, window // 2)
        return fc.Pool((window,), stride=stride, padding=padding, reduce=reduce, ceil_mode=ceil_mode)
    if kind == "residual":
        return fc.residual(fc.serial(fc.Conv(2, (3,), padding="SAME"), jnp.tanh), fc.Conv(2, (1,)))
    return {"function": jnp.tanh, "norm": fc.LayerNorm(), "dense": fc.Dense(2)}[kind]


def graph_of(network, *shape):
    x = fc.Input("x", shape)
    return fc.Graph(x, network(x))


def streamed(stream, params, signal, chunk, **options):
    """Return the outputs of all chunks and the rest, without what came before the signal."""
    axis = signal.ndim - len(stream._graph._signature[0].shape)
    carry, step, ys = stream.init(params, *signal.shape[:axis], **options), jax.jit(stream.step), []
    for part in jnp.split(signal, signal.shape[axis] // chunk, axis):
        carry, y = step(params, carry, part)
        ys.append(y)
    y = jnp.concatenate([*ys, stream.flush(params, carry)], axis)
    return y[(slice(None),) * axis + (slice(stream.delay, None),)]


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 200))])
def test_chunks_give_what_the_whole_signal_gives(seed):
    draw = random.Random(seed)
    for _ in range(20):  # until there is one whose windows fit and whose strides do not multiply
        network = fc.serial(*(random_layer(draw) for _ in range(draw.randint(1, 5))))
        stream = fc.stream(graph_of(network, 64, 2))
        if stream.multiple > 12:
            continue
        chunk = stream.multiple * draw.randint(1, 12 // stream.multiple)
        samples = chunk * draw.randint(2, 4) + chunk * (48 // chunk)
        try:
            whole = graph_of(network, samples, 2)
            params = whole.init(jax.random.key(seed))
        except fc.FuncconvError:
            continue
        break
    signal = jnp.asarray(np.random.default_rng(seed).normal(size=(2, samples, 2)))
    close(streamed(stream, params, signal, chunk), whole(params, signal), terms=512)


def wavenet(x):
    """Return a small WaveNet: dilated causal convolutions with gates and skips."""
    x = skips = fc.Conv(4, 1)(x)
    for i in range(3):
        causal = partial(fc.Conv, 4, 2, padding="CAUSAL", dilation=2**i)
        y = fc.node(jnp.tanh, causal()(x)) * fc.node(jax.nn.sigmoid, causal()(x))
        x, skips = x + fc.Conv(4, 1)(y), skips + y
    return fc.Conv(1, 1)(skips)


def branches(x):
    """Return branches with different delays, which are joined."""
    ahead, behind = fc.Conv(2, 9, padding="SAME")(x), fc.Conv(3, 4, padding="CAUSAL")(x)
    joined = fc.concat(fc.Pool(3, stride=1, padding=1, reduce="mean")(ahead), behind, x)
    return fc.serial(
        fc.BatchNorm(), fc.WeightNorm(fc.Conv(2, 3, stride=2, padding=1)), fc.SpectralNorm(fc.Dense(2)), fc.Dropout(0.5)
    )(joined)


def test_causal_networks_have_no_delay(rng):
    graph = graph_of(wavenet, 40, 1)
    stream, params = fc.stream(graph), graph.init(jax.random.key(0))
    assert stream.delay == 0
    assert stream.multiple == 1
    signal = jnp.asarray(rng.normal(size=(2, 3, 40, 1)))  # two batch axes
    for chunk in (1, 8):
        close(streamed(stream, params, signal, chunk), graph(params, signal))


def test_branches_wait_for_each_other_and_norms_use_the_state(rng):
    graph = graph_of(branches, 32, 2)
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), state)
    stream, signal = fc.stream(graph, state=state), jnp.asarray(rng.normal(size=(32, 2)))
    assert stream.multiple == 2
    close(streamed(stream, params, signal, 4), graph.apply(params, state, signal)[0])
    with pytest.raises(fc.FuncconvError, match="keeps a state"):
        fc.stream(graph)


def test_images_can_arrive_row_by_row(rng):
    network = fc.serial(fc.Conv(3, (3, 5), padding=((1, 1), (2, 2)), stride=(1, 2)), jax.nn.relu, fc.Pool((2, 2)))
    graph = graph_of(network, 12, 9, 2)
    stream, params = fc.stream(graph, axis=-3), graph.init(jax.random.key(0))
    image = jnp.asarray(rng.normal(size=(2, 12, 9, 2)))
    close(streamed(stream, params, image, 4), graph(params, image))


def test_pools_without_padding_reduce_by_anything(rng):
    last = fc.Pool((2,), reduce=lambda taps, axis: jnp.sum(taps**2, axis), stride=1)
    graph = graph_of(fc.serial(fc.Pool((3,), stride=2, reduce="median"), last), 24, 2)
    params, signal = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 24, 2)))
    close(streamed(fc.stream(graph), params, signal, 4), graph(params, signal))


def test_streams_are_pure_functions(rng):
    graph = graph_of(branches, 16, 2)
    stream = fc.stream(graph, state=graph.init_state())
    params, signals = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(3, 16, 2)))

    def loss(params, signal):
        return jnp.sum(streamed(stream, params, signal, 8) ** 2)

    def whole(params, signal):
        return jnp.sum(graph.apply(params, graph.init_state(), signal)[0] ** 2)

    close(jax.vmap(loss, (None, 0))(params, signals), jax.vmap(whole, (None, 0))(params, signals), terms=512)
    ours, theirs = (jax.grad(f)(params, signals[0]) for f in (loss, whole))
    jax.tree.map(partial(close, terms=512), ours, theirs)
    carry = stream.init(params, 3)
    following, _ = jax.eval_shape(stream.step, params, carry, signals[:, :8])
    assert jax.tree.map(jnp.shape, following) == jax.tree.map(jnp.shape, carry)  # so that it is compiled once


def test_a_stream_goes_on_for_ever(rng):
    """The samples are not counted beyond what is needed, so that the number cannot overflow."""
    graph = graph_of(branches, 16, 2)
    stream, params = fc.stream(graph, state=graph.init_state()), graph.init(jax.random.key(0))
    carry, chunk = stream.init(params, 1), jnp.asarray(rng.normal(size=(1, 8, 2)))
    counts = []
    for _ in range(12):
        carry, y = stream.step(params, carry, chunk)
        counts.append(int(carry["samples"]))
    assert counts[-1] == counts[-2] < 12 * 8
    close(stream.step(params, carry, chunk)[1], y)  # a periodic signal


def test_two_signals_and_two_outputs(rng):
    a, b = fc.Input("a", (16, 1)), fc.Input("b", (16, 1))
    early, late = fc.Conv(2, 3, padding="CAUSAL")(a), fc.Conv(2, 3, padding="SAME")(b)
    graph = fc.Graph((a, b), {"early": early, "sum": early + late})
    stream, params = fc.stream(graph), graph.init(jax.random.key(0))
    assert stream.delay == [0, 1]
    x, y = jnp.asarray(rng.normal(size=(2, 2, 16, 1)))
    carry = stream.init(params, 2)
    carry, first = stream.step(params, carry, x, y)
    rest = stream.flush(params, carry)
    expected = graph(params, x, y)
    close(first["early"], expected["early"])
    assert rest["early"].shape == (2, 0, 2)
    close(jnp.concatenate([first["sum"], rest["sum"]], 1)[:, 1:], expected["sum"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_of_the_signal(dtype, rng):
    graph = graph_of(wavenet, 16, 1)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), graph.init(jax.random.key(0)))
    signal = jnp.asarray(rng.normal(size=(1, 16, 1)), dtype)
    y = streamed(fc.stream(graph), params, signal, 4, dtype=dtype)
    assert y.dtype == dtype
    close(y, graph(params, signal), dtype)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 6])
def test_windows_with_gaps_that_are_longer_than_a_chunk(chunk, rng):
    layers = [
        fc.Conv(2, 3, padding="CAUSAL", dilation=5, renormalize=True),
        fc.Pool((3,), stride=1, padding=4, dilation=4, reduce="mean"),
        fc.Conv(2, 2, padding=((7, 0),), dilation=7),
    ]
    graph = graph_of(fc.serial(*layers), 30, 2)
    params, signal = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 30, 2)))
    close(streamed(fc.stream(graph), params, signal, chunk), graph(params, signal))


def test_what_is_kept_is_one_array_of_each_dtype():
    def both(x):
        return fc.serial(fc.Conv(2, 3, padding="CAUSAL"))(x) + fc.serial(fc.Conv(2, 9, padding="CAUSAL"))(x)

    graph = graph_of(both, 16, 2)
    stream, params = fc.stream(graph), graph.init(jax.random.key(0))
    carry = stream.init(params, 3)
    assert jax.tree.map(jnp.shape, carry["kept"]) == {"float64": (3, 8 * 2)}  # once for both readers
    narrow = stream.init(jax.tree.map(lambda leaf: leaf.astype("float32"), params), 3, dtype="float32")
    with pytest.raises(fc.FuncconvError, match="other shapes or dtypes"):
        stream.step(params, {**narrow, "inputs": carry["inputs"]}, jnp.ones((3, 1, 2)))


REPEATED = {
    "causal": fc.residual(fc.serial(fc.Conv(2, 3, padding="CAUSAL", dilation=2), jnp.tanh)),
    "ahead": fc.residual(fc.serial(fc.Conv(2, 5, padding="SAME"), fc.BatchNorm(), jnp.tanh)),
    "nested": fc.serial(
        fc.repeat(fc.serial(fc.Conv(2, 3, padding="SAME"), jnp.tanh), 2), fc.Pool(3, stride=1, padding=1)
    ),
    "strides": fc.serial(fc.Conv(3, 2, stride=2), fc.ConvTranspose(2, 2, stride=2)),
    "function": jnp.tanh,
}


@pytest.mark.parametrize("before", [(), (fc.Conv(2, 3, padding=1, stride=2),)], ids=["", "strided"])
@pytest.mark.parametrize("name", REPEATED)
def test_copies_of_a_block(name, before, rng):
    graph = graph_of(fc.serial(*before, fc.repeat(REPEATED[name], 3), fc.Conv(1, 3, padding=1)), 24, 2)
    params, state = graph.init(jax.random.key(0)), graph.init_state()
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 2, leaf.shape)), state)
    stream, signal = fc.stream(graph, state=state), jnp.asarray(rng.normal(size=(2, 24, 2)))
    for chunk in (4, 12):
        close(streamed(stream, params, signal, chunk), graph.apply(params, state, signal)[0])


REFUSED = {
    "repeat1": fc.repeat(fc.serial(fc.Conv(3, 4, stride=2, padding=1), fc.ConvTranspose(2, 4, stride=2, padding=1)), 3),
    "global_pool1": fc.global_pool,
    "flatten1": fc.Flatten(),
    "group_norm1": fc.GroupNorm(2),
    "cumsum1": partial(jnp.cumsum, axis=-2),
    "conv2": fc.Conv(2, 3, padding=1, pad_mode="reflect"),
    "pool1": fc.Pool(3, padding=1, reduce="median"),
    "pool2": fc.serial(fc.Pool(2), fc.Pool(3, stride=2, ceil_mode=True, reduce="mean", count_include_pad=True)),
    "local_conv1": fc.LocalConv(2, 3),
    "add1": None,
}


@pytest.mark.parametrize("name", REFUSED)
def test_ops_that_cannot_be_streamed_are_refused_by_name(name):
    x = fc.Input("x", (16, 2))
    layer = REFUSED[name]
    # For add1, branches that advance differently, and have one size by chance.
    y = fc.serial(fc.Conv(2, 1), layer)(x) if layer else fc.Conv(2, 2, stride=2)(x) + fc.Conv(2, 9)(x)
    with pytest.raises(fc.FuncconvError, match=f"node '{name}': "):
        fc.stream(fc.Graph(x, y))


def test_wrong_calls_are_refused():
    graph = graph_of(fc.serial(fc.Conv(2, 4, stride=4), fc.Conv(1, 1)), 16, 2)
    with pytest.raises(fc.FuncconvError, match=r"input 'x' has shape \(16, 2\). Pass axis=-2"):
        fc.stream(graph, axis=-1)
    stream, params = fc.stream(graph), graph.init(jax.random.key(0))
    carry = stream.init(params, 1)
    for chunks, match in (
        ([jnp.ones((1, 6, 2))], "chunks of a multiple of 4 samples; got 6"),
        ([jnp.ones((1, 0, 2))], "got 0"),
        ([jnp.ones((1, 8, 3))], r"float64 of shape \(1, samples, 2\); got float64\[1, 8, 3\]"),
        ([jnp.ones((2, 8, 2))], r"got float64\[2, 8, 2\]"),
        ([jnp.ones((1, 8, 2), jnp.float32)], r"got float32\[1, 8, 2\]"),
        ([jnp.ones((1, 8, 2))] * 2, "the graph has 1 inputs; got 2 chunks"),
    ):
        with pytest.raises(fc.FuncconvError, match=match):
            stream.step(params, carry, *chunks)

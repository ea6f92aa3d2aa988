"""Functions in graphs that are written for one example, for a batch, or for both."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._graph.declare.known_functions import BATCH_AXES_FIRST
from funcconv._graph.declare.readings import check_readings

KEY = jax.random.key(0)
MASK = np.arange(4.0)


def noise(x):
    return x + jax.random.normal(KEY, x.shape, x.dtype)


def by_python_loop(x):
    return jnp.stack([row * 2 for row in x])


# name: (function, shape of one example); both ways to read it give different results
AMBIGUOUS = {
    "mean over axes from the front": (lambda x: x.mean((1, 2)), (8, 6, 3)),
    "a batch flattened": (lambda x: x.reshape(x.shape[0], -1), (8, 6, 3)),
    "a batch flattened, with one length": (lambda x: x.reshape(x.shape[0], -1), (5, 5, 5)),
    "flip": (lambda x: jnp.flip(x, 1), (8, 6, 3)),
    "flip of equal axes": (lambda x: jnp.flip(x, 1), (3, 3, 3)),
    "softmax": (partial(jax.nn.softmax, axis=1), (5, 4)),
    "standardize": (partial(jax.nn.standardize, axis=0), (5, 4)),
    "sum": (jnp.sum, (8, 6, 3)),
    "sum of numbers": (jnp.sum, ()),
    "argmax": (jnp.argmax, (7,)),
    "largest": (lambda x: x / x.max(), (4, 3)),
    "norm": (lambda x: x / jnp.linalg.norm(x), (3,)),
    "transpose": (jnp.transpose, (4, 3)),
    "transpose of equal axes": (jnp.transpose, (5, 5)),
    "swapped axes": (lambda x: jnp.swapaxes(x, 0, 1), (3, 3)),
    "rolled": (lambda x: jnp.roll(x, 1, axis=0), (5, 2)),
    "cumulated": (lambda x: jnp.cumsum(x, axis=0), (5, 2)),
    "centered": (lambda x: x - x.mean(0), (4, 3)),
    "a crop that small batches hide": (lambda x: x[:7], (6, 2)),
    "first": (lambda x: x[0], (4, 3)),
    "a batch axis added": (lambda x: jnp.tanh(x[None])[0].sum(0), (4, 3)),
    "noise": (noise, (4, 3)),
    "outer": (lambda x: x[:, None] * x[None, :], (3,)),
    "repeated": (lambda x: jnp.repeat(x, 2, axis=0), (4,)),
    "a tree": (lambda x: {"same": x, "mean": x.mean(0)}, (4, 3)),
    "the length": (lambda x: x * len(x), (4, 3)),
}
# name: (function, shape of one example); both ways give the same
AGREED = {
    "elementwise": (lambda x: jnp.tanh(x) * 2 + 1, (8, 6, 3)),
    "mean over axes from the end": (lambda x: x.mean((-3, -2)), (8, 6, 3)),
    "softmax": (jax.nn.softmax, (5, 4)),
    "normalized": (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), (5, 4)),
    "flip": (lambda x: jnp.flip(x, -2), (8, 6, 3)),
    "matrix": (lambda x: x @ jnp.ones((3, 2)), (8, 6, 3)),
    "einsum": (lambda x: jnp.einsum("...i,...j->...ij", x, x), (3,)),
    "ellipsis": (lambda x: x[..., 0, :], (4, 3)),
    "sorted": (jnp.sort, (4, 3)),
    "cumulated": (lambda x: jnp.cumsum(x, axis=-1), (4, 3)),
    "rescaled": (lambda x: x - x.max(-1, keepdims=True), (4, 3)),
    "undefined": (jnp.log, (4, 3)),
    "padded": (lambda x: jnp.concatenate([x, jnp.zeros_like(x)], -1), (4, 3)),
    "a tree": (lambda x: (x, {"double": 2 * x}), (4, 3)),
    "rounded": (lambda x: jnp.round(x), (4, 3)),
    "a mask": (lambda x: x * MASK, (3, 4)),
    "a scan": (lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x), (4,)),
    "custom": (jax.nn.selu, (4, 3)),
    "whole numbers": (lambda x: jnp.where(x > 0, x, 0), (4, 3)),
}
# name: (function, shape of one example); it can be called on one example only
FOR_ONE = {
    "unpacked": (lambda x: x[0] * 2 + x[1] - x[2] if len(x) == 3 else 1 / 0, (3,)),
    "product": (lambda x: jnp.dot(jnp.ones((4, 3)), x), (3,)),
    "vector": (lambda x: jnp.vdot(x, np.arange(3.0)), (3,)),
    "reshaped": (lambda x: x.reshape(3, 2), (6,)),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """These functions are written as users write them."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def batch_of(rng, shape, size=4):
    return jnp.asarray(rng.normal(size=(size, *shape)))


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_function_that_may_be_written_for_either_is_refused(name, rng):
    function, shape = AMBIGUOUS[name]
    x = fc.Input("x", shape)
    for declare in (
        lambda: fc.node(function, x),
        lambda: fc.serial(function)(x),
        lambda: fc.parallel(jnp.tanh, function)(x),
        lambda: fc.residual(jnp.tanh, function)(x),
        lambda: fc.siamese(function, fc.add)(x, x),
    ):
        with pytest.raises(fc.FuncconvError, match=r"(?s)different results.*batched=False.*batched=True.*the end"):
            declare()
    batch = batch_of(rng, shape)
    one = fc.Graph(x, fc.node(function, x, batched=False))({}, batch)
    jax.tree.map(close, one, jax.vmap(function)(batch))
    assert fc.Graph(x, fc.serial(fc.node(function, batched=False))(x)) == fc.Graph(
        x, fc.node(function, x, batched=False)
    )
    whole = fc.Graph(x, fc.node(function, x, batched=True))
    expected = function(batch)
    if all(leaf.shape[:1] == batch.shape[:1] for leaf in jax.tree.leaves(expected)):
        jax.tree.map(close, whole({}, batch), expected)
    else:
        with pytest.raises(fc.FuncconvError, match="must keep the batch axis of 4 in front"):
            whole({}, batch)


@pytest.mark.parametrize("name", AGREED)
def test_a_function_that_means_the_same_for_both_is_accepted(name, rng):
    function, shape = AGREED[name]
    x = fc.Input("x", shape)
    graph = fc.Graph(x, fc.node(function, x))
    batch = abs(batch_of(rng, shape))
    for expected in (jax.vmap(function)(batch), function(batch)):
        jax.tree.map(close, graph({}, batch), expected)
    assert graph == fc.Graph(x, fc.node(function, x, batched=False))


@pytest.mark.parametrize("name", FOR_ONE)
def test_a_function_that_can_only_be_called_on_one_example_is_written_for_one(name, rng):
    function, shape = FOR_ONE[name]
    x = fc.Input("x", shape)
    batch = batch_of(rng, shape)
    jax.tree.map(close, fc.Graph(x, fc.node(function, x))({}, batch), jax.vmap(function)(batch))


def test_a_function_that_can_only_be_called_on_a_batch_needs_to_be_declared(rng):
    x, batch = fc.Input("x", (4, 3)), batch_of(rng, (4, 3))

    def flipped(x):
        return jnp.flip(x, 2)

    with pytest.raises(fc.FuncconvError, match=r"(?s)node 'flipped1'.*failed.*\(4, 3\).*batched=True"):
        fc.Graph(x, fc.node(flipped, x)).init(KEY)
    close(fc.Graph(x, fc.node(flipped, x, batched=True))({}, batch), batch[..., ::-1])


def test_the_message_shows_the_difference():
    x = fc.Input("x", (8, 6, 3))
    shapes = r"(?s)batch of 5 .*\(8, 6, 3\).*shape \(5, 8\).*\(5, 8, 6, 3\).*shape \(5, 3\).*shapes differ"
    with pytest.raises(fc.FuncconvError, match=shapes):
        fc.node(lambda x: x.mean((1, 2)), x)
    with pytest.raises(fc.FuncconvError, match=r"values differ by up to \d.*largest value is \d"):
        fc.node(lambda x: jnp.flip(x, 1), x, name="flip")
    with pytest.raises(fc.FuncconvError, match="no batch of results, so batched=True is not possible"):
        fc.node(jnp.sum, x)
    with pytest.raises(fc.FuncconvError, match=r"sum \(name='total'\)"):
        fc.node(jnp.sum, x, name="total")
    with pytest.raises(fc.FuncconvError, match="batched must be True"):
        fc.node(jnp.sum, x, batched="yes")


def test_functions_of_parameters(rng):
    x, batch = fc.Input("x", (4, 3)), batch_of(rng, (4, 3))

    def scaled(p, x):
        return x * p["scale"]

    def weighted(p, x):
        return p["scale"] * x.mean(0)

    def init(key, shape):
        return {"scale": jax.random.normal(key, shape[-1:])}

    graph = fc.Graph(x, fc.node(scaled, x, init=init))
    params = graph.init(KEY)
    close(graph(params, batch), batch * params["scaled1"]["scale"])
    with pytest.raises(fc.FuncconvError, match="different results"):
        fc.node(weighted, x, init=init)
    for batched, expected in ((False, lambda s: s * batch.mean(1)), (True, lambda s: s * batch.mean(0))):
        graph = fc.Graph(x, fc.node(weighted, x, init=init, batched=batched))
        if batched:
            with pytest.raises(fc.FuncconvError, match="keep the batch axis"):
                graph.init(KEY)
        else:
            close(graph(params := graph.init(KEY), batch), expected(params["weighted1"]["scale"]))


def test_functions_whose_parameters_are_given_are_checked_when_their_shapes_are_known(rng):
    """At the graph, if another node draws them; in `init`, `shapes` or a call, if they are given."""
    x, batch = fc.Input("x", (4, 3)), batch_of(rng, (4, 3))

    def weighted(p, x):
        return p * x.mean(0)

    graph = fc.Graph(x, fc.node(weighted, x, params="w", name="here"))
    w = jnp.ones(3)
    for use in (
        lambda: graph.init(KEY, w=w),
        lambda: graph.shapes({"w": w}),
        lambda: graph({"w": w}, batch),
        lambda: jax.jit(graph)({"w": w}, batch),
        lambda: graph.values({"w": w}, batch),
        lambda: graph.backward({"w": w}, batch, cotangent=jnp.ones((4, 3))),
        lambda: graph.jacobian({"w": w}, batch, of="here", wrt="x"),
        lambda: pickle.loads(pickle.dumps(fc.Graph(x, fc.node(given, x, params="w", name="here"))))({"w": w}, batch),
    ):
        with pytest.raises(fc.FuncconvError, match=r"node 'here'.*different results"):
            use()
    drawn = fc.Dense(3, bias=False, params="w")(x)
    with pytest.raises(fc.FuncconvError, match="different results"):
        fc.Graph(x, fc.node(lambda p, x: x.mean(0) @ p["kernel"], drawn, params="w"))
    fine = fc.Graph(x, fc.node(jnp.multiply, x, params="w"))
    close(fine({"w": w}, batch), batch)
    assert fc.Graph.from_json(fine.to_json()) == fine
    shape = fc.node(jnp.multiply, x, params="w")
    with pytest.raises(fc.FuncconvError, match=r"not known.*nothing draws"):
        _ = shape.shape


def given(p, x):
    return p * x.mean(0)


def test_functions_of_several_inputs(rng):
    x, y, s = fc.Input("x", (4, 3)), fc.Input("y", (4, 3)), fc.Input("s", (3,))
    a, b, c = batch_of(rng, (4, 3)), batch_of(rng, (4, 3)), batch_of(rng, (3,))
    close(fc.Graph((x, y), fc.node(lambda x, y: x * y + 1, x, y))({}, a, b), a * b + 1)
    with pytest.raises(fc.FuncconvError, match=r"\(4, 3\), \(4, 3\)"):
        fc.node(lambda x, y: (x * y).sum(), x, y)
    with pytest.raises(fc.FuncconvError, match="different results"):
        fc.node(lambda x, y: jnp.concatenate([x, y]), x, y)
    close(fc.Graph((x, s), fc.node(jnp.multiply, x, s))({}, a, c), a * c[:, None])
    both = fc.Graph(
        (x, s),
        fc.node(lambda x, s: {"x": x, "s": s}, x, s)["x"] - fc.node(lambda x, s: x * s[None], x, s, batched=False),
    )
    close(both({}, a, c), a - a * c[:, None])
    pair = fc.node(lambda x: (x, x), x)
    with pytest.raises(fc.FuncconvError, match="different results"):
        fc.node(lambda pair: pair[0].mean(0), pair)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float16", "bfloat16", "complex64", "float8_e4m3fn"])
def test_inputs_of_any_dtype(dtype):
    x = fc.Input("x", (4, 3), dtype=dtype)
    with pytest.raises(fc.FuncconvError, match="different results"):
        fc.node(lambda x: jnp.flip(x, 0), x)
    assert fc.node(lambda x: jnp.flip(x, -1), x).shape == (4, 3)


def test_a_function_with_side_effects_is_not_run():
    printed = []

    def show(x):
        jax.debug.callback(lambda x: printed.append(x), x.sum())
        return x

    with pytest.raises(fc.FuncconvError, match="side effects"):
        fc.node(show, fc.Input("x", (4, 3)))
    assert not printed


def test_graphs_may_be_declared_while_jax_is_tracing(rng):
    """A function may take arrays from around it that have no values."""
    x, batch = fc.Input("x", (4, 3)), batch_of(rng, (4, 3))

    def loss(scale, batch, function=lambda x, scale: jnp.sort(x, -1) @ jnp.outer(scale, scale)):
        graph = fc.Graph(x, fc.node(lambda x: function(x, scale), x))
        return graph({}, batch).sum()

    scale = jnp.asarray(rng.normal(size=3))
    expected = (jnp.sort(batch, -1) @ jnp.outer(scale, scale)).sum()
    for value in (
        jax.jit(loss)(scale, batch),
        jax.value_and_grad(loss)(scale, batch)[0],
        jax.vmap(loss, (0, None))(scale[None], batch)[0],
        jax.jit(jax.vmap(jax.checkpoint(loss), (0, None)))(scale[None], batch)[0],
    ):
        close(value, expected)
    bad = partial(loss, function=lambda x, scale: x * scale - x.mean(0) * scale)
    for use in (
        lambda: jax.jit(bad)(scale, batch),
        lambda: jax.grad(bad)(scale, batch),
        lambda: jax.vmap(bad, (0, None))(scale[None], batch),
    ):
        with pytest.raises(fc.FuncconvError, match="different results"):
            use()


def test_functions_of_a_mesh_axis_are_checked_where_it_is_known():
    """Declared outside of `vmap` or `shard_map`, where the axis has no size, and called inside."""
    x = fc.Input("x", (3,))
    layers = fc.parallel(lambda x: x - jax.lax.pmean(x, "devices"), jnp.tanh)
    graph = fc.Graph(x, layers(x))
    batch = jnp.arange(12.0).reshape(2, 2, 3)
    centered, _ = jax.vmap(lambda batch: graph({}, batch), axis_name="devices")(batch)
    close(centered, batch - batch.mean(0))
    bad = fc.Graph(x, fc.node(lambda x: x.mean() - jax.lax.pmean(x, "devices"), x))
    with pytest.raises(fc.FuncconvError, match="different results"):
        jax.vmap(lambda batch: bad({}, batch), axis_name="devices")(batch)


def test_only_programs_that_differ_are_run(compilations):
    x = fc.Input("x", (4, 3))
    fc.Graph(x, fc.serial(fc.Conv(3, (1,)), jnp.tanh, lambda x: x.mean(-1, keepdims=True) * 2, fc.flatten)(x))
    assert not compilations
    with pytest.raises(fc.FuncconvError):
        fc.node(lambda x: jnp.flip(x, 0), x)
    assert compilations


def test_a_function_is_traced_once_for_each_shape():
    traced = []

    def counted(x):
        traced.append(x.shape)
        return x * 2

    x = y = fc.Input("x", (4, 3))
    for _ in range(50):
        y = fc.node(counted, y)
    first = len(traced)
    assert first <= 6
    graph = fc.Graph(x, fc.serial(*[counted] * 50)(y))
    graph.init(KEY)
    graph.shapes()
    assert len(traced) == first


def options_of_own_ops():
    images, vector = (6, 4, 2), (5,)
    kernel = {"kernel": jnp.ones((3, 3, 2, 4)), "bias": jnp.ones(4)}
    norm = {"scale": jnp.ones(2), "bias": jnp.ones(2)}
    return {
        "pool": [
            (partial(fc.pool, reduce=reduce), None, images) for reduce in ("max", "mean", "lse", "median", jnp.median)
        ]
        + [(partial(fc.max_pool, window=(2, 1), stride=1, return_indices=True), None, images)]
        + [(partial(fc.avg_pool, window=2, padding=1, layout="NCHW"), None, images)],
        "global_pool": [(fc.global_pool, None, images), (partial(fc.global_pool, layout="NCHW"), None, images)],
        "adaptive_pool": [(partial(fc.adaptive_pool, output_size=2), None, images)],
        "flatten": [
            (partial(fc.flatten, **options), None, images)
            for options in ({}, {"order": "channels_first"}, {"layout": "NCHW"}, {"spatial": 1})
        ],
        "conv": [(partial(fc.conv, padding=1, stride=2), kernel, images)],
        "conv_transpose": [(fc.conv_transpose, kernel | {"bias": jnp.ones(2)}, (6, 4, 4))],
        "local_conv": [(fc.local_conv, {"kernel": jnp.ones((4, 2, 3, 3, 2, 1))}, images)],
        "dense": [(fc.dense, {"kernel": jnp.ones((5, 3))}, vector)],
        "layer_norm": [(fc.layer_norm, norm, images)],
        "group_norm": [(partial(fc.group_norm, groups=2), norm, images)],
        "instance_norm": [(fc.instance_norm, norm, images), (partial(fc.instance_norm, layout="NHWC"), norm, images)],
        "rms_norm": [(fc.rms_norm, {"scale": jnp.ones(2)}, images), (fc.rms_norm, {"scale": jnp.ones((4, 2))}, images)],
        "local_response_norm": [
            (partial(fc.local_response_norm, size=2, **options), None, images) for options in ({}, {"layout": "NCHW"})
        ],
    }


def options_of_resampling():
    images, layouts = (6, 4, 4), ({}, {"layout": "NCHW"})
    return {
        "blur_pool": [(partial(fc.blur_pool, **options), None, images) for options in layouts],
        "pixel_shuffle": [
            (partial(fc.pixel_shuffle, factor=2), None, images),
            (partial(fc.pixel_shuffle, factor=(1, 2), order="tensorflow"), None, images),
        ],
        "pixel_unshuffle": [(partial(fc.pixel_unshuffle, factor=2), None, images)],
        "resize": [(partial(fc.resize, size=5, **options), None, images) for options in layouts]
        + [(partial(fc.resize, scale=1.5, method=method), None, images) for method in ("linear", "cubic", "area")]
        + [(partial(fc.resize, size=3, coordinates=((1, 4), "half_pixel")), None, images)],
        "unfold": [(partial(fc.unfold, window=2, **options), None, images) for options in layouts],
        "fold": [(partial(fc.fold, size=(6, 4)), None, (5, 3, 2, 2, 4))],
    }


def test_own_ops_that_take_any_batch_axes_need_no_check():
    """They are accepted untested, so here they are tested."""
    cases = options_of_own_ops() | options_of_resampling()
    assert sorted(cases) == sorted(op.__name__ for op in BATCH_AXES_FIRST)
    for name, case in cases.items():
        for op, params, shape in case:
            layer = fc.node(op, params="p" if params else None)
            whole = op if params else lambda _, *xs, op=op: op(*xs)
            specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
            x = jax.ShapeDtypeStruct(shape, jnp.float64)
            assert check_readings(name, partial(layer.apply, batch=()), whole, specs, [x])


def test_graphs_of_batched_functions_are_values(rng):
    x = fc.Input("x", (4, 3))

    def graph(batched):
        return fc.Graph(x, fc.serial(fc.node(jnp.transpose, batched=batched), jnp.tanh)(x))

    one = graph(False)
    assert one == graph(False)
    centered = [fc.Graph(x, fc.node(fc_centered, x, batched=batched)) for batched in (False, True)]
    assert centered[0] != centered[1]
    fc.register_op("tests.centered", fc_centered)
    batch = batch_of(rng, (4, 3))
    for declared_graph in (one, *centered):
        for again in (pickle.loads(pickle.dumps(declared_graph)), fc.Graph.from_json(declared_graph.to_json())):
            assert again == declared_graph
            assert hash(again) == hash(declared_graph)
            close(again({}, batch), declared_graph({}, batch))
    assert "batched" in centered[1].to_json()
    assert "fc_centered(batched=True)" in repr(centered[1].rows)
    assert "fc_centered(batched=True)" in fc.to_dot(centered[1])
    assert "fc_centered(batched=True)" in str(fc.summary(centered[1]))


def fc_centered(x):
    return x - x.mean(0)


def test_values_and_derivatives_at_nodes_are_of_the_batch(rng):
    """An op for a batch computes the result of an example from the others, which stay as they are."""
    x, batch = fc.Input("x", (3,)), batch_of(rng, (3,))
    h = fc.node(lambda x: (x - x.mean(0)) ** 2, fc.Dense(2)(x), batched=True, name="h")
    graph = fc.Graph(x, fc.node(lambda w, x: jnp.tanh(x * w), h, init=lambda _, shape: jnp.ones(shape), name="y"))
    params = graph.init(KEY)

    def dense(x):
        return fc.dense(params["dense1"], x)

    def by_hand(w, x):
        d = dense(x)
        return jnp.tanh(w * (d - d.mean(0)) ** 2)

    w = params["y"]
    close(graph(params, batch), by_hand(w, batch))
    close(graph.values(params, batch)["h"], (dense(batch) - dense(batch).mean(0)) ** 2)
    close(graph.subgraph("h")(graph.subgraph("h").select(params), batch), graph.values(params, batch)["h"])
    whole = jax.jacobian(by_hand, 1)(w, batch)
    close(graph.jacobian(params, batch, of="y", wrt="x"), jnp.stack([whole[i, :, i] for i in range(4)]))
    by_w = jax.jacobian(by_hand, 0)(w, batch)
    close(graph.jacobian(params, batch, of="y", wrt="params/y"), by_w)
    ones = jnp.ones((4, 2))
    close(graph.backward(params, batch, cotangent=ones).nodes["x"], jax.grad(lambda x: by_hand(w, x).sum())(batch))
    own = jax.jacobian(lambda d: (d - d.mean(0)) ** 2)(dense(batch))
    local = graph.jacobian(params, batch, of="h", wrt="dense1", local=True)
    close(local, jnp.stack([own[i, :, i] for i in range(4)]))
    two = batch.reshape(2, 2, 3)
    close(
        graph.jacobian(params, two, of="y", wrt="x"), graph.jacobian(params, batch, of="y", wrt="x").reshape(2, 2, 2, 3)
    )
    assert graph.jacobian(params, batch[0], of="y", wrt="x").shape == (2, 3)

"""Attributions: against derivatives of JAX, loops and matrices, for graphs of every kind."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close, rounding

import funcconv as fc
from funcconv._ops.init import fold_in_name

EXAMPLES, CLASSES = 3, 4
attribution = fc.attribution


class Network(NamedTuple):
    graph: fc.Graph
    last: str  # a node with spatial axes


def head(*nodes):
    layers = fc.serial(fc.Conv(5, 3, name="last"), jax.nn.relu, fc.global_pool)
    return fc.Dense(CLASSES, name="scores")(fc.concat(*map(layers, nodes)))


def images():
    x = fc.Input("x", (10, 9, 2))
    return Network(fc.Graph(x, head(fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.Pool(2))(x))), "last")


def signals():
    x = fc.Input("x", (16, 2))
    return Network(fc.Graph(x, head(fc.serial(fc.Conv(3, 3, padding=1), jax.nn.relu6)(x))), "last")


def volumes():
    x = fc.Input("x", (5, 6, 5, 1))
    return Network(fc.Graph(x, head(fc.serial(fc.Conv(2, 2), jax.nn.relu)(x))), "last")


def siamese():
    left, right = fc.Input("left", (6, 7, 1)), fc.Input("right", (6, 7, 1))
    trunk = fc.serial(fc.Conv(3, 2), jax.nn.relu)
    return Network(fc.Graph((left, right), head(trunk(left) - trunk(right))), "last")


def two_kinds():
    """A picture and a vector, by name."""
    picture, facts = fc.Input("picture", (6, 6, 1)), fc.Input("facts", (3,))
    y = fc.serial(fc.Conv(3, 3), jax.nn.relu)(picture)
    joined = fc.concat(fc.serial(fc.global_pool)(y), fc.serial(fc.Dense(2), jax.nn.relu)(facts))
    return Network(fc.Graph({"a": picture, "b": facts}, fc.Dense(CLASSES, name="scores")(joined)), "conv1")


def nested():
    x = fc.Input("x", (8, 8, 1))
    trunk = fc.Graph(x, fc.serial(fc.Conv(3, 3), fc.BatchNorm(), jax.nn.relu)(x), name="trunk")
    return Network(fc.Graph(x, head(trunk(x))), "trunk/conv1")


def copies():
    x = fc.Input("x", (6, 6, 3))
    block = fc.serial(fc.Conv(3, 3, padding=1), fc.BatchNorm(), jax.nn.relu)
    return Network(fc.Graph(x, head(fc.repeat(block, 2)(x))), "repeat1")


NETWORKS = {f.__name__: f for f in (images, signals, volumes, siamese, two_kinds, nested, copies)}
networks = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def problem(name, dtype="float64"):
    """Return a network with random parameters and state, and a batch of inputs as a caller passes them."""
    rng, network = np.random.default_rng(0), NETWORKS[name]()
    graph = network.graph

    def random(leaf):
        return jnp.asarray(rng.normal(size=leaf.shape) * 0.5, dtype)

    params = jax.tree.map(random, graph.init(jax.random.key(0)))
    state = jax.tree.map(lambda leaf: jnp.exp(random(leaf)), graph.init_state())
    shapes = [row.shape for row in graph._signature]
    xs = tuple(jnp.asarray(rng.normal(size=(EXAMPLES, *shape)), dtype) for shape in shapes)
    x = dict(zip("ab", xs, strict=True)) if name == "two_kinds" else xs if len(xs) > 1 else xs[0]
    return network, params, state, x


def run(graph, params, state, x):
    xs = (x,) if not isinstance(x, tuple) else x
    return graph.apply(params, state, *xs)[0]


METHODS = {
    "gradient": attribution.gradient,
    "smooth_grad": functools.partial(
        attribution.smooth_grad, key=jax.random.key(3), noise=0.3, samples=5, batch_size=2
    ),
    "integrated_gradients": functools.partial(attribution.integrated_gradients, baseline=0.1, steps=5, batch_size=2),
    "grad_cam": attribution.grad_cam,
    "guided": attribution.guided,
    "deconvolution": attribution.deconvolution,
    "occlusion": functools.partial(attribution.occlusion, window=2, batch_size=4),
}


def function(method, name, of=lambda y: y[..., 1], dtype="float64"):
    network, params, state, _ = problem(name, dtype)
    options = {"at": network.last} if method == "grad_cam" else {}
    return lambda x: METHODS[method](network.graph, params, x, of=of, state=state, **options)


def all_close(actual, expected, ulps=1024):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        close(a, b, ulps=ulps)


# all methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, name) for method in METHODS for name in ("images", "two_kinds")]
    + [(method, "nested") for method in ("gradient", "guided")]
    + [(method, "copies") for method in ("guided", "deconvolution")],
)
def test_an_example_has_the_attributions_of_its_batch(method, name):
    """Under jit, under vmap, and for two batch axes."""
    *_, x = problem(name)
    f = function(method, name)
    batch = jax.jit(f)(x)
    alone = function(method, name, of=lambda y: y[1])
    all_close(jax.jit(jax.vmap(alone))(x), batch)
    all_close(alone(jax.tree.map(lambda leaf: leaf[1], x)), jax.tree.map(lambda leaf: leaf[1], batch))
    all_close(jax.jit(f)(jax.tree.map(lambda leaf: leaf[None], x)), jax.tree.map(lambda leaf: leaf[None], batch))


@pytest.mark.parametrize("method", METHODS)
def test_methods_are_differentiable_in_forward_mode(method):
    *_, x = problem("images")
    f = jax.jit(function(method, "images"))
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    _, tangent = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,)))(x, direction)
    h = 1e-6  # ReLUs have no kink so close
    differences = jax.tree.map(lambda a, b: (a - b) / (2 * h), f(x + h * direction), f(x - h * direction))
    for a, b in zip(jax.tree.leaves(tangent), jax.tree.leaves(differences), strict=True):
        close(a, b, ulps=2**10 / h)


@pytest.mark.parametrize("method", METHODS)
def test_sums_of_16_bits_are_in_float32(method):
    *_, x = problem("images", "bfloat16")
    result = jax.jit(function(method, "images", dtype="bfloat16"))(x)
    network, params, state, _ = problem("images", "bfloat16")
    wide_params, wide_x = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (params, x))
    options = {"at": network.last} if method == "grad_cam" else {}
    expected = METHODS[method](network.graph, wide_params, wide_x, of=lambda y: y[..., 1], state=state, **options)
    maps = result.attributions if method == "integrated_gradients" else result
    expected_maps = expected.attributions if method == "integrated_gradients" else expected
    assert maps.dtype == (jnp.float32 if method == "occlusion" else jnp.bfloat16)
    scale = float(abs(expected_maps).max())
    # A few positions choose another maximum or another side of a ReLU, so the mean is compared.
    error = float(abs(maps.astype(jnp.float32) - expected_maps).mean())
    assert error < 8 * rounding(jnp.bfloat16, 1) * scale


@pytest.mark.parametrize("method", ["gradient", "guided", "occlusion"])
def test_what_is_attributed(method):
    """A function of one example, of a batch, a layer of either, a channel of a node, or one channel per example."""
    *_, x = problem("images")
    labels = np.array([2, 0, 3])
    expected = function(method, "images")(x)
    for of in (
        lambda y: y[1],
        lambda y: y[:, 1],
        fc.node(lambda y: y[1], batched=False),
        ("scores", 1),
        ("scores", -3),
    ):
        all_close(function(method, "images", of=of)(x), expected)
    by_label = function(method, "images", of=("scores", labels))(x)
    all_close(function(method, "images", of=lambda y: y[jnp.arange(EXAMPLES), labels])(x), by_label)
    for i, label in enumerate(labels):
        alone = function(method, "images", of=lambda y, label=label: y[label])(x[i])
        all_close(alone, jax.tree.map(lambda leaf, i=i: leaf[i], by_label))
    mapped = jax.vmap(lambda x, label: function(method, "images", of=("scores", label))(x))(x, labels)
    all_close(mapped, by_label)


@networks
def test_a_channel_of_a_node_is_summed_over_its_positions(name):
    network, params, state, x = problem(name)
    node = network.last

    def by_hand(x):
        xs = (x,) if not isinstance(x, tuple) else x
        return network.graph.values(params, *xs, state=state)[node][..., 2].sum()

    result = attribution.gradient(network.graph, params, x, of=(node, 2), state=state)
    expected = jax.grad(by_hand)(x)
    all_close(result, expected)


# gradient ------------------------------------------------------------------------------------------------------------


@networks
def test_gradient_is_that_of_jax(name):
    network, params, state, x = problem(name)
    expected = jax.grad(lambda x: run(network.graph, params, state, x)[:, 1].sum())(x)
    all_close(function("gradient", name)(x), expected, ulps=64)


def test_inputs_that_are_not_floating_are_constants():
    x, ids = fc.Input("x", (4,)), fc.Input("ids", (2,), jnp.int32)
    graph = fc.Graph((x, ids), fc.node(lambda x, ids: jax.nn.relu(x)[ids].sum(), x, ids, batched=False))
    both = (jnp.array([1.0, 2.0, 3.0, -4.0]), jnp.array([2, 2]))
    by_x, by_ids = attribution.gradient(graph, {}, both, of=lambda y: y)
    assert by_x.tolist() == [0, 0, 2, 0]
    assert by_ids is None
    attributions, gap = attribution.integrated_gradients(graph, {}, both, of=lambda y: y)
    assert attributions[1] is None
    close(attributions[0], [0.0, 0, 6, 0])
    assert abs(gap) < 1e-12


# integrated gradients ------------------------------------------------------------------------------------------------


@networks
def test_integrated_gradients_sum_to_the_difference_of_the_outputs(name):
    network, params, state, x = problem(name)
    baseline = 0.1
    starts = jax.tree.map(lambda leaf: jnp.full_like(leaf, baseline), x)
    of = lambda x: run(network.graph, params, state, x)[:, 1]  # noqa: E731
    difference, gaps = of(x) - of(starts), []
    for steps in (4, 128):
        options = {"of": lambda y: y[1], "baseline": baseline, "steps": steps, "batch_size": 32, "state": state}
        integrated = functools.partial(attribution.integrated_gradients, network.graph, params, **options)
        attributions, gap = jax.jit(integrated)(x)
        total = sum(leaf.reshape(EXAMPLES, -1).sum(1) for leaf in jax.tree.leaves(attributions))
        close(total - gap, difference, ulps=1024)
        gaps.append(float(abs(gap).max()))
    assert gaps[1] < 0.02 * float(abs(difference).max())
    assert gaps[1] < gaps[0]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_integrated_gradients_are_a_sum_over_points(batch_size):
    network, params, _, x = problem("siamese")
    steps, baseline = 7, (0.25, np.full((6, 7, 1), -0.5))
    starts = jnp.full_like(x[0], 0.25), jnp.full_like(x[1], -0.5)
    result, _ = attribution.integrated_gradients(
        network.graph, params, x, of=lambda y: y[1], baseline=baseline, steps=steps, batch_size=batch_size
    )
    points, weights = np.polynomial.legendre.leggauss(steps)
    expected = [0, 0]
    for point, weight in zip(points, weights, strict=True):
        t = (point + 1) / 2
        gradients = attribution.gradient(
            network.graph,
            params,
            tuple(b + t * (end - b) for b, end in zip(starts, x, strict=True)),
            of=lambda y: y[1],
        )
        expected = [
            total + weight / 2 * (end - b) * g for total, b, end, g in zip(expected, starts, x, gradients, strict=True)
        ]
    all_close(list(result), expected)


def test_integrated_gradients_are_exact_for_linear_models_and_polynomials(rng):
    x = fc.Input("x", (6, 6, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(3, 3), fc.flatten, fc.Dense(2))(x))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), graph.init(jax.random.key(0)))
    image, start = rng.normal(size=(2, 6, 6, 2))
    attributions, gap = attribution.integrated_gradients(
        graph, params, image, of=lambda y: y[0], baseline=start, steps=1
    )
    slope = attribution.gradient(graph, params, image, of=lambda y: y[0])
    close(attributions, slope * (image - start))
    assert abs(gap) < 1e-12
    x = fc.Input("x", (3,))
    cubic = fc.Graph(x, fc.node(lambda x: x**3, x))
    for steps, exact in ((1, False), (2, True)):
        attributions, gap = attribution.integrated_gradients(
            cubic, {}, image[0, 0, :1].repeat(3), of=jnp.sum, steps=steps
        )
        assert (abs(gap) < 1e-12) == exact
    close(attributions, image[0, 0, :1].repeat(3) ** 3)


def test_integrated_gradients_depend_on_the_function_only(rng):
    """Implementation invariance and linearity, two of the paper's axioms."""
    x = fc.Input("x", (8, 2))
    y = fc.Conv(3, 3, name="conv")(x)
    as_relu = fc.Graph(x, fc.serial(jax.nn.relu, fc.global_pool)(y))
    as_abs = fc.Graph(x, fc.serial(lambda y: (y + jnp.abs(y)) / 2, fc.global_pool)(y))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), as_relu.init(jax.random.key(0)))
    signal = rng.normal(size=(8, 2))

    def integrated(graph, of):
        return attribution.integrated_gradients(graph, params, signal, of=of).attributions

    close(integrated(as_abs, jnp.sum), integrated(as_relu, jnp.sum))
    weighted = integrated(as_relu, lambda y: 2 * y[0] - 3 * y[2])
    close(weighted, 2 * integrated(as_relu, lambda y: y[0]) - 3 * integrated(as_relu, lambda y: y[2]))


# smooth_grad ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4])
def test_smooth_grad_is_a_mean_over_samples(batch_size):
    network, params, _, x = problem("siamese")
    key, samples, noise = jax.random.key(5), 6, {"left": 0.3, "right": 0.0}
    result = attribution.smooth_grad(
        network.graph, params, x, of=lambda y: y[1], key=key, noise=noise, samples=samples, batch_size=batch_size
    )
    total = [0, 0]
    for k in range(samples):
        drawn = jax.random.normal(fold_in_name(jax.random.fold_in(key, k), "left"), (6, 7, 1), jnp.float64)
        noisy = x[0] + 0.3 * drawn[None].repeat(EXAMPLES, 0), x[1]
        gradients = attribution.gradient(network.graph, params, noisy, of=lambda y: y[1])
        total = [a + b / samples for a, b in zip(total, gradients, strict=True)]
    all_close(list(result), total)


def test_smooth_grad_of_a_square_is_its_gradient_and_the_mean_noise(rng):
    x = fc.Input("x", (500,))
    graph = fc.Graph(x, fc.node(lambda x: x**2 / 2, x))
    point = rng.normal(size=500)
    result = attribution.smooth_grad(graph, {}, point, of=jnp.sum, key=jax.random.key(0), noise=2.0, samples=100)
    noise = result - point
    assert abs(noise.mean()) < 4 * 0.2 / math.sqrt(500)
    assert abs(noise.std() - 0.2) < 4 * 0.2 / math.sqrt(1000)


# Grad-CAM ------------------------------------------------------------------------------------------------------------


@networks
def test_grad_cam_is_the_weighted_sum_of_channels(name):
    network, params, state, x = problem(name)
    graph, at = network.graph, network.last
    xs = (x,) if not isinstance(x, tuple) else x
    value, rest = graph.continuation(params, *xs, at=at, state=state)
    slopes = np.asarray(jax.grad(lambda value: rest(value)[:, 1].sum())(value))
    weights = slopes.reshape(EXAMPLES, -1, value.shape[-1]).mean(1)
    totals = np.stack([np.asarray(v) @ w for v, w in zip(value, weights, strict=True)])
    for sign in (1, -1):
        expected = np.maximum(sign * totals, 0)
        of = lambda y, sign=sign: sign * y[1]  # noqa: E731
        close(attribution.grad_cam(graph, params, x, of=of, at=at, upsample=False, state=state), expected)
    size = jax.tree.leaves(x)[0].shape[1:-1]
    close(function("grad_cam", name, of=of)(x), fc.resize(expected[..., None], size, method="linear")[..., 0])
    assert abs(totals).max() > 0


def test_grad_cam_of_inputs_of_several_sizes(rng):
    small, large = fc.Input("small", (6, 6, 1)), fc.Input("large", (12, 12, 1))
    conv = fc.Conv(2, 3, name="conv")
    y = fc.serial(fc.global_pool)(conv(small)) + fc.serial(conv, fc.global_pool)(large)
    graph = fc.Graph((small, large), y)
    params = graph.init(jax.random.key(0))
    x = rng.normal(size=(6, 6, 1)), rng.normal(size=(12, 12, 1))
    maps = functools.partial(attribution.grad_cam, graph, params, x, of=lambda y: y[0], at="conv")
    assert maps(upsample="large").shape == (12, 12)
    assert maps(upsample=False).shape == (4, 4)
    with pytest.raises(fc.FuncconvError, match=r"upsample=True must select one size of 2 spatial axes, as node 'conv'"):
        maps()
    with pytest.raises(fc.FuncconvError, match="upsample='left' must select one"):
        maps(upsample="left")


# guided backpropagation and deconvolution ----------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [False, True])
def test_rules_of_relus_by_matrices(rng, batched):
    x = fc.Input("x", (6,))
    y = fc.serial(fc.Dense(7), jax.nn.relu, fc.Dense(5), lambda y: jnp.where(y > 0, y, 0))(x)
    graph = fc.Graph(x, fc.Dense(3)(y + fc.serial(fc.Dense(5), jnp.tanh)(x)))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), graph.init(jax.random.key(0)))
    w1, w2, w3, w4 = (np.asarray(params[f"dense{i}"]["kernel"]) for i in (1, 2, 3, 4))
    b1, b2, b3, _ = (np.asarray(params[f"dense{i}"]["bias"]) for i in (1, 2, 3, 4))
    point = rng.normal(size=(4, 6)) if batched else rng.normal(size=6)
    first = point @ w1 + b1
    second = np.maximum(first, 0) @ w2 + b2
    g = np.ones((*point.shape[:-1], 1)) * w4[:, 1]
    through_tanh = (g * (1 - np.tanh(point @ w3 + b3) ** 2)) @ w3.T
    positive = lambda g: np.maximum(g, 0)  # noqa: E731
    guided = positive((positive(g) * (second > 0)) @ w2.T) * (first > 0) @ w1.T
    close(attribution.guided(graph, params, point, of=lambda y: y[1]), guided + through_tanh)
    projection = positive(positive(g) @ w2.T) @ w1.T
    close(attribution.deconvolution(graph, params, point, of=lambda y: y[1]), projection + through_tanh)


def positive_only(x):
    return x * (x > 0).astype(x.dtype)


@pytest.mark.parametrize(
    "relu",
    [
        jax.nn.relu,
        positive_only,
        lambda x: jnp.maximum(x, 0),
        lambda x: jnp.clip(x, 0),
        functools.partial(jnp.clip, min=0),
        lambda x: (x + jnp.abs(x)) / 2,
        fc.node(jax.nn.relu, batched=True),
        fc.node(jax.nn.relu, batched=False, name="named"),
    ],
)
@pytest.mark.parametrize("method", ["guided", "deconvolution"])
def test_relus_are_known_by_their_values(method, relu, rng):
    x = fc.Input("x", (4, 3))
    build = lambda relu: fc.Graph(x, fc.serial(fc.Dense(5, name="a"), relu, fc.Dense(2, name="b"))(x))  # noqa: E731
    params, image = build(jax.nn.relu).init(jax.random.key(0)), rng.normal(size=(2, 4, 3))
    f = getattr(attribution, method)
    expected = f(build(jax.nn.relu), params, image, of=("b", 0))
    assert not np.allclose(expected, attribution.gradient(build(jax.nn.relu), params, image, of=("b", 0)), atol=1e-3)
    all_close(f(build(relu), params, image, of=("b", 0)), expected)


@pytest.mark.parametrize("method", ["guided", "deconvolution"])
def test_copies_of_a_repeat_have_the_rules_too(method):
    network, params, state, x = problem("copies")
    graph, params, state = fc.unstack(network.graph, params, state)
    separate = getattr(attribution, method)(graph, params, x, of=lambda y: y[1], state=state)
    all_close(function(method, "copies")(x), separate)
    f = getattr(attribution, method)
    network, params, state, _ = problem("copies")
    assert f(network.graph, params, x, of=("repeat1", 0), state=state).shape == x.shape


def test_without_the_rules_the_walk_gives_the_gradient(monkeypatch):
    monkeypatch.setattr("funcconv.attribution._guided._guided_rule", lambda g, pullback: pullback(g))
    for name in NETWORKS:
        *_, x = problem(name)
        all_close(function("guided", name)(x), function("gradient", name)(x))


def test_relus_that_the_number_does_not_depend_on_do_not_count():
    network, params, _, x = problem("images")
    with pytest.raises(
        fc.FuncconvError, match="at least one ReLU; it depends on node 'conv1', which is computed by conv, and"
    ):
        attribution.guided(network.graph, params, x, of=("conv1", 0))


def test_a_relu_within_a_function_is_refused():
    x = fc.Input("x", (4,))
    graph = fc.Graph(x, fc.serial(fc.Dense(3), lambda y: 2 * jax.nn.relu(y) + 1)(x))
    params = graph.init(jax.random.key(0))
    with pytest.raises(fc.FuncconvError, match=r"guided: node 'lambda1': .*max\(x, 0\) among other operations"):
        attribution.guided(graph, params, jnp.ones(4), of=lambda y: y[0])
    assert attribution.gradient(graph, params, jnp.ones(4), of=lambda y: y[0]).shape == (4,)


# occlusion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "window", "stride", "fill"),
    [
        ("images", 3, None, 0),
        ("images", (4, 3), (2, 3), 0.5),
        ("images", (2, 9), 1, np.array([0.3, -0.2])),
        ("signals", 5, 3, 0),
        ("volumes", (2, 3, 5), 2, 0),
        ("siamese", 3, 2, (0.0, 1.0)),
        ("two_kinds", {"a": (2, 3), "b": 1}, {"a": 2, "b": 1}, {"a": 0, "b": 0.5}),
    ],
)
def test_occlusion_by_a_loop(name, window, stride, fill):
    network, params, state, x = problem(name)
    result = attribution.occlusion(
        network.graph, params, x, of=lambda y: y[1], window=window, stride=stride, fill=fill, batch_size=3, state=state
    )
    of = jax.jit(lambda x: run(network.graph, params, state, x)[:, 1])
    leaves, tree = jax.tree.flatten(x)
    whole = of(x)
    for i, (leaf, found) in enumerate(zip(leaves, jax.tree.leaves(result), strict=True)):
        size = leaf.shape[1:-1]
        per_axis = lambda v, size=size: v if isinstance(v, tuple) else (v,) * len(size)  # noqa: E731
        one = lambda v, i=i: list(v.values())[i] if isinstance(v, dict) else v  # noqa: E731
        own_fill = fill[i] if isinstance(fill, tuple) else one(fill)
        windows = per_axis(one(window))
        strides = windows if stride is None else per_axis(one(stride))
        counts = [math.ceil((n - w) / s) + 1 for n, w, s in zip(size, windows, strides, strict=True)]
        total, covers = np.zeros((EXAMPLES, *size)), np.zeros(size)
        for index in np.ndindex(*counts):
            where = tuple(slice(k * s, k * s + w) for k, s, w in zip(index, strides, windows, strict=True))
            covered = np.array(leaf)
            covered[(slice(None), *where)] = own_fill
            fall = whole - of(tree.unflatten([*leaves[:i], jnp.asarray(covered), *leaves[i + 1 :]]))
            total[(slice(None), *where)] += np.asarray(fall).reshape(-1, *[1] * len(size))
            covers[where] += 1
        assert covers.min() > 0
        close(found, total / covers)


def test_single_numbers_are_inputs_too():
    a, b = fc.Input("a", ()), fc.Input("b", ())
    graph = fc.Graph((a, b), fc.serial(jax.nn.relu)(a) * b)
    x = jnp.array([2.0, 3.0]), jnp.array([5.0, -1.0])
    options = {"of": lambda y: y, "window": 1, "fill": (1, 0)}
    falls = attribution.occlusion(graph, {}, x, **options)
    assert [fall.tolist() for fall in falls] == [[5, -2], [10, -3]]
    by_rule = attribution.guided(graph, {}, x, of=lambda y: y)
    assert [g.tolist() for g in by_rule] == [[5, 0], [2, 3]]
    attributions, gap = attribution.integrated_gradients(graph, {}, x, of=lambda y: y, steps=2)
    close(attributions[0] + attributions[1], [10.0, -3.0])
    close(gap, [0.0, 0.0])


def test_occlusion_is_one_loop():
    *_, x = problem("images")
    program = jax.make_jaxpr(function("occlusion", "images"))(x)
    assert str(program).count("scan[") == 1


def test_occlusion_of_masked_sequences(rng):
    """Masked positions do not count."""
    x = fc.Input("x", (8, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(3, 3, padding=1), jax.nn.relu, fc.global_pool, fc.Dense(2))(x))
    params, signal = graph.init(jax.random.key(0)), rng.normal(size=(3, 8, 2))
    sizes = np.array([4, 8, 6])
    masked = fc.Masked(signal, np.arange(8) < sizes[:, None])
    for name in ("gradient", "guided", "deconvolution", "occlusion"):
        f = functools.partial(METHODS[name], graph, params, of=lambda y: y[1])
        batch = np.asarray(f(masked))
        for i, size in enumerate(sizes):
            part = graph if size == 8 else fc.Graph(own := fc.Input("x", (int(size), 2)), graph(own))
            alone = functools.partial(METHODS[name], part, params, of=lambda y: y[1])(signal[i, :size])
            close(batch[i, :size], alone)
            assert not batch[i, size:].any()


# errors --------------------------------------------------------------------------------------------------------------


def first_class(y):
    return y[..., 0]


ERRORS = {
    "no node": (
        lambda g, p, x: attribution.gradient(g, p, x, of=("conv9", 0)),
        r"gradient: the graph has no node 'conv9'",
    ),
    "no channel": (
        lambda g, p, x: attribution.gradient(g, p, x, of=("conv1", 4)),
        r"gradient: node 'conv1' has 4 channels, 0 to 3; got 4",
    ),
    "no integer": (
        lambda g, p, x: attribution.gradient(g, p, x, of=("conv1", np.array([0, 1]))),
        r"the channel of node 'conv1' must be an integer, or integers \(3,\).*got int64\[2\]",
    ),
    "not of": (lambda g, p, x: attribution.gradient(g, p, x, of="conv1"), r"of must be a function .*got 'conv1'"),
    "many numbers": (
        lambda g, p, x: attribution.gradient(g, p, x, of=lambda y: y),
        r"of must give one real floating number for each example, \(3,\); got float64\[3, 4\]",
    ),
    "not floating": (
        lambda g, p, x: attribution.gradient(g, p, x, of=lambda y: y.argmax(-1)),
        r"one real floating number for each example, \(3,\); got int64\[3\]",
    ),
    "two meanings": (
        lambda g, p, x: attribution.gradient(g, p, x, of=lambda y: (y - y.mean(0))[..., 0]),
        "of: the function gives different results",
    ),
    "integers": (
        lambda g, p, x: attribution.gradient(g, p, x.astype(jnp.int32), of=first_class),
        r"at least one input must be real and floating.*got 'x' int32. Cast",
    ),
    "state": (
        lambda _, p, x: attribution.gradient(nested().graph, p, x, of=first_class),
        r"the graph keeps a state \(trunk/batch_norm1\); got None. Pass state=",
    ),
    "shape": (lambda g, p, x: attribution.gradient(g, p, x[..., :1], of=first_class), r"input 'x' must have shape"),
    "steps": (
        lambda g, p, x: attribution.integrated_gradients(g, p, x, of=first_class, steps=0),
        "integrated_gradients: steps must be an integer of at least 1; got 0",
    ),
    "baseline": (
        lambda g, p, x: attribution.integrated_gradients(g, p, x, of=first_class, baseline=np.zeros(5)),
        r"baseline for input 'x' must be a number, or an array float64 that broadcasts to \(3, 10, 9, 2\)",
    ),
    "baseline dtype": (
        lambda g, p, x: attribution.integrated_gradients(g, p, x, of=first_class, baseline=np.zeros(2, np.float32)),
        r"got float32\[2\]. Cast or reshape it",
    ),
    "names": (
        lambda g, p, x: attribution.integrated_gradients(g, p, x, of=first_class, baseline={"y": 0}),
        r"a dict for baseline must have the names of the inputs, \['x'\]; got \['y'\]",
    ),
    "samples": (
        lambda g, p, x: attribution.smooth_grad(g, p, x, of=first_class, key=jax.random.key(0), noise=1.0, samples=2.5),
        "smooth_grad: samples must be an integer",
    ),
    "no positions": (
        lambda g, p, x: attribution.grad_cam(g, p, x, of=first_class, at="scores"),
        r"grad_cam: the value of node 'scores' must be floating, .*got float64 \(3, 4\)",
    ),
    "independent": (
        lambda g, p, x: attribution.grad_cam(g, p, x, of=("conv1", 0), at="last"),
        "grad_cam: of must depend on the node 'last'",
    ),
    "no node at": (lambda g, p, x: attribution.grad_cam(g, p, x, of=first_class, at="lst"), "did you mean 'last'"),
    "masked": (
        lambda g, p, x: attribution.grad_cam(g, p, fc.Masked(x, np.ones(x.shape[:3], bool)), of=first_class, at="last"),
        "grad_cam: the inputs must be arrays; got Masked",
    ),
    "window": (
        lambda g, p, x: attribution.occlusion(g, p, x, of=first_class, window=(11, 2)),
        r"occlusion: input 'x': .* on spatial axis 0 got stride=11, window=11 and the size 10",
    ),
    "stride": (
        lambda g, p, x: attribution.occlusion(g, p, x, of=first_class, window=2, stride=3),
        r"on spatial axis 0 got stride=3, window=2",
    ),
    "windows": (
        lambda g, p, x: attribution.occlusion(g, p, x, of=first_class, window=(1, 2, 3)),
        "occlusion: input 'x': window must be an integer or 2 of them",
    ),
    "a batch": (
        lambda g, p, x: attribution.occlusion(g, p, x, of=first_class, window=2, batch_size=0),
        "occlusion: batch_size must be an integer of at least 1",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    network, params, _, x = problem("images")
    call, message = ERRORS[name]
    with pytest.raises(fc.FuncconvError, match=message):
        call(network.graph, params, x)


def test_a_tuple_has_an_entry_for_each_input():
    network, params, _, x = problem("siamese")
    with pytest.raises(fc.FuncconvError, match="a tuple for baseline must have 2 entries, as x has; got 3"):
        attribution.integrated_gradients(network.graph, params, x, of=first_class, baseline=(0, 0, 0))

"""The operation from which a NaN or an infinity comes: its node, its operands, in the loss, gradient or update."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32


def over_zero(value):
    return value / (value - value)


def root_of_zero(value):
    """The value is finite, and the derivative is not."""
    return value + jnp.sqrt(0 * value)


def network(place=None, bad=None):
    """Return a graph of six layers, two of them in a nested graph, with one more layer at a place from 0 to 6."""
    layers = [fc.Conv(3, 3), jax.nn.relu, fc.ConvTranspose(3, 3), fc.Dropout(0.5), fc.Flatten(), fc.Dense(2)]
    first, last = 2, 4
    if bad is not None:
        layers.insert(place, fc.node(bad, name="bad"))
        first, last = first + (place < 3), last + (place < 5)
    x, y = fc.Input("x", (6, 6, 2)), fc.Input("y", (4, 4, 3))
    block = fc.Graph(y, fc.serial(*layers[first:last])(y), name="block")
    return fc.Graph(x, fc.serial(*layers[:first], block, *layers[last:])(x))


def training(loss, params, optimizer=None, model=None, **options):
    init, step = fc.train.make_step(loss, optimizer or optax.sgd(0.1), **options)
    return step, init(params, jax.random.key(1), model)


def of_graph(graph, **options):
    def loss(params, batch, *, key, state):
        return jnp.square(graph.apply(params, state, batch, key=key, train=True)[0]).mean()

    return training(loss, graph.init(jax.random.key(0)), **options)


def of_values(f, w=1.0, **options):
    """Return a step whose loss is the mean of a function of a parameter and the batch."""

    def loss(params, batch, *, key, state):
        del key, state
        return f(params["w"], batch).mean()

    return training(loss, {"w": jnp.float32(w)}, **options)


@pytest.fixture
def images(rng):
    return rng.normal(size=(4, 6, 6, 2)).astype(F32)


@pytest.mark.parametrize(("bad", "part"), [(over_zero, "the loss"), (root_of_zero, "the gradient")])
@pytest.mark.parametrize(("place", "parts"), [(1, 1), (3, 1), (4, 2), (6, 1)])
def test_the_node_is_named(images, place, bad, part, parts):
    """Wherever it is: between any two nodes, also of a nested graph, and after the last one."""
    step, state = of_graph(network(place, bad), accumulate=parts)
    found = fc.train.diagnose(step, state, images)
    first = found.causes[0]
    assert found.results[0] == ("loss" if bad is over_zero else "grad_norm")
    assert (first.node, first.part) == ("block/bad" if place in (3, 4) else "bad", part)
    assert first.passes == ((1,) if parts > 1 else ())
    assert first.line.startswith("test_diagnose.py:")
    assert not found.before
    assert all(not numbers.nan and not numbers.infinite for numbers in first.operands)
    assert any(numbers.nan or numbers.infinite for numbers in first.results)


CASES = {
    # name: (function, parameter, batch, options, results, operation, part, passes)
    "log of 0": (lambda w, x: jnp.log(w * x), 1.0, [1.0, 0.0], {}, ("loss", "grad_norm"), "log", "the loss", ()),
    "log of a negative number": (lambda w, x: jnp.log(w * x), 1.0, [1.0, -1.0], {}, ("loss",), "log", "the loss", ()),
    "overflow": (lambda w, x: jnp.exp(w * x), 1.0, [1.0, 99.0], {}, ("loss", "grad_norm"), "exp", "the loss", ()),
    "overflow in 16 bits": (
        lambda w, x: jnp.exp(w * x),
        1.0,
        [1.0, 12.0],
        {"compute_dtype": "float16", "inputs": ""},
        ("loss", "grad_norm"),
        "exp",
        "the loss",
        (),
    ),
    "overflow of the scaled gradient": (
        lambda w, x: w * x,
        1.0,
        [1.0, 9.0],
        {"loss_scale": 1e38},
        ("grad_norm",),
        None,
        "the gradient",
        (),
    ),
    "where": (
        lambda w, x: jnp.where(w * x > 0, jnp.sqrt(w * x), 0),
        1.0,
        [1.0, 0.0],
        {},
        ("grad_norm",),
        None,
        "the gradient",
        (),
    ),
    "the second micro-batch": (
        lambda w, x: jnp.log(w * x),
        1.0,
        [1.0, 1.0, 0.0, 1.0, 1.0, 0.0],
        {"accumulate": 3},
        ("loss", "grad_norm"),
        "log",
        "the loss",
        (3,),
    ),
    "a loop": (
        lambda w, x: jax.lax.fori_loop(0, 5, lambda i, y: y * jnp.log(3.0 - i), w * x),
        1.0,
        [1.0],
        {},
        ("loss", "grad_norm"),
        "log",
        "the loss",
        (4,),
    ),
    "a loop backwards": (
        lambda w, x: jax.lax.scan(lambda c, y: (c + 1 / y, y), w, x, reverse=True)[0],
        1.0,
        [1.0, 0.0, 3.0, 4.0],
        {},
        ("loss",),
        "div",
        "the loss",
        (3,),
    ),
    "a loop in a loop": (
        lambda w, x: jax.lax.scan(lambda c, y: jax.lax.scan(lambda d, z: (d + w / z, z), c, y), w, x)[0],
        1.0,
        [[1.0, 2.0], [3.0, 0.0]],
        {},
        ("loss", "grad_norm"),
        "div",
        "the loss",
        (2, 2),
    ),
    "a branch": (
        lambda w, x: jax.lax.cond(x[0] > 0, lambda y: jnp.log(y - y), jnp.exp, w * x),
        1.0,
        [1.0],
        {},
        ("loss", "grad_norm"),
        "log",
        "the loss",
        (),
    ),
    "computed again": (
        jax.checkpoint(lambda w, x: jnp.sin(jnp.log(w * x))),
        1.0,
        [0.0],
        {},
        ("loss", "grad_norm"),
        "log",
        "the loss",
        (),
    ),
    "a constant": (lambda w, x: w * x + jnp.inf, 1.0, [1.0], {}, ("loss",), "add", "the loss", ()),
    "the update": (
        lambda w, x: w * x,
        1.0,
        [1.0],
        {"optimizer": optax.stateless(lambda updates, _: jax.tree.map(over_zero, updates))},
        ("params/w",),
        "div",
        "the update",
        (),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_causes(case):
    f, w, batch, options, results, operation, part, passes = CASES[case]
    step, state = of_values(f, w, **options)
    found = fc.train.diagnose(step, state, jnp.array(batch, jnp.float32))
    assert not found.finite
    assert found.results[: len(results)] == results
    assert not found.before
    first = found.causes[0]
    assert (first.part, first.passes) == (part, passes)
    assert operation in (None, first.operation)
    assert first.operation in str(found)


def test_numbers_before_the_step(images):
    graph = network()
    step, state = of_graph(graph, optimizer=optax.adam(0.1))
    images[0, 0, 0, 0], images[1, 2, 3, 0] = np.nan, np.inf
    found = fc.train.diagnose(step, state, {"image": images}["image"])
    assert found.results == ("loss", "grad_norm")
    (batch,) = found.before
    assert (batch.name, batch.nan, batch.infinite, batch.shape) == ("batch", 1, 1, (4, 6, 6, 2))
    state.params["dense1"]["bias"] = jnp.array([1.0, jnp.nan])
    found = fc.train.diagnose(step, state, images)
    assert [numbers.name for numbers in found.before] == ["params/dense1/bias", "batch"]
    assert "params/dense1/bias: float32[2], 1 of 2 NaN, from 1 to 1" in str(found)


def test_a_step_that_is_finite(images):
    """An infinity that nothing depends on, or that was in the state on purpose, is none of its results."""
    step, state = of_graph(network(), optimizer=optax.contrib.reduce_on_plateau())
    found = fc.train.diagnose(step, state, images)
    assert (found.finite, found.causes, str(found).splitlines()[0]) == (True, (), "step 1: all results are finite")
    assert [numbers.name for numbers in found.before] == ["optimizer/best_value"]

    def masked(w, x):
        return jax.nn.softmax(jnp.where(x > 0, w * x, -jnp.inf))

    step, state = of_values(masked)
    found = fc.train.diagnose(step, state, jnp.array([1.0, -1.0]))
    assert str(found) == "step 1: all results are finite"
    found = fc.train.diagnose(step, state, jnp.array([-1.0, -1.0]))
    assert (found.causes[0].operation, found.causes[0].part) == ("sub", "the loss")


def test_a_copy_of_a_repeated_block():
    x = fc.Input("x", (3,))
    graph = fc.Graph(x, fc.repeat(fc.serial(fc.Dense(3), fc.node(jnp.log, name="log")), 4)(x))
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1.0), graph.init(jax.random.key(0)))
    kernel = params["repeat1"]["dense1"]["kernel"].at[2].set(-1.0)
    params["repeat1"]["dense1"]["kernel"] = kernel

    def loss(params, batch, *, key, state):
        del key, state
        return graph(params, batch).mean()

    step, state = training(loss, params)
    found = fc.train.diagnose(step, state, jnp.ones((2, 3)))
    first = found.causes[0]
    assert (first.operation, first.node, first.passes) == ("log", "repeat1/log", (3,))


def test_the_step_that_a_run_skipped(images):
    """The metric says which one it was; the same calls give its state and its batch, and its random numbers."""
    graph = network(4, lambda value: jnp.log(1e6 - jnp.abs(value)))
    step, state = of_graph(graph)
    many = np.concatenate([images] * 4)
    many[9] *= 1e8
    data = fc.train.batches(many, 4, jax.random.key(0))
    _, history = fc.train.fit(step, state, data, steps=4, progress=False)
    n = history.steps("skipped")[history["skipped"].index(1)]
    before, _ = fc.train.fit(step, state, data.seek(0), steps=n - 1, progress=False)
    found = fc.train.diagnose(step, before, data[n - 1])
    assert (found.step, found.causes[0].node) == (n, "block/bad")
    other = next(i for i in range(4) if i != n - 1)
    assert fc.train.diagnose(step, before, data[other]).finite


def test_any_step():
    """Also a function that does not come from `make_step`, with NumPy arrays and numbers."""

    def step(state, batch):
        total = state["total"] + batch["x"].sum() / batch["count"]
        return {"total": total}, {"mean": total}

    found = fc.train.diagnose(step, {"total": 0.0}, {"x": np.ones(3, F32), "count": F32(0)})
    assert (found.step, found.results) == (None, ("mean", "total"))
    assert (found.causes[0].operation, found.causes[0].part) == ("div", "the update")
    assert str(found).startswith("the step: mean, total are not finite\nfirst: div outside of a named node, in the up")
    names = [numbers.name for numbers in found.causes[0].operands]
    assert names == ["operand 1", "batch/count"]


@pytest.mark.parametrize(("kind", "parts"), [(jax.sharding.AxisType.Auto, 1), (jax.sharding.AxisType.Explicit, 2)])
def test_on_a_mesh(images, kind, parts):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,), devices=jax.devices()[:2])
    step, state = of_graph(network(4, over_zero), mesh=mesh, accumulate=parts)
    spread = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
    found = fc.train.diagnose(step, state, spread)
    assert (found.results[0], found.causes[0].node) == ("loss", "block/bad")


def test_a_transposed_convolution_is_no_backward_pass():
    """Its name in the graph is part of the names that JAX gives to operations."""
    x = fc.Input("x", (4, 4, 1))
    graph = fc.Graph(x, fc.ConvTranspose(2, 3)(x))
    params = graph.init(jax.random.key(0))
    drawn = fc.draw_autodiff(lambda params, x: graph(params, x), params, jnp.ones((1, 4, 4, 1))).dot
    backward = fc.draw_autodiff(jax.grad(lambda x: graph(params, x).sum()), jnp.ones((1, 4, 4, 1))).dot
    fills = [set(re.findall(r'label="conv\w*[^"]*", fillcolor="(#\w+)"', dot)) for dot in (drawn, backward)]
    assert all(fills)
    assert fills[0] != fills[1]

"""Frozen parameters: no part of the norm, of the check that all is finite, of the work, or of what changes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close as close_arrays

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32
close = partial(close_arrays, dtype=F32)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_is_that_of_what_is_trained(accumulate):
    def loss(params, batch, *, key, state):
        del key, state
        return (1000 * params["trunk"] + 3 * params["head"]) * batch.mean()

    init, step = fc.train.make_step(loss, optax.sgd(1.0), clip=1.0, frozen="trunk", accumulate=accumulate)
    state, metrics = jax.jit(step)(init({"trunk": 1.0, "head": 1.0}, jax.random.key(0)), np.ones(4, F32))
    close(metrics["grad_norm"], F32(3), ulps=8)
    np.testing.assert_allclose(state.params["head"], 0, atol=16 * np.finfo(F32).eps)
    assert float(state.params["trunk"]) == 1


def test_a_frozen_gradient_that_is_not_finite():
    def loss(params, batch, *, key, state):
        del key, state
        return jnp.sqrt(params["trunk"]) + 3 * params["head"] * batch

    init, step = fc.train.make_step(loss, optax.sgd(1.0), frozen="trunk")
    state, metrics = jax.jit(step)(init({"trunk": 0.0, "head": 1.0}, jax.random.key(0)), F32(1))
    assert (float(state.params["head"]), int(metrics["skipped"])) == (-2, 0)


def test_parameters_without_a_derivative_may_be_frozen():
    def loss(params, batch, *, key, state):
        del key, state
        return (params["table"][0] * params["head"] - batch) ** 2

    init, step = fc.train.make_step(loss, optax.adamw(0.1), frozen="table", ema=0.5)
    state, _ = jax.jit(step)(init({"table": jnp.arange(2, 5), "head": 1.0}, jax.random.key(0)), F32(1))
    assert state.params["table"].tolist() == state.ema["table"].tolist() == [2, 3, 4]
    assert state.params["table"].dtype == state.ema["table"].dtype == jnp.int32
    assert float(state.params["head"]) != 1
    init, _ = fc.train.make_step(loss, optax.sgd(0.1))
    with pytest.raises(fc.FuncconvError, match="'table' is int32 and has no gradient; freeze it"):
        init({"table": jnp.arange(2, 5), "head": 1.0}, jax.random.key(0))


@pytest.fixture
def network():
    x = fc.Input("x", (8, 8, 3))
    convs = [layer for _ in range(3) for layer in (fc.Conv(8, 3, padding="SAME"), jnp.tanh)]
    return fc.Graph(x, fc.serial(*convs, fc.Flatten(), fc.Dense(2))(x))


def test_no_work_is_done_for_frozen_gradients(network):
    """A step costs no more than the derivative by what is trained, and nothing is kept for the rest."""
    params, batch = network.init(jax.random.key(0)), jnp.ones((4, 8, 8, 3))

    def loss(params, batch, *, key=None, state=None):
        del key, state
        return jnp.square(network(params, batch)).mean()

    def flops(f, *args):
        return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]

    def of_head(head, trunk, batch):
        return loss({**trunk, "dense1": head}, batch)

    trunk = {name: entry for name, entry in params.items() if name != "dense1"}
    least = flops(jax.value_and_grad(of_head), params["dense1"], trunk, batch)
    counts = []
    for frozen in ((), "conv*"):
        init, step = fc.train.make_step(loss, optax.sgd(0.1, momentum=0.9), frozen=frozen, clip=1.0)
        state = init(params, jax.random.key(0))
        counts.append(flops(step, state, batch))
    leaves = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counts[1] < least + 20 * leaves < counts[0]
    kept = {leaf.shape for leaf in jax.tree.leaves(state.optimizer)}
    assert kept == {leaf.shape for leaf in jax.tree.leaves(params["dense1"])}


def test_an_optimizer_gets_the_trained_part_alone(network):
    """Its parameters, updates and the gradient among its extra arguments have one structure."""
    structures = []

    def update(updates, state, params=None, *, grad, **_):
        structures.extend(map(jax.tree.structure, (updates, params, grad)))
        return updates, state

    optimizer = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
    init, step = fc.train.make_step(
        lambda params, batch, **_: jnp.square(network(params, batch)).mean(), optimizer, frozen="conv*"
    )
    step(init(network.init(jax.random.key(0)), jax.random.key(0)), jnp.ones((2, 8, 8, 3)))
    assert len(set(structures)) == 1
    assert structures[0].num_leaves == 2


@pytest.fixture
def normed(rng):
    """A network of a trunk and a head, each with norms, its loss, and a batch far from the first statistics."""
    x = fc.Input("x", (4,))
    trunk = fc.Graph(x, fc.serial(fc.Dense(3), fc.BatchNorm(), fc.BatchNorm(scale=False, bias=False))(x), name="trunk")
    graph = fc.Graph(x, fc.serial(trunk, jnp.tanh, fc.Dense(3), fc.BatchNorm(), fc.Dense(2))(x))

    def loss(params, batch, *, key, state):
        del key
        y, state = graph.apply(params, state, batch, train=True)
        return jnp.square(y).mean(), {"state": state}

    return graph, loss, rng.normal(3, 2, size=(8, 4)).astype(F32)


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("frozen", "stay"),
    [
        ((), set()),
        ("trunk", {"trunk/batch_norm1", "trunk/batch_norm2"}),
        ("trunk/*", {"trunk/batch_norm1", "trunk/batch_norm2"}),
        (["trunk/dense1"], set()),
        (["batch_norm1/scale"], set()),
        (["batch_norm1/scale", "batch_norm1/bias"], {"batch_norm1"}),
        (["*batch_norm*"], {"trunk/batch_norm1", "trunk/batch_norm2", "batch_norm1"}),
        ("trunk/batch_norm2", {"trunk/batch_norm2"}),  # it has no parameters
    ],
)
def test_statistics_of_frozen_norms_stay(normed, frozen, stay, accumulate):
    graph, loss, batch = normed
    init, step = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True, frozen=frozen, accumulate=accumulate)
    first = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())
    state, metrics = jax.jit(step)(first, batch)
    assert int(metrics["skipped"]) == 0
    norms = {
        "trunk/batch_norm1": ("trunk", "batch_norm1"),
        "trunk/batch_norm2": ("trunk", "batch_norm2"),
        "batch_norm1": ("batch_norm1",),
    }
    for name, path in norms.items():
        before, after = first.model, state.model
        for part in path:
            before, after = before[part], after[part]
        same = all((before[statistic] == after[statistic]).all() for statistic in ("mean", "var"))
        assert same == (name in stay), name


def test_a_pattern_that_meets_nothing(normed):
    graph, loss, _ = normed
    init, _ = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True, frozen=["trunk", "batch_norm3"])
    with pytest.raises(fc.FuncconvError, match="frozen pattern 'batch_norm3' matches no parameter"):
        init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())


def test_everything_may_be_frozen(normed):
    graph, loss, batch = normed
    init, step = fc.train.make_step(loss, optax.adam(0.1), has_aux=True, frozen="*", clip=1.0, ema=0.9)
    first = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())
    state, metrics = jax.jit(step)(first, batch)
    assert (float(metrics["grad_norm"]), int(metrics["skipped"])) == (0, 0)
    for found, expected in ((state.params, first.params), (state.model, first.model), (state.ema, first.ema)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_frozen_part_in_evaluation_costs_its_forward_pass_alone(rng):
    """No gradient, no statistics of the batch and no dropout: the rest of a step costs what the head alone costs."""
    x, features = fc.Input("x", (8, 8, 3)), fc.Input("features", (512,))
    convs = [layer for _ in range(3) for layer in (fc.Conv(8, 3, padding="SAME"), fc.BatchNorm(), jnp.tanh)]
    trunk = fc.Graph(x, fc.serial(*convs, fc.Dropout(0.5), fc.Flatten())(x), name="trunk")
    head = fc.Graph(features, fc.serial(fc.Dense(16), jnp.tanh, fc.Dropout(0.5), fc.Dense(2))(features))
    whole = fc.Graph(x, head(trunk(x)))
    params, model = whole.init(jax.random.key(0)), whole.init_state()
    batch = jnp.asarray(rng.normal(3, 2, size=(4, 8, 8, 3)), F32)

    def begun(graph, frozen=(), evaluating=()):
        def loss(params, batch, *, key, state):
            y, state = graph.apply(params, state, batch, key=key, train=True, evaluating=evaluating)
            return jnp.square(y).mean(), {"state": state}

        init, step = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True, frozen=frozen)
        return step, init(graph.select(params), jax.random.key(1), graph.select_state(model))

    def flops(f, *args):
        return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]

    forward = flops(lambda params, x: trunk.apply(params, model["trunk"], x)[0], params["trunk"], batch)
    of_head = flops(*begun(head), jnp.ones((4, 512), F32))
    in_evaluation = flops(*begun(whole, "trunk/*", "trunk/*"), batch)
    in_training = flops(*begun(whole, "trunk/*"), batch)
    trained = flops(*begun(whole), batch)
    assert in_evaluation < 1.05 * (forward + of_head)
    assert in_evaluation < in_training < trained
    assert trained > 2.5 * forward


def test_a_frozen_part_in_evaluation_does_not_change(normed):
    graph, _, batch = normed

    def loss(params, batch, *, key, state):
        y, state = graph.apply(params, state, batch, key=key, train=True, evaluating="trunk/*")
        return jnp.square(y).mean(), {"state": state}

    init, step = fc.train.make_step(loss, optax.adamw(0.1), has_aux=True, frozen="trunk/*", ema=0.9)
    first = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())
    state = first
    for _ in range(3):
        state, _ = jax.jit(step)(state, batch)
    for name in ("params", "model", "ema"):
        before, after = getattr(first, name), getattr(state, name)
        jax.tree.map(np.testing.assert_array_equal, before["trunk"], after["trunk"])
        assert not np.array_equal(jax.tree.leaves(before["batch_norm1"])[0], jax.tree.leaves(after["batch_norm1"])[0])

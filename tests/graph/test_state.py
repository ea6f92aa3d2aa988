"""Graphs that keep a state and draw: batch norms with running figures, dropout with a key for each node."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close

import funcconv as fc

KEY = jax.random.key(0)


def network(*layers, shape=(4, 4, 3), **options):
    x = fc.Input("x", shape)
    return fc.Graph(x, fc.serial(*layers)(x), **options)


def changed(tree, rng):
    """Return a tree like it of other numbers, all above zero."""
    return jax.tree.map(lambda array: jnp.asarray(rng.uniform(0.5, 2, array.shape), array.dtype), tree)


def twins():
    a, b = fc.Input("a", (4, 4, 3)), fc.Input("b", (4, 4, 3))
    trunk = fc.serial(fc.Conv(2, 3), fc.BatchNorm(), jnp.tanh)
    return fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b))


def test_a_graph_computes_what_its_ops_do(rng):
    graph = network(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.GroupNorm(2), fc.LayerNorm(3))
    params, x = changed(graph.init(KEY), rng), rng.normal(size=(5, 4, 4, 3))
    state = changed(graph.init_state(), rng)
    for train in (False, True):
        y, kept = graph.apply(params, state, x, train=train)
        expected, running = fc.batch_norm(
            params["batch_norm1"], state["batch_norm1"], fc.conv(params["conv1"], x), train=train
        )
        expected = fc.group_norm(params["group_norm1"], jax.nn.relu(expected), 2)
        close(y, fc.layer_norm(params["layer_norm1"], expected, axes=3))
        jax.tree.map(close, kept, {"batch_norm1": running})


def test_a_shared_batch_norm_has_one_state_that_its_uses_change_in_turn(rng):
    graph = twins()
    params, state = graph.init(KEY), graph.init_state()
    assert jax.tree.map(jnp.shape, state) == {"batch_norm1": {"mean": (2,), "var": (2,)}}
    a, b = rng.normal(size=(2, 5, 4, 4, 3))
    _, kept = graph.apply(params, state, a, b, train=True)
    expected = state["batch_norm1"]
    for x in (a, b):
        _, expected = fc.batch_norm(params["batch_norm1"], expected, fc.conv(params["conv1"], x), train=True)
    jax.tree.map(close, kept["batch_norm1"], expected)


def test_two_batch_norms_have_two_states():
    graph = network(fc.BatchNorm(), fc.BatchNorm(name="second"))
    assert sorted(graph.init_state()) == ["batch_norm1", "second"]


def test_the_state_of_a_nested_graph_is_nested(rng):
    trunk = network(fc.Conv(2, 3), fc.BatchNorm(), name="trunk")
    a, b = fc.Input("a", (4, 4, 3)), fc.Input("b", (4, 4, 3))
    graph = fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b))
    params, state = graph.init(KEY), graph.init_state()
    assert list(state) == ["trunk"]
    a, b = rng.normal(size=(2, 5, 4, 4, 3))
    y, kept = graph.apply(params, state, a, b, train=True)
    part = graph.subgraph("trunk")
    left, after = part.apply(part.select(params), part.select_state(state), a, train=True)
    right, after = part.apply(part.select(params), after, b, train=True)
    close(y, left - right)
    jax.tree.map(close, kept["trunk"], after)


def test_a_layer_without_a_state_may_share_the_parameters_of_one_with_a_state():
    graph = network(fc.BatchNorm(params="n"), fc.GroupNorm(3, params="n"))
    assert jax.tree.map(jnp.shape, graph.init_state()) == {"n": {"mean": (3,), "var": (3,)}}


def test_uses_that_need_states_of_other_shapes_are_refused():
    layer = fc.SpectralNorm(fc.Conv(3, 3, padding=1), norm="conv")
    with pytest.raises(
        fc.FuncconvError, match=r"node 'conv1@2': its state 'conv1' .*\(2, 2, 3\).*as node 'conv1'.*\(4, "
    ):
        network(layer, fc.Pool(2), layer).init_state()


def test_dropout_draws_by_node_and_key():
    drop = fc.Dropout(0.5)
    x = fc.Input("x", (100,))
    graph = fc.Graph(x, (drop(x), drop(x), fc.Dropout(0.5)(x)))

    def masks(key):
        return [np.asarray(y) != 0 for y in graph.apply({}, {}, jnp.ones(100), key=key, train=True)[0]]

    first, second, third = masks(KEY)
    assert not (first == second).all()
    assert not (second == third).all()
    assert (masks(KEY)[0] == first).all()
    assert not (masks(jax.random.key(1))[0] == first).all()
    assert all((y == 1).all() for y in graph({}, jnp.ones(100)))


def test_dropout_of_whole_channels_knows_the_batch_axes():
    graph = network(fc.Dropout(0.5, whole_channels=True), shape=(4, 4, 30))
    y, _ = graph.apply({}, {}, jnp.ones((2, 3, 4, 4, 30)), key=KEY, train=True)
    y = np.asarray(y)
    assert (y == y[:, :, :1, :1]).all()
    assert not (y[0, 0] == y[1, 1]).all()


def test_a_standardized_convolution_is_one(rng):
    graph = network(fc.WeightStandardize(fc.Conv(4, 3, name="c")), fc.WeightStandardize(fc.LocalConv(2, 2)))
    params, x = graph.init(KEY), rng.normal(size=(2, 4, 4, 3))
    assert list(params) == ["c", "local_conv1"]
    y = fc.conv(fc.weight_standardize(params["c"]), x)
    close(graph(params, x), fc.local_conv(fc.weight_standardize(params["local_conv1"], spatial=2), y))
    assert fc.receptive_field(graph)["x"][0].size == 4


def test_values_and_derivatives_at_nodes_take_the_state(rng):
    graph = network(fc.BatchNorm(name="n"), fc.node(jnp.sum, batched=False))
    params, state = graph.init(KEY), changed(graph.init_state(), rng)
    x = rng.normal(size=(2, 4, 4, 3))
    y, _ = fc.batch_norm(params["n"], state["n"], x)
    close(graph.values(params, x, state=state)["n"], y)
    factor = np.broadcast_to(params["n"]["scale"] / np.sqrt(state["n"]["var"] + 1e-5), x.shape)
    close(graph.backward(params, x, state=state).nodes["x"], factor)
    close(graph.jacobian(params, x, of=graph.outputs[0], wrt="x", state=state), factor)
    diagonal = graph.jacobian(params, x, of="n", wrt="x", local=True, state=state)
    close(diagonal.sum((-3, -2, -1)), factor)
    value, rest = graph.continuation(params, x, at="n", state=state)
    close(rest(value), y.sum((-3, -2, -1)))


def test_derivatives_by_use_take_the_state(rng):
    graph, x = twins(), rng.normal(size=(2, 5, 4, 4, 3))
    params, state = graph.init(KEY), changed(graph.init_state(), rng)

    def loss(y):
        return jnp.sin(y).sum()

    by_use = graph.grad_by_use(loss)(params, *x, state=state)
    shared = jax.grad(lambda params: loss(graph.apply(params, state, *x)[0]))(params)
    for name in ("conv1", "batch_norm1"):
        jax.tree.map(close, jax.tree.map(jnp.add, by_use[name], by_use[f"{name}@2"]), shared[name])
    hessian = graph.hessian_by_use(loss)(params, *x, state=state)
    states = graph.copies_of_state(state)
    gradient = jax.grad(lambda copies: loss(graph.unshared().apply(copies, states, *x)[0]))
    jax.tree.map(close, hessian.mv(by_use), jax.jvp(gradient, (graph.copies(params),), (by_use,))[1])


def test_what_looks_at_a_graph_knows_its_norms():
    graph = network(fc.Conv(4, 3), fc.BatchNorm(), fc.Dropout(), fc.GroupNorm(2), shape=(8, 8, 3))
    rows = {row.name: row for row in fc.summary(graph).rows}
    assert rows["batch_norm1"].parameters == rows["group_norm1"].parameters == 8
    assert [axis.size for axis in rows["dropout1"].receptive_field["x"]] == [3, 3]
    assert all(axis.whole for axis in rows["group_norm1"].receptive_field["x"])
    assert "batch_norm1" in fc.to_dot(graph)


def test_training_moves_the_running_figures_to_those_of_the_data(rng):
    graph = network(fc.Dense(4), fc.BatchNorm(), fc.Dropout(0.1), fc.Dense(1), shape=(3,))

    def loss(params, batch, *, key, state):
        y, state = graph.apply(params, state, batch["x"], key=key, train=True)
        return jnp.square(y - batch["y"]).mean(), {"state": state}

    x = rng.normal(2, 3, size=(256, 3))
    init, step = fc.train.make_step(loss, optax.sgd(0.0), has_aux=True, accumulate=2)
    state = init(graph.init(KEY), KEY, graph.init_state())
    data = fc.train.batches({"x": x, "y": x[:, :1]}, 64, KEY)
    state, _ = fc.train.fit(step, state, data, steps=60, progress=False)
    seen = fc.dense(state.params["dense1"], x)
    np.testing.assert_allclose(state.model["batch_norm1"]["mean"], seen.mean(0), atol=0.5)
    np.testing.assert_allclose(state.model["batch_norm1"]["var"], seen.var(0), rtol=0.2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda g, p, _, x: g(p, x), ["keeps a state (batch_norm1)", "graph.apply(params, state, *xs)"]),
        (lambda g, p, _, x: g.values(p, x), ["keeps a state (batch_norm1)", "Pass state="]),
        (lambda g, p, _, x: g.apply(p, {}, x), ["the entry 'batch_norm1' is missing in the state"]),
        (lambda g, p, s, x: g.apply(p, {**s, "more": 1}, x), ["the state has an entry 'more'"]),
        (lambda g, p, s, x: g.apply(p, s["batch_norm1"], x), ["the state has an entry 'mean'"]),
        (lambda g, p, s, x: g.apply(p, s, x, train=True), ["node 'dropout1'", "Dropout(0.5)", "needs a random key"]),
        (lambda g, p, s, x: g.apply(p, s, x[:1, :1, :1], key=KEY, train=True), ["input 'x' must have shape"]),
        (
            lambda g, p, _, x: g.apply(p, {"batch_norm1": {"mean": x, "var": x}}, x),
            ["node 'batch_norm1'", "running mean has shape (2, 4, 4, 3)"],
        ),
    ],
)
def test_bad_calls_say_what_was_expected(call, words):
    graph = network(fc.BatchNorm(), fc.Dropout())
    with pytest.raises(fc.FuncconvError) as error:
        call(graph, graph.init(KEY), graph.init_state(), jnp.ones((2, 4, 4, 3)))
    for word in words:
        assert word in str(error.value)

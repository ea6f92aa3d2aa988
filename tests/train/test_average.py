"""Averages of the parameters, what a loss and an evaluation make of them, and their batch statistics."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from available import needed
from compare import close as close_arrays
from optax import contrib

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
F32 = np.float32
close = partial(close_arrays, dtype=F32)


def drift(params, batch, *, key, state):
    """A loss whose gradient is the batch."""
    del key, state
    return (params["w"] * batch).astype(jnp.float32).sum()


def history(steps=8, dtype=jnp.float32, **options):
    """Return the parameters and the averages after each step, and the last state."""
    init, step = fc.train.make_step(drift, optax.sgd(1.0), **options)
    state, step = init({"w": jnp.ones(3, dtype), "n": jnp.arange(2)}, jax.random.key(0)), jax.jit(step)
    params, averages = [state.params["w"]], [state.ema["w"]]
    for i in range(steps):
        batch = jnp.full(3, jnp.nan if i == 4 else i, dtype)
        state, _ = step(state, batch)
        params.append(state.params["w"])
        averages.append(state.ema["w"])
    return np.array(params, F32), np.array(averages, F32), state


@pytest.mark.parametrize("start", [0, 3])
def test_the_mean_of_the_parameters(start):
    """A step that is not finite counts for nothing."""
    params, averages, state = history(average="mean", average_start=start, frozen="n")
    np.testing.assert_array_equal(averages[: start + 1], params[: start + 1])
    kept = [i for i in range(start + 1, 9) if i != 5]  # step 5 was not finite
    for i in kept:
        close(averages[i], params[[j for j in kept if j <= i]].mean(0))
    assert int(state.average_count) == len(kept)
    assert state.ema["n"].tolist() == [0, 1]


def test_a_moving_average_that_begins_later():
    params, averages, state = history(ema=0.75, average_start=3, frozen="n")
    np.testing.assert_array_equal(averages[:4], params[:4])
    expected = params[3]
    for i in (4, 6, 7, 8):
        expected = 0.75 * expected + 0.25 * params[i]
        close(averages[i], expected)
    assert state.average_count is None


def test_a_mean_of_sixteen_bits_is_kept_in_float32():
    init, step = fc.train.make_step(drift, optax.sgd(1.0), average="mean")
    state = init({"w": jnp.full(1, 256, jnp.bfloat16)}, jax.random.key(0))
    batches = jnp.where(jnp.arange(300) % 2 == 0, 2, -2).astype(jnp.bfloat16)[:, None]  # 254, 256, 254, ...
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, batches))(state)
    assert float(state.ema_float32["w"][0]) == pytest.approx(255, abs=0.01)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"average": "median"}, "average must be None or \"mean\"; got 'median'"),
        ({"average": "mean", "ema": 0.9}, "pass one of them"),
        ({"average_start": 3}, "average_start=3 needs an average"),
        ({"average_start": -1, "ema": 0.9}, "average_start must be an integer of at least 0"),
    ],
)
def test_options_that_do_not_fit(options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.make_step(drift, optax.sgd(1.0), **options)


# a loss that reads the average ----------------------------------------------------------------------------


def byol(online, head, params, batch, *, key, state, average):
    """Bootstrap your own latent: predict what the average of the network says of another view."""
    del key, state
    a, b = batch

    def normed(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    predicted = normed(head({"dense1": params["head"]}, online(params["online"], a)))
    target = normed(online(average["online"], b))
    return jnp.square(predicted - target).sum(-1).mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_byol(rng, accumulate):
    image, feature = fc.Input("x", (6, 6, 1)), fc.Input("h", (8,))
    online = fc.Graph(image, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Flatten(), fc.Dense(8))(image))
    head = fc.Graph(feature, fc.Dense(8)(feature))
    params = {"online": online.init(jax.random.key(0)), "head": head.init(jax.random.key(1))["dense1"]}
    x = rng.normal(size=(16, 6, 6, 1)).astype(F32)
    batch = x, x + 0.1 * rng.normal(size=x.shape).astype(F32)
    loss = partial(byol, online, head)
    init, step = fc.train.make_step(loss, optax.sgd(0.1), ema=0.5, accumulate=accumulate)
    first = init(params, jax.random.key(2))
    state, step = first, jax.jit(step)
    by_hand, target = first.params, first.ema
    for _ in range(3):
        state, metrics = step(state, batch)
        gradients = jax.grad(loss)(by_hand, batch, key=None, state=None, average=target)
        by_hand = jax.tree.map(lambda p, g: p - 0.1 * g, by_hand, gradients)
        target = jax.tree.map(lambda a, p: 0.5 * a + 0.5 * p, target, by_hand)
    jax.tree.map(partial(close, terms=16 * 64 * 16, steps=3), (state.params, state.ema), (by_hand, target))
    for _ in range(30):
        state, metrics = step(state, batch)
    assert metrics["loss"] < loss(params, batch, key=None, state=None, average=params) / 2


def product(params, batch, *, key, state, average):
    del key, state
    assert average["w"].dtype == params["w"].dtype
    return (params["w"] * batch["x"] + average["w"]).mean()


def test_the_average_is_cast_and_has_no_derivative():
    init, step = fc.train.make_step(product, optax.sgd(1.0), ema=0.5, compute_dtype="bfloat16")
    state = init({"w": F32(1.0)}, jax.random.key(0))

    def later(ema):
        return step(replace(state, ema=ema), {"x": jnp.ones(2)})[1]["loss"]

    assert later(state.ema) == 2
    assert jax.grad(later)(state.ema)["w"] == 0


def test_a_loss_without_an_average():
    batch = {"x": F32(1)}
    init, step = fc.train.make_step(product, optax.sgd(1.0))
    with pytest.raises(fc.FuncconvError, match=r"a parameter average, but no average .* Pass ema=0\.99"):
        step(init({"w": 1.0}, jax.random.key(0)), batch)

    # With a default, it is an option of the loss.
    init, step = fc.train.make_step(partial(product, average={"w": F32(5)}), optax.sgd(1.0), ema=0.5)
    assert step(init({"w": 1.0}, jax.random.key(0)), batch)[1]["loss"] == 6


# parameters to evaluate -----------------------------------------------------------------------------------

PARAMS = {"a": F32([1.0, 2.0]), "b": F32([3.0])}


def squares(params, batch, *, key, state):
    del key, state
    return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params)) * batch


def state_after(optimizer, steps=3, **options):
    init, step = fc.train.make_step(squares, optimizer, **options)
    state = init(PARAMS, jax.random.key(0))
    for _ in range(steps):
        state, _ = jax.jit(step)(state, F32(0.5))
    return state


def test_parameters_of_schedule_free():
    optimizer = contrib.schedule_free_sgd(0.1)
    params, inner = PARAMS, optimizer.init(jax.tree.map(jnp.asarray, PARAMS))
    for _ in range(3):
        updates, inner = optimizer.update(params, inner, params)
        params = optax.apply_updates(params, updates)
    expected = contrib.schedule_free_eval_params(inner, params)
    jax.tree.map(close, fc.train.eval_params(state_after(optimizer)), expected)
    jax.tree.map(close, fc.train.eval_params(state_after(optax.chain(optax.clip(1e3), optimizer))), expected)
    grouped = fc.train.eval_params(state_after({"a": optimizer, "b": optax.sgd(0.1)}))
    close(grouped["a"], expected["a"])
    close(grouped["b"], F32([3 * 0.9**3]))
    frozen = fc.train.eval_params(state_after(optimizer, frozen="b"))
    close(frozen["a"], expected["a"])
    close(frozen["b"], PARAMS["b"])


def test_parameters_of_lookahead():
    optimizer = optax.lookahead(optax.sgd(0.1, momentum=0.9), sync_period=2, slow_step_size=0.5)
    pair = optax.LookaheadParams.init_synced(jax.tree.map(jnp.asarray, PARAMS))
    inner = optimizer.init(pair)
    for _ in range(5):
        updates, inner = optimizer.update(pair.fast, inner, pair)
        pair = optax.apply_updates(pair, updates)
    for wrapped in (optimizer, optax.chain(optax.clip(1e3), optimizer)):
        state = state_after(wrapped, 5)
        jax.tree.map(close, state.params, pair.fast)
        jax.tree.map(close, fc.train.eval_params(state), pair.slow)


def test_lookahead_logs_nothing(caplog):
    state_after(optax.lookahead(optax.sgd(0.1), 2, 0.5), 1)
    assert not caplog.records


def test_parameters_of_sam():
    optimizer = contrib.sam(optax.sgd(0.1), optax.sgd(0.01))
    before, after = state_after(optimizer, 2), state_after(optimizer, 3)
    jax.tree.map(np.testing.assert_array_equal, fc.train.eval_params(before), before.params)
    jax.tree.map(np.testing.assert_array_equal, fc.train.eval_params(after), before.params)
    assert after.params["b"] != before.params["b"]
    opaque = state_after(contrib.sam(contrib.schedule_free_sgd(0.1), optax.sgd(0.01), opaque_mode=True))
    assert fc.train.eval_params(opaque)["b"] != opaque.params["b"]


def test_other_parameters_to_evaluate():
    state = state_after(optax.sgd(0.1))
    assert fc.train.eval_params(state) is state.params
    state = state_after(optax.sgd(0.1), average="mean")
    assert fc.train.eval_params(state) is state.ema
    with pytest.raises(fc.FuncconvError, match="has an average, and its optimizer has parameters to evaluate too"):
        fc.train.eval_params(state_after(contrib.schedule_free_sgd(0.1), ema=0.9))
    with pytest.raises(fc.FuncconvError, match="in another form than the state"):
        fc.train.eval_params(state_after(optax.flatten(contrib.schedule_free_sgd(0.1))))


# batch statistics -----------------------------------------------------------------------------------------


def normed(**options):
    x = fc.Input("x", (5, 5, 2))
    norm = fc.BatchNorm(**options)
    layers = fc.Conv(3, 3), norm, jnp.tanh, fc.SpectralNorm(fc.Conv(4, 2)), fc.BatchNorm(momentum=0.5), fc.Dropout(0.1)
    return fc.Graph(x, fc.serial(*layers)(x))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.99, "count": True}, {"momentum": None, "count": True}])
def test_new_statistics_are_means_over_batches(rng, options):
    graph = normed(**options)
    params, old = graph.init(jax.random.key(0)), graph.init_state()
    old["batch_norm1"] = jax.tree.map(lambda leaf: leaf + 7, old["batch_norm1"])
    batches = [rng.normal(size=(n, 5, 5, 2)).astype(F32) for n in (4, 4, 3)]

    def apply(params, model, x):
        return graph.apply(params, model, x, key=jax.random.key(3), train=True)[1]

    new = fc.train.update_norms(apply, params, old, batches)
    first = [fc.conv(params["conv1"], x) for x in batches]
    expected = {"mean": [y.mean((0, 1, 2)) for y in first], "var": [y.var((0, 1, 2), ddof=1) for y in first]}
    for name, values in expected.items():
        close(new["batch_norm1"][name], np.mean(values, 0), terms=20_000)
    if "count" in options:
        assert new["batch_norm1"]["count"] == 3
    assert jax.tree.structure(new) == jax.tree.structure(old)
    assert not np.array_equal(new["conv2"]["left"], old["conv2"]["left"])  # of the spectral norm


def test_new_statistics_are_those_of_torch(rng):
    torch = needed("torch")
    batches = [rng.normal(size=(4, 3)).astype(F32) for _ in range(5)]
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    torch.optim.swa_utils.update_bn([torch.tensor(x) for x in batches], model)
    x = fc.Input("x", (3,))
    graph = fc.Graph(x, fc.BatchNorm()(x))

    def apply(params, state, x):
        return graph.apply(params, state, x, train=True)[1]

    new = fc.train.update_norms(apply, graph.init(jax.random.key(0)), graph.init_state(), batches)["batch_norm1"]
    close(new["mean"], model[0].running_mean.numpy(), terms=100)
    close(new["var"], model[0].running_var.numpy(), terms=100)


def test_statistics_that_cannot_be_updated():
    graph = normed()
    params, model, x = graph.init(jax.random.key(0)), graph.init_state(), np.ones((2, 5, 5, 2), F32)
    for batches in ([], [x]):
        with pytest.raises(fc.FuncconvError, match=r"'batch_norm1/mean', .*'batch_norm2/var' did not change"):
            fc.train.update_norms(lambda params, model, x: graph.apply(params, model, x)[1], params, model, batches)
    with pytest.raises(fc.FuncconvError, match="the model has no batch norm"):
        fc.train.update_norms(lambda *arguments: arguments[1], params, {"mean": np.ones(2)}, [x])
    with pytest.raises(fc.FuncconvError, match="apply must return the next state"):
        fc.train.update_norms(lambda params, model, x: graph.apply(params, model, x), params, model, [x])

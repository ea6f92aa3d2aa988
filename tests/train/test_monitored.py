"""Optimizers that take the monitored value of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

EVERY = 4


@pytest.fixture(autouse=True)
def standard():
    """`optax.contrib.reduce_on_plateau` mixes dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(params, batch, *, key, state):
    del key, state
    return jnp.square(params["w"][None] - batch).mean()


def run(values, steps, tmp_path=None, mode="min", **options):
    """Train while `evaluate` returns these values one after the other; the learning rates of all steps."""
    optimizer = optax.chain(
        optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=2, accumulation_size=EVERY)
    )
    init, step = fc.train.make_step(loss, optimizer, report_learning_rate=True, optimizer_value="monitor", **options)
    state, history = fc.train.fit(
        step,
        init({"w": jnp.ones(2, jnp.float32)}, jax.random.key(0)),
        fc.train.batches(np.zeros((8, 2), np.float32), 4),
        steps=steps,
        evaluate=lambda state: {"score": values[int(state.step) // EVERY]},
        monitor="score",
        mode=mode,
        every=EVERY,
        checkpoint=tmp_path,
        progress=False,
    )
    rates = [record["learning_rate"] for record in history.records if "learning_rate" in record]
    return state, rates


def reference(values):
    """The factor after each evaluation: halved when the best value is two evaluations old, or more since then."""
    best, waited, factor, factors = np.inf, 0, 1.0, []
    for value in values:
        best, waited = (value, 0) if value < best * (1 - 1e-4) else (best, waited + 1)
        if waited >= 2:
            factor, waited = factor / 2, 0
        factors.append(factor)
    return factors


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_of_the_monitored_value(mode):
    values = [3.0, 2.0, 2.5, 2.6, 1.0, 1.5, 1.5, 1.5, 1.5]
    given = values if mode == "min" else [10 - value for value in values]
    seen = values if mode == "min" else [value - 10 for value in values]
    state, rates = run(given, EVERY * (len(values) - 1), mode=mode)
    assert float(state.monitored) == seen[-1]
    factors = [1.0, *reference(values[:-1])] if mode == "min" else None
    if factors is not None:
        # The last step after an evaluation is the first with its factor.
        expected = [0.1 * factors[(i + 1) // EVERY] for i in range(len(rates))]
        np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[-1] < rates[0]


def test_a_resumed_run_has_the_monitored_value(tmp_path):
    values = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8]
    whole, _ = run(values, 20)
    run(values, 10, tmp_path)
    resumed, _ = run(values, 20, tmp_path)
    assert fc.train.digest(resumed) == fc.train.digest(whole)


def test_a_monitored_value_needs_a_monitor():
    init, step = fc.train.make_step(loss, optax.sgd(0.1), optimizer_value="monitor")
    state, data = (
        init({"w": jnp.ones(2, jnp.float32)}, jax.random.key(0)),
        fc.train.batches(np.zeros((8, 2), np.float32), 4),
    )
    with pytest.raises(fc.FuncconvError, match="give fit evaluate="):
        fc.train.fit(step, state, data, steps=2, progress=False)
    with pytest.raises(fc.FuncconvError, match='optimizer_value must be "loss" or "monitor"'):
        fc.train.make_step(loss, optax.sgd(0.1), optimizer_value="eval")

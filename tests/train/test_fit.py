"""The step: what it computes; the loop: that it can be ended anywhere and goes on as if nothing had been."""

import dataclasses
import gc
import io
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from available import needed
from compare import close as close_arrays
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv._checkpoints import record as _checkpoint_record
from funcconv._checkpoints import stored as _stored_checkpoints
from funcconv._checkpoints.folder import Checkpoints, digest
from funcconv.train._state import Scale
from funcconv.train._step import update as _update
from funcconv.train._step.compiled import CompiledStep

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32


TERMS = 24 * 3  # products that the loss of `problem` and its gradient sum


def close(found, expected, terms=TERMS, steps=1):
    jax.tree.map(partial(close_arrays, terms=terms, steps=steps, dtype=F32), found, expected)


def squares(params, batch, *, key, state):
    del key, state
    return jnp.square(batch["x"] @ params["w"] - batch["y"]).mean()


@pytest.fixture
def problem(rng):
    x = rng.normal(size=(24, 3)).astype(F32)
    return {"x": x, "y": x @ np.array([1, -2, 3], F32)}, {"w": jnp.asarray(rng.normal(size=3), F32)}


def begun(problem, optimizer=None, loss=squares, **options):
    batch, params = problem
    init, step = fc.train.make_step(loss, optimizer or optax.adam(0.1), **options)
    return jax.jit(step), init(params, jax.random.key(0)), batch


# the step ---------------------------------------------------------------------------------------------------


def test_a_step_is_optax(problem):
    step, state, batch = begun(problem)
    new_state, metrics = step(state, batch)
    optimizer = optax.adam(0.1)
    value, g = jax.value_and_grad(partial(squares, batch=batch, key=None, state=None))(state.params)
    updates, _ = optimizer.update(g, optimizer.init(state.params), state.params)
    close(new_state.params, optax.apply_updates(state.params, updates))
    close(metrics["loss"], value)
    close(metrics["grad_norm"], jnp.linalg.norm(g["w"]))
    assert int(new_state.step) == 1


@pytest.mark.parametrize("parts", [2, 3, 24])
def test_accumulation_is_the_whole_batch(problem, parts):
    whole, state, batch = begun(problem)
    cut, _, _ = begun(problem, accumulate=parts)
    (found, told), (expected, known) = cut(state, batch), whole(state, batch)
    close(found.params, expected.params)
    close(told["loss"], known["loss"])


def test_what_cannot_be_cut_is_refused(problem):
    step, state, batch = begun(problem, accumulate=5)
    with pytest.raises(fc.FuncconvError, match=r"batch of \[24\] cannot be cut into 5"):
        step(state, batch)


def test_keys_differ_by_step_part_and_run(problem):
    def loss(params, batch, *, key, state):
        del state
        return squares(params, batch, key=None, state=None) + 0 * params["w"].sum() + jax.random.normal(key, (), F32)

    step, state, batch = begun(problem, optax.sgd(0.0), loss)
    first, one = step(state, batch)
    _, two = step(first, batch)
    _, again = step(state, batch)
    assert float(one["loss"]) == float(again["loss"]) != float(two["loss"])


def test_frozen_parameters_stay(problem):
    batch, params = problem
    tree = {"trunk": {"w": params["w"]}, "head": {"w": params["w"]}}

    def loss(params, batch, *, key, state):
        return squares({"w": params["trunk"]["w"] + params["head"]["w"]}, batch, key=key, state=state)

    for pattern in ("trunk", "trunk/*", ["tr*/w"]):
        init, step = fc.train.make_step(loss, optax.adamw(0.1), frozen=pattern)
        new_state, _ = jax.jit(step)(init(tree, jax.random.key(0)), batch)
        assert (new_state.params["trunk"]["w"] == params["w"]).all()
        assert (new_state.params["head"]["w"] != params["w"]).all()
    init, _ = fc.train.make_step(loss, optax.sgd(0.1), frozen="tail/*")
    with pytest.raises(fc.FuncconvError, match=r"frozen pattern 'tail/\*' matches no parameter.*head/w, trunk/w"):
        init(tree, jax.random.key(0))


def test_the_moving_average(problem):
    step, state, batch = begun(problem, ema=0.75)
    first, _ = step(state, batch)
    close(first.ema["w"], 0.75 * state.params["w"] + 0.25 * first.params["w"], terms=2)


def test_clipping(problem):
    batch, params = problem
    step, state, _ = begun(problem, optax.sgd(1.0), clip=0.5)
    found, metrics = step(state, batch)
    moved = jnp.linalg.norm(found.params["w"] - params["w"])
    close(moved, F32(0.5), terms=3 + math.ceil(float(jnp.linalg.norm(params["w"]))))  # the difference of larger numbers
    assert float(metrics["grad_norm"]) > 0.5


def test_a_step_that_is_not_finite_is_left_out(problem):
    step, state, batch = begun(problem, ema=0.9)
    state, _ = step(state, batch)
    bad = {**batch, "y": np.where(np.arange(24) == 7, np.nan, batch["y"]).astype(F32)}
    after, metrics = step(state, bad)
    kept = (after.params, after.optimizer, after.ema)
    jax.tree.map(np.testing.assert_array_equal, kept, (state.params, state.optimizer, state.ema))
    assert (int(after.step), int(after.skipped), int(metrics["skipped"])) == (2, 1, 1)
    assert np.isfinite(float(step(after, batch)[1]["loss"]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16], ids=["bfloat16", "float16"])
def test_mixed_precision_keeps_float32(problem, dtype):
    seen = []

    def loss(params, batch, *, key, state):
        seen.append((params["w"].dtype, batch["x"].dtype))
        return squares(params, batch, key=key, state=state)

    step, state, batch = begun(problem, loss=loss, compute_dtype=dtype)
    exact, _, _ = begun(problem)
    state = state if state.scale is None else dataclasses.replace(state, scale=Scale(jnp.float32(64), state.step))
    new_state, metrics = step(state, batch)
    assert set(seen) == {(jnp.dtype(dtype), jnp.dtype(dtype))}
    assert {leaf.dtype for leaf in jax.tree.leaves((new_state.params, metrics["loss"]))} == {np.dtype(F32)}
    assert (new_state.scale is not None) == (dtype == np.float16)
    np.testing.assert_allclose(
        new_state.params["w"], exact(state, batch)[0].params["w"], rtol=8 * float(jnp.finfo(dtype).eps)
    )


def test_the_scale_falls_and_rises(problem, monkeypatch):
    monkeypatch.setattr(_update, "_GOOD_STEPS", 3)
    step, state, batch = begun(problem, optax.sgd(1e-3), compute_dtype=np.float16)
    large = {name: 10 * array for name, array in batch.items()}  # the gradient leaves float16 at first
    factors = []
    for _ in range(14):
        state, _ = step(state, large)
        factors.append(float(state.scale.factor))
    assert factors[0] < 2**15
    assert any(after > before for before, after in itertools.pairwise(factors))
    assert 0 < int(state.skipped) < 14


def test_a_fixed_scale_changes_nothing_in_float32(problem):
    plain, state, batch = begun(problem)
    scaled, _, _ = begun(problem, loss_scale=1024.0)
    close(scaled(state, batch)[0].params, plain(state, batch)[0].params)


def test_the_state_of_a_model_is_handed_on(problem):
    def loss(params, batch, *, key, state):
        value = squares(params, batch, key=key, state=None)
        return value, {"state": {"seen": state["seen"] + len(batch["x"])}, "root": jnp.sqrt(value)}

    batch, params = problem
    for parts in (1, 4):
        init, step = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True, accumulate=parts)
        state, metrics = jax.jit(step)(init(params, jax.random.key(0), {"seen": jnp.int32(0)}), batch)
        assert int(state.model["seen"]) == 24
        assert "root" in metrics
        assert "state" not in metrics


def test_a_state_of_other_entries_is_refused(problem):
    def loss(params, batch, *, key, state):
        return squares(params, batch, key=key, state=state), {"state": {"other": jnp.zeros(())}}

    step, state, batch = begun(problem, loss=loss, has_aux=True)
    with pytest.raises(fc.FuncconvError, match=r'must return a "state".*other'):
        step(state, batch)


def test_steps_in_a_scan_are_steps_in_a_loop(problem):
    step, state, batch = begun(problem)
    looped = state
    for _ in range(5):
        looped, _ = step(looped, batch)
    scanned, metrics = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, batch), state, length=5))(state)
    assert metrics["loss"].shape == (5,)
    close(scanned.params, looped.params, steps=5)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("parts", [1, 3])
def test_a_batch_spread_over_devices(problem, parts):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    single, state, batch = begun(problem)
    spread, _, _ = begun(problem, mesh=mesh, accumulate=parts)
    everywhere = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    new_state, metrics = spread(everywhere, batch)
    expected, known = single(state, batch)
    close(new_state.params, expected.params)
    close(metrics["loss"], known["loss"])
    data = fc.train.batches(batch, 8, jax.random.key(0), sharding=NamedSharding(mesh, PartitionSpec("data")))
    taken = next(data)
    assert len(taken["x"].sharding.device_set) == 4
    close(taken["x"], data[0]["x"], terms=0)


@pytest.fixture
def network_problem(rng):
    x = fc.Input("x", (8, 8, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(8, 3, bias=False), fc.BatchNorm(), jnp.tanh, fc.Flatten(), fc.Dense(4))(x))

    def loss(params, batch, *, key, state):
        del key
        y, state = graph.apply(params, state, batch["x"], train=True)
        return jnp.square(y - batch["y"]).mean(), {"state": state}

    batch = {"x": rng.normal(size=(8, 8, 8, 2)).astype(F32), "y": rng.normal(size=(8, 4)).astype(F32)}
    return graph, loss, batch


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_parameters_spread_over_devices(network_problem, compilations):
    """By batch and by model: each step is that of one device, and everything stays where it was put."""
    graph, loss, batch = network_problem
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    by_output = PartitionSpec(None, "model")
    partition = {"conv*/kernel": PartitionSpec(None, None, None, "model"), "dense1/kernel": by_output}
    whole, spread = (
        fc.train.make_step(loss, optax.sgd(0.1, momentum=0.9), ema=0.9, has_aux=True, frozen="dense1/bias", **options)
        for options in ({}, {"mesh": mesh, "partition": partition})
    )
    states = []
    for init, step in (whole, spread):
        state = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())
        compiled = fc.train.compile(step)
        state, metrics = compiled(state, batch)
        count = len(compilations)
        for _ in range(2):
            state, metrics = compiled(state, batch)
        assert len(compilations) == count
        states.append((state, metrics))
    terms = 8 * 6 * 6  # examples and positions, of which the batch norm and the gradient of the kernel are sums
    for spread_tree, tree in ((states[1][0].params, states[0][0].params), (states[1][0].model, states[0][0].model)):
        close(jax.device_get(spread_tree), tree, terms=terms, steps=3)
    state = states[1][0]
    for tree in (state.params, state.ema):
        assert tree["dense1"]["kernel"].sharding.spec == by_output
        assert tree["batch_norm1"]["scale"].sharding.is_fully_replicated
    spreads = {leaf.shape: leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.optimizer)}
    assert spreads == {(8,): True, (3, 3, 2, 8): False, (288, 4): False}


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_a_spread_state_is_saved_and_read(network_problem, tmp_path):
    graph, loss, batch = network_problem
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    options = {"mesh": mesh, "partition": {"dense1/kernel": PartitionSpec("model")}, "has_aux": True}
    init, step = fc.train.make_step(loss, optax.adam(0.1), **options)
    state = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())

    def run(steps, **options):
        data = fc.train.batches(batch, 4, jax.random.key(0), sharding=NamedSharding(mesh, PartitionSpec("data")))
        return fc.train.fit(step, state, data, steps=steps, progress=False, **options)[0]

    run(3, checkpoint=tmp_path)
    resumed = run(6, checkpoint=tmp_path)
    assert fc.train.digest(resumed) == fc.train.digest(run(6))
    assert resumed.params["dense1"]["kernel"].sharding.spec == PartitionSpec("model")


@pytest.mark.parametrize(
    ("partition", "said"),
    [
        ({"dens/kernel": PartitionSpec()}, "partition pattern 'dens/kernel' matches no parameter"),
        ({"dense1/bias": PartitionSpec(None, "model")}, r"'dense1/bias' has shape \(4,\), which has fewer axes"),
        ({"dense1/*": PartitionSpec("modle")}, "spreads 'dense1/bias' over 'modle', but the axes of the mesh are"),
        (
            {"conv1/kernel": PartitionSpec("model")},
            r"'conv1/kernel' has shape \(3, 3, 2, 8\), of which 3 cannot be cut",
        ),
    ],
)
@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_what_cannot_be_spread_is_refused(network_problem, partition, said):
    graph, loss, _ = network_problem
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    init, _ = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True, mesh=mesh, partition=partition)
    with pytest.raises(fc.FuncconvError, match=said):
        init(graph.init(jax.random.key(0)), jax.random.key(1))
    with pytest.raises(fc.FuncconvError, match="give mesh="):
        fc.train.make_step(loss, optax.sgd(0.1), partition=partition)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate": 0}, "accumulate"),
        ({"ema": 1.0}, "ema"),
        ({"clip": -1}, "clip"),
        ({"loss_scale": "big"}, "scale"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.make_step(squares, optax.sgd(0.1), **options)


def test_a_loss_that_is_not_a_mean(problem):
    step, state, batch = begun(problem, loss=lambda params, batch, **_: batch["x"] @ params["w"])
    with pytest.raises(fc.FuncconvError, match=r"scalar.*float32 of shape \(24,\)"):
        step(state, batch)


def test_keys_of_old_are_refused(problem):
    init, _ = fc.train.make_step(squares, optax.sgd(0.1))
    with pytest.raises(fc.FuncconvError, match=r"jax.random.key"):
        init(problem[1], jax.random.PRNGKey(0))


# batches ----------------------------------------------------------------------------------------------------


def test_an_epoch_has_each_example_once():
    data = fc.train.batches({"x": np.arange(10)}, 5, jax.random.key(3), epochs=3)
    assert repr(data) == "Batches(10 examples, batches of 5, next batch 0)"
    epochs = np.stack([epoch_batch["x"] for epoch_batch in data]).reshape(3, 10)
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert len({tuple(row) for row in epochs.tolist()}) == 3


def test_the_rest_of_an_epoch():
    kept = fc.train.batches(np.arange(10), 4, epochs=1, drop_last=False)
    assert [epoch_part.tolist() for epoch_part in kept] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len([*fc.train.batches(np.arange(10), 4, epochs=1)]) == 2


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_batches_are_found_again(prefetch):
    make = partial(fc.train.batches, np.arange(12), 5, jax.random.key(0), drop_last=False, prefetch=prefetch)
    through = make()
    expected = [next(through).tolist() for _ in range(7)]
    again = make().seek(4)
    assert [next(again).tolist() for _ in range(3)] == expected[4:]
    assert again.position == 7


def test_shards_make_up_the_batch():
    make = partial(fc.train.batches, np.arange(12), 6, jax.random.key(0))
    parts = [next(make(shard=(i, 3))).tolist() for i in range(3)]
    assert [*parts[0], *parts[1], *parts[2]] == next(make()).tolist()


@pytest.mark.parametrize(
    ("arrays", "size", "options", "said"),
    [
        ({"x": np.ones(3), "y": np.ones(4)}, 1, {}, r"one length.*\(3,\), \(4,\)"),
        ({}, 1, {}, "their shapes are none"),
        (np.ones(3), 4, {}, "at most the 3 examples"),
        (np.ones(3), 0, {}, "batch_size must be at least 1"),
        (np.ones(8), 4, {"shard": (0, 3)}, "cuts a batch"),
    ],
)
def test_batches_refused(arrays, size, options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.batches(arrays, size, **options)


# the loop ---------------------------------------------------------------------------------------------------


def run(problem, steps, **options):
    batch, params = problem
    init, step = fc.train.make_step(squares, optax.adam(0.1))
    data = fc.train.batches(batch, 8, jax.random.key(5))
    options = {"progress": False, **options}
    return fc.train.fit(step, init(params, jax.random.key(0)), data, steps=steps, **options)


def test_the_loop_is_the_steps(problem):
    state, history = run(problem, 12)
    step, expected, batch = begun(problem)
    data = fc.train.batches(batch, 8, jax.random.key(5))
    for _ in range(12):
        expected, _ = step(expected, next(data))
    close(state.params, expected.params, terms=8 * 3, steps=12)
    assert history.steps("loss") == [*range(1, 13)]
    assert history.compilations == 1


@pytest.mark.parametrize("log", ["log.jsonl", None])
def test_going_on_is_never_having_stopped(problem, tmp_path, log):
    logs = {"log": tmp_path / log} if log else {}
    whole, history = run(problem, 23, **logs)
    folder = tmp_path / "run"
    other = {"log": tmp_path / "parts.jsonl"} if log else {}
    for steps in (7, 7, 16, 23):
        state, parts = run(problem, steps, checkpoint=folder, checkpoint_every=5, **other)
    assert digest(state) == digest(whole)
    if log:
        assert parts.records == history.records
        assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "log.jsonl").read_text()


def test_the_given_state_can_be_used_again(problem):
    batch, params = problem
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    state = init(params, jax.random.key(0))
    for _ in range(2):
        fc.train.fit(step, state, fc.train.batches(batch, 8), steps=2, progress=False)
    assert float(params["w"].sum()) == float(state.params["w"].sum())


def test_early_stopping_and_the_best(problem, tmp_path):
    values = iter([3.0, 1.0, 2.0, 2.5, 0.5])
    state, history = run(
        problem,
        40,
        evaluate=lambda _: {"error": next(values)},
        every=4,
        patience=2,
        monitor="error",
        checkpoint=tmp_path,
        checkpoint_every=4,
        keep=1,
    )
    assert history["eval/error"] == [3.0, 1.0, 2.0, 2.5]
    assert history.stopped == "error was not better in 2 evaluations, at step 16"
    with closing(Checkpoints(tmp_path)) as checkpoints:
        assert checkpoints.steps == (8, 16)
    assert int(state.step) == 16


def test_batches_that_end_and_batches_that_raise(problem, tmp_path):
    batch, params = problem
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    fit = partial(fc.train.fit, step, init(params, jax.random.key(0)), progress=False)
    state, history = fit(fc.train.batches(batch, 8, epochs=1), steps=9)
    assert (int(state.step), history.stopped) == (3, "there were no more batches after step 3")

    def failing():
        yield from (batch, batch)
        msg = "the disk is gone"
        raise OSError(msg)

    with pytest.raises(OSError, match="the disk is gone"):
        fit(failing(), steps=9, checkpoint=tmp_path)
    assert int(fc.train.restore(tmp_path, init(params, jax.random.key(0))).step) == 2


def test_a_batch_of_another_shape_is_told_of(problem):
    batch, params = problem
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    smaller = {name: array[:10] for name, array in batch.items()}
    with pytest.warns(UserWarning, match=r"compiled again at step 2 \(2 times by now\): .*float32\[10"):
        _, history = fc.train.fit(
            step, init(params, jax.random.key(0)), iter([batch, smaller]), steps=2, progress=False
        )
    assert history.compilations == 2


def test_iterators_with_a_state_are_set_to_it(problem, tmp_path):
    batch, params = problem

    class Counting:
        def __init__(self):
            self.at = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.at += 1
            return {name: (1 + self.at) * array for name, array in batch.items()}

        def get_state(self):
            return json.dumps({"at": self.at}).encode()

        def set_state(self, state):
            self.at = json.loads(state)["at"]

    init, step = fc.train.make_step(squares, optax.sgd(1e-4))
    fit = partial(fc.train.fit, step, init(params, jax.random.key(0)), progress=False)
    fit(Counting(), steps=3, checkpoint=tmp_path)
    state, _ = fit(Counting(), steps=6, checkpoint=tmp_path)
    whole, _ = fit(Counting(), steps=6)
    assert digest(state) == digest(whole)
    with pytest.raises(fc.FuncconvError, match="must be an iterator"):
        fit([batch] * 9, steps=9, checkpoint=tmp_path)


def test_several_logs(problem, tmp_path):
    readers = needed("tensorboardX.record_loader")
    del readers
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    state, seen = init(problem[1], jax.random.key(0)), []

    def run(steps):
        data = fc.train.batches(problem[0], 8, jax.random.key(0))
        logs = [tmp_path / "log.jsonl", fc.train.TensorBoard(tmp_path / "board"), seen.append]
        return fc.train.fit(
            step, state, data, steps=steps, checkpoint=tmp_path / "run", checkpoint_every=2, progress=False, log=logs
        )

    run(4)
    _, history = run(6)
    assert history.steps("loss") == [1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in seen] == [1, 2, 3, 4, 5, 6]
    files = sorted((tmp_path / "board").iterdir())
    assert len(files) >= 1
    assert b"grad_norm" in b"".join(path.read_bytes() for path in files)


def test_grain_goes_on_where_it_was(problem, tmp_path):
    grain = needed("grain")
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    state = init(problem[1], jax.random.key(0))
    x, y = problem[0]["x"], problem[0]["y"]

    def run(steps, **options):
        data = grain.MapDataset.range(len(x)).seed(0).shuffle().map(lambda i: {"x": x[i], "y": y[i]}).repeat()
        data = iter(data.batch(8).to_iter_dataset())
        return fc.train.fit(step, state, data, steps=steps, progress=False, **options)[0]

    run(4, checkpoint=tmp_path)
    assert fc.train.digest(run(9, checkpoint=tmp_path)) == fc.train.digest(run(9))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_is_shown(problem, monkeypatch, stream):
    """Also that the step is being compiled; then the bar is shown at once, though the next update may be far away."""
    monkeypatch.setattr(sys, "stderr", stream())
    begin, at_first_step = CompiledStep.__call__, []

    def call(*arguments):
        results = begin(*arguments)
        at_first_step.append(len(sys.stderr.getvalue()))
        return results

    monkeypatch.setattr(CompiledStep, "__call__", call)
    run(problem, 5, progress=True)
    shown = sys.stderr.getvalue()
    compiling, then = shown[: at_first_step[0]], shown[at_first_step[0] :]
    assert "0/5" in compiling
    assert "compiling..." in compiling.split("\r")[-1]
    assert "compiling" not in then
    assert "0/5" in then.split("\r")[1]
    assert "5/5" in then
    assert "loss=" in then


def test_no_progress_is_shown(problem, tmp_path, capsys):
    """If it is not asked for, and no compilation if there is none."""
    run(problem, 2, checkpoint=tmp_path)
    assert not capsys.readouterr().err
    run(problem, 2, checkpoint=tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "compiling" not in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [({"every": 0}, "every"), ({"patience": 2}, "patience needs"), ({"keep": 0}, "keep")],
)
def test_options_of_the_loop_out_of_range(problem, options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        run(problem, 3, **options)


# damage -----------------------------------------------------------------------------------------------------


def damaged(folder, how):
    for path in folder.rglob("*"):
        if path.is_file() and how != "missing":
            content = path.read_bytes()
            place = len(content) // 2
            flipped = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :] if content else b""
            path.write_bytes(content[:place] if how == "truncated" else flipped)
        elif path.is_file():
            path.unlink()


@pytest.fixture
def rest_of_a_failed_read():
    """What orbax leaves to the garbage collector where a read fails: it is told of as it goes."""
    yield
    gc.collect()


unraisable = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@unraisable
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_the_checkpoint_before_a_damaged_one_is_taken(problem, tmp_path, how):
    whole, _ = run(problem, 20)
    run(problem, 12, checkpoint=tmp_path, checkpoint_every=5)
    damaged(tmp_path / "12" / "state", how)
    with pytest.warns(UserWarning, match="step 12 .* damaged"):
        state, history = run(problem, 20, checkpoint=tmp_path, checkpoint_every=5)
    assert history.steps("loss")[0] == 11
    assert digest(state) == digest(whole)


@unraisable
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.usefixtures("rest_of_a_failed_read")
def test_a_damaged_checkpoint_is_written_again(problem, tmp_path):
    state, _ = run(problem, 10, checkpoint=tmp_path, checkpoint_every=5)
    damaged(tmp_path / "10" / "state", "flipped")
    with pytest.warns(UserWarning, match="step 10 .* damaged"):
        run(problem, 10, checkpoint=tmp_path, checkpoint_every=5)
    assert digest(fc.train.restore(tmp_path, state, 10)) == digest(state)


def test_what_is_saved_again_replaces(tmp_path):
    for value in (1.0, 2.0):
        fc.train.save(tmp_path, {"w": jnp.full(2, value)})
    assert fc.train.restore(tmp_path, {"w": jnp.zeros(2)})["w"].tolist() == [2.0, 2.0]


@unraisable
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.usefixtures("rest_of_a_failed_read")
@unraisable
@pytest.mark.usefixtures("rest_of_a_failed_read")
def test_what_was_saved_stays_when_the_disk_is_full(problem, tmp_path):
    """A limit on the size of files stands for a full disk: the run ends with a clear error, and goes on from before."""
    resource = pytest.importorskip("resource")
    rng = np.random.default_rng(0)
    params = {"w": problem[1]["w"], "large": jnp.asarray(rng.normal(size=100_000), F32)}
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    state = init(params, jax.random.key(0))

    def run(steps, **options):
        data = fc.train.batches(problem[0], 8, jax.random.key(0))
        return fc.train.fit(step, state, data, steps=steps, progress=False, **options)[0]

    run(5, checkpoint=tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
    try:
        with pytest.raises(fc.FuncconvError, match="could not be written to"):
            run(10, checkpoint=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert fc.train.digest(run(10, checkpoint=tmp_path)) == fc.train.digest(run(10))
    gc.collect()  # orbax leaves closed event loops


def test_what_a_checkpoint_says_of_itself(problem, tmp_path):
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    state, x = init(problem[1], jax.random.key(0)), fc.Input("x", (3,))
    graph = fc.Graph(x, fc.Dense(1)(x))

    def run(steps, **about):
        data = fc.train.batches(problem[0], 8, jax.random.key(0))
        return fc.train.fit(step, state, data, steps=steps, progress=False, checkpoint=tmp_path, about=about)[0]

    resumed = run(3, architecture=graph.to_json())
    told = fc.train.about(tmp_path)
    assert told["step"] == 3
    assert told["versions"]["jax"] == jax.__version__
    assert told["digest"] == fc.train.digest(resumed)
    assert told["arrays"]["params/w"] == "float32[3]"
    assert fc.Graph.from_json(told["about"]["architecture"]) == graph
    with pytest.raises(fc.FuncconvError, match=r"does not fit:\n  architecture: .*nothing expected"):
        run(4)
    with pytest.raises(fc.FuncconvError, match="no checkpoint of step 9 that can be read; the last are 3"):
        fc.train.about(tmp_path, 9)


def test_other_versions_are_told(problem, tmp_path, monkeypatch):
    _, state, _ = begun(problem)
    fc.train.save(tmp_path, state)
    for module in (_stored_checkpoints, _checkpoint_record):
        monkeypatch.setattr(module, "versions", lambda: {"jax": "9.9"})
    with pytest.warns(UserWarning, match=r"other versions.*: jax was \S+, is 9.9"):
        fc.train.restore(tmp_path, state)


@unraisable
@pytest.mark.usefixtures("rest_of_a_failed_read")
def test_each_bit_counts(problem, tmp_path):
    """Whatever byte of the arrays' files is flipped: it is noticed, or makes no difference."""
    state, _ = run(problem, 3, checkpoint=tmp_path)
    files = [path for path in (tmp_path / "3" / "state").rglob("*") if path.is_file() and path.stat().st_size]
    random = np.random.default_rng(0)
    for path in files:
        content = path.read_bytes()
        place = random.integers(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with warnings.catch_warnings(), closing(Checkpoints(tmp_path)) as checkpoints:
            warnings.simplefilter("ignore")
            restored = checkpoints.restore(state)
        assert restored is None or digest(restored[1]) == digest(state)
        path.write_bytes(content)
    gc.collect()


def test_a_checkpoint_of_something_else_is_refused(problem, tmp_path):
    run(problem, 3, checkpoint=tmp_path)
    batch, _ = problem
    init, step = fc.train.make_step(squares, optax.sgd(0.1))
    with pytest.raises(fc.FuncconvError, match=r"params/w: float32\[3\] in the checkpoint, float32\[4\] expected"):
        fc.train.fit(
            step,
            init({"w": jnp.ones(4, F32)}, jax.random.key(0)),
            fc.train.batches(batch, 8),
            steps=5,
            checkpoint=tmp_path,
            progress=False,
        )


def test_a_folder_that_cannot_be_made(problem, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(fc.FuncconvError, match=r"no checkpoints can be kept|cannot be a path"):
        run(problem, 3, checkpoint=tmp_path / "file" / "run")


# ends from outside ------------------------------------------------------------------------------------------

SCRIPT = """
import sys, warnings
import jax, jax.numpy as jnp, numpy as np, optax
import funcconv as fc

def loss(params, batch, *, key, state):
    noise = jax.random.normal(key, batch["y"].shape, batch["y"].dtype)
    return jnp.square(batch["x"] @ params["w"] - batch["y"] + 0.1 * noise).mean()

def slowly(batches):  # so that there is time to be killed
    import time
    class Slow(type(batches)):
        def __next__(self):
            time.sleep(0.01)
            return super().__next__()
    batches.__class__ = Slow
    return batches

x = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
init, step = fc.train.make_step(loss, optax.adam(0.01))
data = fc.train.batches({"x": x, "y": x.sum(1)}, 16, jax.random.key(5))
state, history = fc.train.fit(
    step, init({"w": jnp.zeros(200, jnp.float32)}, jax.random.key(0)), slowly(data) if sys.argv[2] == "slow" else data,
    steps=120, checkpoint=sys.argv[1] + "/run", checkpoint_every=3, log=sys.argv[1] + "/log.jsonl", progress=False)
from funcconv.train import digest
print(int(state.step), digest(state), history.stopped)
"""


def start(folder, pace):
    environment = {**os.environ, "PYTHONPATH": str(Path(fc.__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), pace],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def killed_and_restarted(folder, times, random):
    """Return what a run says at its end that was killed so often, and its log."""
    for _ in range(times):
        process = start(folder, "slow")
        deadline = time.monotonic() + 120
        while not (folder / "log.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.uniform(0.0, 0.8))
        process.kill()
        process.communicate()
    said, trouble = start(folder, "fast").communicate()
    assert said, trouble
    return said.split()[:2], (folder / "log.jsonl").read_text()


def undisturbed(folder):
    folder.mkdir()
    said, trouble = start(folder, "fast").communicate()
    assert said, trouble
    return said.split()[:2], (folder / "log.jsonl").read_text()


@pytest.mark.parametrize("times", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment(tmp_path, times):
    (tmp_path / "killed").mkdir()
    restarted = killed_and_restarted(tmp_path / "killed", times, np.random.default_rng())
    assert restarted == undisturbed(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_runs_save_and_go_on(tmp_path, number):
    process = start(tmp_path, "slow")
    while not (tmp_path / "log.jsonl").exists() or (tmp_path / "log.jsonl").read_text().count("\n") < 8:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(number)
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble
    done, _, *why = said.split()
    assert 8 <= int(done) < 120
    assert why[:2] == ["interrupted", "after"]
    output, _ = start(tmp_path, "fast").communicate()
    assert output.split()[0] == "120"

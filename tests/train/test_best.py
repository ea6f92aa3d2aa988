"""The best weights: which evaluation is the best, and that its state is returned, kept and read."""

import contextlib
import math
import os
import shutil
import signal
from contextlib import closing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import flipped_bits
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv._checkpoints.folder import Checkpoints

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

EVERY = 2
VALUES = [3.0, 1.0, math.nan, 2.0, 1.0, 4.0]  # of the evaluations after steps 2, 4, ...; the first 1.0 is the smallest
SCORES = [3.0, 8.0, math.nan, 2.0, 8.0, 4.0]


def distance(params, batch, *, key, state):
    del state
    return jnp.square(params["w"] - batch + 0.1 * jax.random.normal(key, batch.shape, batch.dtype)).mean()


def trained(folder=None, values=VALUES, steps=12, loss=distance, mesh=None, has_aux=False, evaluate=None, **options):
    """Return the state and the history of a run whose evaluations have these values."""
    if evaluate is None and values is not None:
        evaluate = lambda state: {"error": values[int(state.step) // EVERY - 1]}  # noqa: E731
    partition = {"w": PartitionSpec("data")} if mesh else None
    init, step = fc.train.make_step(loss, optax.adam(0.1), ema=0.9, mesh=mesh, partition=partition, has_aux=has_aux)
    data = fc.train.batches(np.arange(64, dtype=np.float32).reshape(8, 8), 8, jax.random.key(2))
    state = init({"w": jnp.zeros(8)}, jax.random.key(0))
    options = {"monitor": "error", "keep": "best", "every": EVERY, "checkpoint_every": 3} | options
    return fc.train.fit(step, state, data, steps=steps, evaluate=evaluate, checkpoint=folder, progress=False, **options)


def after(steps):
    """Return the digest of the state after some steps."""
    return fc.train.digest(trained(values=None, steps=steps, monitor=None, keep=3)[0])


def steps_in(folder):
    return sorted(int(name) for name in os.listdir(folder) if name.isdigit())


@pytest.mark.parametrize(("mode", "values", "value"), [("min", VALUES, 1.0), ("max", SCORES, 8.0)])
@pytest.mark.parametrize("monitor", ["error", "eval/error"])
@pytest.mark.parametrize("in_folder", [True, False])
def test_the_best_state_is_returned(tmp_path, mode, values, value, monitor, in_folder):
    """The training steps after it do not change it; the earlier of two equal values is the best."""
    folder = tmp_path / "run" if in_folder else None
    state, history = trained(folder, values, mode=mode, monitor=monitor)
    assert int(state.step) == 4
    assert fc.train.digest(state) == after(4)
    assert history.best == (4, value)
    assert (history.best.step, history.best.value) == (4, value)
    assert f", best={value:g} at step 4)" in repr(history)
    assert history.steps("loss")[-1] == 12
    again, history = trained(folder, values, mode=mode, monitor=monitor)
    assert fc.train.digest(again) == fc.train.digest(state)
    assert history.best == (4, value)


def test_the_last_state_and_the_best_evaluation():
    state, history = trained(keep=3)
    assert int(state.step) == 12
    assert history.best == (4, 1.0)
    _, history = trained(keep=3, monitor=None)
    assert history.best is None


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 2.0], [3.0, 1.0, math.nan, math.inf]])
def test_early_stopping_returns_the_best(tmp_path, values, in_folder):
    folder = tmp_path if in_folder else None
    state, history = trained(folder, [*values, 0.0, 0.0], patience=2)
    assert history.stopped == "error was not better in 2 evaluations, at step 8"
    assert history.best == (4, 1.0)
    assert fc.train.digest(state) == after(4)
    if folder:
        assert int(fc.train.restore(folder, state).step) == 8
        again, history = trained(folder, [*values, 0.0, 0.0], patience=2, steps=20)
        assert fc.train.digest(again) == fc.train.digest(state)


def test_the_best_state_is_kept_and_read(tmp_path):
    state, _ = trained(tmp_path)
    assert steps_in(tmp_path) == [4, 6, 9, 12], "the last three, and the best"
    for which, step in {"best": 4, "last": 12, 6: 6, np.int64(9): 9}.items():
        restored = fc.train.restore(tmp_path, state, which=which)
        assert fc.train.digest(restored) == after(step)
        assert fc.train.about(tmp_path, which=which)["step"] == step
    assert int(fc.train.restore(tmp_path, state).step) == fc.train.about(tmp_path)["step"] == 12
    for read in (partial(fc.train.restore, tmp_path, state), partial(fc.train.about, tmp_path)):
        with pytest.raises(fc.FuncconvError, match="step 5 that can be read; the last are 4, 6, 9, 12"):
            read(which=5)
        with pytest.raises(fc.FuncconvError, match='which must be "best", "last" or the step of a checkpoint; got'):
            read(which="bets")


def test_a_folder_without_a_best_checkpoint(tmp_path):
    like = {"w": np.ones(2)}
    with pytest.raises(fc.FuncconvError, match="there is no folder"):
        fc.train.restore(tmp_path / "run", like, "best")
    (tmp_path / "run").mkdir()
    with pytest.raises(fc.FuncconvError, match="has no checkpoint that can be read"):
        fc.train.restore(tmp_path / "run", like, "best")
    for step in range(12):
        fc.train.save(tmp_path / "run", like, step)
    said = "of step 11, does not say which one is the best: .* The last are 2, 3, .*, 10, 11. Pass one of these, or"
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.restore(tmp_path / "run", like, "best")


def test_a_reader_finds_the_next_best_if_one_is_replaced(tmp_path, monkeypatch):
    """A running `fit` removes the best checkpoint between two actions of a reader."""
    like = {"w": np.ones(2)}
    with closing(Checkpoints(tmp_path, keep=1, asynchronous=False)) as checkpoints:
        checkpoints.save(1, like, {"best_at": 1})
        restore = fc._checkpoints.save.StoredCheckpoints.restore

        def slow(stored, like, step):
            if step == 1:
                checkpoints.save(2, like, {"best_at": 2})
            return restore(stored, like, step)

        monkeypatch.setattr(fc._checkpoints.save.StoredCheckpoints, "restore", slow)
        assert fc.train.restore(tmp_path, like, "best")["w"].tolist() == [1, 1]
        assert checkpoints.steps == (2,)


@pytest.mark.parametrize("first", [5, 6, 8])
def test_more_steps_continue_from_the_last_state(tmp_path, first):
    """Not from the best one, which the call before returned."""
    values = [2.0, 1.0, 3.0, 4.0, 0.5, 6.0]
    evaluate = lambda state: {"error": values[int(state.step) // EVERY - 1] if int(state.step) % 2 == 0 else 9.0}  # noqa: E731
    state, _ = trained(tmp_path, steps=first, evaluate=evaluate)
    assert int(state.step) == 4
    state, history = trained(tmp_path, steps=12, evaluate=evaluate)
    assert fc.train.digest(state) == after(10)
    assert history.best == (10, 0.5)
    assert history.steps("loss")[0] == first + 1
    state, _ = trained(tmp_path, steps=12, evaluate=evaluate, keep=2)
    assert fc.train.digest(state) == after(12)


def test_without_a_folder_a_later_call_continues_from_the_state_that_it_is_given():
    init, step = fc.train.make_step(distance, optax.adam(0.1))
    fit = partial(fc.train.fit, step, every=EVERY, monitor="error", keep="best", progress=False)
    data = fc.train.batches(np.ones((8, 8), np.float32), 8)
    evaluate = lambda state: {"error": abs(int(state.step) - 4)}  # noqa: E731
    state, _ = fit(init({"w": jnp.zeros(8)}, jax.random.key(0)), data, steps=8, evaluate=evaluate)
    assert int(state.step) == 4
    state, history = fit(state, data, steps=6, evaluate=evaluate)
    assert history.steps("loss") == [5, 6]
    assert int(state.step) == 6


@pytest.mark.parametrize("in_folder", [True, False])
def test_no_number_is_never_the_best(tmp_path, in_folder):
    folder = tmp_path if in_folder else None
    with pytest.warns(UserWarning, match='keep="best" found no best state, because no evaluation .* last state'):
        state, history = trained(folder, [math.nan] * 6)
    assert int(state.step) == 12
    assert history.best is None
    if folder:
        with pytest.raises(fc.FuncconvError, match="does not say which one is the best"):
            fc.train.restore(folder, state, "best")
    state, history = trained(None, [math.nan, math.inf, math.nan, math.inf, math.nan, math.nan])
    assert history.best == (4, math.inf)
    assert int(state.step) == 4
    state, history = trained(None, [math.nan, math.inf, -math.inf, 0.0, math.inf, 1.0], mode="max")
    assert history.best == (4, math.inf)


def test_an_interrupted_run_returns_the_best_so_far(tmp_path):
    def evaluate(state):
        if int(state.step) == 8:
            signal.raise_signal(signal.SIGINT)
        return {"error": VALUES[int(state.step) // EVERY - 1]}

    state, history = trained(tmp_path, evaluate=evaluate)
    assert history.stopped == "interrupted after step 8"
    assert fc.train.digest(state) == after(4)
    assert int(fc.train.restore(tmp_path, state).step) == 8
    with pytest.warns(UserWarning, match="found no best state"):
        state, history = trained(steps=0)
    assert int(state.step) == 0


def test_a_sharded_state(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    for folder in (tmp_path, None):
        state, _ = trained(folder, mesh=mesh)
        assert int(state.step) == 4
        assert state.params["w"].sharding == NamedSharding(mesh, PartitionSpec("data"))
        assert fc.train.digest(state) == fc.train.digest(trained(None, steps=4, mesh=mesh, keep=3)[0])


# the monitored metric -------------------------------------------------------------------------------------------------


def with_accuracy(params, batch, *, key, state):
    return distance(params, batch, key=key, state=state), {"accuracy": jnp.float32(0)}


WRONG = [  # options, the metrics that `evaluate` returns, and what the error says
    ({"monitor": "errors"}, {"error": 1.0}, "monitor is 'errors', but evaluate gave error; did you mean 'error'"),
    ({"monitor": "eval/errors"}, {"error": 1.0}, "monitor is 'eval/errors', but evaluate gave error; did you mean"),
    ({}, {}, "monitor is 'error', but evaluate gave nothing"),
    ({"monitor": "eval/a"}, {"a": 1.0, "eval/a": 2.0}, "evaluate gave 'eval/a' and 'a'. Rename one"),
    ({"monitor": "loss"}, {"loss": 1.0}, "monitor is 'loss', which each training step reports .*monitor='eval/loss'"),
    ({"monitor": "loss"}, {"error": 1.0}, "and return 'loss' from evaluate"),
    ({"monitor": "accuracy", "has_aux": True, "loss": with_accuracy}, {"accuracy": 1.0}, "monitor='eval/accuracy'"),
    ({"monitor": "-error"}, {"error": 1.0}, "got '-error'. Pass monitor='error', mode=\"max\""),
    ({"mode": "maximum"}, {"error": 1.0}, "mode must be one of 'min', 'max'; got 'maximum'; did you mean 'max'"),
    ({"mode": None}, {"error": 1.0}, "mode must be one of 'min', 'max'; got None"),
    ({"mode": "max", "monitor": None, "keep": 3}, {}, "mode='max' needs monitor="),
    ({"monitor": None}, {"error": 1.0}, 'keep="best" needs evaluate=, and the name of one of its metrics as monitor='),
    ({"keep": "bets"}, {"error": 1.0}, "keep must be an integer of at least 1, or \"best\"; got 'bets'"),
    ({"keep": 0}, {"error": 1.0}, 'keep must be at least 1, or "best"; got 0'),
    ({"keep": np.ones(2)}, {"error": 1.0}, "keep must be an integer of at least 1"),
]


@pytest.mark.parametrize(("options", "metrics", "said"), WRONG)
def test_what_cannot_be_monitored(options, metrics, said):
    with pytest.raises(fc.FuncconvError, match=said):
        trained(evaluate=lambda _: metrics, **options)


def test_monitor_needs_evaluate():
    with pytest.raises(fc.FuncconvError, match="monitor='error' needs evaluate="):
        trained(values=None, keep=3)


def test_names_that_are_clear():
    for name, options in {
        "accuracy": {"monitor": "eval/accuracy", "has_aux": True, "loss": with_accuracy},
        "loss": {"monitor": "eval/loss"},
        "eval/x": {"monitor": "eval/x"},
        "eval/y": {"monitor": "eval/eval/y"},
    }.items():
        _, history = trained(evaluate=lambda state, name=name: {name: float(state.step), "z": 0.0}, **options)
        assert history.best == (2, 2.0)
    _, history = trained(evaluate=lambda _: {"a": 1.0, "eval/a": 2.0}, monitor="a")
    assert history.best == (2, 1.0)


def test_an_unclear_name_is_refused_again(tmp_path):
    """Also if the call resumes a run, and evaluates before it has trained a step."""
    for _ in range(2):
        with pytest.raises(fc.FuncconvError, match="monitor is 'loss', which each training step reports"):
            trained(tmp_path, evaluate=lambda _: {"loss": 1.0}, monitor="loss", every=1)


def test_a_changed_monitor(tmp_path):
    """The best value of another metric is forgotten; another spelling is no change."""
    metrics = lambda state: {"a": VALUES[int(state.step) // EVERY - 1], "b": float(state.step)}  # noqa: E731
    run = partial(trained, tmp_path, evaluate=metrics)
    run(steps=8, monitor="a")
    _, history = run(steps=8, monitor="eval/a", on_change="raise")
    assert history.best == (4, 1.0)
    with pytest.warns(UserWarning, match=r"monitor: a then, a \(max\) now"):
        _, history = run(steps=10, monitor="a", mode="max")
    assert history.best == (10, 1.0)
    with pytest.warns(UserWarning, match=r"monitor: a \(max\) then, b now"):
        _, history = run(steps=12, monitor="b")
    assert history.best == (12, 12.0)


# damage ---------------------------------------------------------------------------------------------------------------


def damage(folder, rng):
    """Flip a bit of each file of a checkpoint."""
    for path in folder.rglob("*"):
        if path.is_file() and (content := path.read_bytes()):
            path.write_bytes(next(flipped_bits(content, rng, 1))[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.parametrize("part", [".", "state", "missing"])
def test_a_damaged_best_checkpoint(tmp_path, rng, part):
    """An error says so before anything is trained. Each of its three ways out works."""
    whole, _ = trained(tmp_path / "whole", steps=12)
    trained(tmp_path / "run", steps=6)
    assert steps_in(tmp_path / "run") == [2, 3, 4, 6]
    shutil.copytree(tmp_path / "run" / "4", tmp_path / "copy")
    if part == "missing":
        shutil.rmtree(tmp_path / "run" / "4")
    else:
        damage(tmp_path / "run" / "4" / part, rng)
    said = "step 4 with the value 1, cannot be read: .*(is damaged|has no checkpoint of this step).*pass keep=3"
    with pytest.raises(fc.FuncconvError, match=said):
        trained(tmp_path / "run", evaluate=lambda _: pytest.fail("it was trained"))
    with pytest.raises(fc.FuncconvError, match=r"step 4 .*(is damaged|can be read).*2, 3, (4, )?6"):
        fc.train.restore(tmp_path / "run", whole, "best")
    for way in ("a copy", "keep=3", "training again"):
        folder = shutil.copytree(tmp_path / "run", tmp_path / way)
        if way == "a copy":
            shutil.rmtree(folder / "4", ignore_errors=True)
            shutil.copytree(tmp_path / "copy", folder / "4")
        if way == "training again":
            shutil.rmtree(folder / "6")
        skipped = pytest.warns(UserWarning, match="step 4 .* is skipped: it is damaged")
        with skipped if way == "training again" and part != "missing" else contextlib.nullcontext():
            state, history = trained(folder, keep=3 if way == "keep=3" else "best")
        assert fc.train.digest(state) == (after(12) if way == "keep=3" else fc.train.digest(whole))
        assert history.best == (4, 1.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("rest_of_a_failed_read")
@pytest.mark.parametrize("values", [VALUES, [3.0, 2.0, 2.5, 1.0, 1.5, 1.7]])
def test_a_damaged_last_checkpoint(tmp_path, rng, values):
    """The one before is read, and has its own best state. Also if the last one is the best, or two are damaged."""
    whole = fc.train.digest(trained(None, values)[0])
    for damaged in ((8,), (8, 6)):
        folder = tmp_path / str(len(damaged))
        trained(folder, values, steps=8)
        for step in damaged:
            damage(folder / str(step) / "state", rng)
        with pytest.warns(UserWarning, match="step (6|8) .* damaged"):
            state, _ = trained(folder, values)
        assert fc.train.digest(state) == whole


def test_a_checkpoint_without_the_step_of_the_best(tmp_path):
    """An earlier version wrote it: its best value is forgotten, and the run continues."""
    state, _ = trained(None, steps=4, keep=3)
    with closing(Checkpoints(tmp_path)) as checkpoints:
        place = {"state": None, "pass_over": 4}
        run = {"best": "-1.0", "waited": 1, "monitor": "error", "evaluated_at": 4, "place": place}
        checkpoints.save(4, state, run, {"error": 2.0})
    with pytest.raises(fc.FuncconvError, match=r"of step 4, does not say .*, or an older version wrote it"):
        fc.train.restore(tmp_path, state, "best")
    state, history = trained(tmp_path)
    assert history.best == (10, 1.0)
    assert fc.train.digest(state) == after(10)

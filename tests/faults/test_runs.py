"""A run that is ended anywhere, and called again, gives what a run gives that nothing ended."""

import contextlib
import json
import signal
import sys
import threading
from functools import partial
from pathlib import Path

import interrupted
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from damage import child
from interrupted import InMemory, Places

import funcconv as fc
from funcconv.train._loop import fit as _fit

pytestmark = pytest.mark.usefixtures("climate_of_a_user", "signals_stay")

KINDS = ["batches", "loader", "iterator", "prefetched"]
TESTS = str(Path(interrupted.__file__).parent)
SOURCES = Path(_fit.__file__).parents[1]
# the files that an interrupt at any line must leave in order; their names are checked, so that no move of files
# makes the test empty
WATCHED = {
    *("_loop/fit.py", "_loop/run.py", "_loop/best.py", "_loop/interrupts.py"),
    *("_data/source.py", "_logs/logs.py", "_logs/log_file.py"),
}
WATCHED_OF_KIND = {
    "batches": WATCHED | {"_data/batches.py", "_data/arrays.py"},
    "prefetched": WATCHED | {"_data/prefetch.py"},
}


@pytest.fixture
def signals_stay():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    assert {number: signal.getsignal(number) for number in handlers} == handlers


@pytest.fixture
def in_memory(monkeypatch):
    monkeypatch.setattr(_fit, "Checkpoints", InMemory)
    monkeypatch.setattr(InMemory, "stored", {})


def raising(kind):
    def end(name):
        raise kind(name)

    return end


def interrupting(times):
    def end(name):
        del name
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)

    return end


ENDS = {
    "an error": raising(OSError),
    "sys.exit": raising(SystemExit),
    "GeneratorExit": raising(GeneratorExit),
    "one interrupt": interrupting(1),
    "two interrupts": interrupting(2),
    "three interrupts": interrupting(3),
}


def ended(folder, end, at, **options):
    """Call a run that something ends at a place, again and again until it is done, as a user would."""
    with contextlib.suppress(OSError, SystemExit, GeneratorExit, KeyboardInterrupt, RuntimeError):
        interrupted.fit(folder, Places(end, at), **options)
    return interrupted.fit(folder, **options)


def places(folder, **options):
    """Return the names of the places of a run that nothing ends, and its result."""
    passed = Places()
    return interrupted.fit(folder, passed, **options), passed.passed


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_ended_at_any_place(tmp_path, rng, kind, count):
    """Of the data, the step, an evaluation, a log or a checkpoint."""
    expected, names = places(tmp_path / "whole", kind=kind)
    assert len(set(names)) == 9
    assert len(expected["records"]) == interrupted.STEPS + interrupted.STEPS // interrupted.EVERY
    cases = [(how, at) for how in ENDS for at in range(len(names))]
    for i in rng.choice(len(cases), count, replace=False):
        how, at = cases[i]
        outcome = ended(tmp_path / str(i), ENDS[how], at, kind=kind)
        assert outcome == expected, (how, at, names[at])


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("place", ["after a batch", "before an evaluation", "after an evaluation", "before saving"])
def test_ended_twice(tmp_path, place):
    """The first time at the second place of its kind."""
    expected, _ = places(tmp_path / "whole", kind="loader")
    for at in (1, 0):
        with pytest.raises(OSError, match=place):
            interrupted.fit(tmp_path / "run", Places(raising(OSError), at, place), kind="loader")
    assert interrupted.fit(tmp_path / "run", kind="loader") == expected


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a file that was just opened
@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("keep", [2, "best"])
@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", WATCHED_OF_KIND)
def test_interrupted_at_any_line(tmp_path, rng, kind, count, keep):
    """An exception that a signal raises comes between any two lines of the loop."""
    lines, files = 0, set()
    fit = partial(interrupted.fit, keep=keep, values=[2.0, 1.0, 3.0], kind=kind)
    watched = {str(SOURCES / name): name for name in WATCHED_OF_KIND[kind]}

    def run(folder, at):
        """Raise at the line of this number."""
        nonlocal lines
        lines = 0

        def local(frame, event, _):
            nonlocal lines
            if event == "line":
                files.add(watched[frame.f_code.co_filename])
                lines += 1
                if lines == at:
                    raise KeyboardInterrupt
            return local

        def watch(frame, *_):
            return local if frame.f_code.co_filename in watched else None

        before = sys.gettrace()
        sys.settrace(watch)
        try:
            return fit(folder)
        finally:
            sys.settrace(before)

    assert threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    expected = run(tmp_path / "whole", None)
    assert files == WATCHED_OF_KIND[kind]
    ended = 0
    for i, at in enumerate(rng.choice(lines, count, replace=False) + 1):
        with contextlib.suppress(KeyboardInterrupt):  # a faster run has fewer lines
            run(tmp_path / str(i), at)
        ended += lines >= at
        assert fit(tmp_path / str(i)) == expected, at
        for number, handler in handlers.items():  # an exception may come before the handlers are restored
            signal.signal(number, handler)
    assert ended > count / 2


def test_ended_with_real_checkpoints(tmp_path):
    """An error in each kind of place."""
    expected, names = places(tmp_path / "whole")
    for i, place in enumerate(["after a batch", "after an evaluation", "before saving"]):
        at = len(names) // 3 + names[len(names) // 3 :].index(place)
        assert ended(tmp_path / str(i), raising(OSError), at) == expected, place


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_place(tmp_path, rng, times):
    _, names = places(tmp_path / "names")
    chosen = rng.choice(len(names), times, replace=False).tolist()
    code = f"import sys; sys.path.insert(0, {TESTS!r}); import interrupted; interrupted.main({chosen})"
    process = child(code, tmp_path, cached=True)
    said, trouble = process.communicate()
    assert process.returncode == 0, trouble
    actual, expected = json.loads(said)
    assert actual == expected


@pytest.mark.usefixtures("in_memory")
def test_an_error_within_the_computation(tmp_path):
    """The state of a step that failed on the device is not saved."""
    bad = [4]

    def check(w, step):
        if int(step) in bad:
            msg = "a bad step"
            raise OSError(msg)
        return np.float32(w)

    def loss(params, batch, *, key, state):
        del key
        checked = jax.pure_callback(check, jax.ShapeDtypeStruct((), np.float32), batch.mean(), state["step"])
        value = jnp.square(params["w"] - jax.lax.stop_gradient(checked)).mean()
        return value, {"state": {"step": state["step"] + 1}}

    init, step = fc.train.make_step(loss, optax.sgd(0.1), has_aux=True)

    def run(folder):
        data = iter([np.full(3, i, np.float32) for i in range(9)])
        state = init({"w": jnp.zeros(())}, jax.random.key(0), {"step": jnp.int32(0)})
        resumed, history = fc.train.fit(
            step, state, data, steps=8, checkpoint=folder, checkpoint_every=3, log=f"{folder}.jsonl", progress=False
        )
        return fc.train.digest(resumed), history.records

    with pytest.raises(Exception, match="a bad step"):
        run(tmp_path / "run")
    assert [*InMemory.stored.popitem()[1]] in ([], [3])
    bad.clear()
    assert run(tmp_path / "run") == run(tmp_path / "whole")


# patience -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_memory")
def test_patience_goes_on_counting(tmp_path, rng):
    options = {"values": [3.0, 1.0, np.nan, 2.5, 0.5, 0.25], "patience": 2, "steps": 12}
    expected, names = places(tmp_path / "whole", **options)
    assert expected["stopped"] == "error was not better in 2 evaluations, at step 8"
    chosen = rng.choice(
        [i for i, name in enumerate(names) if "evaluation" in name or "saving" in name], 4, replace=False
    )
    for i, at in enumerate(chosen):
        assert ended(tmp_path / str(i), raising(OSError), at, **options) == expected, names[at]
    again = partial(interrupted.fit, tmp_path / "whole", **options)
    assert again() == expected
    assert again(steps=20) == expected
    more = interrupted.fit(tmp_path / "more", **options | {"patience": 3})
    assert more["stopped"] == ""
    with pytest.warns(UserWarning, match="patience: 2 then, 3 now"):
        assert again(patience=3) == more


# changed settings -----------------------------------------------------------------------------------------------------


def trained(folder, optimizer=optax.adam, rate=0.1, size=4, order=0, seed=0, factor=1.0, call=None, steps=2, **given):
    def loss(params, batch, *, key, state):
        del key, state
        return jnp.square(params["w"] - batch).mean() * factor

    options = {name: given.pop(name) for name in ("ema", "clip", "accumulate") if name in given}
    init, step = fc.train.make_step(loss, optimizer(rate), **options)
    data = fc.train.batches(np.arange(8, dtype=np.float32), size, jax.random.key(order))
    state = init({"w": jnp.zeros(())}, jax.random.key(seed))
    return (call or fc.train.fit)(step, state, data, steps=steps, checkpoint=folder, progress=False, **given)


def warm(count):
    return optax.linear_schedule(0.0, 0.1, 5)(count)


CHANGES = {
    "learning rate": ({}, {"rate": 0.2}, r"optimizer: learning_rate: 0\.1 then, 0\.2 now"),
    "schedule": (
        {"rate": optax.linear_schedule(0.0, 0.1, 5)},
        {"rate": optax.linear_schedule(0.0, 0.3, 5)},
        r"optimizer: end_value of \w+: 0\.1 then, 0\.3 now",
    ),
    "another optimizer constant": (
        {},
        {"optimizer": partial(optax.adam, b1=0.8)},
        r"optimizer: b1 of scale_by_adam: 0\.9 then, 0\.8 now",
    ),
    "injected": (
        {"optimizer": optax.inject_hyperparams(optax.sgd)},
        {"optimizer": optax.inject_hyperparams(optax.sgd), "rate": 1.0},
        r"optimizer: .*learning_rate.*0\.1 then, 1\.0 now",
    ),
    "ema": ({"ema": 0.9}, {"ema": 0.99}, r"ema: 0\.9 then, 0\.99 now"),
    "clip": ({"clip": 1.0}, {"clip": 2.0}, r"clip: 1\.0 then, 2\.0 now"),
    "accumulate": ({}, {"accumulate": 2}, "accumulate: 1 then, 2 now"),
    "batch size": ({}, {"size": 2}, "batches: batch_size: 4 then, 2 now"),
    "key of the data": ({}, {"order": 3}, r"batches: key: \(0, 0\) then, \(0, 3\) now"),
    "key of the state": ({}, {"seed": 3}, r"key of the state: \(0, 0\) then, \(0, 3\) now"),
    "loss": ({}, {"factor": 2.0}, "the compiled step: another program"),
    "evaluation": (
        {"evaluate": lambda _: {"one": 1.0}, "every": 1},
        {"evaluate": lambda _: {"one": 1.0}, "every": 2},
        "every: 1 then, 2 now",
    ),
}


@pytest.mark.usefixtures("in_memory")
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_setting_is_named(tmp_path, change):
    before, after, said = CHANGES[change]
    trained(tmp_path, **before)
    with pytest.raises(fc.FuncconvError, match=said):
        trained(tmp_path, **after, steps=3, on_change="raise")
    trained(tmp_path, **before, steps=3, on_change="raise")
    with pytest.warns(UserWarning, match=said) as warned:
        trained(tmp_path, **after, steps=4)
    assert len(warned) == 1
    trained(tmp_path, **after, steps=5)  # it was said, and these are its settings now
    trained(tmp_path, **before, steps=6, on_change="ignore")


def test_a_state_that_was_saved_by_hand(tmp_path):
    """It has no record of a run; the iterator is at its beginning."""
    whole, _ = trained(None, steps=4)
    half, _ = trained(None, steps=2)
    fc.train.save(tmp_path, half, step=2)
    resumed, history = trained(tmp_path, steps=4, on_change="raise")
    assert history.steps("loss") == [3, 4]
    assert fc.train.digest(resumed) == fc.train.digest(whole)


@pytest.mark.usefixtures("in_memory")
def test_another_monitor(tmp_path):
    """Its best value is not known, so that counting begins anew."""
    given = {"evaluate": lambda _: {"a": 1.0, "b": 2.0}, "every": 1, "patience": 2}
    _, history = trained(tmp_path, **given, monitor="a", steps=9)
    assert history.stopped == "a was not better in 2 evaluations, at step 3"
    with pytest.warns(UserWarning, match="monitor: a then, b now"):
        _, history = trained(tmp_path, **given, monitor="b", steps=9)
    assert history.stopped == "b was not better in 2 evaluations, at step 6"


@pytest.mark.usefixtures("in_memory")
def test_what_is_no_change(tmp_path, monkeypatch):
    """How long a run is, how often it is saved, and what cannot be compared between versions."""
    trained(tmp_path, on_change="raise")
    trained(tmp_path, on_change="raise", steps=3, checkpoint_every=1, keep=1, log=tmp_path / "log")
    trained(tmp_path, rate=np.float64(0.1), on_change="raise", steps=4)
    from funcconv.train._loop import settings as _settings

    monkeypatch.setattr(_settings, "_versions", lambda: {"jax": "9.9"})
    trained(tmp_path, optimizer=optax.adam, on_change="raise", factor=2.0, steps=5)
    with pytest.warns(UserWarning, match="learning_rate: 0.1 then, 0.5 now"):
        trained(tmp_path, rate=0.5, factor=2.0, steps=6)


def test_the_digest_of_a_program_is_the_same_in_another_process(tmp_path, capsys):
    """Also where Python orders sets otherwise."""
    code = """
import jax, jax.numpy as jnp, numpy as np, optax, funcconv as fc
from funcconv.train._loop.settings import program_of, settings_of
x = fc.Input("x", (8, 8, 1))
graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.Pool(2), fc.Flatten(), fc.Dropout(0.5), fc.Dense(2))(x))
def loss(params, batch, *, key, state):
    logits, _ = graph.apply(params, state, batch, key=key, train=True)
    return jnp.square(logits).mean() + jax.nn.gelu(logits).sum()
optimizer = optax.adamw(optax.cosine_onecycle_schedule(10, 0.1))
init, step = fc.train.make_step(loss, optimizer, ema=0.9, clip=1.0, accumulate=2)
params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(graph.init, jax.random.key(0)))
state = init(params, jax.random.key(1))
batch = np.ones((4, 8, 8, 1), np.float32)
print(program_of(jax.jit(step), state, batch), settings_of(step, state, None))
"""
    said, trouble = child(code, tmp_path, cached=True).communicate()
    exec(code, {})
    assert capsys.readouterr().out == said, trouble


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("steps", ["4", 2.5, float("nan"), 3.0, True, None, [3], np.bool_(True), -1, np.ones(2, int)])
def test_steps_of_another_kind(steps):
    with pytest.raises(fc.FuncconvError, match=r"train: steps must be (an integer of )?at least 0; got"):
        trained(None, steps=steps)


@pytest.mark.once
@pytest.mark.parametrize("name", ["every", "patience", "checkpoint_every", "keep"])
@pytest.mark.parametrize("value", ["4", 2.5, float("nan"), True, 0, -2])
def test_counts_of_another_kind(name, value):
    given = {"evaluate": lambda _: {"a": 1}, "monitor": "a", name: value}
    said = rf"train: {name} must be (an integer of )?at least 1{', or .best.' if name == 'keep' else ''}; got"
    with pytest.raises(fc.FuncconvError, match=said):
        trained(None, **given)


@pytest.mark.parametrize("kind", [int, np.int8, np.uint64, jnp.int32, np.array])
def test_integers_of_any_kind(kind):
    state, _ = trained(None, steps=kind(2))
    assert int(state.step) == 2


@pytest.mark.once
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"evaluate": 5}, "evaluate must be a function"),
        ({"monitor": 5}, "monitor must be the name"),
        ({"about": 5}, "about must be a dict"),
        ({"about": {"a": object()}}, "about must be a dict.*object"),
        ({"on_change": "rais"}, "on_change must be one of 'warn', 'raise', 'ignore'; got 'rais'; did you mean 'raise'"),
        ({"checkpoint": b"x"}, "must be a string or a pathlib.Path"),
        ({"checkpoint": ""}, "is empty"),
    ],
)
def test_options_of_another_kind(given, said):
    with pytest.raises(fc.FuncconvError, match=said):
        trained(given.pop("checkpoint", None), **given)


WRONG = {
    "None": None,
    "a text": "0.5",
    "a complex number": 1j,
    "a complex array": jnp.array(1j),
    "an object": object(),
    "an array of objects": np.array(object()),
    "a date": np.datetime64("2020-01-01"),
    "a time": np.timedelta64(1, "s"),
    "an array of text": np.array("0.5"),
    "a list": [1.0],
    "a vector of texts": np.array(["0.5", "1"]),
    "a vector of dates": np.array(["2020-01-01"], np.datetime64),
    "a complex vector": np.ones(2, complex),
    "a vector of keys": jax.random.split(jax.random.key(0)),
    "a key": jax.random.key(0),
    "a ragged list": [[1], [1, 2]],
    "a dict": {},
    "too large": 10**400,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_evaluations_that_are_no_numbers(wrong):
    with pytest.raises(fc.FuncconvError, match="evaluate must return a dict of numbers; 'a'"):
        trained(None, evaluate=lambda _: {"a": WRONG[wrong]})


@pytest.mark.once
@pytest.mark.parametrize("wrong", [None, "0.5", 1j, np.ones(1), [("a", 1.0)], {1: 2.0}, {None: 1.0}])
def test_evaluations_that_are_no_dicts(wrong):
    with pytest.raises(fc.FuncconvError, match="evaluate must return a dict of numbers"):
        trained(None, evaluate=lambda _: wrong)


def test_evaluations_that_are_numbers():
    right = [1, True, 0.5, np.float16(0.5), np.int8(1), np.bool_(True), jnp.bfloat16(0.5), jnp.array(1), np.array(0.5)]
    _, history = trained(None, evaluate=lambda _: {str(i): value for i, value in enumerate(right)})
    assert [history[f"eval/{i}"] for i in range(len(right))] == [[float(value)] for value in right]
    arrays = [
        np.ones(3),
        jnp.arange(6).reshape(2, 3),
        np.array([True, False]),
        jnp.ones((1, 2), jnp.bfloat16),
        np.ones(0),
    ]
    _, history = trained(None, evaluate=lambda _: {str(i): value for i, value in enumerate(arrays)})
    assert [history[f"eval/{i}"] for i in range(len(arrays))] == [[value.astype(float).tolist()] for value in arrays]
    _, history = trained(None, evaluate=lambda _: {}, every=1)
    assert len(history.records) == 2

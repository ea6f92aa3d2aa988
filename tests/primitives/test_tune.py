"""Forms by measurement: every candidate is right, a tuning is applied where it was asked for, and files are checked."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CASES
from compare import close

import funcconv as fc
from funcconv._primitives import measure as _measure
from funcconv._primitives import tune as _tune
from funcconv._primitives import tuning as _tuning
from funcconv._primitives.forms import MeasuredForms

PARAMS = {"kernel": jnp.ones((3, 3, 4, 6), jnp.float32)}
X = jnp.ones((2, 9, 8, 4), jnp.float32)


def loss(params, x):
    return jnp.square(fc.max_pool(fc.conv(params, x), 2)).sum()


def tasks_of(f, *args):
    return _tune._tasks(jax.make_jaxpr(f)(*args), "cpu", None)


GRADIENT = jax.grad(loss, (0, 1))


def tuning_with(form_of_map, f=GRADIENT, args=(PARAMS, X)):
    """A tuning that chooses the given form for every problem of each map."""
    rows = [
        _tuning.TunedProblem(task.key, times, form_of_map[task.key.map], task.default, {task.default: 2.0, "lax": 3.0})
        for task, times in tasks_of(f, *args).items()
        if task.key.map in form_of_map
    ]
    return fc.Tuning(tuple(rows))


def explained(f, *args):
    return {row.map: (row.form, row.why) for row in fc.explain(f, *args, platform="cpu")}


@pytest.fixture
def any_size(monkeypatch):
    """Problems are worth measuring however small they are."""
    monkeypatch.setattr(_measure, "_LEAST_PRODUCTS", -1)


@pytest.mark.once
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("any_size")
def test_every_candidate_computes_the_same(case, rng):
    """A candidate that was wrong could be chosen on the device of a user."""
    params, x = case.draw(rng, batch=(3,))

    def value(params, x):
        return jnp.sum(jnp.sin(case.op(params, x)))

    programs = (value,) if case.largest else (value, jax.grad(value, (0, 1)))
    tasks = {task.key: task for f in programs for task in tasks_of(f, params, x)}
    for key, task in tasks.items():
        operands = [jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype) for leaf in task.types]

        @jax.jit
        def by_form(*operands, task=task, key=key):
            return {form: task.compute(MeasuredForms("cpu", {key: form}), *operands) for form in task.forms}

        results = by_form(*operands)
        for result in results.values():
            close(result, results[task.default])


@pytest.mark.once
@pytest.mark.usefixtures("any_size")
def test_every_candidate_is_used_on_a_gpu(rng):
    """No GPU is needed: programs are lowered for it, and differ from form to form."""
    tasks = {}
    for case in CASES:
        params, x = case.draw(rng, batch=(3,))

        def value(params, x, case=case):
            return jnp.sum(jnp.sin(case.op(params, x)))

        for task in tasks_of(value if case.largest else jax.grad(value, (0, 1)), params, x):
            tasks.setdefault((task.key.map, task.forms, len(task.key.axes)), task)
    for task in tasks.values():

        def program(form, task=task):
            forms = MeasuredForms("gpu", {task.key: form})
            traced = jax.jit(partial(task.compute, forms)).trace(*task.types)
            return traced.lower(lowering_platforms=("cuda",)).as_text()

        programs = {form: program(form) for form in task.forms}
        assert len(set(programs.values())) == len(programs), task.key.text
    assert {name for name, _, _ in tasks} == {"conv", "conv_input_grad", "conv_kernel_grad", "extreme"}


@pytest.mark.usefixtures("any_size")
def test_candidates_exist_for_every_map():
    x = jnp.ones((2, 9, 8, 7, 4))
    kernel = jnp.ones((3, 3, 3, 4, 6))
    forms = {}
    for task in tasks_of(jax.grad(lambda w, x: jnp.square(fc.conv({"kernel": w}, x)).sum(), (0, 1)), kernel, x):
        forms.setdefault(task.key.map, set()).update(task.forms)
    assert {"lax", "planes", "sum_of_planes", "blocked_im2col"} <= forms["conv"]
    assert {"lax", "stride_phases"} <= forms["conv_input_grad"]
    assert {"lax", "blocked_im2col", "blocked_im2col_of_both", "exchanged_axes"} <= forms["conv_kernel_grad"]


def test_the_measured_form_is_used():
    chosen = {"conv": "sum_of_planes", "conv_kernel_grad": "exchanged_axes", "extreme": "taps"}
    gradient = jax.grad(loss, (0, 1))
    tuning = tuning_with(chosen, f=lambda *args: (gradient(*args), loss(*args)))
    tuned = fc.tuned(tuning)(lambda *args: (gradient(*args), loss(*args)))
    found = explained(tuned, PARAMS, X)
    for name, form in chosen.items():
        assert found[name] == (form, "measured to be the fastest")
    assert found["conv_input_grad"][0] == explained(gradient, PARAMS, X)["conv_input_grad"][0]
    for own, usual in zip(
        jax.tree.leaves(jax.jit(tuned)(PARAMS, X)[0]), jax.tree.leaves(jax.jit(gradient)(PARAMS, X)), strict=True
    ):
        close(own, usual)
    text = jax.jit(tuned).lower(PARAMS, X).as_text()
    assert text != jax.jit(lambda *args: (gradient(*args), loss(*args))).lower(PARAMS, X).as_text()


def test_only_the_measured_problem_is_tuned():
    tuning = tuning_with({"conv": "sum_of_planes"})
    for x in (X[:1], X[:, :8], X.astype(jnp.float64)):
        params = jax.tree.map(lambda w, x=x: w.astype(x.dtype), PARAMS)
        assert explained(fc.tuned(tuning)(loss), params, x)["conv"][1] != "measured to be the fastest"
    elsewhere = {row.form for row in fc.explain(fc.tuned(tuning)(loss), PARAMS, X, platform="gpu")}
    assert "sum_of_planes" not in elsewhere


def test_derivatives_are_tuned_where_the_function_was_traced():
    tuning = tuning_with({"conv_kernel_grad": "exchanged_axes"})
    with fc.tuned(tuning):
        _, pullback = jax.vjp(partial(loss, x=X), PARAMS)
    assert explained(pullback, jnp.float32(1))["conv_kernel_grad"][0] == "exchanged_axes"


def test_a_form_that_is_not_correct_there_is_not_used():
    """Such a tuning cannot be measured, only written by hand."""
    tuning = tuning_with({"conv": "matrix_product"})
    assert explained(fc.tuned(tuning)(loss), PARAMS, X)["conv"][0] != "matrix_product"


def test_inner_tunings_win():
    outer, inner = tuning_with({"conv": "sum_of_planes"}), tuning_with({"conv": "planes"})
    with fc.tuned(outer):
        assert explained(fc.tuned(inner)(loss), PARAMS, X)["conv"][0] == "planes"
        assert explained(fc.tuned(None)(loss), PARAMS, X)["conv"][1] != "measured to be the fastest"
        assert explained(loss, PARAMS, X)["conv"][0] == "sum_of_planes"
    assert explained(loss, PARAMS, X)["conv"][1] != "measured to be the fastest"


def test_a_sharded_program_is_not_tuned():
    tuning = tuning_with({"conv": "sum_of_planes", "extreme": "taps"}, f=loss)
    assert {row.key.map for row in tuning.problems} == {"conv", "extreme"}
    mesh = jax.make_mesh((2,), ("data",))
    sharded = jax.device_put(X, jax.NamedSharding(mesh, jax.P("data")))
    for x, expected in ((sharded, True), (X, False)):
        tuned, usual = (jax.jit(f).lower(PARAMS, x).as_text() for f in (fc.tuned(tuning)(loss), fc.tuned(None)(loss)))
        assert (tuned == usual) is expected
    pool = partial(fc.max_pool, window=2)
    of_pool = tuning_with({"extreme": "taps"}, f=pool, args=(X,))
    for x, expected in ((sharded, True), (X, False)):
        tuned, usual = (jax.jit(f).lower(x).as_text() for f in (fc.tuned(of_pool)(pool), fc.tuned(None)(pool)))
        assert (tuned == usual) is expected


def test_compiled_functions_are_traced_again():
    compiled, seen = jax.jit(loss), []
    compiled(PARAMS, X)
    with fc.tuned(tuning_with({"conv": "sum_of_planes"})):
        seen.append(compiled.lower(PARAMS, X).as_text())
    seen.append(compiled.lower(PARAMS, X).as_text())
    assert seen[0] != seen[1]


def test_tunings_are_values():
    one, other = tuning_with({"conv": "planes"}), tuning_with({"conv": "planes"})
    assert one == other
    assert hash(one) == hash(other)
    assert one.forms == other.forms
    assert one != tuning_with({"conv": "sum_of_planes"})
    assert one == dataclasses.replace(one, before=1.0, after=2.0)


def test_the_whole_function_decides(monkeypatch):
    """The result is what was fastest as a whole, whatever single problems gained."""
    seen = []

    def race(programs, until):
        del until
        seen.append(list(programs))
        return {name: [3.0 if "measured" in name else 2.0] * 8 for name in programs}

    monkeypatch.setattr(_tune, "race", race)
    gradient = jax.grad(loss)
    params, x = {"kernel": jnp.ones((3, 3, 8, 8))}, jnp.ones((4, 16, 16, 8))
    tuning = fc.tune(gradient, params, x, seconds=3, progress=False)
    assert all(row.form == row.default for row in tuning.problems)
    assert tuning.before == tuning.after == 2000.0
    assert seen[0][0] == "none"


@pytest.mark.parametrize(
    ("usual", "other", "best"),
    [
        ([2.0, 2.1, 2.0, 2.2], [1.0, 1.1, 1.0, 1.1], "other"),
        ([2.0, 2.0, 2.0, 2.0], [1.99, 1.99, 1.99, 1.99], "usual"),  # not worth it
        ([2.0, 1.0, 2.0, 1.0], [1.9, 1.5, 1.0, 1.2], "usual"),  # noise
        ([2.0, 2.0, 2.0, 2.0], [9.0], "usual"),  # left the race
    ],
)
def test_a_form_wins_by_more_than_the_noise(usual, other, best):
    assert _measure.fastest({"usual": usual, "other": other}, "usual") == best


def test_programs_run_in_turns():
    calls = []

    def program(name, seconds):
        def run():
            calls.append(name)
            time.sleep(seconds)

        return run

    # So long that another process does not delay a call by a multiple.
    programs = {"a": program("a", 0.1), "b": program("b", 0.1), "slow": program("slow", 1.0)}
    seconds = _measure.race(programs, 0.0)
    assert calls[:9] == ["a", "b", "slow"] * 3
    assert "slow" not in calls[9:]
    assert len(seconds["slow"]) == 2
    assert len(seconds["a"]) == len(seconds["b"]) == _measure._LEAST_ROUNDS


def test_tune(tmp_path, capsys):
    """A whole run: it says what it does, and saves what it returns."""
    params, x = (
        fc.init_conv(jax.random.key(0), 16, 16, (3, 3), groups=16, dtype=jnp.float32),
        jax.ShapeDtypeStruct((4, 16, 16, 16), "float32"),
    )
    labels = jax.ShapeDtypeStruct((4,), "int32")

    def step(params, x, labels, key):
        y = fc.max_pool(fc.conv(params, x, groups=16), 2).mean((1, 2)) + jax.random.normal(key, (4, 16), jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    path = tmp_path / "tuning.json"
    tuning = fc.tune(jax.value_and_grad(step), params, x, labels, jax.random.key(0), seconds=3600, path=path)
    shown = capsys.readouterr().err
    assert "conv 4x16x16x16, window 3x3, to 16, 16 groups: " in shown
    assert shown.endswith(f"{tuning}\n")
    assert fc.Tuning.load(path) == tuning
    assert tuning.after > 0
    assert {row.key.map for row in tuning.problems} >= {"conv", "conv_kernel_grad"}
    gradient = jax.grad(step)
    arrays = params, jnp.ones(x.shape, x.dtype), jnp.zeros(4, int), jax.random.key(0)
    own, usual = (jax.tree.leaves(jax.jit(f)(*arrays)) for f in (fc.tuned(tuning)(gradient), gradient))
    for pair in zip(own, usual, strict=True):
        close(*pair)


def test_calls_loops_and_branches_are_tuned():
    def f(params, x):
        def body(x, _):
            return jax.jit(lambda x: fc.conv(params, x, padding=1))(x), None

        y, _ = jax.lax.scan(jax.checkpoint(body), x, None, length=3)
        return jax.lax.cond(y.sum() > 0, lambda y: fc.conv(params, y, padding=1), lambda y: y, y)

    params = {"kernel": jnp.ones((3, 3, 4, 4), jnp.float32)}
    (task,) = tasks_of(f, params, X)
    forms = MeasuredForms("cpu", {task.key: "blocked_im2col"})
    traced = jax.make_jaxpr(f)(params, X)
    changed = _tune._with_forms(traced.jaxpr, forms, None)
    assert str(traced.jaxpr).count("1 measured on cpu") == 0
    assert str(changed).count("1 measured on cpu") == 2


def test_a_function_without_convolutions():
    tuning = fc.tune(lambda x: x + 1, jnp.ones(3), seconds=1, progress=False)
    assert tuning.problems == ()
    assert tuning.unmeasured == 0


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "60", True, None])
def test_seconds_are_positive(seconds):
    with pytest.raises(fc.FuncconvError, match="tune: seconds must be a positive number"):
        fc.tune(loss, PARAMS, X, seconds=seconds)


def test_wrong_tunings_are_refused():
    for apply in (
        fc.tuned,
        lambda tuning: fc.train.make_step(loss, optax.sgd(1), tuning=tuning),
        partial(fc.train.compile, loss),
    ):
        with pytest.raises(fc.FuncconvError, match="tuning must be a Tuning"), apply("tuning.json"):
            pass


# Files ---------------------------------------------------------------------------------------------------


def test_files_keep_everything(tmp_path):
    tuning = dataclasses.replace(tuning_with({"conv": "planes"}), before=2.0, after=1.0, compiler_options={"a": True})
    tuning.save(tmp_path / "tuning.json")
    loaded = fc.Tuning.load(tmp_path / "tuning.json")
    assert loaded == tuning
    assert str(loaded) == str(tuning)
    assert repr(loaded) == f"Tuning(1 problems, 2.000 ms before, 1.000 ms after, on {jax.default_backend()})"
    assert "planes" in str(loaded)


def damaged(entries, *path, value):
    entries = json.loads(json.dumps(entries))
    inner = entries
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return entries


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "funcconv tuning 0"),
        (("format",), None),
        (("problems",), 3),
        (("problems", 0, "form"), "winograd"),
        (("problems", 0, "form"), "exchanged_axes"),  # a form of another map
        (("problems", 0, "key", "map"), "convolution"),
        (("problems", 0, "key", "batch"), 2.5),
        (("problems", 0, "key", "axes", 0, "size"), "9"),
        (("problems", 0, "key", "axes", 0, "size"), None),
        (("problems", 0, "key", "colour"), 1),
        (("problems", 0, "milliseconds"), {}),
        (("problems", 0, "times"), None),
        (("compiler_options",), {"a": [1]}),
        (("before",), "fast"),
        (("device",), 1),
    ],
)
def test_damaged_files(tmp_path, path, value):
    file = tmp_path / "tuning.json"
    tuning_with({"conv": "planes"}).save(file)
    file.write_text(json.dumps(damaged(json.loads(file.read_text()), *path, value=value)))
    with pytest.raises(fc.FuncconvError, match=r"Tuning.load: .*tuning.json is not a tuning"):
        fc.Tuning.load(file)


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"format": NaN}'])
def test_other_files(tmp_path, content):
    (tmp_path / "tuning.json").write_bytes(content)
    with pytest.raises(fc.FuncconvError, match=r"Tuning.load: .*tuning.json is not a tuning"):
        fc.Tuning.load(tmp_path / "tuning.json")


@pytest.mark.parametrize(
    ("part", "name"), [("device", "kind"), ("device", "cores"), ("device", "features"), ("versions", "jax")]
)
def test_tunings_of_other_machines(tmp_path, part, name):
    file = tmp_path / "tuning.json"
    tuning_with({"conv": "planes"}).save(file)
    file.write_text(json.dumps(damaged(json.loads(file.read_text()), part, name, value="another")))
    with pytest.raises(
        fc.FuncconvError, match=f"is for another machine: {name} is .* machine and 'another' in the file"
    ):
        fc.Tuning.load(file)
    with pytest.warns(UserWarning, match="The tuning is not used"):
        loaded = fc.Tuning.load(file, mismatch="warn")
    assert loaded.problems == ()
    with pytest.raises(fc.FuncconvError, match="mismatch must be 'raise' or 'warn'"):
        fc.Tuning.load(file, mismatch="ignore")


# Users of a tuning ---------------------------------------------------------------------------------------


def training_loss(params, batch, *, key, state):
    del key, state
    return loss(params, batch["x"])


def test_training_steps_take_a_tuning():
    gradient = jax.grad(lambda params: loss(params, X))
    tuning = tuning_with({"conv_kernel_grad": "exchanged_axes"}, f=gradient, args=(PARAMS,))
    init, step = fc.train.make_step(training_loss, optax.sgd(1e-6), tuning=tuning)
    state = init(PARAMS, jax.random.key(0))
    assert explained(step, state, {"x": X})["conv_kernel_grad"][0] == "exchanged_axes"
    other = tuning_with({"conv": "planes"})
    with pytest.raises(fc.FuncconvError, match="make_step received a different tuning"):
        fc.train.compile(step, other)
    with pytest.raises(fc.FuncconvError, match="fit: make_step received a different tuning"):
        fc.train.fit(step, state, iter([]), steps=1, tuning=other, progress=False)


def test_fit_takes_a_tuning():
    tuning = tuning_with({"conv": "sum_of_planes"})
    init, step = fc.train.make_step(training_loss, optax.sgd(1e-6))
    found = []

    def recorded(state, batch):
        found.append(explained(step, state, batch)["conv"][0])
        return step(state, batch)

    state = init(PARAMS, jax.random.key(0))
    fc.train.fit(recorded, state, iter([{"x": X}]), steps=1, tuning=tuning, progress=False)
    assert found == ["sum_of_planes"]


def test_the_environment_names_a_tuning(tmp_path):
    file = tmp_path / "tuning.json"
    tuning_with({"conv": "sum_of_planes"}).save(file)
    script = (
        "import funcconv as fc, jax.numpy as jnp\n"
        "f = lambda w, x: fc.conv({'kernel': w}, x)\n"
        "print(fc.explain(f, jnp.ones((3, 3, 4, 6)), jnp.ones((2, 9, 8, 4)))[0].form)"
    )

    def run(path):
        environment = os.environ | {"FUNCCONV_TUNING": str(path), "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", script]
        root = Path(fc.__file__).parents[1]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=root)

    assert run(file).stdout == "sum_of_planes\n"
    assert run("").stdout != "sum_of_planes\n"
    missing = run(tmp_path / "missing.json")
    assert missing.returncode != 0
    assert "FUNCCONV_TUNING" in missing.stderr


def test_the_text_names_the_problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 8)).astype(np.float64)
    kernel = rng.normal(size=(5, 4, 6))
    (task,) = tasks_of(lambda w, x: fc.conv({"kernel": w}, x, stride=2, padding=2, groups=2), kernel, x)
    assert task.key.text == "2x16x8, window 5, to 6, stride 2, padding 2, 2 groups, float64"

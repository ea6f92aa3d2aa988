"""Metrics that are arrays, such as those of an ensemble: a run records them, and goes on exactly."""

import io
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from available import needed
from compare import close

import funcconv as fc
from funcconv.train._loop.settings import program_of
from funcconv.train._step.compiled import CompiledStep

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
F32 = np.float32
MEMBERS, EXAMPLES, FEATURES = 3, 24, 4


@pytest.fixture
def arrays(rng):
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(F32)
    return {"x": x, "y": x @ np.arange(FEATURES, dtype=F32)}


def loss(params, batch, *, key, state):
    del state
    noise = 1 + 0.1 * jax.random.normal(key, batch["y"].shape)
    return jnp.square(batch["x"] @ params["w"] - noise * batch["y"]).mean()


def ensemble(**options):
    init, step = fc.train.make_step(loss, optax.adam(0.1), **options)
    params = {"w": jax.random.normal(jax.random.key(0), (MEMBERS, FEATURES))}
    return jax.vmap(init)(params, jax.random.split(jax.random.key(1), MEMBERS)), step


def run(arrays, steps, step=None, state=None, **options):
    states, of_member = ensemble()
    data = fc.train.batches(arrays, 8, jax.random.key(2))
    step = jax.vmap(of_member, in_axes=(0, None)) if step is None else step
    return fc.train.fit(step, states if state is None else state, data, steps=steps, **{"progress": False, **options})


def evaluated(state):
    return {"w": state.params["w"], "largest": state.params["w"].max()}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "clip": 1.0, "ema": 0.9, "loss_scale": "dynamic"}])
def test_an_ensemble_is_its_members(arrays, options):
    """Each member is trained as it would be alone, up to rounding, and has a list of its own in the history."""
    steps = 6
    states, of_member = ensemble(**options)
    found, history = run(arrays, steps, jax.vmap(of_member, in_axes=(0, None)), states)
    assert np.shape(history["loss"]) == (steps, MEMBERS)
    assert repr(found).startswith("State(step=[6, 6, 6], skipped=[0, 0, 0],")
    for i in range(MEMBERS):
        alone, known = run(arrays, steps, of_member, jax.tree.map(lambda leaf, i=i: leaf[i], states))
        ulps = {"terms": 8 * FEATURES, "steps": steps}
        close(found.params["w"][i], alone.params["w"], **ulps)
        close(np.array(history["loss"], F32)[:, i], np.array(known["loss"], F32), **ulps)


def test_a_member_that_is_not_finite_is_left_out_alone(arrays):
    states, of_member = ensemble()
    bad = jax.tree.map(jnp.copy, states)
    bad.params["w"] = bad.params["w"].at[1].set(jnp.nan)
    found, history = run(arrays, 2, jax.vmap(of_member, in_axes=(0, None)), bad)
    known, _ = run(arrays, 2)
    assert history["skipped"][-1] == [0, 2, 0]
    np.testing.assert_array_equal(found.params["w"][::2], known.params["w"][::2])


def test_a_resumed_ensemble_is_exact(arrays, tmp_path):
    """State, records, log and evaluations."""
    options = {"evaluate": evaluated, "every": 2, "monitor": "largest"}
    whole, known = run(arrays, 7, log=tmp_path / "whole", checkpoint=tmp_path / "a", **options)
    both = {"log": tmp_path / "cut", "checkpoint": tmp_path / "b", "on_change": "raise", **options}
    run(arrays, 3, **both)
    resumed, history = run(arrays, 7, **both)
    assert fc.train.digest(resumed) == fc.train.digest(whole)
    del history.records[[record["step"] for record in history.records].index(3) + 1]  # the evaluation at the first end
    assert history.records == known.records
    assert np.shape(known["eval/w"]) == (4, MEMBERS, FEATURES)
    lines = [json.loads(line) for line in (tmp_path / "whole").read_text().splitlines()]
    assert lines == known.records
    assert history.compilations == 1


def test_a_setting_of_an_ensemble_is_compared(arrays, tmp_path):
    run(arrays, 2, checkpoint=tmp_path)
    states, other = ensemble(clip=0.5)
    with pytest.warns(UserWarning, match=r"clip: None then, 0\.5 now"):
        run(arrays, 4, jax.vmap(other, in_axes=(0, None)), states, checkpoint=tmp_path)


def test_members_of_other_steps_are_refused(arrays):
    states, _ = ensemble()
    mixed = fc.train.State(**{**vars(states), "step": jnp.array([0, 0, 2])})
    with pytest.raises(fc.FuncconvError, match=r"same number of steps; got \[0, 2\]\. Train them to the same step"):
        run(arrays, 4, state=mixed)


def test_numbers_that_are_not_finite_in_a_log(arrays, tmp_path):
    states, of_member = ensemble()
    states.params["w"] = states.params["w"].at[0].set(jnp.nan)
    step = jax.vmap(of_member, in_axes=(0, None))
    options = {"log": tmp_path / "log", "checkpoint": tmp_path / "run"}
    _, known = run(arrays, 3, step, states, **options)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["loss"][0] for line in lines] == ["nan"] * 3
    _, history = run(arrays, 3, step, states, **options)
    np.testing.assert_array_equal(np.array(history["loss"]), np.array(known["loss"]))
    assert "loss=[nan, " in repr(history)


def with_arrays(params, batch, *, key, state):
    value = loss(params, batch, key=key, state=state)
    metrics = {
        "of_example": batch["y"],
        "count": jnp.int32(3),
        "matrix": jnp.arange(6).reshape(2, 3),
        "empty": jnp.zeros(0),
    }
    return value, metrics


def test_arrays_keep_their_values_and_shapes(arrays):
    """Also if a batch of another shape has others, and the step is not traced again for the first shape."""
    init, step = fc.train.make_step(with_arrays, optax.sgd(0.1), has_aux=True)
    small = {name: array[:5] for name, array in arrays.items()}
    state = init({"w": jnp.zeros(FEATURES)}, jax.random.key(0))
    with pytest.warns(UserWarning, match="the step was compiled again at step 2"):
        _, history = fc.train.fit(step, state, iter([arrays, small, arrays, small]), steps=4, progress=False)
    expected = [batch["y"].tolist() for batch in (arrays, small, arrays, small)]
    assert history["of_example"] == expected
    assert history["matrix"] == [[[0, 1, 2], [3, 4, 5]]] * 4
    assert (history["count"], history["empty"]) == ([3] * 4, [[]] * 4)
    assert all(isinstance(number, float) for number in history["loss"])


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            jnp.zeros((101, 100), F32),
            r"at most 10000 real numbers; 'large' is float32 of shape \(101, 100\), 10100 numbers",
        ),
        (jnp.zeros(2, jnp.complex64), r"real numbers; 'large' is complex64 of shape \(2,\)"),
    ],
)
def test_arrays_that_cannot_be_recorded(arrays, metric, said):
    init, step = fc.train.make_step(
        lambda p, b, **_: (loss(p, b, key=jax.random.key(0), state=None), {"large": metric}),
        optax.sgd(0.1),
        has_aux=True,
    )
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.fit(step, init({"w": jnp.zeros(FEATURES)}, jax.random.key(0)), iter([arrays]), steps=1, progress=False)


def test_the_program_of_scalars_is_as_it_was(arrays):
    """Checkpoints compare its digest, so a step without arrays and weights has no further operations."""
    init, step = fc.train.make_step(loss, optax.sgd(0.1), accumulate=2)
    state = init({"w": jnp.zeros(FEATURES)}, jax.random.key(0))

    def as_before(state, batch):
        state, metrics = step(state, batch)
        return state, jnp.array([value.astype(F32) for value in metrics.values()], F32)

    assert program_of(CompiledStep(step).jitted, state, arrays) == program_of(
        fc.train.compile(as_before), state, arrays
    )


def test_what_monitors_must_be_a_number(arrays):
    with pytest.raises(
        fc.FuncconvError, match=r"monitor must be the name of one number; 'w' has shape \(3, 4\)\. Let "
    ):
        run(arrays, 2, evaluate=evaluated, monitor="w")


@pytest.mark.parametrize("value", [np.ones(2, complex), np.array(["a", "b"]), [1.0, 2.0]])
def test_what_evaluate_may_not_return(arrays, value):
    with pytest.raises(fc.FuncconvError, match=r"evaluate must return a dict of numbers; 'bad' is .*Convert it"):
        run(arrays, 1, evaluate=lambda _: {"bad": value})


def test_arrays_on_a_mesh(arrays):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    init, step = fc.train.make_step(with_arrays, optax.sgd(0.1), has_aux=True, mesh=mesh)
    state = init({"w": jnp.zeros(FEATURES)}, jax.random.key(0))
    _, metrics = jax.jit(step)(state, arrays)
    assert all(value.sharding.is_fully_replicated for value in metrics.values())
    nested = lambda p, b, **_: (loss(p, b, key=state.key, state=None), {"nested": {"z": b["y"], "a": b["y"][0]}})  # noqa: E731
    _, of_nested = fc.train.make_step(nested, optax.sgd(0.1), has_aux=True, mesh=mesh)
    found = jax.jit(of_nested)(state, arrays)[1]["nested"]
    np.testing.assert_array_equal(found["z"], arrays["y"])
    assert found["z"].sharding.is_fully_replicated
    _, history = fc.train.fit(step, state, iter([arrays]), steps=1, progress=False)
    assert history["of_example"] == [arrays["y"].tolist()]


def test_arrays_in_the_progress_bar_and_on_the_board(arrays, tmp_path, monkeypatch):
    needed("tensorboardX")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    board = fc.train.TensorBoard(tmp_path)
    run(arrays, 4, evaluate=evaluated, every=2, progress=True, log=board)
    assert "loss=[" in sys.stderr.getvalue()
    assert "skipped" not in sys.stderr.getvalue()
    (path,) = tmp_path.iterdir()
    assert all(name in path.read_bytes() for name in (b"loss/2", b"eval/w/2/3", b"eval/largest"))

"""Checkpoints: what they hold comes back as it was, and the right ones are kept."""

import collections
import math
import os
from contextlib import closing

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import funcconv as fc
from funcconv._checkpoints.folder import Checkpoints
from funcconv._checkpoints.retention import steps_to_keep
from funcconv._checkpoints.stored import StoredCheckpoints
from funcconv.train._loop.best import Monitor

DTYPES = [getattr(ml_dtypes, name) for name in dir(ml_dtypes) if name.startswith(("bfloat", "float", "int", "uint"))]
DTYPES += [bool, *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32"]
DTYPES += ["float64", "complex64", "complex128"]
UNKNOWN = {"int1", "uint1", "float6_e2m3fn", "float6_e3m2fn", "float8_e4m3"}  # tensorstore has none of these


def same(one, other):
    """Whether two leaves are of one kind and have the same dtype, shape and bytes."""
    if isinstance(one, jax.Array) and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        return one.dtype == other.dtype and same(jax.random.key_data(one), jax.random.key_data(other))
    return (type(one), np.asarray(one).dtype, np.shape(one), np.asarray(one).tobytes()) == (
        type(other),
        np.asarray(other).dtype,
        np.shape(other),
        np.asarray(other).tobytes(),
    )


def check_round_trip(folder, tree, like=None):
    fc.train.save(folder, tree)
    restored = fc.train.restore(folder, tree if like is None else like)
    assert fc.train.about(folder)["digest"] == fc.train.digest(tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree if like is None else like)
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(restored), strict=True):
        assert same(one, other), (one, other)
    arrays = StoredCheckpoints(folder).arrays()  # which compares digests itself
    sizes = [np.asarray(leaf).nbytes for leaf in jax.tree.leaves(arrays)]
    assert len(sizes) == len(jax.tree.leaves(tree))


def made(kind, dtype):
    """Return an array that has values at the ends of what the dtype can hold, or None if JAX has no such array."""
    dtype = np.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        info = jnp.finfo(dtype)
        values = [info.max, info.tiny, 1, float("nan") if np.isnan(np.array(np.nan).astype(dtype)) else 1]
    else:
        values = [0, 1] if dtype.kind == "b" else [jnp.iinfo(dtype).min, jnp.iinfo(dtype).max, 0]
    values = np.array([np.array(value).astype(dtype) for value in values])
    if kind is np:
        return values
    try:
        return jnp.asarray(values) if jnp.result_type(values) == dtype else None
    except Exception:  # whatever JAX says of a dtype that it does not have
        return None


@pytest.mark.parametrize("x64", [False, True])
def test_every_dtype_comes_back_or_is_refused(tmp_path, x64):
    with jax.enable_x64(x64):
        arrays = {(kind, np.dtype(dtype)): made(kind, dtype) for kind in (np, jnp) for dtype in DTYPES}
        arrays = {f"{kind.__name__}:{dtype}": array for (kind, dtype), array in arrays.items() if array is not None}
        unknown = {name: array for name, array in arrays.items() if str(array.dtype) in UNKNOWN}
        check_round_trip(tmp_path, {name: array for name, array in arrays.items() if name not in unknown})
        before = os.listdir(tmp_path)
        for name, array in unknown.items():
            with pytest.raises(fc.FuncconvError, match=f"{name} of step 3 has dtype {array.dtype}, which .* cannot"):
                fc.train.save(tmp_path, {name: array}, step=3)
        assert os.listdir(tmp_path) == before
    assert len(arrays) - len(unknown) >= 40
    assert unknown


TREES = {
    "64 bits": {"w": np.array([1 / 3, 1e300]), "i": np.array([2**40 + 1]), "u": np.uint64(2**63), "f": np.float64(0.1)},
    "numbers": {"f": 1 / 3, "i": 2**53 + 1, "b": True, "c": 1e300j, "nan": math.nan, "none": None},
    "strides": {"w": np.ones((2, 3)).T, "v": np.arange(12.0).reshape(3, 4)[:, ::2]},
    "nothing": {},
    "empty parts": {"a": {}, "b": [], "c": None, "w": np.ones(2)},
    "no elements": {"a": jnp.zeros((0, 3), jnp.bfloat16), "b": np.zeros((2, 0)), "c": jnp.ones(1)},
    "one array": jnp.arange(3),
    "lists": [jnp.ones(2), (jnp.zeros(1), {"w": np.ones(1)})],
    "odd names": {"": np.ones(1), "@state": np.zeros(2), "..": np.ones(3), "ü\n/": np.ones(4), "a.b": np.ones(5)},
    "names with dots": {"a.b": np.ones(2), "a": {"b": np.zeros(2)}},
    "names with numbers": {0: np.ones(2), 10: np.zeros(2), 9: np.full(2, 9.0)},
    "keys": {name: jax.random.split(jax.random.key(3, impl=name), 2) for name in ("threefry2x32", "rbg", "unsafe_rbg")},
}


@pytest.mark.parametrize("name", TREES)
def test_every_tree_comes_back(tmp_path, name):
    check_round_trip(tmp_path, TREES[name])


def test_what_is_read_is_of_the_kind_that_is_asked_for(tmp_path):
    """Arrays of NumPy and of JAX, types, and containers with another order, but never another dtype."""
    tree = {"b": jnp.ones(2, jnp.float32), "a": np.zeros(2), "k": jax.random.key(0)}
    fc.train.save(tmp_path, tree)
    types = jax.eval_shape(lambda: tree)
    other = collections.OrderedDict(k=tree["k"], b=np.zeros(2, np.float32), a=jnp.zeros(2, jnp.float64))
    for like in (types, other, jax.tree.map(lambda leaf: leaf, tree)):
        restored = fc.train.restore(tmp_path, like)
        for name in tree:
            assert isinstance(restored[name], np.ndarray) == isinstance(like[name], np.ndarray)
        assert all(np.array_equal(restored[name], tree[name]) for name in "ab")
        assert restored["k"] == tree["k"]
    fc.train.save(tmp_path, {"w": np.arange(3, dtype=">f4")}, step=1)
    assert fc.train.restore(tmp_path, {"w": np.zeros(3, "<f4")}, 1)["w"].tolist() == [0, 1, 2]
    with jax.enable_x64(False):
        restored = fc.train.restore(tmp_path, types, 0)
        assert (type(restored["a"]), restored["a"].dtype) == (np.ndarray, np.float64)
        with pytest.raises(
            fc.FuncconvError, match=r"a: float64.* checkpoint, float32\[2\] expected\n.*only NumPy arrays"
        ):
            fc.train.restore(tmp_path, tree | {"a": jnp.zeros(2)}, 0)
    with pytest.raises(fc.FuncconvError, match=r"k: key<fry>\[\] in the checkpoint, key<rbg>\[\] expected"):
        fc.train.restore(tmp_path, tree | {"k": jax.random.key(0, impl="rbg")}, 0)


def test_what_cannot_be_saved(tmp_path):
    deleted = jnp.ones(3)
    deleted.delete()
    for leaf, said in (
        (deleted, "a/w of step 5 was deleted.*the state that the step returned"),
        ("text", "only arrays and numbers; a/w of step 5 is a str"),
        (object(), "is a object"),
        (np.array([None]), "has dtype object, which a checkpoint cannot contain"),
        (np.array(["text"]), "has dtype <U4"),
        (np.zeros(1, "M8[s]"), "has dtype datetime64"),
        (2**70, "has dtype object"),
    ):
        with pytest.raises(fc.FuncconvError, match=said):
            fc.train.save(tmp_path / "run", {"a": {"w": leaf}}, step=5)
    with pytest.raises(fc.FuncconvError, match="a/w of step 5 is not known while JAX traces"):
        jax.jit(lambda x: fc.train.save(tmp_path / "run", {"a": {"w": x}}, step=5))(1.0)
    with pytest.raises(fc.FuncconvError, match="several entries called 'a/b'"):
        fc.train.save(tmp_path / "run", {"a/b": np.ones(1), "a": {"b": np.zeros(1)}})
    with (
        closing(Checkpoints(tmp_path / "run")) as checkpoints,
        pytest.raises(fc.FuncconvError, match="must be JSON: Object of type object"),
    ):
        checkpoints.save(5, {"w": np.ones(1)}, about={"x": object()})
    assert os.listdir(tmp_path / "run") == []


@pytest.mark.parametrize("step", [-1, 1.0, 2.5, math.nan, "4", None, True, 2**63, b"1", [1]])
def test_steps_are_whole_numbers(tmp_path, step):
    with pytest.raises(fc.FuncconvError, match=r"train.save: step must be a whole number from 0 to .*; got "):
        fc.train.save(tmp_path, {"w": np.ones(1)}, step=step)
    assert os.listdir(tmp_path) == []
    said = 'which must be "best", "last" or' if step in (None, "4") else "step must be a whole number from 0 to"
    for read in (lambda: fc.train.restore(tmp_path, {}, step), lambda: fc.train.about(tmp_path, step)):
        with pytest.raises(fc.FuncconvError, match=said):
            read()


def test_steps_of_arrays_and_bad_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for step in (np.int64(3), jnp.array(4), 0):
        fc.train.save(".", {"w": np.ones(1)}, step=step)
        assert fc.train.about(".", step)["step"] == int(step)
    (tmp_path / "file").touch()
    before = sorted(os.listdir())
    paths = ["", b"run", 5, None, "a\0b", "x" * 300, "file", "file/run", "\ud800"]
    for path in paths:
        for call in (
            lambda path: fc.train.save(path, {"w": np.ones(1)}),
            lambda path: fc.train.restore(path, {"w": np.ones(1)}),
            fc.train.about,
            Checkpoints,
        ):
            with pytest.raises(fc.FuncconvError, match=r"^train"):
                call(path)
    assert sorted(os.listdir()) == before


# what is kept -----------------------------------------------------------------------------------------------

KEPT = [  # the metric of each step, `keep`, and what is left at the end
    ({1: 5.0, 2: 1.0, 3: 3.0, 4: 4.0}, 1, [2, 4]),
    ({1: 5.0, 2: 1.0, 3: math.nan, 4: 4.0}, 1, [2, 4]),
    ({1: math.nan, 2: math.nan, 3: math.nan}, 1, [3]),
    ({1: None, 2: 2.0, 3: None, 4: None}, 1, [2, 4]),
    ({1: 1.0, 2: 1.0, 3: 1.0}, 1, [1, 3]),
    ({1: -math.inf, 2: -1.0, 3: math.inf, 4: 0.0, 5: None}, 2, [1, 2, 4, 5]),
    ({1: math.inf, 2: None, 3: math.nan}, 1, [1, 3]),
    ({1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: 5.0}, 2, [1, 2, 4, 5]),
]


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("metrics", "keep", "left"), KEPT)
def test_the_last_and_the_best_are_kept(tmp_path, metrics, keep, left, largest):
    """Also where a run ends in between and goes on, and whether the best is the smallest or the largest."""
    for first, last in ((0, 2), (2, 9)):
        score = Monitor("error", "max" if largest else "min").score
        with closing(Checkpoints(tmp_path, keep=keep, score=score)) as checkpoints:
            for step, value in [*metrics.items()][first:last]:
                told = {} if value is None else {"error": -value if largest else value, "other": -step}
                checkpoints.save(step, {"w": np.ones(1)}, metrics=told)
                assert step in checkpoints.steps
    assert [*fc.train.about(tmp_path)] == ["step", "arrays", "digest", "versions", "about"]
    with closing(Checkpoints(tmp_path)) as checkpoints:
        assert [*checkpoints.steps] == left


def test_without_metrics_the_last_are_kept(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "7").write_text("a file of the user")
    with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step in (0, 1, 5, 10, 100):
            checkpoints.save(step, {"w": np.ones(1)})
        assert checkpoints.steps == (10, 100)
    fc.train.save(tmp_path, {"w": np.ones(1)}, step=3)
    assert sorted(os.listdir(tmp_path)) == ["10", "100", "3", "7", "notes"]


def test_a_run_that_goes_on_before_a_damaged_checkpoint_keeps_its_own():
    """The damaged ones after it are not the last ones; they are replaced when the run comes to them."""
    assert steps_to_keep([10, 11, 20], newest=11, keep=1, scores={}) == {11, 20}
    assert steps_to_keep([10, 11, 20], newest=20, keep=1, scores={10: 1.0, 20: 2.0}) == {10, 20}
    assert Monitor("b", "max").score({"a": 1, "b": 2}) == -2
    assert Monitor("b", "min").score({"a": 1}) is None


def test_the_best_of_each_kept_checkpoint_is_kept(tmp_path):
    """A run that is resumed from it needs it. A damaged record names none."""
    with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        for step, best in {1: 1, 2: 1, 3: 1, 4: 4, 5: 4}.items():
            checkpoints.save(step, {"w": np.ones(1)}, {"best_at": best})
            assert {step, best} <= {*checkpoints.steps}
        assert checkpoints.steps == (4, 5)
        checkpoints.save(6, {"w": np.ones(1)}, {"best_at": 6})
        assert checkpoints.steps == (4, 5, 6)
    with closing(Checkpoints(tmp_path, keep=2)) as checkpoints:
        (tmp_path / "5" / "record.jsonl").write_text("{}")
        checkpoints.save(7, {"w": np.ones(1)}, {"best_at": None})
        assert checkpoints.steps == (6, 7)


def test_fit_keeps_the_best_between_its_checkpoints(tmp_path):
    """The state that was best is saved under its step, also if no checkpoint was due there."""
    init, step = fc.train.make_step(lambda params, batch, **_: jnp.square(params["w"] - batch).mean(), optax.sgd(0.01))
    errors = {4: 5.0, 8: 1.0, 12: math.nan, 16: 4.0, 20: 6.0}
    for every, left in ((4, [8, 20]), (5, [8, 20]), (2, [8, 20])):
        data = fc.train.batches(np.ones(64, np.float32), 16, jax.random.key(0))
        fc.train.fit(
            step,
            init({"w": jnp.zeros((), jnp.float32)}, jax.random.key(1)),
            data,
            steps=20,
            every=4,
            monitor="error",
            evaluate=lambda state: {"error": errors[int(state.step)]},
            checkpoint=tmp_path / str(every),
            checkpoint_every=every,
            keep=1,
            progress=False,
        )
        assert sorted(map(int, os.listdir(tmp_path / str(every)))) == left


# checkpoints of earlier versions ----------------------------------------------------------------------------


def test_checkpoints_of_version_0_1_are_read(tmp_path):
    """They were written by a manager of orbax, as here; its folders have no record with a checksum."""
    import orbax.checkpoint as ocp

    init, _ = fc.train.make_step(lambda params, batch, **_: jnp.square(params["w"] - batch).mean(), optax.sgd(0.01))
    state = init({"w": jnp.zeros(3, jnp.float32)}, jax.random.key(1))
    told = {
        "arrays": {"step": "int32[]", "params/w": "float32[3]", "key": "key<fry>[]", "skipped": "int32[]"},
        "digest": fc.train.digest(state),
        "run": {"best": "inf", "waited": 0, "iterator": None},
        "about": {"a": 1},
    }
    fc.train.save(tmp_path / "new", state)
    told["versions"] = fc.train.about(tmp_path / "new")["versions"]
    with closing(ocp.CheckpointManager(tmp_path / "old")) as manager:
        for number in (2, 4):
            args = ocp.args.Composite(state=ocp.args.StandardSave(state), told=ocp.args.JsonSave(told))
            manager.save(number, args=args, force=True)
        manager.wait_until_finished()
    assert fc.train.about(tmp_path / "old")["about"] == {"a": 1}
    assert fc.train.digest(fc.train.restore(tmp_path / "old", state)) == told["digest"]
    (tmp_path / "old" / "4" / "told" / "metadata").write_text("{")
    with pytest.warns(UserWarning, match="of step 4 in .* is skipped: it is damaged"):
        assert fc.train.about(tmp_path / "old")["step"] == 2
    with closing(Checkpoints(tmp_path / "old", keep=1)) as checkpoints:
        checkpoints.save(6, state)
        assert checkpoints.steps == (6,)

"""Metrics over a data set: the mean over all examples, however they are cut into batches and spread over devices."""

import io
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc

EXAMPLES, CLASSES, FEATURES = 19, 3, 4
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": jnp.bfloat16}
TERMS = EXAMPLES * CLASSES  # the numbers that are summed are small integers, so only means are rounded


def logits(params, batch):
    return batch["x"] @ params["w"]


def correct(params, batch):
    return logits(params, batch).argmax(-1) == batch["label"]


def mean_score(params, batch):
    score = logits(params, batch)
    return score.astype(jnp.float64 if score.dtype == jnp.float64 else jnp.float32).mean()


def of_class(params, batch):
    """The accuracy for each label."""
    of_label = jax.nn.one_hot(batch["label"], CLASSES)
    return fc.train.Weighted(
        (of_label * correct(params, batch)[:, None].astype(of_label.dtype)).sum(0), of_label.sum(0)
    )


def counts(params, batch):
    return fc.train.confusion(batch["label"], logits(params, batch).argmax(-1), CLASSES)


METRICS = {"score": logits, "correct": correct, "mean": mean_score, "of_class": of_class, "counts": counts}


def problem(rng, dtype=np.float32):
    x, label = rng.integers(-3, 4, (EXAMPLES, FEATURES)), np.arange(EXAMPLES) % CLASSES
    params = {"w": jnp.asarray(rng.integers(-3, 4, (FEATURES, CLASSES)), dtype)}
    return params, {"x": np.asarray(jnp.asarray(x, dtype)), "label": label}


def expected(params, arrays):
    """The same by NumPy, over all examples at once."""
    found = np.asarray(logits(params, arrays), np.float64)
    right, label = found.argmax(-1) == arrays["label"], arrays["label"]
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (label, found.argmax(-1)), 1)
    return {
        "score": found.mean(0),
        "correct": right.mean(),
        "mean": found.mean(),
        "of_class": np.array([right[label == i].mean() for i in range(CLASSES)]),
        "counts": confusion,
    }


def same(found, known, dtype=np.float32):
    assert [*found] == [*known]
    for name in found:
        close(found[name], known[name], dtype, terms=TERMS)


def data_of(arrays, size, **options):
    return fc.train.batches(arrays, size, jax.random.key(0), drop_last=False, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 4, 8, 19, 40])
def test_any_size_of_batch_is_the_whole_data_set(rng, dtype, size):
    params, arrays = problem(rng, DTYPES[dtype])
    known = expected(params, arrays)
    found = fc.train.evaluate(METRICS, params, data_of(arrays, size))
    same(found, known, np.float64 if dtype == "float64" else np.float32)
    assert found["counts"].dtype == np.int64


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_on_a_mesh(rng, devices, kind):
    """The batches of 8 are spread over the devices; the last one of 3 examples cannot be cut into 2 or 4 parts."""
    params, arrays = problem(rng)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices])
    on_mesh = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    known, where = expected(params, arrays), NamedSharding(mesh, PartitionSpec("data"))
    same(fc.train.evaluate(METRICS, on_mesh, data_of(arrays, 8)), known)
    same(fc.train.evaluate(METRICS, on_mesh, data_of(arrays, 8, sharding=where)), known)
    whole = {name: array[:16] for name, array in arrays.items()}
    spread = [jax.device_put(batch, where) for batch in data_of(whole, 8).first_epoch()]
    same(fc.train.evaluate(METRICS, on_mesh, spread), expected(params, whole))


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_the_loss_of_a_step_is_that_of_evaluate(rng, parts):
    """Under accumulate, a `Weighted` loss is the mean that evaluate gives for batches of any size."""
    params, arrays = problem(rng)
    arrays = {name: array[:12] for name, array in arrays.items()}

    def loss(params, batch, **_):
        return fc.train.Weighted.of(
            optax.softmax_cross_entropy_with_integer_labels(logits(params, batch), batch["label"])
        )

    init, step = fc.train.make_step(loss, optax.sgd(0.1), accumulate=parts)
    _, metrics = jax.jit(step)(init(params, jax.random.key(0)), arrays)
    close(fc.train.evaluate(loss, params, data_of(arrays, 5)), metrics["loss"], np.float32, terms=TERMS)


def test_the_structure_of_the_result(rng):
    params, arrays = problem(rng)
    data, known = data_of(arrays, 8), expected(params, arrays)["correct"]
    assert isinstance(fc.train.evaluate(correct, params, data), float)
    several = fc.train.evaluate(lambda p, b: {"a": correct(p, b), "b": (counts(p, b),)}, params, data)
    assert [*several] == ["a", "b"]
    assert several["b"][0].shape == (CLASSES, CLASSES)
    close(several["a"], known, np.float64)
    assert fc.train.evaluate(lambda _, b: fc.train.Sum(b["label"].sum()), 0, data) == arrays["label"].sum()


def test_compiled_once_for_each_shape(rng, compilations):
    params, arrays = problem(rng)
    traced = []

    def metric(params, batch):
        traced.append(len(batch["label"]))
        return mean_score(params, batch)

    for _ in range(3):
        fc.train.evaluate({"mean": metric}, params, data_of(arrays, 8))
    assert traced == [8, 3]
    before = len(compilations)
    fc.train.evaluate({"mean": metric}, params, list(data_of(arrays, 8).first_epoch()))
    assert len(compilations) == before


def test_batches_begin_anew_and_keep_their_position(rng):
    params, arrays = problem(rng)
    data = data_of(arrays, 8)
    batch = next(data)
    first = fc.train.evaluate(METRICS, params, data)
    same(fc.train.evaluate(METRICS, params, data), first)
    assert data.position == 1
    np.testing.assert_array_equal(next(data.seek(0))["x"], batch["x"])


def test_an_iterator_may_refill_its_buffer():
    def refilled():
        buffer = np.zeros(4, np.float32)
        for number in range(50):
            buffer[:] = number
            yield buffer

    assert fc.train.evaluate(lambda _, batch: batch, 0, refilled()) == np.mean(range(50))


def test_sums_over_many_batches_are_exact():
    """In float32, ones stop adding up at 2**24; in int32, sums end at 2**31."""
    batches = [np.full(1, 2**24, np.float32), *[np.ones(1, np.float32)] * 20]
    assert fc.train.evaluate(lambda _, b: fc.train.Sum(b.sum()), 0, batches) == 2**24 + 20
    assert fc.train.evaluate(lambda _, b: fc.train.Weighted(b[0], 1), 0, batches) == (2**24 + 20) / 21
    large = [np.full(1, 2**31 - 1, np.int32)] * 3
    assert fc.train.evaluate(lambda _, b: fc.train.Sum(b[0]), 0, large) == 3 * (2**31 - 1)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_sixteen_bits_are_summed_in_float32(dtype):
    batch = jnp.ones(70_000, dtype)  # more than 65,504, the largest number of float16
    assert fc.train.evaluate(lambda _, b: b, 0, [batch]) == 1
    assert fc.train.evaluate(lambda _, b: fc.train.Weighted.of(b), 0, [batch, batch]) == 1


def test_nothing_to_take_the_mean_of():
    batch = np.ones(4, np.float32)
    assert np.isnan(fc.train.evaluate(lambda _, b: fc.train.Weighted.of(b, 0 * b), 0, [batch]))
    assert fc.train.evaluate(lambda _, b: fc.train.Weighted.of(b, b - b[0] + 1), 0, [batch, batch]) == 1
    for metric in (lambda _, b: b.mean(), lambda _, b: b):
        assert fc.train.evaluate(metric, 0, [batch[:0], 3 * batch]) == 3


@pytest.mark.usefixtures("climate_of_a_user")
def test_in_a_run_and_for_an_ensemble(rng, tmp_path):
    params, arrays = problem(rng)
    held_out = data_of(arrays, 8)

    def loss(params, batch, **_):
        return fc.train.Weighted.of(
            optax.softmax_cross_entropy_with_integer_labels(logits(params, batch), batch["label"])
        )

    def of_members(state, batch):
        return jax.vmap(correct, (0, None), out_axes=1)(state.params, batch)

    metrics = {
        "correct": of_members,
        "loss": lambda state, batch: jax.vmap(loss, (0, None))(state.params, batch),
        "mean": lambda state, batch: of_members(state, batch).mean(1),
    }
    init, step = fc.train.make_step(loss, optax.adam(0.1))
    members = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), params)
    states = jax.vmap(init)(members, jax.random.split(jax.random.key(0), 2))
    _, history = fc.train.fit(
        jax.vmap(step, in_axes=(0, None)),
        states,
        fc.train.batches(arrays, 8, jax.random.key(1)),
        steps=6,
        every=3,
        evaluate=lambda state: fc.train.evaluate(metrics, state, held_out),
        monitor="mean",
        checkpoint=tmp_path,
        progress=False,
    )
    assert np.shape(history["eval/correct"]) == np.shape(history["eval/loss"]) == (2, 2)
    close(np.mean(history["eval/correct"], 1), np.array(history["eval/mean"]), np.float32)


@pytest.mark.parametrize("known", [True, False])
def test_progress(rng, monkeypatch, known):
    params, arrays = problem(rng)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    batches = list(data_of(arrays, 8).first_epoch())
    fc.train.evaluate(correct, params, batches if known else iter(batches), progress=True)
    assert "evaluating" in sys.stderr.getvalue()
    assert ("3/3" if known else "batch") in sys.stderr.getvalue()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    fc.train.evaluate(correct, params, batches)
    assert not sys.stderr.getvalue()


# confusion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("shape", [(), (50,), (5, 4, 3)])
def test_confusion_counts_pairs(rng, shape, dtype):
    """Those in range, by a loop."""
    low = 0 if np.issubdtype(dtype, np.unsignedinteger) else -2
    labels, predictions = (rng.integers(low, CLASSES + 2, shape).astype(dtype) for _ in range(2))
    counted = np.zeros((CLASSES, CLASSES), int)
    for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
        if 0 <= label < CLASSES and 0 <= prediction < CLASSES:
            counted[label, prediction] += 1
    for f in (fc.train.confusion, jax.jit(fc.train.confusion, static_argnums=2)):
        found = f(labels, predictions, CLASSES).value
        np.testing.assert_array_equal(found, counted)
        assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("labels", "predictions", "classes", "said"),
    [
        (
            np.ones(3),
            np.ones(3, int),
            3,
            r"integers of one shape; got float64 of shape \(3,\) and int64 of shape \(3,\)",
        ),
        (np.ones(3, int), np.ones((3, 2), int), 3, r"int64 of shape \(3, 2\)\. Take the argmax"),
        (np.ones(3, int), np.ones(3, int), 0, "classes must be an integer of at least 1; got 0"),
        (np.ones(3, int), np.ones(3, int), 2.0, "classes must be an integer of at least 1; got 2.0"),
        (np.ones(3, int), np.ones(3, int), True, "got True"),
    ],
)
def test_confusion_of_something_else(labels, predictions, classes, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.confusion(labels, predictions, classes)


# what is refused ------------------------------------------------------------------------------------------------

BATCHES = [np.ones((4, 3), np.float32)] * 2


class Unhashable:
    __hash__ = None

    def __call__(self, _, batch):
        return batch


MISTAKES = {
    "a number": (3, "metrics must be a function.*'metrics' is a int"),
    "a dict of numbers": ({"a": 3}, "'a' is a int"),
    "no hash": (Unhashable(), "can be hashed.*'metrics' is a Unhashable"),
    "a count": (
        lambda _, b: (b > 0).sum(),
        r"got int\d+ of shape \(\) for a batch of 4.*train.Sum\(value\) for a count",
    ),
    "a vector": (
        lambda _, b: b.mean(0),
        r"the metric must be one value for each example.* float32 of shape \(3,\) for a",
    ),
    "by chance": (
        lambda _, b: {"a": (jnp.ones(4, np.float32) * b[0, 0],)},
        r"'a/0' has shape \(4,\) for 4 and for 8 examples, so its first axis is not that of the examples",
    ),
    "nothing": (lambda *_: None, "the metric must be an array of real numbers; got a NoneType"),
    "a text": ({"a": lambda *_: "text"}, "the metric 'a' must be an array of real numbers; got a str"),
    "complex": (lambda _, b: jax.lax.complex(b[:, 0], b[:, 1]), "real numbers; got complex"),
    "weights": (
        lambda _, b: fc.train.Weighted(b, jnp.ones(3)),
        r"the sum of the metric .*weight=float\d+ of shape \(3,\)",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_metric(mistake):
    metrics, said = MISTAKES[mistake]
    with pytest.raises(fc.FuncconvError, match=said) as error:
        fc.train.evaluate(metrics, 0, BATCHES)
    assert "\n" not in str(error.value)


def test_a_metric_for_batches_of_one_size():
    """Then nothing can be checked, as with arrays of the metric's own."""
    label = jnp.arange(4)
    assert fc.train.evaluate(lambda _, b: b[:, 0].astype(int) == label, 0, BATCHES) == 0.25


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "there are no batches in the list. An iterator can be read only once"),
        ({"x": BATCHES[0]}, r"batches must be an iterable over batches.*got a dict\. Pass \[batch\]"),
        (BATCHES[0], r"got a ndarray\. Pass \[batch\]"),
        (3, "got a int"),
        ([{"x": BATCHES[0], "y": np.ones(5, np.float32)}], "got float32 of shape .* no common first axis"),
    ],
)
def test_batches_that_are_none(batches, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.evaluate(lambda _, b: jax.tree.leaves(b)[0].mean(), 0, batches)


def test_examples_that_would_be_left_out(rng):
    params, arrays = problem(rng)
    with pytest.raises(fc.FuncconvError, match=r"3 of 19 examples would be left out.* of 8\. Pass drop_last=False"):
        fc.train.evaluate(correct, params, fc.train.batches(arrays, 8))
    found = fc.train.evaluate(partial(logits), params, fc.train.batches(arrays, 19))
    close(found, expected(params, arrays)["score"], np.float32, terms=TERMS)

"""Batches that a thread takes ahead: the same batches, errors and positions as without it."""

import itertools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from available import needed

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")


class Counting:
    """An iterator with a state, which it goes on to change, and one buffer, which it fills again."""

    def __init__(self, stop=None, fails_at=()):
        self.state, self.stop, self.fails_at = {"taken": 0}, stop, list(fails_at)
        self.buffer, self.threads = np.zeros((2, 3), np.float32), set()

    def __iter__(self):
        return self

    def __next__(self):
        self.threads.add(threading.get_ident())
        number = self.state["taken"] + 1
        if number == self.stop:
            raise StopIteration
        if number in self.fails_at:
            self.fails_at.remove(number)
            msg = f"batch {number}"
            raise OSError(msg)
        self.state["taken"] = number
        self.buffer[:] = np.random.default_rng(number).normal(size=(2, 3))
        return {"x": self.buffer, "number": number}

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = dict(state)


class Plain:
    """The same without a state."""

    def __init__(self, *args, **options):
        self.counting = Counting(*args, **options)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.counting)


def wait_until(is_true):
    begun = time.monotonic()
    while not is_true():
        assert time.monotonic() < begun + 60
        time.sleep(0.001)


@pytest.mark.parametrize("kind", [Counting, Plain])
@pytest.mark.parametrize("count", [1, 3])
def test_the_batches_are_the_same(kind, count):
    data = fc.train.prefetch(kind(stop=8), count)
    found = [*data]
    assert [batch["number"] for batch in found] == [*range(1, 8)]
    for batch, expected in zip(found, Counting(), strict=False):
        assert isinstance(batch["x"], jax.Array)
        np.testing.assert_array_equal(batch["x"], expected["x"])
    assert next(data, None) is None


def test_they_are_taken_ahead_in_another_thread():
    inner = Counting()
    data = fc.train.prefetch(inner, 3)
    assert inner.state["taken"] == 0
    next(data)
    wait_until(lambda: inner.state["taken"] == 4)
    time.sleep(0.01)
    assert inner.state["taken"] == 4
    assert len(inner.threads) == 1
    assert threading.get_ident() not in inner.threads


def test_they_are_spread_over_devices():
    spread = jax.NamedSharding(jax.make_mesh((2,), ("data",)), jax.P("data"))
    batch = next(fc.train.prefetch(Counting(), sharding=spread))
    assert batch["x"].sharding == spread
    np.testing.assert_array_equal(batch["x"], next(Counting())["x"])


@pytest.mark.parametrize("kind", [Counting, Plain])
def test_an_error_is_raised_when_its_batch_is_due(kind):
    data = fc.train.prefetch(kind(fails_at=[3, 3]), 4)
    assert [next(data)["number"] for _ in range(2)] == [1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="batch 3"):
            next(data)
    assert [next(data)["number"] for _ in range(3)] == [3, 4, 5]


def test_the_state_is_that_of_the_batches_returned():
    inner = Counting()
    data = fc.train.prefetch(inner, 3)
    assert data.get_state() == {"taken": 0}
    next(data), next(data)
    wait_until(lambda: inner.state["taken"] == 5)
    state = data.get_state()
    assert state == {"taken": 2}
    next(data)
    data.set_state(state)
    assert [next(data)["number"] for _ in range(4)] == [3, 4, 5, 6]
    assert state == {"taken": 2}
    assert not hasattr(fc.train.prefetch(Plain()), "get_state")


@pytest.mark.parametrize(
    ("batches", "count", "said"),
    [
        (fc.train.batches(np.ones(3), 1), 2, "Batches prefetches by itself"),
        ([1, 2], 2, "iter.loader.; got list"),
        (iter([1]), 0, "count must be an integer of at least 1; got 0"),
    ],
)
def test_refused(batches, count, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.prefetch(batches, count)


# runs -----------------------------------------------------------------------------------------------------------


def loss(params, batch, *, key, state):
    del key, state
    return jnp.square(batch["x"] @ params["w"] - 1).mean()


def trained(data, steps, **options):
    init, step = fc.train.make_step(loss, optax.adam(0.1))
    state = init({"w": jnp.zeros(3)}, jax.random.key(0))
    state, _ = fc.train.fit(step, state, data, steps=steps, progress=False, **options)
    return fc.train.digest(state)


@pytest.mark.parametrize("kind", [Counting, Plain])
def test_runs_are_resumed_exactly(tmp_path, kind):
    expected = trained(kind(), 11)
    for steps in (1, 4, 11):
        result = trained(fc.train.prefetch(kind()), steps, checkpoint=tmp_path / "run", checkpoint_every=3)
    assert result == expected
    if kind is Counting:  # the same iterator, which is ahead of the run
        data = fc.train.prefetch(kind(), 3)
        assert [trained(data, steps, checkpoint=tmp_path / "second") for steps in (2, 7, 11)][-1] == expected


def test_a_run_without_a_checkpoint_goes_on_with_the_batches_taken_ahead():
    init, step = fc.train.make_step(loss, optax.adam(0.1))
    state, data = init({"w": jnp.zeros(3)}, jax.random.key(0)), fc.train.prefetch(Plain(), 3)
    for steps in (2, 5, 9):
        state, _ = fc.train.fit(step, state, data, steps=steps, progress=False)
    assert fc.train.digest(state) == trained(Plain(), 9)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("ending_at", [1, 2, 5])
def test_errors_end_a_run_at_their_step(tmp_path, error, ending_at):
    class Failing(Counting):
        def __next__(self):
            if self.state["taken"] + 1 == ending_at and self.fails_at:
                self.fails_at.clear()
                raise error
            return super().__next__()

    data = fc.train.prefetch(Failing(fails_at=["once"]), 2)
    with pytest.raises(error):
        trained(data, 7, checkpoint=tmp_path, checkpoint_every=2)
    assert fc.train.about(tmp_path)["step"] == ending_at - 1
    assert trained(data, 7, checkpoint=tmp_path) == trained(Counting(), 7)


def test_a_run_that_patience_ends_uses_its_batches_later(tmp_path):
    options = {"evaluate": lambda _: {"error": 0.0}, "every": 2, "monitor": "error", "checkpoint": tmp_path}
    options["on_change"] = "ignore"  # of patience
    data = fc.train.prefetch(Counting(), 2)
    trained(data, 9, patience=1, **options)
    assert data.get_state() == {"taken": 4}
    assert trained(data, 9, patience=9, **options) == trained(Counting(), 9)


# iterators of other libraries -----------------------------------------------------------------------------------


def examples():
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32)
    return [{"x": row} for row in x]


@pytest.mark.parametrize("ahead", [False, True])
def test_grain(tmp_path, ahead):
    grain = needed("grain")

    def data():
        source = grain.MapDataset.source(examples()).seed(0).shuffle().repeat().batch(4)
        batches = iter(source.to_iter_dataset())
        return fc.train.prefetch(batches, 3) if ahead else batches

    for steps in (3, 5, 14):
        result = trained(data(), steps, checkpoint=tmp_path)
    assert result == trained(data(), 14)
    order = itertools.islice(data(), 12)
    assert len({batch["x"].tobytes() if not ahead else np.asarray(batch["x"]).tobytes() for batch in order}) == 12


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_pytorch(tmp_path, ahead, workers):
    torch = needed("torch")

    def data():
        """Return an iterator that begins anew with the same order, as a resumed run needs."""
        order = torch.Generator().manual_seed(0)
        loader = torch.utils.data.DataLoader(
            examples(), 4, shuffle=True, generator=order, num_workers=workers, collate_fn=stacked
        )
        batches = (batch for _ in itertools.count() for batch in loader)
        return fc.train.prefetch(batches) if ahead else batches

    for steps in (4, 9):
        result = trained(data(), steps, checkpoint=tmp_path)
    assert result == trained(data(), 9)


def stacked(rows):
    return {"x": np.stack([row["x"] for row in rows])}


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hugging_face(tmp_path, ahead):
    datasets = needed("datasets")
    rows = datasets.Dataset.from_dict({"x": [row["x"] for row in examples()]}).with_format("numpy")

    def data():
        epochs = (rows.shuffle(seed=epoch, keep_in_memory=True) for epoch in itertools.count())
        batches = (batch for epoch in epochs for batch in epoch.iter(4, drop_last_batch=True))
        return fc.train.prefetch(batches) if ahead else batches

    for steps in (4, 9):
        result = trained(data(), steps, checkpoint=tmp_path)
    assert result == trained(data(), 9)


@pytest.mark.parametrize("ahead", [False, True])
def test_tensorflow(tmp_path, ahead):
    tensorflow = needed("tensorflow")

    def data():
        table = tensorflow.data.Dataset.from_tensor_slices({"x": np.stack([row["x"] for row in examples()])})
        batches = table.shuffle(24, seed=0).repeat().batch(4).as_numpy_iterator()
        return fc.train.prefetch(batches) if ahead else batches

    for steps in (4, 9):
        result = trained(data(), steps, checkpoint=tmp_path)
    assert result == trained(data(), 9)

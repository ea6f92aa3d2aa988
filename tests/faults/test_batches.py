"""Batches that end, that raise, or that are of another type: what was trained is saved, and the error says where."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32
STEPS = 6


def good(number):
    return {"x": np.full((4, 3), number, F32), "y": np.zeros(4, np.int32)}


def loss(params, batch, *, key, state):
    del key, state
    return (jnp.square(batch["x"] @ params["w"] - 1) + batch["y"]).mean()


def fit(batches, folder=None, **options):
    init, step = fc.train.make_step(loss, optax.sgd(0.01))
    state = init({"w": jnp.ones(3)}, jax.random.key(0))
    options = {"steps": STEPS, "checkpoint": folder, "checkpoint_every": 100, "progress": False, **options}
    return fc.train.fit(step, state, batches, **options)


def saved_steps(folder):
    return int(fc.train.about(folder)["step"])


class Loader:
    """An iterator that knows its position, and that gives something else in place of one batch."""

    def __init__(self, bad=None, at=None):
        self.number, self.bad, self.at = 0, bad, at

    def __iter__(self):
        return self

    def __next__(self):
        self.number += 1
        return self.bad() if self.number == self.at else good(self.number)

    def get_state(self):
        return self.number

    def set_state(self, number):
        self.number = number


def plain(bad=None, at=None):
    loader = Loader(bad, at)
    return (next(loader) for _ in range(100))


def raising():
    msg = "the network is down"
    raise OSError(msg)


def ending():
    raise StopIteration


WRONG = {
    "another number of features": ({"x": np.zeros((4, 2), F32), "y": np.zeros(4, np.int32)}, TypeError, "x was"),
    "another number of axes": ({"x": np.zeros((4, 3, 1), F32), "y": np.zeros(4, np.int32)}, TypeError, "x was"),
    "a missing entry": ({"x": np.zeros((4, 3), F32)}, KeyError, r"y was int32\[4\], is missing"),
    "a text": (
        {"x": np.zeros((4, 3), F32), "y": "none"},
        TypeError,
        r"y was int32\[4\], is str",
    ),
    "objects": (
        {"x": np.zeros((4, 3), F32), "y": np.array([None] * 4)},
        TypeError,
        r"y was int32\[4\], is ndarray",
    ),
    "an array in place of a dict": (np.zeros((4, 3), F32), Exception, r"x was float32\[4, 3\], is missing"),
}


@pytest.mark.parametrize("kind", [Loader, plain])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("at", [1, 4])
def test_a_batch_of_another_type(tmp_path, at, wrong, kind):
    """The error is the one of the loss; its note says which batch it was and what has changed."""
    bad, error, said = WRONG[wrong]
    with pytest.raises(error) as raised:
        fit(kind(lambda: bad, at), tmp_path)
    notes = " ".join(getattr(raised.value, "__notes__", []))
    if at == 1:  # there is no other one to compare it with
        assert "differs" not in notes
    else:
        assert "train: the batch of step 4 differs from those before: " in notes
        assert raised.match(said)
        assert saved_steps(tmp_path) == 3
    resumed, _ = fit(kind(), tmp_path)
    whole, _ = fit(kind())
    assert fc.train.digest(resumed) == fc.train.digest(whole)


CHANGED = {
    "a dtype": ({"x": np.ones((4, 3), np.int8), "y": np.zeros(4, np.int32)}, r"x was float32\[4, 3\], is int8\[4, 3\]"),
    "fewer examples": (
        {"x": np.ones((3, 3), F32), "y": np.zeros(3, np.int32)},
        r"x was .*, y was int32\[4\], is int32",
    ),
    "a further entry": ({**good(1), "z": np.zeros(2, F32)}, r"z was missing, is float32\[2\]"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_batch_of_another_type_that_the_loss_takes(tmp_path, change):
    batch, said = CHANGED[change]
    with pytest.warns(UserWarning, match=rf"compiled again at step 3 \(2 times by now\): in its batch, {said}"):
        _, history = fit(Loader(lambda: batch, 3), tmp_path)
    assert history.compilations == 2


@pytest.mark.parametrize("kind", [Loader, plain])
@pytest.mark.parametrize("at", [1, 4])
def test_batches_that_raise(tmp_path, at, kind):
    with pytest.raises(OSError, match="the network is down") as raised:
        fit(kind(raising, at), tmp_path)
    assert raised.value.__notes__ == [f"train: batches raised this error for the batch of step {at}"]
    assert saved_steps(tmp_path) == at - 1
    with pytest.raises(OSError, match="the network is down") as raised:  # it is still down
        fit(kind(raising, at), tmp_path)
    assert raised.value.__notes__ == [f"train: batches raised this error for the batch of step {at}"]
    resumed, _ = fit(kind(), tmp_path)
    assert fc.train.digest(resumed) == fc.train.digest(fit(kind())[0])


def test_batches_that_raise_while_they_are_skipped(tmp_path):
    fit(plain(), tmp_path, steps=4)
    with pytest.raises(OSError, match="the network is down") as raised:
        fit(plain(raising, 2), tmp_path)
    assert raised.value.__notes__ == ["train: batches raised this error for the batch of step 2"]
    assert saved_steps(tmp_path) == 4


@pytest.mark.parametrize("at", [1, 4])
def test_batches_that_end(tmp_path, at):
    _, history = fit(Loader(ending, at), tmp_path)
    assert history.stopped == f"there were no more batches after step {at - 1}"
    assert saved_steps(tmp_path) == at - 1
    resumed, history = fit(Loader(), tmp_path)
    assert history.stopped == ""
    assert fc.train.digest(resumed) == fc.train.digest(fit(Loader())[0])

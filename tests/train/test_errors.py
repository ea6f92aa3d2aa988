"""Mistakes in what training is given: they are reported at the first step or call, in one line."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

SIGNATURE = r"loss\(params, batch, \*, key, state\)"


def first_step(loss, model=None, **options):
    init, step = fc.train.make_step(loss, optax.sgd(0.1), **options)
    return jax.jit(step)(init({"w": jnp.ones(3)}, jax.random.key(0), model), jnp.ones((4, 3)))


def without_key(params, batch, *, state):
    del state
    return (params["w"] * batch).mean()


def without_state(params, batch, *, key):
    del key
    return (params["w"] * batch).mean()


def with_more(params, batch, target, *, key, state):
    del target, key, state
    return (params["w"] * batch).mean()


def positional(params, batch, key, state):
    del key, state
    return (params["w"] * batch).mean()


def vector(params, batch, **_):
    return batch @ params["w"]


def returning(value):
    def loss(params, batch, *, key, state):
        del key, state
        return value((params["w"] * batch).mean())

    return loss


MISTAKES = {
    "no key": (without_key, {}, rf"called as {SIGNATURE}; without_key\(params, batch, \*, state\).*'key'"),
    "no state": (without_state, {}, rf"called as {SIGNATURE}; without_state.*'state'"),
    "an argument more": (with_more, {}, rf"called as {SIGNATURE}; with_more.*'target'"),
    "a partial": (partial(without_key), {}, rf"called as {SIGNATURE}; partial.*'key'"),
    "jitted": (jax.jit(without_state), {}, rf"called as {SIGNATURE}; without_state.*'state'"),
    "forgotten has_aux": (
        returning(lambda value: (value, {"error": value})),
        {},
        rf"{SIGNATURE} must return a scalar; got a tuple of \(float32 of shape \(\), a dict\); pass has_aux=True",
    ),
    "has_aux without a dict": (
        returning(lambda value: value),
        {"has_aux": True},
        rf"with has_aux=True {SIGNATURE} must return a scalar and a dict; got float32 of shape \(\)",
    ),
    "has_aux with an array": (returning(lambda value: (value, value)), {"has_aux": True}, "a scalar and a dict; got"),
    "a vector": (
        vector,
        {},
        rf"{SIGNATURE} must return a scalar of a floating dtype, a mean over the batch; got float32 of shape \([24],\)",
    ),
    "a vector and a dict": (
        lambda params, batch, **_: (vector(params, batch), {}),
        {"has_aux": True},
        r"a scalar of a floating dtype.*float32 of shape \([24],\)",
    ),
    "nothing": (returning(lambda _: None), {}, "must return a scalar of a floating dtype.*got a NoneType"),
    "an integer": (returning(lambda _: jnp.int32(1)), {}, r"must return a scalar of a floating dtype.*got int32"),
    "a dict": (returning(lambda value: {"loss": value}), {}, "must return a scalar.*got a dict"),
    "a metric of the step": (
        returning(lambda value: (value, {"grad_norm": value})),
        {"has_aux": True},
        "a metric 'grad_norm'.*rename",
    ),
    "the number of the step": (
        returning(lambda value: (value, {"step": value})),
        {"has_aux": True},
        "a metric 'step'.*rename",
    ),
    "a text": (returning(lambda value: (value, {"note": "good"})), {"has_aux": True}, "numbers; 'note' is a str"),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_loss(mistake, parts):
    loss, options, said = MISTAKES[mistake]
    with pytest.raises(fc.FuncconvError, match=said) as error:
        first_step(loss, accumulate=parts, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "loss",
    [
        positional,
        lambda params, batch, **_: (params["w"] * batch).mean(),
        lambda *args, **_: (args[0]["w"] * args[1]).mean(),
        jax.jit(returning(lambda value: value)),
        partial(lambda scale, params, batch, **_: (scale * params["w"] * batch).mean(), 1),
    ],
)
def test_other_ways_to_write_a_loss(loss):
    assert float(first_step(loss)[1]["loss"]) == 1


def test_errors_of_a_loss_are_its_own():
    def loss(params, batch, *, key, state):
        del params, batch, key, state
        msg = "a mistake of mine"
        raise TypeError(msg)

    with pytest.raises(TypeError, match="a mistake of mine"):
        first_step(loss)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"seen": np.zeros(2, np.float32)}, r"'seen' was float32 of shape \(\); got float32 of shape \(2,\)"),
        ({"seen": np.int32(0)}, r"'seen' was float32 of shape \(\); got int32 of shape \(\)"),
        ({"found": np.float32(0)}, 'must return a "state" with the entries that it was given.*found'),
    ],
)
def test_a_state_of_another_kind(state, said, parts):
    with pytest.raises(fc.FuncconvError, match=said) as error:
        first_step(
            returning(lambda value: (value, {"state": state})), {"seen": jnp.float32(0)}, has_aux=True, accumulate=parts
        )
    assert "\n" not in str(error.value)


# the loop -----------------------------------------------------------------------------------------------------


def fit(batches, **options):
    init, step = fc.train.make_step(returning(lambda value: value), optax.sgd(0.1))
    return fc.train.fit(step, init({"w": jnp.ones(3)}, jax.random.key(0)), batches, progress=False, **options)


class Loader:
    """Like a loader of PyTorch: it begins anew each time it is iterated over."""

    def __iter__(self):
        return iter([np.ones((4, 3), np.float32)] * 2)


@pytest.mark.parametrize("batches", [[np.ones((4, 3), np.float32)] * 2, (), Loader(), np.ones((2, 4, 3)), {"x": 1}])
def test_batches_must_be_an_iterator_from_the_first_call(batches, tmp_path):
    name = type(batches).__name__
    for options in ({}, {"checkpoint": tmp_path / "run"}):
        with pytest.raises(fc.FuncconvError, match=rf"batches must be an iterator.*iter\(...\).*got {name}"):
            fit(batches, steps=2, **options)
    assert not (tmp_path / "run").exists()


def test_an_iterator_of_a_list_goes_on(tmp_path):
    numbered = [np.full((4, 3), number, np.float32) for number in range(4)]
    whole, _ = fit(iter(numbered), steps=4)
    fit(iter(numbered), steps=2, checkpoint=tmp_path)
    state, _ = fit(iter(numbered), steps=4, checkpoint=tmp_path)
    assert fc.train.digest(state) == fc.train.digest(whole)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "evaluate must return a dict of numbers; got NoneType"),
        (0.5, "evaluate must return a dict of numbers; got float"),
        ({"error": [1.0, 2.0]}, r"evaluate must return a dict of numbers; 'error' is a list. Convert it"),
        (
            {"error": np.array(["a", "b"])},
            r"evaluate must return a dict of numbers; 'error' is of dtype <U1. Convert it",
        ),
    ],
)
def test_what_evaluate_returns(found, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fit(iter([np.ones((4, 3), np.float32)] * 2), steps=2, every=1, evaluate=lambda _: found)

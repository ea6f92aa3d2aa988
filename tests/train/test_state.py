"""What a training state prints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funcconv as fc

pytestmark = [pytest.mark.once, pytest.mark.usefixtures("climate_of_a_user")]


def loss(params, batch, *, key, state):
    del key
    return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params)) * batch.mean(), {"state": state}


def begun(params, model=None, **options):
    init, step = fc.train.make_step(loss, optax.adam(0.1), has_aux=True, **options)
    return step, init(params, jax.random.key(0), model)


def test_a_state_is_printed_briefly():
    params = {f"conv{i}": {"kernel": jnp.ones((3, 3, 16, 16), jnp.float32)} for i in range(50)}
    params["head"] = jnp.ones(5, jnp.bfloat16)
    step, state = begun(params, {"mean": jnp.zeros(1, jnp.float32)}, ema=0.9, loss_scale="dynamic")
    state, _ = jax.jit(step)(state, jnp.float32(np.ones(4)))
    assert repr(state) == (
        "State(step=1, skipped=0,\n"
        "  params: 115,205 numbers in 51 arrays (bfloat16, float32),\n"
        "  optimizer: 230,411 numbers in 103 arrays (bfloat16, float32, int32),\n"
        "  model: 1 number in 1 array (float32),\n"
        "  ema: 115,205 numbers in 51 arrays (bfloat16, float32),\n"
        "  scale: 32768)"
    )


def test_a_state_without_numbers_is_printed():
    """While JAX traces, after a step has taken over its memory, and with other objects in place of arrays."""
    step, state = begun({"w": jnp.ones(3, jnp.float32)})
    texts = []

    def traced(state, batch):
        texts.append(repr(state))
        return step(state, batch)

    expected = repr(state)
    after, _ = fc.train.compile(traced)(state, jnp.float32(np.ones(4)))
    texts += [repr(state), repr(jax.eval_shape(lambda: after)), repr(jax.tree.map(lambda _: "a sharding", after))]
    for text in texts:
        assert text.splitlines()[0].startswith("State(step=<")
        assert len(text) < 300
    assert texts[0].splitlines()[1:] == expected.splitlines()[1:]
    assert "params: 1 leaves (str)" in texts[3]

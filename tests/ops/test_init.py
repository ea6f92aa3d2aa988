"""Initial parameters: shapes, spreads, names and dtypes."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

KEY = jax.random.key(1)


FANS = {  # of the kernel, and the fan-in by which PyTorch draws
    "conv": (15 * 32, 15 * 48, 15 * 32),
    "grouped": (9 * 16, 9 * 128, 9 * 16),
    "transposed": (15 * 48, 15 * 32, 15 * 32),
    "transposed-grouped": (16 * 32, 16 * 32, 16 * 16),
    "local": (9 * 8, 9 * 16, 9 * 8),
    "dense": (300, 200, 300),
}


@partial(jax.jit, static_argnums=0)
def draw(init, key):
    """Draw parameters of every kind, with the fans of the table."""
    return {
        "conv": fc.init_conv(key, 32, 48, (3, 5), init=init),
        "grouped": fc.init_conv(key, 64, 128, 9, groups=4, init=init, spatial=1),
        "transposed": fc.init_conv_transpose(key, 48, 32, (3, 5), init=init),
        "transposed-grouped": fc.init_conv_transpose(key, 64, 32, (4, 4), groups=2, init=init),
        "local": fc.init_local_conv(key, 8, 16, 3, (4, 5), init=init),
        "dense": fc.init_dense(key, 300, 200, init=init),
    }


VARIANCE = {
    "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,  # noqa: ARG005
    "he_normal": lambda fan_in, fan_out: 2 / fan_in,  # noqa: ARG005
    "glorot_uniform": lambda fan_in, fan_out: 2 / (fan_in + fan_out),
}


@pytest.mark.parametrize("init", VARIANCE)
def test_variances(init):
    for name, params in draw(init, KEY).items():
        kernel, (fan_in, fan_out, _) = np.asarray(params["kernel"]), FANS[name]
        error = 4 * math.sqrt(2 / kernel.size)  # four standard deviations of the variance of normal numbers
        assert kernel.var() == pytest.approx(VARIANCE[init](fan_in, fan_out), rel=error)
        assert abs(kernel.mean()) < 4 * kernel.std() / math.sqrt(kernel.size)
        assert not np.asarray(params["bias"]).any()


def test_torch_draws_kernel_and_bias_from_one_uniform():
    for name, params in draw("torch", KEY).items():
        bound = 1 / math.sqrt(FANS[name][-1])
        for array in params.values():
            assert np.abs(array).max() <= bound
        assert np.abs(params["kernel"]).max() > 0.99 * bound
        assert np.abs(params["bias"]).max() > 0.8 * bound


def test_any_function_will_do():
    shapes = []

    def init(key, shape, dtype):
        shapes.append(shape)
        return jax.nn.initializers.orthogonal()(key, shape, dtype)

    kernel = fc.init_dense(KEY, 6, 4, init=init)["kernel"]
    close(kernel.T @ kernel, np.eye(4), np.float32)
    fc.init_conv(KEY, 4, 6, (3,), init=init)
    fc.init_conv_transpose(KEY, 4, 6, (3,), groups=2, init=init)
    assert shapes == [(6, 4), (3, 4, 6), (3, 2, 6)]  # always as (*window, what one output sees, outputs)


def test_groups_of_a_transposed_convolution_see_their_own_channels():
    """The kernel drawn for a group lands on that group: the layer's outputs have the variance it was drawn for."""

    def init(key, shape, dtype):
        del key
        return jnp.broadcast_to(jnp.arange(1, shape[-1] + 1, dtype=dtype), shape)  # output d has weights d + 1

    params = fc.init_conv_transpose(KEY, 4, 6, (1,), groups=2, init=init, bias=False)
    y = fc.conv_transpose(params, jnp.ones((1, 1, 4)), groups=2)
    assert y.ravel().tolist() == [2 * d for d in (1, 2, 3, 4, 5, 6)]


def test_parts_do_not_depend_on_each_other():
    with_bias, without = fc.init_conv(KEY, 2, 3, (3,)), fc.init_conv(KEY, 2, 3, (3,), bias=False)
    np.testing.assert_array_equal(with_bias["kernel"], without["kernel"])
    assert "bias" not in without
    local = fc.init_local_conv(KEY, 2, 3, 2, (2,))["kernel"]
    assert not np.array_equal(local[0], local[1])


@pytest.mark.parametrize("x64", [False, True])
def test_the_default_dtype_is_jaxs(x64):
    with jax.enable_x64(x64):
        for init in ("lecun_normal", "torch"):
            for array in fc.init_conv(jax.random.key(0), 2, 3, (3, 3), init=init).values():
                assert array.dtype == ("float64" if x64 else "float32")
        assert fc.init_dense(jax.random.key(0), 2, 3, dtype=jnp.bfloat16)["kernel"].dtype == jnp.bfloat16
        x = fc.Input("x", (8, 8, 1))
        graph = fc.Graph(x, fc.serial(fc.Conv(2, 3), fc.Pool(), fc.Flatten(), fc.Dense(2))(x))
        y = graph(graph.init(jax.random.key(0)), np.ones((1, 8, 8, 1)))
        assert y.dtype == ("float64" if x64 else "float32")


def test_layers_of_another_dtype():
    x = fc.Input("x", (8, 8, 1), jnp.bfloat16)
    graph = fc.Graph(x, fc.serial(fc.Conv(2, 3, dtype=jnp.bfloat16), fc.Flatten(), fc.Dense(2, dtype=jnp.bfloat16))(x))
    params = graph.init(KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert graph(params, jnp.ones((1, 8, 8, 1), jnp.bfloat16)).dtype == jnp.bfloat16

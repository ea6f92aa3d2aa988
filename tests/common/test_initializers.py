"""Kernels that are cut from longer vectors have the numbers that JAX's initializers draw, bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import initializers
from jaxprs import equations

import funcconv as fc
from funcconv._common import initializers as _initializers
from funcconv._ops.init import INITS, fold_in_name

JAX_INITS = {
    "lecun_normal": initializers.lecun_normal(),
    "glorot_uniform": initializers.glorot_uniform(),
    "he_normal": initializers.he_normal(),
}
SHAPES = [(3, 3, 5, 7), (10, 2), (1, 1), (4, 1, 3), (3, 3, 90, 91)]  # for two of the lengths


def bits(array):
    return array.dtype, array.shape, np.asarray(array).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", JAX_INITS)
def test_numbers_are_those_of_jax(name, dtype):
    for i, shape in enumerate(SHAPES):
        key = jax.random.key(i)
        assert bits(INITS[name](key, shape, dtype)) == bits(JAX_INITS[name](key, shape, dtype)), shape


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), jax.random.key(3, impl="rbg")], ids=["raw", "rbg"])
def test_other_keys_draw_as_before(key):
    expected = JAX_INITS["lecun_normal"](key, (3, 3, 5, 7), "float32")
    assert bits(INITS["lecun_normal"](key, (3, 3, 5, 7), "float32")) == bits(expected)


def test_without_partitionable_numbers():
    old = jax.config.jax_threefry_partitionable
    jax.config.update("jax_threefry_partitionable", False)
    try:
        expected = JAX_INITS["he_normal"](jax.random.key(0), (3, 3, 5, 7), "float32")
        assert bits(INITS["he_normal"](jax.random.key(0), (3, 3, 5, 7), "float32")) == bits(expected)
    finally:
        jax.config.update("jax_threefry_partitionable", old)


def test_a_kernel_that_is_too_long_for_a_vector(monkeypatch):
    monkeypatch.setattr(_initializers, "_LENGTHS", (16,))
    expected = JAX_INITS["he_normal"](jax.random.key(0), (5, 5), "float32")
    assert bits(INITS["he_normal"](jax.random.key(0), (5, 5), "float32")) == bits(expected)


def test_a_graph_has_these_numbers():
    x = fc.Input("x", (16, 16, 3))
    channels = (5, 6, 7, 9, 10, 11)
    graph = fc.Graph(x, fc.serial(*[fc.Conv(n, 3, bias=False) for n in channels])(x))
    key = jax.random.key(7)
    params = graph.init(key)
    for i, (before, after) in enumerate(zip((3, *channels), channels, strict=False), 1):
        own_key = fold_in_name(fold_in_name(key, f"conv{i}"), "kernel")
        expected = JAX_INITS["lecun_normal"](own_key, (3, 3, before, after), jnp.result_type(float))
        assert bits(params[f"conv{i}"]["kernel"]) == bits(expected)


def test_shapes_of_kernels_share_a_program(monkeypatch):
    lengths = []
    draw = jax.random.truncated_normal

    def recorded(key, lower, upper, shape, dtype):
        if not isinstance(key, jax.core.Tracer):  # the shapes of parameters are inferred too
            lengths.append(shape)
        return draw(key, lower, upper, shape, dtype)

    monkeypatch.setattr(jax.random, "truncated_normal", recorded)
    x = fc.Input("x", (16, 16, 3))
    fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.Conv(5, 3), fc.flatten, fc.Dense(2))(x)).init(jax.random.key(0))
    assert len(lengths) == 3
    assert len(set(lengths)) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_uniform_numbers_are_those_of_jax(dtype):
    for i, shape in enumerate([(7,), *SHAPES]):
        key = jax.random.key(i)
        expected = jax.random.uniform(key, shape, dtype, -0.25, 0.25)
        assert bits(_initializers.uniform(key, shape, dtype, 0.25)) == bits(expected), shape
        within = jax.jit(lambda key, shape=shape: _initializers.uniform(key, shape, dtype, 0.25))(key)
        assert bits(within) == bits(expected), shape


@pytest.mark.parametrize("name", JAX_INITS)
def test_mapped_keys_draw_the_same_numbers(name):
    keys = jax.random.split(jax.random.key(0), 3)
    ours = jax.vmap(lambda key: INITS[name](key, (3, 3, 5, 7), "float32"))(keys)
    for key, kernel in zip(keys, ours, strict=True):
        assert bits(kernel) == bits(JAX_INITS[name](key, (3, 3, 5, 7), "float32"))


def test_factors_multiply_the_numbers():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        expected = JAX_INITS["lecun_normal"](key, (3, 5, 7), "float32") * 0.3
        assert bits(INITS["lecun_normal"](key, (3, 5, 7), "float32", 0.3)) == bits(expected)


def test_programs_draw_vectors():
    """XLA needs several times as long to compile random numbers in the shape of a kernel."""
    x = fc.Input("x", (16, 16, 3))
    layers = fc.serial(fc.Conv(3, 3, padding=1), fc.Conv(3, 3, padding=1, init="torch"))
    graph = fc.Graph(x, fc.serial(layers, fc.repeat(layers, 3))(x))
    drawn = [
        equation.outvars[0].aval.shape
        for equation in equations(jax.make_jaxpr(graph.init)(jax.random.key(0)))
        if equation.primitive.name == "random_bits"
    ]
    assert sorted(drawn) == [(3,), (3, 3), (3, 81), (3, 81), (81,), (81,)]  # with an axis of copies

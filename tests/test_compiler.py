"""Options for the compiler: taken by this XLA, and of no effect on what is computed."""

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc
from funcconv import _compiler


def test_options_compile_and_change_no_result(rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 8, 8)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(4, 16, 16, 8)), jnp.float32)

    def gradient(params, x):
        return jax.grad(lambda params: jnp.square(fc.conv(params, x)).sum())(params)

    options = fc.compiler_options("cpu")
    found = jax.jit(gradient, compiler_options=options)(params, x)
    expected = jax.jit(gradient)(params, x)
    np.testing.assert_allclose(found["kernel"], expected["kernel"], rtol=1e-4)


def test_other_platforms_need_none():
    assert fc.compiler_options("gpu") is None
    assert fc.compiler_options("tpu") is None


def test_callers_may_change_what_they_get():
    first = fc.compiler_options("cpu")
    if first is not None:
        first.clear()
        assert fc.compiler_options("cpu")


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(_compiler, "_ONEDNN", {"xla_cpu_of_the_future": True})
    monkeypatch.setattr(_compiler, "_WITHOUT_YNN", {"xla_cpu_of_the_past": True})
    _compiler._probed.cache_clear()
    try:
        assert fc.compiler_options("cpu") is None
    finally:
        _compiler._probed.cache_clear()

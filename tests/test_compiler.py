"""Options for the compiler: taken by this XLA, and of no effect on what is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    monkeypatch.setattr(_compiler, "_NO_CONVOLUTIONS", {"xla_cpu_of_the_past": True})
    _compiler._probed.cache_clear()
    try:
        assert fc.compiler_options("cpu") is None
    finally:
        _compiler._probed.cache_clear()


ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True, "xla_cpu_experimental_ynn_fusion_type": ""}


def forms(options, groups=1, channels=32):
    """Return the forms of a convolution and of its gradients, for the CPU."""
    kernel = jax.ShapeDtypeStruct((3, 3, channels // groups, channels), np.float32)

    def loss(kernel, x):
        with fc.compiled_with(options):
            return jnp.sin(fc.conv({"kernel": kernel}, x, padding=1, groups=groups)).sum()

    x = jax.ShapeDtypeStruct((4, 16, 16, channels), np.float32)
    return {row.map: row.form for row in fc.explain(jax.grad(loss, (0, 1)), kernel, x, platform="cpu")}


def test_forms_know_of_onednn():
    depthwise = forms(ONEDNN, groups=32)
    assert (depthwise["conv"], depthwise["conv_kernel_grad"]) == ("lax", "taps")
    assert forms(ONEDNN, groups=4)["conv"] == "lax"
    assert (forms(None, groups=32)["conv"], forms(None, groups=4)["conv"]) == ("taps", "groups")


def test_other_options_change_no_form():
    assert forms(_compiler._NO_CONVOLUTIONS) == forms({"xla_cpu_other": True}) == forms({}) == forms(None)


def test_convolutions_are_not_given_to_the_library_that_gathers_windows():
    def conv(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = jax.ShapeDtypeStruct((4, 16, 16, 8), np.float32), jax.ShapeDtypeStruct((3, 3, 8, 8), np.float32)
    compiled = jax.jit(conv, compiler_options=_compiler._NO_CONVOLUTIONS).lower(*shapes).compile()
    assert "ynn_fusion" not in compiled.as_text()


def test_what_is_said_ends_with_its_block():
    before = forms(None, groups=32)
    with fc.compiled_with(ONEDNN):
        inside = jax.make_jaxpr(fc.conv)({"kernel": jnp.ones((1, 1, 1))}, jnp.ones((1, 1, 1)))
    assert "onednn" in str(inside)
    assert forms(None, groups=32) == before


@pytest.mark.parametrize("groups", [1, 4, 32])
def test_what_is_compiled_so_is_right(groups, rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 32 // groups, 32)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(2, 9, 9, 32)), jnp.float32)

    def gradient(options, params, x):
        def loss(params, x):
            with fc.compiled_with(options):
                return jnp.square(fc.conv(params, x, padding=1, groups=groups)).sum()

        return jax.grad(loss, (0, 1))(params, x)

    options = fc.compiler_options("cpu")
    found = jax.jit(partial(gradient, options), compiler_options=options)(params, x)
    expected = jax.jit(partial(gradient, None))(params, x)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), found, expected)

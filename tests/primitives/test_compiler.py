"""Options for the compiler: taken by this XLA, and of no effect on what is computed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ORIGINAL, each
from compare import close

import funcconv as fc
from funcconv._primitives import compiler as _compiler


@pytest.fixture(params=[None, "onednn"])
def options(request):
    """The options for this CPU."""
    options = fc.compiler_options("cpu", libraries=request.param)
    if options is None:
        pytest.skip("jaxlib has no oneDNN: pip install 'jax>=0.12'")
    return options


@each(rows=ORIGINAL)
@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_op_compiles_and_keeps_its_values(case, dtype, options, rng):
    params, x = case.draw(rng, dtype, batch=(2,))

    def value_and_gradients(options, params, x):
        with fc.compiled_with(options):
            y, pullback = jax.vjp(case.op, params, x)
            return y, pullback(jnp.ones_like(y))

    actual = jax.jit(partial(value_and_gradients, options), compiler_options=options)(params, x)
    expected = jax.jit(partial(value_and_gradients, None))(params, x)
    jax.tree.map(close, actual, expected)


@pytest.mark.usefixtures("as_users_compile")
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_two_convolutions_of_small_images_compile(dtype):
    """With YNN off and without oneDNN, jaxlib 0.10 compiled this in float64 for minutes."""
    kernels = jnp.ones((1, 1, 4, 4), dtype), jnp.ones((3, 3, 4, 4), dtype)

    def loss(kernels, x):
        first, second = ({"kernel": kernel} for kernel in kernels)
        return jnp.square(fc.conv(second, fc.conv(first, x), padding="SAME")).mean()

    gradients = fc.train.compile(jax.grad(loss))(kernels, jnp.ones((128, 4, 4, 4), dtype))
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype]


def test_there_are_no_options_without_onednn():
    found = [fc.compiler_options("cpu", libraries=libraries) for libraries in (None, "onednn")]
    assert found in ([None, None], [_compiler._ONEDNN, _compiler._ONEDNN_ALONE])


def test_candidates_are_accepted_by_this_xla():
    found = _compiler.candidates("cpu")
    assert list(found) in (["none"], ["none", "oneDNN", "YNN off", "oneDNN without YNN"])
    assert found["none"] is None
    for options in found.values():
        assert float(jax.jit(jnp.sum, compiler_options=options)(jnp.ones(3))) == 3
    assert _compiler.candidates("gpu") == {"none": None}


def test_a_candidate_that_xla_does_not_know_is_left_out(monkeypatch):
    before = _compiler.candidates("cpu")
    monkeypatch.setattr(_compiler, "_NO_YNN", {"xla_cpu_of_the_future": True})
    assert list(_compiler.candidates("cpu")) == [name for name in before if name != "YNN off"]


def test_unknown_libraries_are_refused():
    with pytest.raises(fc.FuncconvError, match="libraries must be None or 'onednn'; got 'mkl'"):
        fc.compiler_options(libraries="mkl")


def test_options_do_not_depend_on_the_default_dtype():
    found = []
    for wide in (False, True):
        _compiler._accepted.cache_clear()
        with jax.enable_x64(wide):
            found.append(fc.compiler_options("cpu"))
    assert found[0] == found[1]


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
    assert fc.compiler_options("cpu") is None


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
    assert (depthwise["conv"], depthwise["conv_kernel_grad"]) == ("lax", "shifted_sum")
    assert forms(ONEDNN, groups=4)["conv"] == "lax"
    assert (forms(None, groups=32)["conv"], forms(None, groups=4)["conv"]) == ("shifted_sum", "block_diagonal_groups")


def test_other_options_change_no_form():
    assert forms({"xla_cpu_other": True}) == forms({}) == forms(None)


def test_with_onednn_and_ynn_forms_are_those_without_options():
    """YNN would compute the convolutions that are left to oneDNN, and depthwise ones slowly."""
    for groups in (1, 4, 32):
        assert forms({"xla_cpu_experimental_onednn_custom_call": True}, groups) == forms(None, groups)
        assert forms(fc.compiler_options(), groups) == forms(None, groups)


def test_what_is_said_ends_with_its_block():
    before = forms(None, groups=32)
    with fc.compiled_with(ONEDNN):
        inside = jax.make_jaxpr(fc.conv)({"kernel": jnp.ones((1, 1, 1))}, jnp.ones((1, 1, 1)))
    assert "onednn" in str(inside)
    assert forms(None, groups=32) == before


@pytest.mark.parametrize("groups", [1, 4, 32])
@pytest.mark.usefixtures("as_users_compile")
def test_what_is_compiled_so_is_right(groups, options, rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 3, 32 // groups, 32)), jnp.float32)}
    x = jnp.asarray(rng.normal(size=(2, 9, 9, 32)), jnp.float32)

    def gradient(options, params, x):
        def loss(params, x):
            with fc.compiled_with(options):
                return jnp.square(fc.conv(params, x, padding=1, groups=groups)).sum()

        return jax.grad(loss, (0, 1))(params, x)

    actual = jax.jit(partial(gradient, options), compiler_options=options)(params, x)
    expected = jax.jit(partial(gradient, None))(params, x)
    jax.tree.map(partial(close, terms=2 * 9 * 9 + 9 * 32 // groups), actual, expected)

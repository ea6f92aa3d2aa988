"""Damaged programs are refused before JAX reads them, and calls that do not fit say what fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from damage import cuts, flipped_bits
from jax import export as jax_export

import funcconv as fc

COUNTS = [pytest.param(100, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)]
KEY = jax.random.key(0)
X = fc.Input("x", (3,), "float32")
GRAPH = fc.Graph(X, fc.Dense(2, dtype="float32")(X))
ONES = np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def program():
    return fc.interop.export(GRAPH, GRAPH.init(KEY), platforms=("cpu",))


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_programs_are_refused(program, rng, monkeypatch, count):
    def read(_):
        pytest.fail("JAX has got a damaged program")

    monkeypatch.setattr(jax_export, "deserialize", read)
    end = len(program) - 80
    some = [program + b"\0", program[1:], program * 2, b"", program[-32:], bytes(len(program))]
    some += [damaged for _, damaged in flipped_bits(program, rng, count)]
    some += [program[:end] + damaged for _, damaged in flipped_bits(program[end:], rng, count)]
    some += [damaged for _, damaged in cuts(program, rng, count)]
    for damaged in some:
        with pytest.raises(fc.FuncconvError, match="load_exported") as error:
            fc.interop.load_exported(damaged)
        assert "\n" not in str(error.value)


def test_a_whole_program_is_read_by_both(program):
    expected = np.asarray(GRAPH(GRAPH.init(KEY), ONES))
    for given in (program, bytearray(program), memoryview(program)):
        close(fc.interop.load_exported(given)(ONES), expected, terms=X.shape[-1])
    close(jax_export.deserialize(bytearray(program)).call(ONES), expected, terms=X.shape[-1])


def test_programs_without_a_checksum_are_refused():
    theirs = bytes(jax_export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((), jnp.float32)).serialize())
    with pytest.raises(fc.FuncconvError, match=r"jax\.export\.deserialize\(bytearray\(program\)\)\.call"):
        fc.interop.load_exported(theirs)


@pytest.mark.parametrize("program", ["path", None, 5, [1, 2]])
def test_programs_that_are_no_bytes(program):
    with pytest.raises(fc.FuncconvError, match="must be bytes"):
        fc.interop.load_exported(program)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "takes 1 argument, of float32[b,3]; got 0"),
        ((ONES, ONES), "takes 1 argument, of float32[b,3]; got 2"),
        ((np.ones((2, 4), np.float32),), "must be float32[b,3]; got float32[2,4]"),
        ((np.ones(3, np.float32),), "must be float32[b,3]; got float32[3]"),
        ((np.ones((2, 3), np.float16),), "must be float32[b,3]; got float16[2,3]"),
        ((np.ones((2, 3), np.int32),), "must be float32[b,3]; got int32[2,3]"),
        ((np.ones((2, 3), np.float64),), "must be float32[b,3]; got float64[2,3]"),
        (({"x": ONES},), "must be float32[b,3]; got a dict"),
        (([[1.0, 2.0, 3.0]],), "must be float32[b,3]; got a list"),
        ((None,), "must be float32[b,3]; got a NoneType"),
        (("text",), "must be an array of float32[b,3]; got a str"),
        ((np.array([["a", "b", "c"]]),), "must be an array of float32[b,3]; got a ndarray"),
        ((jax.random.key(0),), "must be float32[b,3]; got key"),
        ((np.ones((0, 3), np.float32),), "cannot be called like this"),
    ],
)
def test_calls_that_do_not_fit(program, args, said):
    f = fc.interop.load_exported(program)
    for call in (f, jax.jit(f)) if said.startswith("must be float32") else (f,):
        with pytest.raises(fc.FuncconvError) as error:
            call(*args)
        assert said in str(error.value)


def test_calls_of_a_program_that_takes_parameters():
    f = fc.interop.load_exported(fc.interop.export(GRAPH, platforms=("cpu",)))
    params = GRAPH.init(KEY)
    close(f(params, ONES), GRAPH(params, ONES), terms=X.shape[-1])
    dense = params["dense1"]
    for given, said in (
        ({}, "argument 0"),
        ({"dense1": {"kernel": dense["kernel"]}}, "argument 0"),
        ({"dense1": dense | {"kernel": dense["kernel"].T}}, "argument 0['dense1']['kernel'] must be float32[3,2]"),
        ({"dense1": dense | {"bias": dense["bias"].astype(jnp.bfloat16)}}, "got bfloat16[2]"),
    ):
        with pytest.raises(fc.FuncconvError) as error:
            f(given, ONES)
        assert said in str(error.value)


def test_batches_that_must_agree():
    a, b = fc.Input("a", (2,), "float32"), fc.Input("b", (2,), "float32")
    graph = fc.Graph((a, b), fc.node(jnp.add, a, b))
    f = fc.interop.load_exported(fc.interop.export(graph, {}, platforms=("cpu",)))
    with pytest.raises(fc.FuncconvError, match="cannot be called like this"):
        f(np.ones((3, 2), np.float32), np.ones((4, 2), np.float32))


def test_another_platform():
    other = "tpu" if jax.default_backend() != "tpu" else "cpu"
    f = fc.interop.load_exported(fc.interop.export(GRAPH, GRAPH.init(KEY), platforms=(other,)))
    with pytest.raises(fc.FuncconvError, match=f"exported for platforms.*{other}"):
        f(ONES)

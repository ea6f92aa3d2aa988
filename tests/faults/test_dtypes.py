"""Weights of other libraries keep their dtypes and numbers, or an error names what cannot be kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from flax import nnx

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
X = fc.Input("x", (2,))
DENSE = fc.Graph(X, fc.Dense(3)(X))
IMAGE = fc.Input("image", (4, 4, 2))
NARROWED = ("float64", "int64", "uint64", "complex128")
DTYPES = (*NARROWED, "float32", "float16", "bfloat16", "float8_e4m3fn", "int32", "int8", "uint8", "complex64", "bool")


def numbers(shape, dtype):
    """Return numbers that a narrower dtype does not hold."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return (np.arange(1, 1 + np.prod(shape)).reshape(shape) / 3).astype(dtype)
    largest = 1 if dtype.name == "bool" else jnp.iinfo(dtype).max
    return np.full(shape, largest, dtype)


def same(found, expected):
    assert found.dtype == expected.dtype
    assert isinstance(found, np.ndarray if expected.dtype.name in NARROWED else jax.Array)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_under_names_of_torch(dtype):
    kernel, bias = numbers((3, 2), dtype), numbers((3,), dtype)
    params, _ = fc.interop.from_torch(DENSE, {"fc.weight": kernel, "fc.bias": bias})
    same(params["dense1"]["kernel"], kernel.T)
    same(params["dense1"]["bias"], bias)
    bias[0] = 0
    assert params["dense1"]["bias"][0] != 0


@pytest.mark.parametrize("dtype", ["float64", "int64", "float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "bool"])
def test_tensors(dtype):
    torch = needed("torch")
    values = torch.tensor([[1.0, 0.5], [2.0, 3.0], [0.25, 4.0]], dtype=torch.float64) / (3 if dtype == "float64" else 1)
    tensor = values.to(getattr(torch, dtype))
    params, _ = fc.interop.from_torch(DENSE, {"fc.weight": tensor, "fc.bias": tensor[:, 0]})
    same(params["dense1"]["kernel"], tensor.double().numpy().T.astype(jnp.dtype(dtype)))


def test_traced_modules():
    torch = needed("torch")
    module = torch.nn.Sequential(torch.nn.Linear(2, 3)).to(torch.float64)
    _, params, _ = fc.interop.trace_torch(module, torch.ones(1, 2, dtype=torch.float64))
    (entry,) = params.values()
    same(entry["kernel"], module[0].weight.detach().numpy().T)


def test_tensors_without_numbers():
    torch = needed("torch")
    bias = torch.zeros(3)
    for tensor in (torch.empty((3, 2), device="meta"), torch.zeros((3, 2)).to_sparse()):
        with pytest.raises(fc.FuncconvError, match=r"from_torch: 'fc\.weight': a tensor of"):
            fc.interop.from_torch(DENSE, {"fc.weight": tensor, "fc.bias": bias})


@pytest.mark.parametrize("value", [np.array([["a", "b"]] * 3), np.full((3, 2), None), {"a": 1}, "text", None])
def test_values_without_numbers(value):
    with pytest.raises(fc.FuncconvError, match=r"from_torch: 'fc\.weight': weights must be"):
        fc.interop.from_torch(DENSE, {"fc.weight": value, "fc.bias": np.zeros(3)})


@pytest.mark.parametrize("dtype", DTYPES)
def test_variables_of_linen(dtype):
    kernel, bias = numbers((2, 3), dtype), numbers((3,), dtype)
    params, _ = fc.interop.from_linen(DENSE, {"params": {"Dense_0": {"kernel": kernel, "bias": bias}}})
    same(params["dense1"]["kernel"], kernel)
    graph = fc.Graph(IMAGE, fc.ConvTranspose(3, 3, bias=False)(IMAGE))
    kernel = numbers((3, 3, 2, 3), dtype)
    params, _ = fc.interop.from_linen(graph, {"params": {"ConvTranspose_0": {"kernel": kernel}}})
    (entry,) = params.values()
    same(entry["kernel"], np.flip(kernel.swapaxes(-1, -2), (0, 1)))


def test_a_graph_says_that_it_rounds_parameters():
    params = {"dense1": {"kernel": numbers((2, 3), "float64"), "bias": np.zeros(3, np.float32)}}
    x = jnp.ones((1, 2))
    for call in (DENSE, lambda *args: DENSE.apply(args[0], {}, *args[1:])):
        with pytest.warns(UserWarning, match="'dense1/kernel' is a NumPy array of float64.*in float32"):
            call(params, x)
    with jax.enable_x64(True):
        assert DENSE(params | {"dense1": params["dense1"] | {"bias": np.zeros(3)}}, np.ones((1, 2))).dtype == "float64"
    DENSE(jax.tree.map(np.float32, params), x)  # without a warning


def test_variables_of_nnx():
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel = numbers((2, 3), "float64")
    module.kernel = nnx.Param(kernel)
    params, _ = fc.interop.from_nnx(DENSE, module)
    same(params["dense1"]["kernel"], kernel)

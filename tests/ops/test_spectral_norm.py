"""Spectral norms: kernels whose operator norm is 1, and the power iteration of PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

KEY = jax.random.key(0)
CONVOLUTIONS = {
    "same": ((3, 3, 2, 3), (6, 7), {"padding": "SAME"}),
    "stride": ((3, 2, 4), (9,), {"padding": 1, "stride": 2}),
    "groups": ((3, 2, 6), (8,), {"groups": 3, "padding": "SAME", "pad_mode": "circular"}),
    "dilation": ((2, 2, 2, 2), (5, 6), {"dilation": 2}),
}


def draw(rng, shape, dtype=np.float64):
    return jnp.asarray(rng.normal(size=shape), dtype)


def converged(params, **options):
    """Return normalized parameters after so many iterations that the state no longer changes."""
    state = fc.init_spectral_norm(KEY, params, **options)
    return fc.spectral_norm(params, state, train=True, iterations=3000, **options)


@pytest.mark.parametrize("shape", [(3, 3, 2, 4), (5, 1, 3), (6, 4)])
@pytest.mark.parametrize("axis", [-1, -2, 0])
def test_the_norm_of_the_kernel_becomes_one(shape, axis, rng):
    params = {"kernel": draw(rng, shape), "bias": draw(rng, shape[-1])}
    normalized, state = converged(params, axis=axis)
    matrix = np.moveaxis(np.asarray(params["kernel"]), axis, -1).reshape(-1, shape[axis])
    close(normalized["kernel"], params["kernel"] / np.linalg.norm(matrix, 2), ulps=2**12)
    assert normalized["bias"] is params["bias"]
    assert state["left"].shape == (shape[axis],)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_norm_of_the_convolution_becomes_one(name, rng):
    shape, sizes, options = CONVOLUTIONS[name]
    params = {"kernel": draw(rng, shape)}
    normalized, _ = converged(params, norm="conv", spatial_shape=sizes, **options)
    matrix = np.asarray(fc.conv_matrix(params, sizes, **options))
    close(normalized["kernel"], params["kernel"] / np.linalg.norm(matrix, 2), ulps=2**12)
    close(fc.operator_norm(normalized, sizes, **({"padding": 0} | options)), 1.0, ulps=2**12)


def test_the_gradient_is_that_of_the_norm(rng):
    params = {"kernel": draw(rng, (3, 2, 4))}
    weights = draw(rng, (3, 2, 4))
    for options, norm in (
        ({}, lambda kernel: jnp.linalg.norm(kernel.reshape(-1, 4), 2)),
        (
            {"norm": "conv", "spatial_shape": 6},
            lambda kernel: jnp.linalg.norm(fc.conv_matrix({"kernel": kernel}, 6), 2),
        ),
    ):
        _, state = converged(params, **options)
        for train in (False, True):
            gradient = jax.jit(
                jax.grad(
                    lambda kernel: (
                        (
                            weights * fc.spectral_norm({"kernel": kernel}, state, train=train, **options)[0]["kernel"]  # noqa: B023
                        ).sum()
                    )
                )
            )(params["kernel"])
            expected = jax.grad(lambda kernel: (weights * kernel / norm(kernel)).sum())(params["kernel"])  # noqa: B023
            close(gradient, expected, ulps=2**14)


def test_the_state_is_that_of_training_only(rng):
    params = {"kernel": draw(rng, (3, 3, 2, 4))}
    state = fc.init_spectral_norm(KEY, params, iterations=1)
    _, same = fc.spectral_norm(params, state)
    assert all(np.array_equal(same[name], state[name]) for name in state)
    step = jax.jit(lambda params, state: fc.spectral_norm(params, state, train=True))
    one = state
    for _ in range(3):
        _, one = step(params, one)
    _, three = fc.spectral_norm(params, state, train=True, iterations=3)
    jax.tree.map(close, one, three)
    gradient = jax.grad(lambda kernel: fc.spectral_norm({"kernel": kernel}, state, train=True)[1]["left"].sum())
    assert not np.asarray(gradient(params["kernel"])).any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("options", [{}, {"norm": "conv", "spatial_shape": (5, 5)}])
def test_dtypes(dtype, options, rng):
    params = {"kernel": draw(rng, (3, 3, 2, 4), dtype)}
    state = fc.init_spectral_norm(KEY, params, **options)
    assert state["left"].dtype == np.float32
    normalized, new_state = fc.spectral_norm(params, state, train=True, **options)
    assert normalized["kernel"].dtype == dtype
    assert new_state["right"].dtype == np.float32
    exact, _ = fc.spectral_norm({"kernel": params["kernel"].astype(np.float64)}, state, train=True, **options)
    close(normalized["kernel"], exact["kernel"], dtype, ulps=2 if jnp.dtype(dtype).itemsize < 4 else 64)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_kernels_of_any_size(size, rng):
    kernel = draw(rng, (3, 3, 2, 4), np.float32)
    for options in ({}, {"norm": "conv", "spatial_shape": (5, 5)}):
        state = fc.init_spectral_norm(KEY, {"kernel": kernel}, **options)
        expected, _ = fc.spectral_norm({"kernel": kernel}, state, train=True, **options)
        scaled, new_state = fc.spectral_norm({"kernel": kernel * np.float32(size)}, state, train=True, **options)
        close(scaled["kernel"], expected["kernel"] * np.float32(size > 0))
        assert all(jnp.isfinite(leaf).all() for leaf in new_state.values())


@pytest.mark.parametrize("kind", ["conv", "conv_transpose", "dense"])
@pytest.mark.parametrize("steps", [1, 3])
def test_torch_normalizes_in_the_same_way(kind, steps, rng):
    torch = needed("torch")
    axis, order = -1, (3, 2, 0, 1)
    if kind == "dense":
        module, shape, order = torch.nn.Linear(5, 4), (5, 4), (1, 0)
    elif kind == "conv":
        module, shape = torch.nn.Conv2d(2, 4, 3), (3, 3, 2, 4)
    else:  # (in, out, *window) in PyTorch; the kernel of the convolution that is transposed has in and out exchanged
        module, shape, axis = torch.nn.ConvTranspose2d(4, 2, 3), (3, 3, 2, 4), -2
    kernel = draw(rng, shape)
    module.double()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(np.array(kernel.transpose(order))))
    module = torch.nn.utils.parametrizations.spectral_norm(module, n_power_iterations=steps)
    parametrization = module.parametrizations.weight[0]
    columns = [i for i in order if i != axis % kernel.ndim]  # the order of the axes that PyTorch makes one
    right = parametrization._v.numpy().copy().reshape([shape[i] for i in columns]).transpose(np.argsort(columns))
    state = {"left": jnp.asarray(parametrization._u.numpy().copy()), "right": jnp.asarray(right)}
    weights = draw(rng, shape)

    def loss(kernel, train):
        normalized, new_state = fc.spectral_norm({"kernel": kernel}, state, train=train, iterations=steps, axis=axis)
        return (normalized["kernel"] * weights).sum(), (normalized["kernel"], new_state)

    for train in (False, True):
        module.train(train)
        gradient, (normalized, new_state) = jax.grad(loss, has_aux=True)(kernel, train)
        theirs = module.weight
        close(normalized.transpose(order), theirs.detach().numpy())
        original = module.parametrizations.weight.original
        original.grad = None
        (theirs * torch.from_numpy(np.array(weights.transpose(order)))).sum().backward()
        close(gradient.transpose(order), original.grad.numpy())
    close(new_state["left"], parametrization._u.numpy())


def test_errors(rng):
    params = {"kernel": draw(rng, (3, 3, 2, 4))}
    state = fc.init_spectral_norm(KEY, params)
    for text, options in (
        ("unknown norm 'kernal'.*did you mean 'kernel'", {"norm": "kernal"}),
        ('norm="conv" needs spatial_shape', {"norm": "conv"}),
        ('norm="kernel" does not use it; got', {"spatial_shape": 4}),
        ("iterations must be an integer of at least 1; got 0", {"iterations": 0}),
        ("and the axis 4", {"axis": 4}),
        (r"must have 'left' of shape \(3,\); got \(4,\)", {"axis": 0}),
        (r"must have 'left' of shape \(3, 3, 4\); got \(4,\)", {"norm": "conv", "spatial_shape": 5}),
    ):
        with pytest.raises(fc.FuncconvError, match=text):
            fc.spectral_norm(params, state, **options)
    with pytest.raises(fc.FuncconvError, match=r'params must be \{"kernel": array, ...\}; got \[\'bias\'\]'):
        fc.spectral_norm({"bias": params["kernel"]}, state)
    with pytest.raises(fc.FuncconvError, match="must be floating"):
        fc.init_spectral_norm(KEY, {"kernel": jnp.ones((2, 2), int)})

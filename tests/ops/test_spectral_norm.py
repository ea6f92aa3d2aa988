"""Spectral norms: kernels whose operator norm is 1, and the power iteration of PyTorch."""

import dataclasses

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


# the layer ------------------------------------------------------------------------------------------------

SHAPE = (6, 5, 4)
LAYERS = {
    "conv": fc.SpectralNorm(fc.Conv(3, (3, 2), groups=1, padding="SAME"), iterations=2),
    "transpose": fc.SpectralNorm(fc.ConvTranspose(6, 3, stride=2, groups=2)),
    "dense": fc.SpectralNorm(fc.Dense(3)),
    "norm of conv": fc.SpectralNorm(fc.Conv(3, (3, 2), stride=2, padding=1, pad_mode="circular"), norm="conv"),
    "norm of conv in other axes": fc.SpectralNorm(fc.Conv(3, 2, layout="NCHW", flip=True), norm="conv", iterations=3),
    "norm of transpose": fc.SpectralNorm(fc.ConvTranspose(6, 3, stride=2, groups=2), norm="conv"),
    "norm of local conv": fc.SpectralNorm(fc.LocalConv(3, 3, padding="SAME"), norm="conv"),
}


def network(layer, shape=SHAPE):
    x = fc.Input("x", shape)
    graph = fc.Graph(x, layer(x))
    params = graph.init(KEY)
    return graph, params, graph.init_state()


def after_training(graph, params, state, x, steps):
    for _ in range(steps):
        _, state = graph.apply(params, state, x, train=True)
    return state


def converged_state(layer, params, x):
    """Return the state after so many iterations that it no longer changes."""
    graph, _, state = network(dataclasses.replace(layer, iterations=5000))
    return graph.apply(params, state, x, train=True)[1]


@pytest.mark.parametrize("name", LAYERS)
def test_the_norm_of_the_layer_becomes_one(name, rng):
    layer = LAYERS[name]
    graph, params, _ = network(layer)
    ((entry, weights),) = params.items()
    params = {entry: weights | {"kernel": 5 * weights["kernel"]}}
    x = draw(rng, (2, *SHAPE))
    state = converged_state(layer, params, x)
    if layer.norm == "conv":
        apply = lambda x: graph.apply(params, state, x)[0] - graph.apply(params, state, 0 * x)[0]  # noqa: E731
        matrix = jax.jacobian(apply)(x[0]).reshape(-1, x[0].size)
    else:
        kernel = fc.spectral_norm(params[entry], state[entry], axis=layer.output_axis)[0]["kernel"]
        matrix = jnp.moveaxis(kernel, layer.output_axis, -1).reshape(-1, kernel.shape[layer.output_axis])
        plain = layer.layer.apply(params[entry] | {"kernel": kernel}, x, batch=(2,))
        close(graph.apply(params, state, x)[0], plain)
    close(jnp.linalg.norm(matrix, 2), 1.0, ulps=2**20)  # two singular values may be almost equal


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_that_has_not_begun(name, rng):
    graph, params, state = network(LAYERS[name])
    x = draw(rng, (2, *SHAPE))
    assert not any(leaf.any() for leaf in jax.tree.leaves(state))
    y, same = graph.apply(params, state, x)
    assert not any(leaf.any() for leaf in jax.tree.leaves(same))
    # In training the first use begins in the same way, and then makes its own iterations.
    first, begun = graph.apply(params, state, x, train=True)
    exact, _ = graph.apply(params, converged_state(LAYERS[name], params, x), x)
    for early in (y, first):
        assert np.abs(early - exact).max() < 0.1 * np.abs(exact).max()
    close(graph.apply(params, begun, x)[0], first)
    # A kernel of zeros leaves a state that has not begun.
    zeros = jax.tree.map(jnp.zeros_like, params)
    none, still = graph.apply(zeros, begun, x, train=True)
    assert not any(leaf.any() for leaf in jax.tree.leaves((none, still)))
    again, _ = graph.apply(params, still, x)
    close(again, y)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_transformations_of_the_layer(name, begun, train, rng):
    graph, params, state = network(LAYERS[name])
    x = draw(rng, (2, *SHAPE))
    if begun:
        state = after_training(graph, params, state, x, 1)

    def loss(params):
        return jnp.sin(graph.apply(params, state, x, train=train)[0]).sum()

    direction = jax.tree.map(lambda leaf: draw(rng, leaf.shape), params)
    gradient = jax.grad(loss)(params)
    jax.tree.map(lambda a, b: close(a, b, ulps=256), jax.jit(jax.grad(loss))(params), gradient)
    slope = sum(jnp.vdot(*pair) for pair in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    close(jax.jvp(loss, (params,), (direction,))[1], slope, ulps=1024)
    products = [
        fc.hvp(loss, params, direction, mode=mode)
        for mode in ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
    ]
    for other in products[1:]:
        jax.tree.map(lambda a, b: close(a, b, ulps=2**12), other, products[0])
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params)
    batched = jax.vmap(jax.grad(loss))(stacked)
    jax.tree.map(lambda a, b: close(a[0], b, ulps=256), batched, gradient)
    by_example = jax.vmap(lambda x: graph.apply(params, state, x, train=train)[0])(x)
    close(by_example, graph.apply(params, state, x, train=train)[0], ulps=256)


@pytest.mark.parametrize("name", LAYERS)
def test_the_layer_is_described_and_written(name):
    graph, params, state = network(LAYERS[name])
    plain, _, _ = network(LAYERS[name].layer)
    assert fc.Graph.from_json(graph.to_json()) == graph
    assert graph.entries == plain.entries
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain.init(KEY))
    assert list(state) == list(params)
    assert fc.receptive_field(graph) == fc.receptive_field(plain)
    assert fc.summary(graph).rows[-1].parameters == fc.summary(plain).rows[-1].parameters
    assert "SpectralNorm" in fc.to_dot(graph)


def test_16_bit_layers_have_a_state_of_32_bits(rng):
    for norm in ("kernel", "conv"):
        layer = fc.SpectralNorm(fc.Conv(3, 2, dtype="bfloat16", accumulate_dtype="bfloat16"), norm=norm)
        x = fc.Input("x", SHAPE, "bfloat16")
        graph = fc.Graph(x, layer(x))
        params, image = graph.init(KEY), draw(rng, (2, *SHAPE), "bfloat16")
        y, state = graph.apply(params, graph.init_state(), image, train=True)
        assert y.dtype == "bfloat16"
        assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


def test_a_shared_layer_has_one_state_that_its_uses_change_in_turn(rng):
    layer = fc.SpectralNorm(fc.Conv(4, 1))
    x = fc.Input("x", SHAPE)
    graph = fc.Graph(x, layer(layer(x)))
    params, image = graph.init(KEY), draw(rng, (2, *SHAPE))
    _, twice = graph.apply(params, graph.init_state(), image, train=True)
    once, _, state = network(layer)
    jax.tree.map(close, twice, after_training(once, params, state, image, 2))


def test_errors_of_the_layer():
    for text, make in (
        (
            "SpectralNorm: expected a Conv, ConvTranspose, LocalConv or Dense; got Pool",
            lambda: fc.SpectralNorm(fc.Pool()),
        ),
        ("SpectralNorm: unknown norm 'cov'.*did you mean 'conv'", lambda: fc.SpectralNorm(fc.Dense(2), norm="cov")),
        ("iterations must be an integer of at least 1; got 0", lambda: fc.SpectralNorm(fc.Dense(2), iterations=0)),
        ('a kernel at each position. Pass norm="conv"', lambda: fc.SpectralNorm(fc.LocalConv(2, 3))),
        ('Pass norm="kernel"', lambda: fc.SpectralNorm(fc.Dense(2), norm="conv")),
    ):
        with pytest.raises(fc.FuncconvError, match=text):
            make()
    graph, params, state = network(fc.SpectralNorm(fc.Conv(3, 2)))
    wrong = {"conv1": state["conv1"] | {"left": jnp.zeros(2)}}
    with pytest.raises(fc.FuncconvError, match=r"node 'conv1': .*'left' of shape \(3,\); got \(2,\).*graph.init_state"):
        graph.apply(params, wrong, jnp.ones(SHAPE))


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

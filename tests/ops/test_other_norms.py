"""RMS, instance, local response and weight norm: equal to PyTorch's and Flax's, and their values at zero."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close

import funcconv as fc

F32 = np.float32
USER = pytest.mark.usefixtures("climate_of_a_user")  # Flax spreads ranks in silence


def named(*arrays):
    return dict(zip(("scale", "bias"), arrays, strict=False))


# as others do it ------------------------------------------------------------------------------------------


def response(size, **options):
    def theirs(torch, x):
        return torch.nn.functional.local_response_norm(x, size, **options)

    return partial(fc.local_response_norm, size=size, layout="NCHW", **options), theirs, [(2, 7, 3, 2)]


def instance(layout, *sizes):
    def own(x, *arrays):
        return fc.instance_norm(named(*arrays), x, epsilon=1e-3, layout=layout)

    def theirs(torch, x, *arrays):
        scale, bias = arrays or (None, None)
        return torch.nn.functional.instance_norm(x, weight=scale, bias=bias, eps=1e-3)

    return own, theirs, [(2, 3, *sizes), (3,), (3,)]


def rms(x, scale):
    def theirs(torch, x, scale):
        return torch.nn.functional.rms_norm(x, scale.shape, scale, 1e-3)

    return lambda x, scale: fc.rms_norm({"scale": scale}, x, epsilon=1e-3), theirs, [x, scale]


def weight(window, x):
    """Return a convolution whose kernel is a direction with a norm, in the order of axes of PyTorch.

    The second derivative of PyTorch's own weight norm is wrong in 2.13, so its formula is written out.
    """

    def own(x, v, g, bias):
        params = {"kernel": jnp.moveaxis(v, (0, 1), (-1, -2)), "scale": g.ravel(), "bias": bias}
        return fc.conv(fc.weight_norm(params), x, layout="NCDHW"[: 2 + len(window)])

    def theirs(torch, x, v, g, bias):
        norm = (v * v).sum(tuple(range(1, v.ndim)), keepdim=True).sqrt()
        return getattr(torch.nn.functional, f"conv{len(window)}d")(x, g * v / norm, bias)

    return own, theirs, [x, (4, x[1], *window), (4, *[1] * (1 + len(window))), (4,)]


OF_TORCH = {
    "rms": rms((2, 5, 6), (6,)),
    "rms of images": rms((2, 3, 4), (3, 4)),
    "instance 1d": instance("NCW", 5),
    "instance 2d": instance("NCHW", 4, 3),
    "instance 3d": instance("NCDHW", 2, 3, 2),
    "instance without parameters": (*instance("NCHW", 4, 3)[:2], [(2, 3, 4, 3)]),
    "response of one": response(1, alpha=2.0),
    "response even": response(4, alpha=3.0, beta=0.6, k=0.5),
    "response odd": response(5, alpha=3.0, beta=1.5),
    "response wide": response(20, alpha=9.0),
    "response default": response(2),
    "weight 1d": weight((3,), (2, 3, 5)),
    "weight 2d": weight((2, 3), (2, 3, 4, 5)),
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_values_and_derivatives_are_those_of_torch(name, rng):
    """The value, the gradients and a product with the Hessian, in float64."""
    torch = needed("torch")
    own, theirs, shapes = OF_TORCH[name]
    arrays, along = ([rng.normal(size=shape) for shape in shapes] for _ in range(2))
    tensors = [torch.from_numpy(array).requires_grad_() for array in arrays]
    out = theirs(torch, *tensors)
    c = rng.normal(size=tuple(out.shape))
    gradients = torch.autograd.grad((torch.sin(out) * torch.from_numpy(c)).sum(), tensors, create_graph=True)
    directional = sum((g * torch.from_numpy(v)).sum() for g, v in zip(gradients, along, strict=True))
    products = torch.autograd.grad(directional, tensors)

    @jax.jit
    def derivatives(arrays, along):
        gradient = jax.grad(lambda arrays: (c * jnp.sin(own(*arrays))).sum())
        return own(*arrays), *jax.jvp(gradient, (arrays,), (along,))

    y, own_gradients, own_products = derivatives(arrays, along)
    close(y, out.detach().numpy())
    for ours, others in ((own_gradients, gradients), (own_products, products)):
        for array, tensor in zip(ours, others, strict=True):
            close(array, tensor.detach().numpy(), ulps=1024)


def test_weight_norm_is_the_parametrization_of_torch(rng):
    torch = needed("torch")
    x, v, g, bias = (rng.normal(size=shape) for shape in ((2, 3, 5, 4), (4, 3, 2, 3), (4, 1, 1, 1), (4,)))
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 4, (2, 3)).double())
    weights = module.parametrizations.weight
    with torch.no_grad():
        for parameter, array in ((weights.original0, g), (weights.original1, v), (module.bias, bias)):
            parameter.copy_(torch.from_numpy(array))
    out = module(torch.from_numpy(x))
    torch.sin(out).sum().backward()

    def s(params):
        y = fc.conv(fc.weight_norm(params), x, layout="NCHW")
        return jnp.sin(y).sum(), y

    params = {"kernel": jnp.moveaxis(v, (0, 1), (-1, -2)), "scale": g.ravel(), "bias": bias}
    gradient, y = jax.jit(jax.grad(s, has_aux=True))(params)
    close(y, out.detach().numpy())
    close(gradient["scale"], weights.original0.grad.numpy().ravel())
    close(gradient["kernel"], np.moveaxis(weights.original1.grad.numpy(), (0, 1), (-1, -2)))


@USER
def test_rms_norm_is_that_of_flax(rng):
    x, scale = rng.normal(size=(2, 5, 6)).astype(F32), rng.normal(size=6).astype(F32)
    expected = nn.RMSNorm(epsilon=1e-6).apply({"params": {"scale": scale}}, x)
    close(fc.rms_norm({"scale": scale}, x, epsilon=1e-6), expected)


@USER
def test_instance_norm_is_that_of_flax(rng):
    x, params = rng.normal(size=(2, 5, 4, 6)).astype(F32), named(*rng.normal(size=(2, 6)).astype(F32))
    expected = nn.InstanceNorm(epsilon=1e-5).apply({"params": params}, x)
    close(fc.instance_norm(params, x), expected, steps=4)


@USER
def test_weight_norm_is_that_of_flax(rng):
    x, kernel, scale = (rng.normal(size=shape) for shape in ((2, 5, 3), (3, 3, 4), (4,)))
    module = nn.WeightNorm(nn.Conv(4, (3,), padding="VALID", use_bias=False, param_dtype=float), epsilon=0)
    names = jax.tree.structure(module.init(jax.random.key(0), x)["params"])
    expected = module.apply({"params": jax.tree.unflatten(names, [kernel, scale])}, x)
    close(fc.conv(fc.weight_norm({"kernel": kernel, "scale": scale}), x), expected)


# at zero, and far from it ---------------------------------------------------------------------------------


def test_zeros_in_rms_norm(rng):
    scale = jnp.asarray(rng.normal(size=4))
    y, derivative = jax.value_and_grad(lambda x: fc.rms_norm({"scale": scale}, x, epsilon=0.25).sum())(jnp.zeros(4))
    assert float(y) == 0
    close(derivative, scale / 0.5)


def test_zeros_in_local_response_norm():
    op = partial(fc.local_response_norm, size=3, k=4.0, beta=0.5)
    np.testing.assert_array_equal(op(jnp.zeros(5)), np.zeros(5))
    close(jax.jacobian(op)(jnp.zeros(5)), np.eye(5) / 2)
    assert not jax.hessian(op)(jnp.zeros(5)).any()


def test_equal_numbers_in_instance_norm_become_the_bias(rng):
    params = named(*rng.normal(size=(2, 3)))
    x = np.broadcast_to(rng.normal(size=(2, 1, 3)), (2, 5, 3))
    y, gradient = jax.value_and_grad(lambda x: jnp.sin(fc.instance_norm(params, x)).sum())(x)
    close(y, 2 * 5 * np.sin(params["bias"]).sum())
    assert np.abs(gradient).max() < 1e-6  # all positions are alike, so nothing changes in the first order


@pytest.mark.parametrize("axis", [-1, None])
def test_zeros_in_weight_norm(axis, rng):
    """The slice of zeros is zero in each order, and the others are as they would be without it."""
    v, scale = rng.normal(size=(3, 2, 4)), rng.normal(size=() if axis is None else 4)
    if axis is None:
        v[:] = 0
    else:
        v[..., 1] = 0

    def op(v, scale):
        return fc.weight_norm({"kernel": v, "scale": scale}, axis=axis)["kernel"]

    hessian = jax.jit(jax.jacfwd(jax.jacrev(op, (0, 1)), (0, 1)))(v, scale)
    y, jacobian = op(v, scale), jax.jacrev(op, (0, 1))(v, scale)
    for array in jax.tree.leaves((y, jacobian, hessian)):
        assert jnp.isfinite(array).all()
        assert not (array if axis is None else array[:, :, 1]).any()
    if axis is not None:
        others = np.array([0, 2, 3])
        close(y[..., others], op(v[..., others], scale[others]))


SIZES = [1e-30, 1e-20, 1.0, 1e20, 1e30, 1e38]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", [F32, "bfloat16"])
def test_numbers_of_any_size(size, dtype, rng):
    """Squares would overflow or underflow in float32; the results and their derivatives are those of float64."""
    unit = np.clip(rng.normal(size=(4, 30)), -3, 3)
    x = jnp.asarray(size * unit, F32).astype(dtype)
    v = jnp.asarray(min(size, 1e37) * rng.uniform(-1, 1, unit.shape), F32).astype(dtype)

    def norm(x):
        return fc.rms_norm({}, x)

    def kernel(x):
        return fc.weight_norm({"kernel": x.T, "scale": jnp.ones(len(x), x.dtype)})["kernel"]

    for op in (norm, kernel):
        actual = jax.jit(lambda x, v, op=op: jax.jvp(op, (x,), (v,)))(x, v)
        exact = jax.jvp(op, (x.astype("float64"),), (v.astype("float64"),))
        for ours, expected in zip(actual, exact, strict=True):
            ulps = 64 * float(np.finfo(F32).eps) + float(jnp.finfo(dtype).eps)
            wrong = np.abs(np.asarray(ours, np.float64) - np.asarray(expected)).max()
            assert wrong <= ulps * np.abs(expected).max() + float(np.finfo(F32).tiny)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_infinity_or_a_nan_is_seen(bad):
    x = np.array([[1, bad, 2], [1, 2, 3]], F32)
    for y in (fc.rms_norm({}, x), fc.instance_norm({}, x[..., None])[..., 0]):
        assert np.isnan(y[0]).any()
        assert np.isfinite(y[1]).all()


# the first scale, and layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [-1, (0, -1), None])
def test_the_first_scale_keeps_the_kernel(axis, rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2, 4))), "bias": jnp.ones(4)}
    start = fc.init_weight_norm(params, axis=axis)
    kernel = np.asarray(params["kernel"])
    kept = {-1: (0, 1), (0, -1): (1,), None: None}[axis]
    close(start["scale"], np.sqrt((kernel**2).sum(kept)))
    after = fc.weight_norm(start, axis=axis)
    assert set(after) == {"kernel", "bias"}
    close(after["kernel"], kernel)
    assert fc.init_weight_norm({"kernel": jnp.ones((2, 3), "bfloat16")})["scale"].dtype == "bfloat16"


LAYERS = [
    fc.Conv(4, 3, params="own"),
    fc.ConvTranspose(4, 3, stride=2),
    fc.LocalConv(4, (3, 2), name="own"),
    fc.Dense(4),
]


@pytest.mark.parametrize("layer", LAYERS)
def test_weight_norm_as_a_layer(layer, rng):
    x = fc.Input("x", (5, 4, 3))
    plain, normed = fc.Graph(x, layer(x)), fc.Graph(x, fc.WeightNorm(layer)(x))
    params, image = normed.init(jax.random.key(0)), rng.normal(size=(2, 5, 4, 3))
    ((name, entry),) = params.items()
    assert (name,) == plain.entries
    before = {name: {key: value for key, value in entry.items() if key != "scale"}}
    close(normed(params, image), plain(before, image), ulps=256)
    longer = {name: entry | {"kernel": 3 * entry["kernel"]}}
    close(normed(longer, image), normed(params, image), ulps=256)
    # The gradient is orthogonal to each direction, because the length of a direction does not matter.
    by_kernel = jax.grad(lambda params: jnp.sin(normed(params, image)).sum())(params)[name]["kernel"]
    kept = entry["scale"].ndim - 1
    inner = (by_kernel * entry["kernel"]).sum(tuple(range(kept, by_kernel.ndim - 1)))
    close(inner, np.zeros(entry["scale"].shape), ulps=1024)
    assert fc.Graph.from_json(normed.to_json()) == normed


def test_labels_of_layers():
    x = fc.Input("x", (5, 4))
    y = fc.serial(fc.RMSNorm(), fc.InstanceNorm(), fc.WeightNorm(fc.Conv(4, 1)), fc.DropPath(0.1))(x)
    assert fc.Graph(x, y).nodes[1:] == ("rms_norm1", "instance_norm1", "conv1", "drop_path1")
    assert fc.Graph(x, y).entries == ("rms_norm1", "instance_norm1", "conv1")


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_layers_are_the_ops(batch, rng):
    image = rng.normal(size=(*batch, 4, 3, 2))
    x = fc.Input("x", (4, 3, 2))
    for layer, op in (
        (fc.InstanceNorm(epsilon=0.1), partial(fc.instance_norm, epsilon=0.1, spatial=2)),
        (fc.RMSNorm(epsilon=0.1), partial(fc.rms_norm, epsilon=0.1)),
        (fc.RMSNorm(2, scale=False), partial(fc.rms_norm, axes=2)),
    ):
        graph = fc.Graph(x, layer(x))
        params = jax.tree.map(lambda leaf: leaf + 0.5, graph.init(jax.random.key(0)))
        close(graph(params, image), op(next(iter(params.values()), {}), image))
    response = partial(fc.local_response_norm, size=2)
    close(fc.Graph(x, fc.node(response, x))({}, image), response(image))


# what is refused ------------------------------------------------------------------------------------------

X = np.ones((2, 4, 6), F32)
ONES = {"kernel": np.ones((3, 2, 4)), "scale": np.ones(4)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fc.rms_norm({"scale": np.ones(5, F32)}, X), ["scale must have the last 1 axes", "(2, 4, 6)", "(5,)"]),
        (lambda: fc.rms_norm({"bias": np.ones(6, F32)}, X), ["rms_norm: params have an unknown entry 'bias'"]),
        (lambda: fc.rms_norm(np.ones(6), X), ['params must be {"scale": array}, which may be missing']),
        (lambda: fc.rms_norm({}, X, axes=0), ["axes must be from 1 to 3", "got 0"]),
        (lambda: fc.rms_norm({}, X, epsilon=0), ["rms_norm: epsilon must be above 0"]),
        (lambda: fc.rms_norm({}, X.astype(int)), ["the input is int64, but must be floating"]),
        (lambda: fc.instance_norm({"scale": np.ones(4, F32)}, X), ["6 channels", "scale has shape (4,)"]),
        (lambda: fc.instance_norm({}, X[:, :1]), ["two positions or more", "(2, 1, 6) has one", "layer_norm"]),
        (lambda: fc.instance_norm({}, X[0]), ["instance_norm", "one batch axis", "(4, 6)"]),
        (lambda: fc.instance_norm({}, X, layout="HWC", spatial=1), ["has 2 spatial axes", "says 1"]),
        (lambda: fc.local_response_norm(X, 0), ["size must be a positive integer", "got 0"]),
        (lambda: fc.local_response_norm(X, 2.0), ["size must be a positive integer", "got 2.0"]),
        (lambda: fc.local_response_norm(X, 2, k=0), ["k must be above 0", "k=0"]),
        (lambda: fc.local_response_norm(X, 2, alpha=-1), ["alpha not negative", "alpha=-1"]),
        (lambda: fc.local_response_norm(X.astype(int), 2), ["int64"]),
        (lambda: fc.local_response_norm(F32(1), 2), ["(*batch, *spatial, channels)", "()"]),
        (lambda: fc.weight_norm({"scale": np.ones(4)}), ['weight_norm: params must be {"kernel": array, ...}']),
        (lambda: fc.weight_norm({"kernel": X}), ["they have no scale", "init_weight_norm"]),
        (lambda: fc.weight_norm(ONES, axis=(0, -1)), ["axis=(0, -1)", "(3, 2, 4)", "shape (3, 4)", "got (4,)"]),
        (lambda: fc.weight_norm(ONES, axis=3), ["axis must be None", "from -3 to 2", "got 3"]),
        (lambda: fc.weight_norm(ONES, axis=(2, -1)), ["different integers", "got (2, -1)"]),
        (lambda: fc.weight_norm(ONES | {"kernel": X}), ["the kernel is float32 but the scale is float64"]),
        (lambda: fc.init_weight_norm({"kernel": X.astype(int)}), ["init_weight_norm: the kernel is int64"]),
        (lambda: fc.conv(ONES, np.ones((1, 5, 2))), ["unknown entry 'scale'"]),
        (lambda: fc.WeightNorm(fc.Pool()), ["WeightNorm: expected a Conv, ConvTranspose, LocalConv or Dense"]),
        (lambda: fc.WeightStandardize(fc.ConvTranspose(3, 2)), ["WeightStandardize: expected a Conv, LocalConv or"]),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(fc.FuncconvError) as error:
        call()
    for word in words:
        assert word in str(error.value)

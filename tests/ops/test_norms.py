"""Normalization and dropout: equal to Flax's and PyTorch's, exact where they are not, refused where they are wrong."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close, rounding

import funcconv as fc

F32 = np.float32
USER = pytest.mark.usefixtures("climate_of_a_user")  # Flax spreads ranks in silence


MEAN_AND_VARIANCE = 2  # sums one after the other


def sums_of(x, axes):
    """Return how many sums one after the other a norm of Flax has the errors of.

    These are the mean and the variance, which Flax computes as a difference of two larger numbers.
    """
    return 1 + int(np.ceil((np.square(x).mean(axes) / x.var(axes)).max()))


def params_of(rng, *shape):
    return {"scale": rng.normal(size=shape).astype(F32), "bias": rng.normal(size=shape).astype(F32)}


# as others do it ------------------------------------------------------------------------------------------


@USER
def test_layer_norm_is_that_of_flax(rng):
    x, params = rng.normal(size=(2, 5, 6)).astype(F32), params_of(rng, 6)
    expected = nn.LayerNorm(epsilon=1e-5).apply({"params": params}, x)
    close(fc.layer_norm(params, x), expected, F32, terms=6, steps=sums_of(x, -1))


@pytest.mark.parametrize("groups", [1, 2, 6])
@USER
def test_group_norm_is_that_of_flax(rng, groups):
    x, params = rng.normal(size=(2, 5, 4, 6)).astype(F32), params_of(rng, 6)
    expected = nn.GroupNorm(groups, epsilon=1e-5).apply({"params": params}, x)
    steps = sums_of(x.reshape(2, 20, groups, -1), (1, 3))
    count = {"terms": 5 * 4 * 6 // groups, "steps": steps}
    close(fc.group_norm(params, x, groups), expected, F32, **count)
    first = fc.group_norm(params, np.moveaxis(x, -1, 1), groups, layout="NCHW")
    close(np.moveaxis(first, 1, -1), expected, F32, **count)


@pytest.mark.parametrize("train", [False, True])
@USER
def test_batch_norm_is_that_of_flax(rng, train):
    x, params, state = rng.normal(size=(3, 4, 5, 2)).astype(F32), params_of(rng, 2), {"mean": [0.5, -1], "var": [2, 3]}
    state = {name: np.array(value, F32) for name, value in state.items()}
    flax = nn.BatchNorm(use_running_average=not train, momentum=0.75, epsilon=1e-5)
    expected, kept = flax.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])
    y, found = fc.batch_norm(params, state, x, train=train, momentum=0.75, unbiased=False)
    count = {"terms": 3 * 4 * 5, "steps": sums_of(x, (0, 1, 2))}
    close(y, expected, F32, **count)
    for name in state:
        close(found[name], kept["batch_stats"][name], F32, **count)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_is_that_of_torch(rng, train):
    torch = needed("torch")
    x, params = rng.normal(size=(3, 4, 5, 2)).astype(F32), params_of(rng, 2)
    module = torch.nn.BatchNorm2d(2, momentum=0.25).train(train)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(params["scale"]))
        module.bias.copy_(torch.tensor(params["bias"]))
    first = torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)), requires_grad=True)
    out = module(first)
    torch.sin(out).sum().backward()

    def s(x):
        y, state = fc.batch_norm(
            params, fc.init_batch_stats(2, dtype=F32), x, train=train, momentum=0.75, layout="NCHW"
        )
        return jnp.sin(y).sum(), (y, state)

    g, (y, state) = jax.grad(s, has_aux=True)(jnp.asarray(first.detach().numpy()))
    count = {"terms": 3 * 4 * 5, "steps": MEAN_AND_VARIANCE}
    close(y, out.detach().numpy(), F32, **count)
    close(g, first.grad.numpy(), F32, terms=3 * 4 * 5, steps=2 * MEAN_AND_VARIANCE)
    close(state["mean"], module.running_mean.numpy(), F32, **count)
    close(state["var"], module.running_var.numpy(), F32, **count)


# what is easily got wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["batch", "layer", "group"])
def test_a_mean_far_from_zero_costs_no_digits(rng, of):
    """`E[x^2] - E[x]^2` in float32 would be off by all of the variance."""
    x = (1e4 + rng.normal(size=(64, 8))).astype(F32)
    exact = x.astype(np.float64)
    axis = 0 if of == "batch" else 1
    exact = (exact - exact.mean(axis, keepdims=True)) / np.sqrt(exact.var(axis, keepdims=True) + 1e-5)
    if of == "batch":
        y, _ = fc.batch_norm({}, fc.init_batch_stats(8), x, train=True)
    else:
        y = fc.layer_norm({}, x) if of == "layer" else fc.group_norm({}, x, 1, spatial=0)
    assert np.abs(np.asarray(y) - exact).max() < 1e-2


# far from zero --------------------------------------------------------------------------------------------

FAR = {
    "at zero": lambda z: z,
    "a constant": lambda z: np.full_like(z, 1e4 / 3),
    "another constant": lambda z: np.full_like(z, 12345.6),
    "a large constant": lambda z: np.full_like(z, 1.1e38),
    "at 3333": lambda z: 1e4 / 3 + z,
    "at 1e7": lambda z: 1e7 + 10 * z,
    "at -1e7": lambda z: -1e7 + 10 * z,
    "of 1e19": lambda z: 1e19 * z,
    "of 1e38": lambda z: 1e38 * np.clip(z, -3, 3),
    "at 1e38": lambda z: 1e38 + 1e35 * z,
    "all of the range": lambda z: 3.3e38 * np.sign(z),
    "of 1e-12": lambda z: 1e-12 * z,
    "of 1e-30": lambda z: 1e-30 * z,
    "one far from the others": lambda z: np.where(np.arange(z.shape[-1]) == 3, 1e7, z),
}
NORMS = {
    "layer": lambda x: fc.layer_norm({}, x),
    "group": lambda x: fc.group_norm({}, x[..., None], 1),
    "batch": lambda x: fc.batch_norm({}, fc.init_batch_stats(3, dtype=F32), x.T, train=True)[0],
    "kernel": lambda x: fc.weight_standardize({"kernel": x.T})["kernel"],
}
each_far = pytest.mark.parametrize("far", FAR)
each_norm = pytest.mark.parametrize("norm", NORMS)


def exactly(x):
    """Standardize each row, in float64."""
    x = np.asarray(x, np.float64)
    x = x - x.mean(1, keepdims=True)
    x = x - x.mean(1, keepdims=True)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)


@each_norm
@pytest.mark.parametrize("dtype", [F32, "bfloat16", "float16"])
def test_values_far_from_zero_are_those_of_float64(norm, dtype, rng):
    z = rng.normal(size=(3, 1000))
    with np.errstate(over="ignore"):
        xs = [np.asarray(jnp.asarray(f(z), F32).astype(dtype)) for f in FAR.values()]
    xs = {name: x for name, x in zip(FAR, xs, strict=True) if np.isfinite(x.astype(F32)).all()}
    assert len(xs) == len(FAR) if dtype != "float16" else "at 3333" in xs
    op = jax.jit(NORMS[norm])
    for name, x in xs.items():
        y, expected = np.asarray(op(x)), exactly(x)
        assert y.dtype == dtype
        y = y.reshape(expected.shape) if norm in ("layer", "group") else y.T
        ulps = 64 * float(np.finfo(F32).eps) + float(jnp.finfo(dtype).eps)
        assert np.abs(y.astype(np.float64) - expected).max() <= ulps * np.abs(expected).max(), name


@partial(jax.jit, static_argnums=0)
def derivatives(norm, x, v, c):
    """Return derivatives of first and second order, forward and backward; one program for all inputs of a norm."""
    op = NORMS[norm]

    def gradient(x):
        return jax.vjp(op, x)[1](c)[0]

    def directional(x):
        return jax.jvp(op, (x,), (v,))[1]

    backward = jax.vjp(directional, x)[1](c)[0]
    return gradient(x), directional(x), jax.jvp(gradient, (x,), (v,))[1], backward


@each_norm
@each_far
def test_derivatives_far_from_zero_are_those_of_float64(norm, far, rng):
    """Compare those that float32 can hold, as these of numbers of 1e38 are not."""
    x = FAR[far](rng.normal(size=(3, 50))).astype(F32)
    spread = max(np.abs(x - x.mean(1, keepdims=True, dtype=np.float64)).max(), 1e-3)
    # A direction along which the input changes by as much as it is spread, so that all orders are of one size.
    v = (np.clip(rng.normal(size=x.shape), -1, 1) * min(spread, 1e38)).astype(F32)
    c = rng.normal(size=jax.eval_shape(NORMS[norm], x).shape).astype(F32)
    actual = derivatives(norm, x, v, c)
    exact = derivatives(norm, *(array.astype(np.float64) for array in (x, v, c)))
    least = 2.0**10 * float(np.finfo(F32).tiny)  # smaller numbers lose digits
    for ours, theirs in zip(actual, exact, strict=True):
        size = np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1024 * np.finfo(F32).eps * size + least)


@pytest.mark.parametrize("spread_over", ["one", "several"])
def test_running_figures_far_from_zero(spread_over, rng):
    z = rng.normal(size=(4, 250, 1))
    fs = [FAR[name] for name in ("at zero", "at 3333", "at 1e7", "of 1e-12", "a constant")]
    x = np.concatenate([f(z) for f in fs], -1).astype(F32)
    state = fc.init_batch_stats(x.shape[-1], dtype=F32)
    options = {"train": True, "momentum": 0, "unbiased": False}
    if spread_over == "one":
        _, new_state = fc.batch_norm({}, state, x, **options)
    else:
        norm = jax.vmap(lambda x: fc.batch_norm({}, state, x, axis_name="devices", **options), axis_name="devices")
        y, states = norm(x)
        close(y, fc.batch_norm({}, state, x, **options)[0], F32)
        new_state = {name: array[0] for name, array in states.items()}
    exact = x.astype(np.float64).reshape(-1, x.shape[-1])
    # The mean is the largest number and a mean of differences from it, so only these are summed.
    differences = exact.max(0) - exact.min(0)
    for i, difference in enumerate(differences):
        atol = rounding(F32, terms=len(exact)) * difference
        np.testing.assert_allclose(new_state["mean"][i], exact[:, i].mean(), rtol=4 * np.finfo(F32).eps, atol=atol)
    terms = rounding(F32, terms=len(exact), steps=MEAN_AND_VARIANCE)
    np.testing.assert_allclose(new_state["var"], exact.var(0), rtol=terms, atol=np.finfo(F32).tiny)


def test_a_running_variance_beyond_the_dtype_is_its_largest_number(rng):
    x, state = 1e30 * rng.normal(size=(50, 2)).astype(F32), fc.init_batch_stats(2, dtype=F32)
    for _ in range(3):
        y, state = fc.batch_norm({}, state, x, train=True, momentum=0)
    np.testing.assert_array_equal(state["var"], np.full(2, np.finfo(F32).max))
    close(y, exactly(x.T).T, F32)
    for _ in range(3):
        y, state = fc.batch_norm({}, state, x, train=True)
    assert np.isfinite(state["var"]).all()
    assert np.isfinite(fc.batch_norm({}, state, x)[0]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_infinity_or_a_nan_is_seen(bad):
    y = fc.layer_norm({}, np.array([[1, bad, 2], [1, 2, 3]], F32))
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()


def test_running_figures_are_float32_for_bfloat16(rng):
    state = fc.init_batch_stats(2, dtype=F32)
    x = jnp.asarray(rng.normal(size=(100, 2)), jnp.bfloat16)
    for _ in range(200):  # in bfloat16 the last hundredths would never arrive
        y, state = fc.batch_norm({}, state, x, train=True, momentum=0.99)
    assert y.dtype == jnp.bfloat16
    assert {array.dtype for array in state.values()} == {jnp.dtype(F32)}
    close(state["mean"], (1 - 0.99**200) * np.asarray(x, F32).mean(0), F32, terms=len(x) + 3 * 200)


def test_a_batch_spread_over_a_mapped_axis_is_one_batch(rng):
    x, state = rng.normal(size=(4, 3, 5, 2)), fc.init_batch_stats(2)

    def norm(x, **options):
        return fc.batch_norm({}, state, x, train=True, **options)

    expected, whole = norm(x.reshape(12, 5, 2))
    y, new_state = jax.vmap(lambda x: norm(x, axis_name="devices"), axis_name="devices")(x)
    close(y.reshape(12, 5, 2), expected)
    for name in state:
        close(new_state[name], np.broadcast_to(whole[name], (4, 2)))
    assert not np.allclose(jax.vmap(norm)(x)[0].reshape(12, 5, 2), expected)


def test_standardized_kernels_of_local_conv_have_each_position_by_itself(rng):
    params = {"kernel": rng.normal(size=(2, 3, 3, 2, 4, 5)) + np.arange(6).reshape(2, 3, 1, 1, 1, 1), "bias": None}
    standardized = fc.weight_standardize(params, spatial=2, epsilon=1e-12)
    close(standardized["kernel"].mean((2, 3, 4)), np.zeros((2, 3, 5)))
    close(standardized["kernel"].var((2, 3, 4)), np.ones((2, 3, 5)), ulps=2**20)
    assert standardized["bias"] is None


# dropout --------------------------------------------------------------------------------------------------


def test_dropout_keeps_the_expectation_and_draws_every_number_by_itself():
    y = fc.dropout(jax.random.key(1), jnp.ones((200, 300), F32), 0.3)
    kept = np.asarray(y) != 0
    close(np.unique(y), [0, 1 / 0.7], F32)
    assert abs(kept.mean() - 0.7) < 0.01
    assert abs(np.corrcoef(kept[:-1].ravel(), kept[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(kept[:, :-1].ravel(), kept[:, 1:].ravel())[0, 1]) < 0.02


def test_dropout_of_whole_channels():
    y = np.asarray(fc.dropout(jax.random.key(1), jnp.ones((50, 4, 3, 20), F32), 0.5, spatial=2))
    assert (y == y[:, :1, :1]).all()
    assert 0.4 < (y[:, 0, 0] == 0).mean() < 0.6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_dropout_keeps_dtypes_and_their_scale(dtype):
    y = fc.dropout(jax.random.key(0), jnp.ones(1000, dtype), 0.1)
    assert y.dtype == dtype
    assert (np.unique(y) == np.array([0, 1 / 0.9]).astype(dtype)).all()


def test_dropout_at_its_ends(rng):
    x = rng.normal(size=(4, 5))
    np.testing.assert_array_equal(fc.dropout(jax.random.key(0), x, 0), x)
    g = jax.grad(lambda x: fc.dropout(jax.random.key(0), x, 1).sum())(x)
    np.testing.assert_array_equal(g, np.zeros_like(x))


@pytest.mark.parametrize(("batch", "options"), [((2000,), {}), ((40, 50), {"spatial": 1}), ((), {"spatial": 1})])
def test_drop_path_drops_whole_examples(batch, options):
    y = np.asarray(fc.drop_path(jax.random.key(1), jnp.ones((*batch, 3, 2), F32), 0.3, **options))
    assert (y == y[..., :1, :1]).all()
    kept = y[..., 0, 0] != 0
    assert set(np.unique(y).tolist()) <= {0.0, float(F32(1) / F32(0.7))}
    if batch:
        assert abs(kept.mean() - 0.7) < 6 * (0.3 * 0.7 / 2000) ** 0.5
        assert abs(np.corrcoef(kept.ravel()[:-1], kept.ravel()[1:])[0, 1]) < 6 / 2000**0.5


def test_drop_path_at_its_ends(rng):
    x = rng.normal(size=(4, 5))
    np.testing.assert_array_equal(fc.drop_path(jax.random.key(0), x, 0), x)
    np.testing.assert_array_equal(fc.drop_path(jax.random.key(0), x, 1), np.zeros_like(x))


@pytest.mark.parametrize("batch", [(100,), (10, 10)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)])
def test_drop_path_as_a_layer(batch, shape, rng):
    x = fc.Input("x", shape)
    graph = fc.Graph(x, (fc.DropPath(0.5)(x), fc.DropPath(0.5)(x), fc.DropPath(0)(x)))
    image = rng.uniform(1, 2, (*batch, *shape))
    for y in graph({}, image):
        np.testing.assert_array_equal(y, image)
    (one, other, same), _ = graph.apply({}, {}, image, key=jax.random.key(0), train=True)
    np.testing.assert_array_equal(same, image)
    kept = [np.asarray(y / image).reshape(100, -1) for y in (one, other)]
    for mask in kept:
        assert (mask == mask[:, :1]).all()
        assert set(mask.ravel().tolist()) == {0.0, 2.0}
    assert (kept[0][:, 0] != kept[1][:, 0]).any()
    with pytest.raises(fc.FuncconvError, match=r"DropPath\(0.5\) needs a random key in training"):
        graph.apply({}, {}, image, train=True)


# what is refused ------------------------------------------------------------------------------------------

X = np.ones((2, 4, 6), F32)
STATS = {"mean": np.zeros(6, F32), "var": np.ones(6, F32)}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fc.layer_norm({"scale": np.ones(5, F32)}, X), ["last 1 axes", "(2, 4, 6)", "(5,)"]),
        (lambda: fc.layer_norm({"scale": np.ones(6)}, X), ["float32", "scale is float64"]),
        (lambda: fc.layer_norm({"gamma": np.ones(6, F32)}, X), ["unknown entry 'gamma'"]),
        (lambda: fc.layer_norm({}, X, axes=4), ["axes must be from 1 to 3", "got 4"]),
        (lambda: fc.layer_norm({}, X, epsilon=0), ["epsilon must be above 0"]),
        (lambda: fc.layer_norm(np.ones(6), X), ["params must be"]),
        (lambda: fc.layer_norm({}, X.astype(int)), ["the input is int64, but must be floating"]),
        (lambda: fc.group_norm({}, X, 4), ["divides the 6 channels", "got 4"]),
        (lambda: fc.group_norm({"bias": np.ones(4, F32)}, X, 2), ["6 channels", "bias has shape (4,)"]),
        (lambda: fc.batch_norm({}, {}, X), ["the state must be", "init_batch_stats", "got []"]),
        (lambda: fc.batch_norm({}, None, X), ["the state must be", "got NoneType"]),
        (lambda: fc.batch_norm({}, STATS, X[..., :5]), ["5 channels", "running mean has shape (6,)"]),
        (lambda: fc.batch_norm({}, STATS, X, momentum=1.5), ["momentum must be from 0 to 1", "1.5"]),
        (lambda: fc.batch_norm({}, STATS, X[:1, 0], train=True), ["two numbers or more", "has 1", "train=False"]),
        (lambda: fc.weight_standardize({"bias": X}), ['{"kernel": array']),
        (lambda: fc.weight_standardize({"kernel": X}, spatial=2), ["the kernel must be (2 window axes, in // groups"]),
        (lambda: fc.dropout(jax.random.key(0), X, 1.5), ["rate must be a number from 0 to 1", "1.5"]),
        (lambda: fc.dropout(None, X), ["needs a key"]),
        (lambda: fc.dropout(jax.random.key(0), X.astype(int)), ["int64"]),
        (lambda: fc.dropout(jax.random.key(0), X, spatial=3), ["spatial must be from 0 to 2"]),
        (lambda: fc.drop_path(jax.random.key(0), X, -0.1), ["drop_path: rate must be a number from 0 to 1", "-0.1"]),
        (lambda: fc.drop_path(None, X, 0.1), ["drop_path: needs a key"]),
        (lambda: fc.drop_path(jax.random.key(0), X.astype(int), 0.1), ["int64"]),
        (lambda: fc.drop_path(jax.random.key(0), F32(1), 0.1), ["must have one batch axis", "()"]),
        (lambda: fc.drop_path(jax.random.key(0), X, 0.1, spatial=3), ["3 spatial axes and one of channels"]),
        (lambda: fc.init_norm(0), ["init_norm", "shape"]),
        (lambda: fc.init_batch_stats(-1), ["init_batch_stats", "channels"]),
        (lambda: fc.WeightStandardize(fc.Pool()), ["expected a Conv, LocalConv or Dense", "Pool(2)"]),
    ],
)
def test_bad_input_says_what_was_expected(call, words):
    with pytest.raises(fc.FuncconvError) as error:
        call()
    for word in words:
        assert word in str(error.value)

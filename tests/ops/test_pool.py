"""Pools: what the table of laws does not say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compare import close
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import funcconv as fc

pytestmark = pytest.mark.once


def row(*values, dtype=jnp.float64):
    """Return one image of one axis and one channel, without batch axes."""
    return jnp.array(values, dtype).reshape(-1, 1)


@st.composite
def pools(draw):
    """Return an image's shape, a window and options that go with it; some do not fit."""
    n = draw(st.integers(1, 3))

    def each(values):
        return draw(st.lists(values, min_size=n, max_size=n).map(tuple))

    pair = st.tuples(st.integers(-1, 2), st.integers(-1, 2))
    options = {
        "reduce": draw(st.sampled_from(["max", "min", "sum", "mean", "prod", "lse", "lp", "median"])),
        "stride": each(st.integers(1, 3)),
        "dilation": each(st.integers(1, 2)),
        "padding": each(pair),
        "pad_mode": draw(st.none() | st.just(each(st.none() | st.sampled_from(sorted(oracles.NUMPY_MODES))))),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
    }
    window = each(st.integers(1, 12 if n == 1 else 3))
    sizes = (draw(st.integers(1, 30)),) if n == 1 else each(st.integers(1, 6))
    return (*sizes, 2), window, options


@settings(max_examples=24, deadline=None)
@given(pools(), st.integers(0, 2**32 - 1))
def test_any_pool_equals_the_loops(drawn, seed):
    shape, window, options = drawn
    x = np.random.default_rng(seed).integers(-3, 3, shape).astype(np.float64)  # with ties
    try:
        y = jax.jit(partial(fc.pool, window=window, **options))(x)
    except fc.FuncconvError:
        reject()
    close(y, oracles.pool(x, window, **options))


@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 9, 16, 31, 39])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (3, 2), (None, 1)])
def test_wide_windows_select_in_order(window, stride, dilation, rng):
    """Folding in stages gives the same values, and the same first maximum, as looking at all taps at once."""
    x = rng.integers(0, 3, (1, 3 * window * dilation + 5, 1)).astype(np.float64)

    @jax.jit
    def ours(x):
        y, pullback = jax.vjp(lambda x: fc.pool(x, (window,), stride=stride, dilation=dilation), x)
        return y, pullback(jnp.arange(1.0, y.size + 1).reshape(y.shape))[0]

    y, x_bar = ours(x)
    expected = np.zeros(x.shape)
    for o in range(y.shape[1]):
        places = o * (stride or window) + dilation * np.arange(window)
        assert y[0, o, 0] == x[0, places, 0].max()
        expected[0, places[np.argmax(x[0, places, 0])], 0] += o + 1
    np.testing.assert_array_equal(x_bar, expected)


@pytest.mark.parametrize(
    ("reduce", "shape", "ties"),
    [("max", (4, 6), "first"), ("max", (3, 2, 4), "split"), ("min", (3, 2, 4), "first"), ("min", (4, 6), "split")],
)
def test_ties(reduce, shape, ties, rng):
    """Every mode of differentiation sends the gradient to the first extreme in row-major order, or shares it."""
    x = jnp.asarray(rng.integers(0, 2, (*shape, 1)), jnp.float64)
    n = len(shape)
    window, stride = (2,) * n, (1,) * n

    def pool(x):
        return fc.pool(x, window, stride=stride, reduce=reduce, ties=ties)

    y = pool(x)
    jacobian = np.zeros((*y.shape, *x.shape))
    for position in np.ndindex(y.shape[:-1]):
        taps = [tuple(np.add(position, tap)) for tap in np.ndindex(window)]
        tied = [tap for tap in taps if x[(*tap, 0)] == y[(*position, 0)]]
        for tap in tied[:1] if ties == "first" else tied:
            jacobian[(*position, 0, *tap, 0)] = 1 if ties == "first" else 1 / len(tied)

    def squares(x):
        return (pool(x) ** 2).sum()

    direction = jnp.asarray(rng.normal(size=x.shape))
    flat = jacobian.reshape(y.size, x.size)
    hvp = (2 * flat.T @ flat @ direction.ravel()).reshape(x.shape)

    @jax.jit
    def derivatives(x, v):
        return (
            jax.jacfwd(pool)(x),
            jax.jacrev(pool)(x),
            jax.jvp(jax.grad(squares), (x,), (v,))[1],
            jax.grad(lambda x: jax.jvp(squares, (x,), (v,))[1])(x),
            jax.grad(lambda x: jnp.vdot(jax.grad(squares)(x), v))(x),
        )

    by_forward, by_reverse, *hvps = derivatives(x, direction)
    close(by_forward, jacobian)
    close(by_reverse, jacobian)
    for each in hvps:
        close(each, hvp)


def test_infinities_and_padding():
    x = row(-np.inf, -np.inf, 1.0, np.inf)
    assert fc.max_pool(x, (2,), stride=1, padding=1)[:, 0].tolist() == [-np.inf, -np.inf, 1, np.inf, np.inf]
    for ties in ("first", "split"):
        gradient = jax.grad(lambda x, ties=ties: fc.pool(x, (2,), padding=1, ties=ties)[1:].sum())(x)
        assert np.isfinite(gradient).all()


def test_the_first_nan_is_selected():
    x = row(1.0, np.nan, np.nan, 3.0)
    for pool in (fc.max_pool, fc.min_pool):
        assert np.isnan(pool(x, (4,))).all()
        assert jax.grad(lambda x, pool=pool: pool(x, (4,)).sum())(x)[:, 0].tolist() == [0, 1, 0, 0]
        assert jax.jacfwd(lambda x, pool=pool: pool(x, (4,)).sum())(x)[:, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    "pool", [partial(fc.avg_pool, window=64), fc.global_pool, partial(fc.adaptive_pool, output_size=1)]
)
def test_sixteen_bit_averages_are_formed_in_float32(pool, dtype):
    x = jnp.full((1, 64, 64, 1), 20.25, dtype)
    y = jax.jit(pool)(x)
    assert y.dtype == dtype
    assert y.item() == 20.25


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_averages_of_ones_count_the_window(ceil_mode, include):
    """Without padding counted, an average of ones is one everywhere; with it, it is the share of real inputs."""
    x = jnp.ones((1, 5, 6, 1))
    options = {"stride": 2, "padding": 1, "ceil_mode": ceil_mode, "count_include_pad": include}
    y = fc.avg_pool(x, 3, **options)
    close(y[0], oracles.pool(x[0], 3, reduce="mean", **options))
    if not include:
        assert (y == 1).all()


def test_a_pad_mode_shows_values_that_take_part():
    x = row(1.0, 2.0, 3.0)
    assert fc.avg_pool(x, (2,), stride=1, padding=1)[:, 0].tolist() == [1, 1.5, 2.5, 3]
    assert fc.avg_pool(x, (2,), stride=1, padding=1, pad_mode="zeros")[:, 0].tolist() == [0.5, 1.5, 2.5, 1.5]
    assert fc.avg_pool(x, (2,), stride=1, padding=1, pad_mode="circular")[:, 0].tolist() == [2, 1.5, 2.5, 2]
    assert fc.max_pool(-x, (2,), stride=1, padding=1, pad_mode="zeros")[:, 0].tolist() == [0, -1, -2, 0]


def test_how_many_axes_are_spatial(rng):
    x = rng.normal(size=(3, 4, 6, 2))

    def shape(op, x, *args, **options):
        return jax.eval_shape(lambda x: op(x, *args, **options), x).shape

    close(fc.pool(x), fc.pool(x, (2, 2)))
    close(fc.pool(x, 2, spatial=1), fc.pool(x, (2,)))
    assert shape(fc.pool, x, 2, spatial=1) == (3, 4, 3, 2)
    assert shape(fc.pool, x, 2, layout="NHWC") == (3, 2, 3, 2)
    assert shape(fc.pool, x, 2, layout="NCW") == (3, 4, 6, 1)
    assert shape(fc.pool, x, 2, layout="NWC") == (3, 4, 3, 2)
    assert shape(fc.pool, x[0], 2, layout="HWC") == (2, 3, 2)
    assert shape(fc.global_pool, x) == (3, 2)
    assert shape(fc.global_pool, x, spatial=1) == (3, 4, 2)
    assert shape(fc.global_pool, x, layout="NCHW") == (3, 4)
    assert shape(fc.global_pool, x, layout="CHWN") == (3, 2)
    assert shape(fc.adaptive_pool, x, 3) == (3, 3, 3, 2)
    assert shape(fc.adaptive_pool, x, (None, 5)) == (3, 4, 5, 2)
    assert shape(fc.adaptive_pool, x, (5,)) == (3, 4, 5, 2)
    assert shape(fc.adaptive_pool, x, 3, layout="NCHW") == (3, 4, 3, 3)
    assert shape(fc.flatten, x) == (3, 48)
    assert shape(fc.flatten, x, spatial=1) == (3, 4, 12)


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from(["max", "min", "sum", "mean"]), st.integers(0, 9))
def test_adaptive_pools(size, outputs, reduce, seed):
    x = np.random.default_rng(seed).normal(size=(size, 2))
    close(jax.jit(lambda x: fc.adaptive_pool(x, (outputs,), reduce))(x), oracles.adaptive_pool(x, (outputs,), reduce))


def test_large_arrays(rng):
    """A window of one beside a wider one, at a size where XLA's own windows go wrong in the derivative."""
    x = rng.normal(size=(8, 120, 34, 16)).astype(np.float32)
    for reduce in ("max", "mean"):
        y, pullback = jax.vjp(partial(fc.pool, window=(1, 3), stride=2, reduce=reduce), x)
        (x_bar,) = jax.jit(pullback)(y)
        windows = np.stack([x[:, ::2, t : t + 31 : 2] for t in range(3)])
        close(y, windows.max(0) if reduce == "max" else windows.mean(0), np.float32)
        expected = np.zeros_like(x)
        for t in range(3):
            share = np.where(windows[t] == windows.max(0), y, 0) if reduce == "max" else y / 3
            expected[:, ::2, t : t + 31 : 2] += share
        close(x_bar, expected, np.float32)


def test_derivatives_neither_scatter_nor_select_and_scatter(rng):
    x = rng.normal(size=(2, 9, 9, 3))
    for options in (
        {"padding": 1},
        {"dilation": 2},
        {"stride": 3},
        {"ties": "split"},
        {"reduce": "mean", "padding": 1},
    ):
        f = jax.grad(lambda x, options=options: (fc.pool(x, 3, **{"stride": 1} | options) ** 2).sum())
        text = jax.jit(lambda x, f=f: jax.jvp(f, (x,), (x,))[1]).lower(x).as_text()
        assert "scatter" not in text


def test_the_forward_pass_alone_computes_no_index(rng):
    text = str(jax.make_jaxpr(partial(fc.pool, window=3, stride=2, padding=1))(rng.normal(size=(2, 9, 9, 3))))
    assert not any(word in text for word in ("argmax", "iota", "i32[2", "gather"))


# indices and where they lead -------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(pools(), st.sampled_from(["max", "min"]), st.integers(0, 2**32 - 1))
def test_indices_say_where(drawn, reduce, seed):
    """They are those of the loops, and `max_unpool` is the transpose of the selection."""
    shape, window, options = drawn
    rng = np.random.default_rng(seed)
    x = rng.integers(-3, 3, shape).astype(np.float64)  # with ties
    options = options | {"reduce": reduce}
    try:
        y, indices = jax.jit(partial(fc.pool, window=window, return_indices=True, **options))(x)
    except fc.FuncconvError:
        reject()
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(y, oracles.pool(x, window, **options))
    np.testing.assert_array_equal(indices, oracles.pool(x, window, indices=True, **options))
    if options["pad_mode"] is None:
        v = rng.normal(size=y.shape)
        back = {key: options[key] for key in ("stride", "padding", "dilation")}
        image = fc.max_unpool(v, indices, window, size=shape[:-1], **back)
        close(image, oracles.max_unpool(v, np.asarray(indices), shape[:-1]))
        close((image * x).sum(), (v * y).sum(), terms=x.size)


def test_indices_are_of_real_inputs():
    """Padding that takes no part has no index, even where the inputs are as low as it is."""
    for x in (row(-np.inf, -np.inf), row(0, 0, dtype=jnp.uint8), row(*[np.iinfo(np.int32).min] * 2, dtype=jnp.int32)):
        _, indices = fc.max_pool(x, (2,), stride=1, padding=1, return_indices=True)
        assert indices[:, 0].tolist() == [0, 0, 1]
    _, indices = fc.max_pool(row(1.0, np.nan, np.nan), (3,), return_indices=True)
    assert indices[0] == 1
    _, indices = fc.max_pool(row(-1.0, -2.0), (2,), stride=1, padding=1, pad_mode="zeros", return_indices=True)
    assert indices[:, 0].tolist() == [-1, 0, -1]
    _, indices = fc.min_pool(row(1.0, 2.0, 3.0), (2,), padding=((3, 0),), pad_mode="circular", return_indices=True)
    assert indices[:, 0].tolist() == [0, 0, 1]


def test_indices_in_every_form(rng):
    x = rng.normal(size=(2, 4, 6, 3))

    @jax.jit
    def all_forms(x):
        last = fc.max_pool(x, return_indices=True)
        first = fc.max_pool(x.transpose(0, 3, 1, 2), layout="NCHW", return_indices=True)
        unpooled = fc.max_unpool(*last, size=(4, 6)), fc.max_unpool(*first, layout="NCHW").transpose(0, 2, 3, 1)
        adaptive = fc.adaptive_pool(x, 3, "min", return_indices=True), fc.adaptive_pool(x, 3, "min")
        return last, first, unpooled, fc.global_pool(x, "max", return_indices=True), adaptive

    last, first, unpooled, (y, indices), adaptive = jax.tree.map(np.asarray, all_forms(x))
    for a, b in zip(first, last, strict=True):
        np.testing.assert_array_equal(a, b.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(*unpooled)
    np.testing.assert_array_equal(indices, x.reshape(2, 24, 3).argmax(1))
    np.testing.assert_array_equal(y, x.max((1, 2)))
    (y, indices), plain = adaptive
    np.testing.assert_array_equal(y, plain)
    np.testing.assert_array_equal(
        np.take_along_axis(x.reshape(2, 24, 3), indices.reshape(2, 9, 3), 1), y.reshape(2, 9, 3)
    )


def test_values_with_indices_have_the_same_derivatives(rng):
    x = jnp.asarray(rng.integers(0, 3, (1, 7, 7, 2)), jnp.float64)
    plain = partial(fc.max_pool, window=3, stride=2, padding=1)

    def beside(x):
        return plain(x, return_indices=True)[0]

    @jax.jit
    def pairs(x):
        _, pullback, indices = jax.vjp(partial(plain, return_indices=True), x, has_aux=True)
        y = jnp.ones(indices.shape)
        jacobians = [(derivative(beside)(x), derivative(plain)(x)) for derivative in (jax.jacfwd, jax.jacrev)]
        return *jacobians, (pullback(y)[0], fc.max_unpool(y, indices, 3, stride=2, padding=1, size=7))

    for found, expected in pairs(x):
        np.testing.assert_array_equal(found, expected)


def test_unpooling():
    y, indices = row(1.0, 2.0, 4.0), jnp.array([[1], [1], [-1]])
    assert fc.max_unpool(y, indices, (3,), stride=1, padding=1)[:, 0].tolist() == [0, 3, 0]  # added, and dropped
    astray = jnp.array([[2], [7], [1]])
    dropped = jax.jit(partial(fc.max_unpool, window=(3,), stride=1, padding=1))(y, astray)
    assert dropped[:, 0].tolist() == [0, 4, 0]
    assert fc.max_unpool(y, jnp.array([[0], [2], [4]]), (2,), size=5)[:, 0].tolist() == [1, 0, 2, 0, 4]  # ceil_mode's
    nan = fc.max_unpool(row(np.nan, 1.0), jnp.array([[0], [3]]), (2,))[:, 0]
    np.testing.assert_array_equal(nan, [np.nan, 0, 0, 1])


# functions -------------------------------------------------------------------------------------------------


def test_a_function_sees_the_taps_in_order(rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 6, 3)))
    weights = jnp.arange(6.0)

    def dot(taps, axis):
        assert axis == -1
        return jnp.sum(taps * weights[(None,) * (taps.ndim - 1)], axis)

    kernel = jnp.zeros((2, 3, 3, 3)).at[:, :, np.arange(3), np.arange(3)].set(weights.reshape(2, 3, 1))
    close(fc.pool(x, (2, 3), reduce=dot), fc.conv({"kernel": kernel}, x, stride=(2, 3)))
    quarter = fc.pool(x, (2, 3), reduce=partial(jnp.quantile, q=0.25), padding=1, pad_mode="zeros")
    assert quarter.shape == (2, 3, 2, 3)
    close(fc.adaptive_pool(x, 1, jnp.var)[:, 0, 0], x.var((1, 2)))
    close(fc.global_pool(x, jnp.ptp, layout="NHWC"), jnp.ptp(x, (1, 2)))


def test_padding_that_no_window_reads_is_no_matter(rng):
    x = rng.normal(size=(1, 6, 1))
    close(fc.pool(x, 3, reduce=jnp.std, padding=((0, 1),)), fc.pool(x, 3, reduce=jnp.std))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("options", [{"reduce": "prod"}, {"reduce": "lse"}, {"reduce": "lp", "p": 1}, {"reduce": "lp"}])
def test_sixteen_bit_results_are_rounded_once(dtype, options, rng):
    x = jnp.asarray(1 + rng.normal(size=(1, 40, 2)) / 16, dtype)
    y = fc.pool(x, 10, **options)
    exact = fc.pool(x.astype(jnp.float32), 10, **options)
    np.testing.assert_array_equal(y, exact.astype(dtype))


# layers ----------------------------------------------------------------------------------------------------


def test_layers_of_every_reduction(rng):
    x = fc.Input("x", (6, 6, 2))
    image = jnp.asarray(rng.normal(size=(3, 6, 6, 2)))

    def graph():
        norm = fc.Pool(2, reduce="lp", p=3)(x)
        warm = fc.Pool(2, reduce="lse", temperature=0.5)(x)
        low = fc.Pool(2, reduce=partial(jnp.quantile, q=0.25))(x)
        return fc.Graph(x, norm + warm * low)

    assert graph() == graph()
    assert hash(graph()) == hash(graph())
    assert fc.Pool(2, reduce=partial(jnp.quantile, q=0.25)) != fc.Pool(2, reduce=partial(jnp.quantile, q=0.5))
    assert fc.Pool(2, reduce="lp", p=3) != fc.Pool(2, reduce="lp")

    @jax.jit
    def plain(image):
        norm, warm = fc.pool(image, reduce="lp", p=3), fc.pool(image, reduce="lse", temperature=0.5)
        return norm + warm * fc.pool(image, reduce=partial(jnp.quantile, q=0.25))

    close(jax.jit(graph())({}, image), plain(image))


def test_a_layer_with_indices_is_a_pair(rng):
    x = fc.Input("x", (6, 6, 2))
    pooled = fc.Pool(2, return_indices=True)(x)
    back = fc.node(fc.max_unpool, pooled[0], pooled[1])
    graph = fc.Graph(x, (pooled, back))
    image = jnp.asarray(rng.normal(size=(2, 3, 6, 6, 2)))
    (y, indices), unpooled = jax.jit(graph)({}, image)

    @jax.jit
    def plain(image):
        pooled = fc.max_pool(image, (2, 2), return_indices=True)
        return *pooled, fc.max_unpool(*pooled, (2, 2))

    for found, expected in zip((y, indices, unpooled), plain(image), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_images_of_more_places_than_int32_counts_are_refused():
    """Their indices would wrap around; shapes alone are computed here, and no array is made."""
    image = jax.ShapeDtypeStruct((1, 2**16, 2**15, 1), jnp.float32)
    small = jax.ShapeDtypeStruct((1, 2**15, 2**14, 1), jnp.float32)
    indices = jax.ShapeDtypeStruct(small.shape, jnp.int32)
    with pytest.raises(fc.FuncconvError, match=r"pool: an image of \(65536, 32768\) has 2,147,483,648 positions"):
        jax.eval_shape(lambda x: fc.pool(x, 2, return_indices=True), image)
    with pytest.raises(fc.FuncconvError, match=r"max_unpool: an image of .*Split the image into smaller parts"):
        jax.eval_shape(lambda y, indices: fc.max_unpool(y, indices, 2), small, indices)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x, **options: fc.pool(x, x.shape[1:-1], **options), "pool"),
        (fc.global_pool, "global_pool"),
        (lambda x, **options: fc.adaptive_pool(x, (1, 1), **options), "adaptive_pool"),
    ],
)
def test_windows_of_more_taps_than_int32_counts(op, name):
    """Shapes alone are computed here, and no array is made: not even NumPy's numbers of the taps."""
    fits, too_large = (jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32) for size in (46340, 46341))
    for x in (fits, too_large):
        for options in ({"reduce": "max"}, {"reduce": "mean"}, {"reduce": "lp", "p": 3}, {"reduce": jnp.ptp}):
            assert jax.eval_shape(partial(op, **options), x).size == 1
    assert jax.eval_shape(jax.grad(lambda x: op(x, reduce="median").sum()), fits) == fits
    assert jax.eval_shape(partial(op, reduce="max", return_indices=True), fits)[1].dtype == jnp.int32
    with pytest.raises(fc.FuncconvError, match=rf"^{name}: a median of 2,147,488,281 taps .* at most 2,147,483,647 "):
        jax.eval_shape(partial(op, reduce="median"), too_large)
    with pytest.raises(fc.FuncconvError, match=rf"^{name}: an image of \(46341, 46341\) has 2,147,488,281 positions"):
        jax.eval_shape(partial(op, reduce="max", return_indices=True), too_large)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_nans_may_be_ignored(rng, reduce):
    x = jnp.asarray(rng.normal(size=(2, 9, 8, 3)))
    options = {"reduce": reduce, "stride": (2, 1), "padding": ((1, 1), (0, 1)), "dilation": (1, 2)}
    usual, ignoring = (partial(fc.pool, window=(3, 2), nan=nan, **options) for nan in ("propagate", "ignore"))
    assert np.array_equal(ignoring(x), usual(x))
    for derivative in (
        lambda f: jax.grad(lambda x: (f(x) ** 3).sum()),
        lambda f: lambda x: jax.jvp(f, (x,), (x**2,))[1],
    ):
        assert np.array_equal(derivative(ignoring)(x), derivative(usual)(x))
    holes = x.at[:, ::3, ::2].set(jnp.nan)
    with_nans, without = (
        ignoring(holes),
        usual(jnp.where(jnp.isnan(holes), jnp.inf if reduce == "min" else -jnp.inf, x)),
    )
    assert (jnp.isnan(with_nans) | (with_nans == without)).all()
    assert np.array_equal(ignoring(x.astype(int)), usual(x.astype(int)))
    assert "reduce_window" in jax.jit(ignoring).lower(x).as_text()
    (row,) = fc.explain(ignoring, x)
    assert row.form == "reduce_window"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nan": "drop"}, "must be 'propagate' or 'ignore'; got 'drop'"),
        ({"nan": "ignore", "reduce": "mean"}, "got reduce='mean'"),
        ({"nan": "ignore", "ties": "split"}, "ties='split'"),
        ({"nan": "ignore", "return_indices": True}, "return_indices=True"),
        ({"nan": "ignore", "mask": jnp.ones((1, 4), bool)}, "mask=given"),
    ],
)
def test_nans_are_ignored_only_where_something_is_selected(options, match):
    with pytest.raises(fc.FuncconvError, match=match):
        fc.pool(jnp.ones((1, 4, 1)), 2, **options)

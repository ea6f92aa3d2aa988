"""Convolutions: what the table of laws does not say."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from compare import close
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jax.experimental.sparse import BCOO

import funcconv as fc


@st.composite
def convolutions(draw):
    """Return the shape of a kernel and of an image, and options that go with them; some do not fit."""
    n = draw(st.integers(1, 3))
    axes = st.lists(st.integers(1, 3), min_size=n, max_size=n).map(tuple)
    groups = draw(st.integers(1, 3))
    window = draw(axes)
    per_group, outputs = draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    modes = st.lists(st.sampled_from(sorted(oracles.NUMPY_MODES)), min_size=n, max_size=n).map(tuple)
    pair = st.tuples(st.integers(-1, 3), st.integers(-1, 3))
    options = {
        "stride": draw(axes),
        "dilation": draw(axes),
        "padding": draw(st.lists(pair, min_size=n, max_size=n).map(tuple)),
        "pad_mode": draw(modes),
        "groups": groups,
        "flip": draw(st.booleans()),
    }
    sizes = draw(st.lists(st.integers(2, 5), min_size=n, max_size=n).map(tuple))
    return (*window, per_group, outputs), (*sizes, per_group * groups), options


def fits(kernel, x, options):
    try:
        jax.eval_shape(partial(fc.conv, **options), {"kernel": jnp.zeros(kernel)}, jnp.zeros(x))
    except fc.FuncconvError:
        return False
    return True


@settings(max_examples=20, deadline=None)
@given(convolutions(), st.integers(0, 2**32 - 1))
def test_any_convolution_equals_the_loops_its_matrix_and_its_transpose(drawn, seed):
    kernel_shape, shape, options = drawn
    assume(fits(kernel_shape, shape, options))
    rng = np.random.default_rng(seed)
    params, x = {"kernel": rng.normal(size=kernel_shape)}, rng.normal(size=shape)
    n = len(shape) - 1

    @jax.jit
    def all_ways(params, x, y):
        return (
            fc.conv(params, x, **options),
            (fc.conv_matrix(params, shape[:n], **options) @ x.ravel()),
            fc.conv_transpose(params, y, size=shape[:n], **options),
        )

    expected = oracles.conv(params, x, **options)
    y = rng.normal(size=expected.shape)
    direct, by_matrix, back = all_ways(params, x, y)
    close(direct, expected)
    close(by_matrix.reshape(expected.shape), expected)
    close(jnp.vdot(back, x), np.vdot(y, expected))


@pytest.mark.parametrize("name", ["VALID", "SAME", "SAME_LOWER", "HALF", "FULL", "CAUSAL"])
def test_named_paddings(name, rng):
    params, x = {"kernel": rng.normal(size=(3, 2, 1, 2))}, rng.normal(size=(2, 7, 6, 1))
    options = {"stride": (2, 1), "dilation": (1, 2), "padding": name}
    margins = {
        "VALID": ((0, 0), (0, 0)),
        "SAME": ((1, 1), (1, 1)),
        "SAME_LOWER": ((1, 1), (1, 1)),
        "HALF": ((1, 1), (1, 1)),
        "FULL": ((2, 2), (2, 2)),
        "CAUSAL": ((2, 0), (2, 0)),
    }
    close(fc.conv(params, x, **options), fc.conv(params, x, **options | {"padding": margins[name]}))


def test_same_puts_the_odd_place_after_and_same_lower_before():
    params, x = {"kernel": jnp.array([1.0, 10.0]).reshape(2, 1, 1)}, jnp.array([1.0, 2.0, 3.0]).reshape(3, 1)
    assert fc.conv(params, x, padding="SAME")[:, 0].tolist() == [21, 32, 3]
    assert fc.conv(params, x, padding="SAME_LOWER")[:, 0].tolist() == [10, 21, 32]


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "CAUSAL"])
def test_a_transposed_convolution_that_keeps_the_size_multiplies_it_by_the_stride(padding):
    params = {"kernel": jnp.ones((3, 4, 2, 5))}
    assert fc.conv_transpose(params, jnp.ones((1, 4, 5, 5)), stride=(2, 3), padding=padding).shape == (1, 8, 15, 2)


def test_layouts_only_move_axes(rng):
    params = {"kernel": rng.normal(size=(3, 2, 2, 4)), "bias": rng.normal(size=4)}
    x = rng.normal(size=(2, 3, 6, 5, 2))  # two batch axes
    y = fc.conv(params, x)
    for layout, there, back in [("NCHW", (0, 1, 4, 2, 3), (0, 1, 3, 4, 2)), ("CHWN", (4, 2, 3, 0, 1), (3, 4, 1, 2, 0))]:
        close(fc.conv(params, x.transpose(there), layout=layout).transpose(back), y)
    close(fc.conv(params, x[0, 0].transpose(2, 0, 1), layout="CHW"), y[0, 0].transpose(2, 0, 1))


def test_a_missing_bias_and_one_of_none_are_none(rng):
    kernel, x = rng.normal(size=(2, 1, 1)), rng.normal(size=(4, 1))
    close(fc.conv({"kernel": kernel, "bias": None}, x), fc.conv({"kernel": kernel}, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_accumulates_as_asked(dtype, rng):
    """Sums of 16-bit products are formed in float32, in every map and to second order, and come back in 16 bits."""
    shape = (3, 3, 64, 1)
    params = {"kernel": jnp.asarray(rng.uniform(1, 2, shape), dtype), "bias": jnp.ones(1, dtype)}
    x = jnp.asarray(rng.uniform(1, 2, (1, 3, 3, 64)), dtype)
    exact = jax.tree.map(lambda a: a.astype(jnp.float64), (params, x))

    @jax.jit
    def derivatives(params, x):
        def f(params, x):
            return ((fc.conv(params, x, **options) / 64) ** 2).sum()

        options = {"accumulate_dtype": jnp.float32} if x.dtype != jnp.float64 else {}
        gradients = jax.grad(f, argnums=(0, 1))(params, x)
        hvp = jax.jvp(lambda x: jax.grad(f, argnums=1)(params, x), (x,), (x,))[1]
        return fc.conv(params, x, **options), gradients, hvp

    for a, b in zip(*(jax.tree.leaves(derivatives(*args)) for args in ((params, x), exact)), strict=True):
        assert a.dtype == dtype
        close(a, b, dtype, ulps=3)


def test_a_sixteen_bit_sum_of_many_terms_is_not_lost():
    x = jnp.full((1, 32, 32, 1), 20.25, jnp.float16)
    for dtype in (jnp.float16, jnp.bfloat16):
        params = {"kernel": jnp.full((32, 32, 1, 1), 1 / 1024, dtype)}
        assert fc.conv(params, x.astype(dtype)).item() == 20.25
        assert fc.local_conv({"kernel": params["kernel"][None, None]}, x.astype(dtype)).item() == 20.25
        assert fc.dense({"kernel": params["kernel"].reshape(-1, 1)}, x.astype(dtype).reshape(1, -1)).item() == 20.25


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "window", "padding", "stride"),
    [((1, 8, 8, 1), 5, ((-1, 1), (0, 0)), 1), ((4, 67, 65, 16), 3, ((-2, 5), (4, -1)), (2, 3))],
)
def test_crops_beside_padding(dtype, shape, window, padding, stride, rng):
    """A negative padding before an axis and a positive one after it, which XLA's own forms have got wrong."""
    x, kernel = rng.normal(size=shape).astype(dtype), rng.normal(size=(window, window, shape[-1], 8)).astype(dtype)
    crop = tuple(slice(max(-lo, 0), size - max(-hi, 0)) for (lo, hi), size in zip(padding, shape[1:], strict=False))
    margins = tuple((max(lo, 0), max(hi, 0)) for lo, hi in padding)
    inner = tuple(slice(lo, -hi or None) for lo, hi in margins)

    @partial(jax.jit, static_argnames="padding")
    def with_gradients(kernel, x, padding=0):
        y, pullback = jax.vjp(
            lambda kernel, x: fc.conv({"kernel": kernel}, x, stride=stride, padding=padding), kernel, x
        )
        return y, pullback(jnp.cos(y))

    y, (kernel_bar, x_bar) = with_gradients(kernel, x, padding=padding)
    by_hand = np.pad(x[:, *crop], ((0, 0), *margins, (0, 0)))
    y_hand, (kernel_hand, x_hand) = with_gradients(kernel, by_hand)
    close(y, y_hand, dtype)
    close(kernel_bar, kernel_hand, dtype)
    expected = np.zeros(shape, dtype)
    expected[:, *crop] = x_hand[:, *inner]
    close(x_bar, expected, dtype)


@pytest.mark.parametrize(
    ("kernel", "shape", "options"),
    [
        ((2, 4, 1, 1), (2, 2, 3, 1), {"stride": 2, "padding": ((3, 2), (3, 3)), "dilation": (1, 2)}),
        ((2, 2, 1, 4), (1, 6, 1, 2), {"stride": (4, 2), "padding": ((1, -1), (3, 3)), "dilation": (2, 1), "groups": 2}),
    ],
)
def test_gradients_with_a_stride_of_two_and_a_window_of_two(kernel, shape, options, rng):
    """With zeros on all sides XLA aborts on its own form of the gradient by the image."""
    params, x = {"kernel": rng.normal(size=kernel)}, rng.normal(size=shape)
    gradient = jax.jit(jax.grad(lambda x: (fc.conv(params, x, **options) ** 2).sum()))(x)
    matrix = np.asarray(fc.conv_matrix(params, shape[1:-1], **options))
    close(gradient.reshape(len(x), -1), 2 * x.reshape(len(x), -1) @ matrix.T @ matrix)


def test_complex_numbers_are_not_conjugated(rng):
    def draw(*shape):
        return rng.normal(size=shape) + 1j * rng.normal(size=shape)

    params, x = {"kernel": draw(2, 3, 2, 2), "bias": draw(2)}, draw(1, 4, 5, 2)
    y = fc.conv(params, x, padding=1, stride=2)
    close(y.real, oracles.conv(params, x[0], padding=1, stride=2).real[None])
    close(y.imag, oracles.conv(params, x[0], padding=1, stride=2).imag[None])
    back = fc.conv_transpose({"kernel": params["kernel"]}, y, padding=1, stride=2, size=(4, 5))
    close((back * x).sum().imag, ((y - params["bias"].reshape(1, 1, 1, 2)) * y).sum().imag)


def test_four_spatial_axes(rng):
    params, x = {"kernel": rng.normal(size=(2, 1, 2, 2, 1, 2))}, rng.normal(size=(3, 2, 2, 3, 1))
    close(fc.conv(params, x, padding=(1, 0, 0, 1)), oracles.conv(params, x, padding=(1, 0, 0, 1)))


def test_sparse_and_dense_matrices_agree_and_differentiate(rng):
    params = {"kernel": rng.normal(size=(3, 2, 1, 2))}
    options = {"padding": 2, "pad_mode": ("reflect", "zeros"), "stride": (1, 2), "layout": "NCHW"}
    x = rng.normal(size=(3, 1, 5, 4))
    sparse = fc.conv_matrix(params, (5, 4), sparse=True, **options)
    assert isinstance(sparse, BCOO)
    close(sparse.todense(), fc.conv_matrix(params, (5, 4), **options))
    close(jnp.stack([sparse @ each.ravel() for each in x]), fc.conv(params, x, **options).reshape(3, -1))

    def by_matrix(params):
        return (fc.conv_matrix(params, (5, 4), **options) @ x[0].ravel()).sum()

    gradient = jax.grad(by_matrix)(params)["kernel"]
    close(gradient, jax.grad(lambda params: fc.conv(params, x[0], **options).sum())(params)["kernel"])


def test_a_zero_padding_has_no_entry_in_the_sparse_matrix():
    assert fc.conv_matrix({"kernel": jnp.ones((3, 1, 1))}, 4, padding=1, sparse=True).nse == 4 * 3 - 2


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_dense_and_convolution_turn_into_each_other(order, rng):
    dense = {"kernel": rng.normal(size=(3 * 4 * 2, 5)), "bias": rng.normal(size=5)}
    x = rng.normal(size=(6, 3, 4, 2))
    conv = fc.dense_to_conv(dense, (3, 4), order=order)
    close(fc.conv(conv, x)[:, 0, 0], fc.dense(dense, fc.flatten(x, order=order)))
    for name, array in fc.conv_to_dense(conv, order=order).items():
        np.testing.assert_array_equal(array, dense[name])
    image = rng.normal(size=(2, 5, 6, 4))
    options = {"stride": 2, "groups": 2, "padding": 1}
    conv = {"kernel": rng.normal(size=(3, 4, 2, 6)), "bias": rng.normal(size=6)}
    as_dense = fc.conv_to_dense(conv, (5, 6), order=order, **options)
    flat = fc.flatten(fc.conv(conv, image, **options), order=order)
    close(fc.dense(as_dense, fc.flatten(image, order=order)), flat)


def test_a_dense_layer_as_a_convolution_slides(rng):
    dense = {"kernel": rng.normal(size=(2 * 2 * 3, 4))}
    image = rng.normal(size=(1, 5, 4, 3))
    slid = fc.conv(fc.dense_to_conv(dense, (2, 2)), image)
    for i, j in np.ndindex(4, 3):
        close(slid[:, i, j], fc.dense(dense, fc.flatten(image[:, i : i + 2, j : j + 2])))

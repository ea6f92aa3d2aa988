"""Singular values of convolutions are those of their matrices, with the same derivatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

CIRCULAR = {"padding": "SAME", "pad_mode": "circular"}

# kernel, image, options of `singular_values` and the same for `conv_matrix`
FREQUENCIES = {
    "one axis": ((3, 2, 3), (8,), {}),
    "one channel": ((3, 3, 1, 1), (5, 4), {}),
    "two axes": ((3, 2, 4, 2), (6, 5), {}),
    "three axes": ((2, 2, 2, 1, 2), (3, 2, 4), {}),
    "dilation": ((3, 3, 2, 2), (6, 7), {"dilation": (2, 1)}),
    "groups": ((3, 2, 6), (7,), {"groups": 3}),
    "depthwise": ((3, 3, 1, 4), (4, 4), {"groups": 4}),
    "a window as large as the image": ((4, 2, 3), (4,), {}),
    "a window larger than the image": ((5, 2, 2), (3,), {}),
    "one position": ((3, 2, 2), (1,), {}),
    "two positions": ((1, 2, 2, 2), (3, 2), {}),
}
ITERATIONS = {
    "no padding": ((3, 3, 2, 3), (14, 15), {"padding": 0}),
    "zeros": ((3, 3, 3, 2), (12, 13), {"padding": "SAME"}),
    "stride": ((3, 3, 2, 8), (14, 16), {"padding": 1, "stride": 2}),
    "reflected": ((3, 3, 2, 2), (13, 12), {"padding": 1, "pad_mode": "reflect"}),
    "one axis": ((5, 4, 4), (80,), {"padding": "CAUSAL", "dilation": 2}),
    "groups": ((3, 2, 4), (80,), {"padding": "FULL", "groups": 2}),
    "circular with a stride": ((3, 3, 2, 8), (16, 16), {"padding": "circular", "stride": 2}),
}


def draw(rng, shape, dtype=np.float64):
    return jnp.asarray(rng.normal(size=shape), dtype)


def of_matrix(kernel, sizes, options):
    """Return the singular values of the matrix."""
    options = options | CIRCULAR if options.get("padding", "circular") == "circular" else options
    return jnp.linalg.svd(fc.conv_matrix({"kernel": kernel}, sizes, **options), compute_uv=False)


@pytest.mark.parametrize("name", FREQUENCIES)
def test_all_values_of_a_circular_convolution(name, rng):
    shape, sizes, options = FREQUENCIES[name]
    kernel = draw(rng, shape)
    values = fc.singular_values({"kernel": kernel}, sizes, **options)
    close(values, of_matrix(kernel, sizes, options))
    close(fc.singular_values({"kernel": kernel}, sizes, k=1, **options), values[:1])
    close(fc.operator_norm({"kernel": kernel}, sizes, **options), values[0])


@pytest.mark.parametrize("name", ITERATIONS)
@pytest.mark.parametrize("k", [1, 4])
def test_the_largest_values_by_iterations(name, k, rng):
    shape, sizes, options = ITERATIONS[name]
    kernel = draw(rng, shape)
    matrix_options = options | CIRCULAR if options["padding"] == "circular" else options
    assert min(fc.conv_matrix({"kernel": kernel}, sizes, **matrix_options).shape) > 256  # or the matrix would be used
    values = jax.jit(lambda kernel: fc.singular_values({"kernel": kernel}, sizes, k=k, **options))(kernel)
    assert values.shape == (k,)
    # LOBPCG stops when the residual is small beside the eigenvalue. The error of an eigenvalue is its square at least.
    close(values, of_matrix(kernel, sizes, options)[:k], ulps=2**14)


@pytest.mark.parametrize("options", [{}, {"padding": "SAME"}, {"padding": 1, "stride": 2}, {"padding": 0}])
@pytest.mark.parametrize("size", [6, 24])
def test_derivatives_are_those_of_the_matrix(options, size, rng):
    kernel, v = draw(rng, (3, 3, 2, 3)), draw(rng, (3, 3, 2, 3))
    sizes = (size, size)
    weights = jnp.asarray([3.0, -2.0])

    def by_op(kernel):
        values = fc.singular_values({"kernel": kernel}, sizes, k=3, **options)
        return (values[jnp.array([0, -1])] * weights).sum()

    def by_matrix(kernel):
        return (of_matrix(kernel, sizes, options)[jnp.array([0, 2])] * weights).sum()

    # 2**15 is the number of inputs, at most 1,152, times the products of a window and more.
    for f in (jax.grad, lambda f: lambda x: jax.jvp(f, (x,), (v,))[1]):
        close(jax.jit(f(by_op))(kernel), jax.jit(f(by_matrix))(kernel), ulps=2**15)


@pytest.mark.parametrize("options", [{"padding": "SAME"}, {"padding": 1, "stride": 2}])
@pytest.mark.parametrize("k", [1, 3])
def test_second_derivatives_by_iterations(options, k, rng):
    kernel, v = draw(rng, (3, 3, 2, 3)), draw(rng, (3, 3, 2, 3))
    sizes = (16, 24)

    def product(f):
        return jax.jit(lambda kernel: jax.jvp(jax.grad(f), (kernel,), (v,))[1])(kernel)

    def by_op(kernel):
        return (fc.singular_values({"kernel": kernel}, sizes, k=k, **options) ** 3).sum()

    def by_matrix(kernel):
        return (of_matrix(kernel, sizes, options)[:k] ** 3).sum()

    # The error of a singular vector is divided by the distance of its value to the next.
    values = of_matrix(kernel, sizes, options)
    gap = float(min(1, *(values[:k] - values[1 : k + 1])))
    close(product(by_op), product(by_matrix), ulps=2**15 / gap**2)


def test_the_norm_bounds_the_difference_of_results(rng):
    params = {"kernel": draw(rng, (3, 3, 4, 5)), "bias": draw(rng, 5)}
    norm = fc.operator_norm(params, (9, 9), padding=1, stride=2)
    x, z = draw(rng, (9, 9, 4)), draw(rng, (9, 9, 4))
    y = [fc.conv(params, image, padding=1, stride=2) for image in (x, z)]
    assert jnp.linalg.norm(y[0] - y[1]) <= norm * jnp.linalg.norm(x - z)


@pytest.mark.parametrize("padding", ["circular", "SAME"])
def test_equal_values_have_a_first_derivative(padding):
    kernel = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(2 * jnp.eye(4))  # twice the identity
    for sizes in ((5, 5), (12, 12)):
        values, gradient = jax.jit(
            jax.value_and_grad(lambda k: fc.singular_values({"kernel": k}, sizes, k=6, padding=padding).sum())  # noqa: B023
        )(kernel)
        close(values, 12.0)
        # The values are homogeneous: the derivative along the kernel is their sum. In other directions it is bounded.
        close((gradient * kernel).sum(), 12.0)
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("options", [{}, {"padding": "SAME"}])
def test_numbers_of_any_size(size, options, rng):
    kernel = draw(rng, (3, 3, 2, 2), np.float32)
    for sizes in ((4, 4), (14, 14)):
        expected = fc.singular_values({"kernel": kernel}, sizes, k=2, **options)
        values = fc.singular_values({"kernel": kernel * np.float32(size)}, sizes, k=2, **options)
        close(values / np.float32(size), expected, ulps=1024)


def test_zeros_have_no_size():
    kernel = jnp.zeros((3, 3, 2, 2))
    for options, sizes in itertools.product(({}, {"padding": "SAME"}), ((4, 4), (14, 14))):
        values, gradient = jax.value_and_grad(
            lambda k: fc.singular_values({"kernel": k}, sizes, k=2, **options).sum()  # noqa: B023
        )(kernel)
        assert values == 0
        assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("sizes", [(5, 5), (14, 14)])
@pytest.mark.parametrize("options", [{}, {"padding": "SAME"}])
def test_what_is_not_finite_gives_nan(number, sizes, options, rng):
    kernel = draw(rng, (3, 3, 2, 2)).at[0, 1, 1, 0].set(number)
    assert jnp.isnan(fc.singular_values({"kernel": kernel}, sizes, k=2, **options)).all()
    assert jnp.isnan(fc.operator_norm({"kernel": kernel}, sizes, **options))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(5, 5), (14, 14)])
@pytest.mark.parametrize("options", [{}, {"padding": "SAME"}])
def test_dtypes(dtype, sizes, options, rng):
    kernel = draw(rng, (3, 3, 2, 2), dtype)
    values = fc.singular_values({"kernel": kernel}, sizes, k=2, **options)
    assert values.dtype == dtype
    exact = fc.singular_values({"kernel": kernel.astype(np.float64)}, sizes, k=2, **options)
    close(values, exact, dtype, ulps=2 if jnp.dtype(dtype).itemsize < 4 else 1024)


def test_complex_kernels(rng):
    kernel = jax.lax.complex(draw(rng, (3, 2, 3)), draw(rng, (3, 2, 3)))
    for options in ({}, {"padding": "SAME"}, {"padding": 1, "stride": 2}):
        values = fc.singular_values({"kernel": kernel}, 7, **options)
        assert values.dtype == np.float64
        close(values, of_matrix(kernel, (7,), options)[: len(values)])


def test_many_kernels_at_once(rng):
    kernels = draw(rng, (3, 3, 3, 2, 2))
    for sizes, padding in itertools.product(((4, 4), (14, 14)), ("circular", "SAME")):
        norms = jax.jit(
            jax.vmap(lambda k: fc.operator_norm({"kernel": k}, sizes, padding=padding))  # noqa: B023
        )(kernels)
        close(norms, jnp.stack([fc.operator_norm({"kernel": k}, sizes, padding=padding) for k in kernels]), ulps=2**14)


def test_errors(rng):
    params = {"kernel": draw(rng, (3, 3, 2, 4))}
    for text, arguments, options in (
        ("k must be an integer from 1 to 50", ((5, 5),), {"k": 51}),
        ("k must be an integer from 1 to 50", ((5, 5),), {"k": 0}),
        ("k must be an integer from 1 to 50", ((5, 5),), {"k": True}),
        ("spatial_shape must be an integer or 2", ((5, 5, 5),), {}),
        ("groups must be a positive integer that divides the kernel's 4 outputs; got 3", ((5, 5),), {"groups": 3}),
        ('padding="circular" has no other pad_mode', ((5, 5),), {"pad_mode": "reflect"}),
        ("a window of 3", ((2, 2),), {"padding": 0}),
        ("iterations must be an integer of at least 1; got 0", ((5, 5),), {"iterations": 0}),
        ("singular_values: stride must be an integer or 2", ((5, 5),), {"stride": 1.5}),
    ):
        with pytest.raises(fc.FuncconvError, match=text):
            fc.singular_values(params, *arguments, **options)
    with pytest.raises(fc.FuncconvError, match=r"operator_norm: .* must be floating or complex"):
        fc.operator_norm({"kernel": jnp.ones((3, 1, 1), int)}, 4)
    with pytest.raises(fc.FuncconvError, match="the kernel is complex128, and the map has 512 inputs and 512 outputs"):
        fc.operator_norm({"kernel": jnp.ones((3, 3, 2, 2), complex)}, 16, padding="SAME")

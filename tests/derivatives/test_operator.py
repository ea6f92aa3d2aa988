"""What an operator is asked: products, diagonals, traces, eigenvalues, densities, blocks; other libraries' forms."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from compare import close
from jaxprs import primitives
from networks import direction, flat, problem

import funcconv as fc

pytestmark = pytest.mark.once

MODEL, LOSS, PARAMS = problem()
HESSIAN = fc.hessian(lambda params: LOSS(MODEL(params)), PARAMS)
FISHER = fc.fisher(MODEL, PARAMS)
KEY = jax.random.key(0)
LANCZOS = {"terms": 47, "steps": 20}  # SciPy's eigenvalues follow from 20 vectors, each a product with the matrix
SMALL_LANCZOS = {"terms": 4, "steps": 20}  # the same, of a matrix with 4 rows


@pytest.fixture(scope="module")
def matrix():
    return np.asarray(HESSIAN.dense())


def of_matrix(a, dtype=np.float64):
    """Return the operator of a symmetric matrix, on trees of two leaves."""
    a = jnp.asarray(a, dtype)
    x = {"one": jnp.zeros((), dtype), "rest": jnp.zeros(len(a) - 1, dtype)}

    def f(x):
        v = jnp.concatenate([x["one"][None], x["rest"]])
        return v @ a @ v / 2

    return fc.hessian(f, x)


def with_spectrum(values, rng):
    basis = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return basis * values @ basis.T


# products --------------------------------------------------------------------------------------------------


def test_several_vectors_at_once(matrix):
    vs = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(direction(PARAMS, seed) for seed in range(3)))
    products = HESSIAN.mm(vs)
    for i in range(3):
        v = jax.tree.map(lambda leaf, i=i: leaf[i], vs)
        close(flat(jax.tree.map(lambda leaf, i=i: leaf[i], products)), matrix @ flat(v))


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_the_matrix_the_diagonal_and_the_trace_in_chunks(rng, chunk):
    a = rng.normal(size=(7, 7))
    a = a + a.T

    @jax.jit
    def in_chunks(a):
        operator = of_matrix(a)
        return operator.dense(chunk=chunk), operator.diag(chunk=chunk), operator.trace("exact", chunk=chunk)

    dense, diagonal, trace = in_chunks(a)
    close(dense, a)
    close(flat(diagonal), a.diagonal())
    close(trace, a.trace())


def test_damping(matrix):
    v = direction(PARAMS)
    close(flat(HESSIAN.shifted(0.5).mv(v)), matrix @ flat(v) + 0.5 * flat(v))
    close(jax.jit(lambda damping: HESSIAN.shifted(damping).trace())(jnp.float32(2)), matrix.trace() + 2 * len(matrix))
    close(HESSIAN.shifted(1).shifted(np.float64(-1)).diag()["dense1"]["bias"], HESSIAN.diag()["dense1"]["bias"])


def test_descriptions_are_short():
    assert repr(HESSIAN) == "Operator(hessian, 47 x 47)"
    assert repr(HESSIAN.block("dense1", "trunk")) == "LinearMap(hessian.block('dense1', 'trunk'), 27 x 20)"
    arrays = len(jax.tree.leaves(PARAMS))
    size = f"{arrays} arrays with 47 numbers"
    assert repr(fc.Estimate(PARAMS, PARAMS)) == f"Estimate(value={size}, error={size})"
    assert repr(fc.Estimate(jnp.float32(1.5), jnp.float32(0))) == "Estimate(value=1.5, error=0)"
    numbers = jnp.ones(128, jnp.float32)
    assert repr(fc.Density(numbers, numbers)) == "Density(grid=float32[128], density=float32[128])"


# diagonal and trace ----------------------------------------------------------------------------------------


def test_the_exact_matrix_diagonal_and_trace(matrix):
    close(matrix, matrix.T)
    close(HESSIAN.dense(chunk=5), matrix)
    diagonal = HESSIAN.diag(chunk=5)
    assert jax.tree.structure(diagonal) == jax.tree.structure(PARAMS)
    close(flat(diagonal), matrix.diagonal())
    close(HESSIAN.trace("exact", chunk=5), matrix.trace())


def test_the_estimates_are_within_five_standard_errors(matrix):
    diagonal, trace = jax.jit(
        lambda key: [estimate("hutchinson", key=key, samples=200) for estimate in (HESSIAN.diag, HESSIAN.trace)]
    )(KEY)
    assert jax.tree.structure(diagonal.value) == jax.tree.structure(diagonal.error) == jax.tree.structure(PARAMS)
    assert (np.abs(flat(diagonal.value) - matrix.diagonal()) <= 5 * flat(diagonal.error) + 1e-12).all()
    assert abs(trace.value - matrix.trace()) < 5 * trace.error
    assert trace.error < 0.3 * np.abs(matrix).sum()


@pytest.mark.parametrize("chunk", [64, 1000])
def test_the_standard_errors_are_those_of_the_known_variance(rng, chunk):
    """By random signs, the trace has the variance 2 Σ_{i≠j} a_ij², an entry of the diagonal Σ_j a_ij² without a_ii²."""
    a = rng.normal(size=(6, 6))
    a = a + a.T
    off = (a - np.diag(a.diagonal())) ** 2
    samples = 20_000
    operator = of_matrix(a)
    options = {"samples": samples, "chunk": chunk}
    trace, diagonal = jax.jit(
        lambda key: [f("hutchinson", key=key, **options) for f in (operator.trace, operator.diag)]
    )(KEY)
    # A variance from n samples has the relative standard error sqrt(2 / n), if they are normal; this is five of them.
    rtol = 5 * np.sqrt(2 / samples)
    np.testing.assert_allclose(trace.error**2 * samples, 2 * off.sum(), rtol=rtol)
    np.testing.assert_allclose(flat(diagonal.error) ** 2 * samples, off.sum(1), rtol=rtol)


def test_the_spread_over_keys_is_the_standard_error(matrix):
    estimate = jax.jit(jax.vmap(lambda key: HESSIAN.trace("hutchinson", key=key, samples=10, chunk=4)))
    trials = estimate(jax.random.split(KEY, 200))
    values, errors = np.asarray(trials.value), np.asarray(trials.error)
    # A standard deviation of n samples has the relative standard error 1 / sqrt(2 n); this is three of them.
    np.testing.assert_allclose(values.std(), np.sqrt((errors**2).mean()), rtol=3 / np.sqrt(2 * len(values)))
    assert abs(values.mean() - matrix.trace()) < 5 * values.std() / np.sqrt(len(values))


@pytest.mark.parametrize(("samples", "chunk"), [(2, 1), (2, 2), (7, 3), (9, 3), (10, 100)])
def test_the_variance_is_that_of_a_sample(samples, chunk):
    """Each sample is 2 or -2 here, so the sum of squares is known, and the error follows from the mean."""
    estimate = of_matrix([[0.0, 1.0], [1.0, 0.0]]).trace("hutchinson", key=KEY, samples=samples, chunk=chunk)
    close(estimate.error**2, (4 * samples - samples * estimate.value**2) / (samples - 1) / samples)


def test_signs_differ_between_chunks(rng):
    a = rng.normal(size=(5, 5))
    one, other = (of_matrix(a + a.T).trace("hutchinson", key=KEY, samples=s, chunk=2) for s in (2, 4))
    assert one.value != other.value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_estimates_have_the_dtype_of_the_parameters(dtype):
    operator = of_matrix(np.diag([1.0, 2.0, 3.0]), dtype)
    trace, diagonal = jax.jit(lambda key: [f("hutchinson", key=key) for f in (operator.trace, operator.diag)])(KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves((trace, diagonal))} == {np.dtype(dtype)}
    close(trace.value, 6)
    close(trace.error, 0)


# eigenvalues -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("LA", lambda e: e[-4:]),
        ("SA", lambda e: e[:4]),
        ("LM", lambda e: np.sort(e[np.argsort(abs(e))[-4:]])),
        ("BE", lambda e: np.concatenate([e[:2], e[-2:]])),
    ],
)
def test_eigenvalues(matrix, which, expected):
    values, vectors = HESSIAN.eigsh(4, which)
    close(values, expected(np.linalg.eigvalsh(matrix)), **LANCZOS)
    assert jax.tree.map(jnp.shape, vectors) == jax.tree.map(lambda p: (4, *p.shape), PARAMS)
    rows = np.stack([flat(jax.tree.map(lambda leaf, i=i: leaf[i], vectors)) for i in range(4)])
    close(rows @ rows.T, np.eye(4), **LANCZOS)
    # The residual of an eigenvector is small beside the norm of the matrix, also where its eigenvalue is near zero.
    size = np.linalg.norm(matrix, 2)
    close(rows @ matrix / size, values[:, None] * rows / size, **LANCZOS)
    close(HESSIAN.eigsh(4, which)[0], values, ulps=0)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_all_eigenvalues_of_a_small_operator(rng, k):
    a = with_spectrum(np.array([-1.0, 2.0, 2.0, 5.0]), rng)
    values, vectors = of_matrix(a).eigsh(k)
    close(values, [-1, 2, 2, 5][4 - k :], **SMALL_LANCZOS)
    close(np.asarray(vectors["rest"]) ** 2 @ np.ones(3) + np.asarray(vectors["one"]) ** 2, np.ones(k), **SMALL_LANCZOS)


def test_eigenvalues_of_a_fisher_matrix_in_float32():
    model, _, params = problem(np.float32)
    values, vectors = fc.fisher(model, params).eigsh(3)
    assert values.dtype == vectors["dense1"]["bias"].dtype == np.float32
    close(values, np.linalg.eigvalsh(FISHER.dense())[-3:], np.float32, **LANCZOS)


def test_nothing_has_eigenvalues_too():
    for k in (1, 3):
        values, vectors = of_matrix(np.zeros((3, 3))).eigsh(k)
        assert values.tolist() == [0] * k
        rows = np.concatenate([vectors["one"][:, None], vectors["rest"]], axis=1)
        close(rows @ rows.T, np.eye(k))


# density ---------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="samples")
def density_of(a, samples):
    """Return the density of a symmetric matrix, by one program for all matrices of a shape and a dtype."""
    return of_matrix(a, a.dtype).density(KEY, samples=samples)


def integral(density, of=np.ones_like):
    grid, heights = np.asarray(density.grid), np.asarray(density.density)
    return np.trapezoid(heights * of(grid), grid)


def test_the_density_of_a_diagonal_is_its_eigenvalues():
    """Random signs have equal weight on each coordinate, so the quadrature is exact, and the moments are."""
    values = np.repeat([-3.0, 0.0, 1.0, 10.0], [2, 10, 5, 3])
    density = density_of(np.diag(values), samples=2)
    close(integral(density), 1)
    points = density.grid.size  # which an integral sums
    close(integral(density, lambda t: t), values.mean(), terms=points)
    width = 0.01 * 13
    close(integral(density, lambda t: t**2), (values**2).mean() + width**2, terms=points)
    # A normal density has at most the curvature height / width^2, so this is the error of interpolation between points.
    rtol = (density.grid[1] - density.grid[0]) ** 2 / (8 * width**2)
    for value, count in zip(*np.unique(values, return_counts=True), strict=True):
        height = np.interp(value, density.grid, density.density)
        np.testing.assert_allclose(height, count / 20 / (width * np.sqrt(2 * np.pi)), rtol=rtol)
        near = np.abs(density.grid - value) < 0.5
        assert abs(density.grid[near][np.argmax(density.density[near])] - value) < 0.02


@pytest.mark.parametrize("size", [1e24, 1e-24])
def test_the_density_of_large_and_small_eigenvalues(size):
    """Their squares are no float32."""
    values = jnp.array([3, 1, 2, 5], np.float32) * np.float32(size)
    density = density_of(jnp.diag(values), samples=8)
    grid, heights = (np.asarray(array, np.float64) for array in density[:2])
    smallest, largest = (grid[np.abs(heights) > heights.max() / 2][i] / size for i in (0, -1))
    assert 0.9 < smallest < 1.1
    assert 4.9 < largest < 5.1


def test_the_density_of_a_known_spectrum(rng):
    values = np.concatenate([np.linspace(0, 1, 150), [4.0] * 30, [6.0] * 20])
    operator = of_matrix(with_spectrum(values, rng))
    density = jax.jit(lambda key: operator.density(key, order=40, samples=40))(KEY)
    close(integral(density), 1)
    assert (density.density >= 0).all()
    assert abs(integral(density, lambda t: t) - values.mean()) < 0.1
    for low, high in ((-1, 2), (3.5, 4.5), (5.5, 6.5)):
        part = integral(density, lambda t, low=low, high=high: (low < t) & (t < high))
        assert abs(part - ((low < values) & (values < high)).mean()) < 0.03
    assert integral(density, lambda t: (t > 2) & (t < 3.5)) < 1e-6


@pytest.mark.parametrize(
    ("values", "width"),
    [
        ([0, 0, 0], 0.01),
        ([2, 2, 2], 0.02),
        ([-3, -3], 0.03),
        ([1, 0, 0, 0, 0, 0], 0.01),
        ([1, 1, 1, 2, 2, 3], 0.02),
        ([5, 6], 0.01),
        ([1e-6, 1e-6, 3e-6], 2e-8),
    ],
)
@pytest.mark.parametrize(("dtype", "turned"), [(np.float32, True), (np.float64, False)])
def test_an_exhausted_krylov_space(rng, values, width, dtype, turned):
    """Few different eigenvalues end the iteration early; what comes after is neither nan nor in the density."""
    values = np.array(values, float)
    a = with_spectrum(values, rng) if turned else np.diag(values)
    estimate = density_of(a.astype(dtype), samples=4)
    assert estimate.grid.dtype == estimate.density.dtype == dtype
    close(integral(estimate), 1, dtype)
    grid, density = (np.asarray(array, float) for array in estimate[:2])
    slack = 2 * (np.finfo(dtype).eps * np.abs(values).max() + grid[1] - grid[0])
    assert abs(grid[0] - (values.min() - 8 * width)) < slack
    assert abs(grid[-1] - (values.max() + 8 * width)) < slack
    distance = np.abs(grid[:, None] - values).min(1)
    assert np.trapezoid(np.where(distance > 6 * width, density, 0), grid) < 1e-4


def test_one_parameter_has_a_density():
    density = fc.hessian(lambda x: 3 * x**2, jnp.asarray(1.0)).density(KEY)
    close(integral(density), 1)
    assert abs(density.grid[np.argmax(density.density)] - 6) < 0.01


def test_a_density_of_what_is_not_finite_is_not_finite():
    h = fc.hessian(lambda x: (x**1.5).sum(), jnp.array([0.0, 1.0]))
    assert np.isnan(h.density(KEY).density).all()


def test_the_density_of_a_network(matrix):
    density = jax.jit(lambda key: HESSIAN.density(key, samples=100))(KEY)
    close(integral(density), 1, terms=density.grid.size)
    values = np.linalg.eigvalsh(matrix)
    width = 0.01 * (values[-1] - values[0])
    distances = (np.asarray(density.grid)[:, None] - values) / width
    smoothed = np.exp(-(distances**2) / 2).mean(1) / (width * np.sqrt(2 * np.pi))
    assert np.trapezoid(np.abs(smoothed - density.density), density.grid) < 0.1


def test_a_density_is_drawn(tmp_path):
    density = of_matrix(np.diag([1.0, 2.0, 3.0])).density(KEY)
    axes = density.plot()
    axes.figure.savefig(tmp_path / "density.png")
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")
    assert axes.get_xlabel() == "eigenvalue"
    figure, mine = plt.subplots()
    assert density.plot(mine, color="black") is mine
    np.testing.assert_array_equal(mine.lines[0].get_xdata(), density.grid)
    assert mine.lines[0].get_color() == "black"
    plt.close(figure)
    plt.close(axes.figure)


# blocks ----------------------------------------------------------------------------------------------------

# The order of ravel_pytree: keys of dicts are sorted.
SLICES = {
    "dense1": slice(0, 27),
    "dense1/bias": slice(0, 3),
    "dense1/kernel": slice(3, 27),
    "trunk": slice(27, 47),
    "trunk/conv1": slice(27, 47),
    "trunk/conv1/bias": slice(27, 29),
    "trunk/conv1/kernel": slice(29, 47),
}


@pytest.mark.parametrize("name", SLICES)
def test_diagonal_blocks(matrix, name):
    block = HESSIAN.block(name)
    expected = matrix[SLICES[name], SLICES[name]]
    assert isinstance(block, fc.Operator)
    assert block.shape == expected.shape
    close(block.dense(), expected)
    close(block.trace(), expected.trace())
    close(block.eigsh(1)[0], np.linalg.eigvalsh(expected)[-1:], **LANCZOS)
    close(HESSIAN.block(name, name).dense(), expected)


@pytest.mark.parametrize(
    ("row", "column"), [("dense1", "trunk"), ("trunk/conv1/kernel", "dense1"), ("trunk/conv1", "trunk/conv1/bias")]
)
def test_blocks_off_the_diagonal(matrix, row, column):
    block = HESSIAN.block(row, column)
    expected = matrix[SLICES[row], SLICES[column]]
    assert block.shape == expected.shape
    assert not isinstance(block, fc.Operator)
    close(block.dense(), expected)
    v = PARAMS
    for word in column.split("/"):
        v = v[word]
    close(flat(block.mv(v)), expected @ flat(v))
    close(
        flat(jax.tree.map(lambda leaf: leaf[1], block.mm(jax.tree.map(lambda p: jnp.stack([p, -p]), v)))),
        -expected @ flat(v),
    )


def test_blocks_of_blocks_and_of_curvatures():
    block = FISHER.block("trunk").block("conv1/kernel")
    close(block.dense(), np.asarray(FISHER.dense())[29:, 29:])
    close(FISHER.shifted(3.0).block("dense1/bias").dense(), np.asarray(FISHER.dense())[:3, :3] + 3 * np.eye(3))
    close(FISHER.shifted(3.0).block("dense1", "trunk").dense(), np.asarray(FISHER.dense())[:27, 27:])


def test_a_block_does_not_compute_what_its_column_does_not_reach():
    """The product of the last layer's block has no convolution in it."""

    def convolutions(operator, v):
        return [
            name for name in primitives(jax.make_jaxpr(operator.mv)(v)) if name.startswith("conv_") or name == "conv"
        ]

    assert convolutions(HESSIAN, PARAMS)
    assert not convolutions(HESSIAN.block("dense1"), PARAMS["dense1"])


def test_operators_leave_compiled_functions_and_share_what_is_compiled(compilations):
    hessian_at = jax.jit(lambda params: fc.hessian(lambda params: LOSS(MODEL(params)), params))
    first, second = hessian_at(PARAMS), hessian_at(jax.tree.map(lambda leaf: 2 * leaf, PARAMS))
    assert isinstance(first, fc.Operator)
    close(first.dense(), HESSIAN.dense())
    assert (first.name, first.shape, first.semidefinite) == (HESSIAN.name, HESSIAN.shape, HESSIAN.semidefinite)
    jax.tree.map(close, jax.jit(lambda h, v: h.shifted(2.0).mv(v))(first, PARAMS), HESSIAN.shifted(2.0).mv(PARAMS))
    block = jax.jit(lambda h: h.block("dense1"))(first)
    jax.tree.map(close, block.mv(PARAMS["dense1"]), HESSIAN.block("dense1").mv(PARAMS["dense1"]))
    values, _ = first.eigsh(3)
    compilations.clear()
    other, _ = second.eigsh(3)
    assert not compilations
    assert np.abs(np.asarray(other) - np.asarray(values)).max() > 1e-3


# other libraries -------------------------------------------------------------------------------------------


def test_scipy(matrix, rng):
    operator = HESSIAN.to_scipy()
    assert operator.shape == (47, 47)
    assert operator.dtype == np.float64
    x, xs = rng.normal(size=47), rng.normal(size=(47, 5))
    close(operator @ x, matrix @ x)
    close(operator @ x[:, None], matrix @ x[:, None])
    close(operator @ xs, matrix @ xs)
    close(operator.T @ x, matrix @ x)
    close(operator.H @ xs, matrix @ xs)


def test_scipy_in_float32(rng):
    a = rng.normal(size=(4, 4))
    operator = of_matrix(a + a.T, np.float32).to_scipy()
    assert operator.dtype == np.float32
    close(operator @ rng.normal(size=4).astype(np.float32) * 0, np.zeros(4), np.float32)


def test_the_parameters_are_no_constants_of_the_compiled_product():
    """A product of a large operator does not carry its arrays in the text of its program."""
    big = jnp.arange(100_000.0)
    h = fc.hessian(lambda x: (jnp.sin(x) * big).sum(), big)
    text = jax.jit(lambda product, v: product(v)).lower(h.product, big).as_text()
    assert len(text) < 10_000
    assert jax.tree.leaves(h.product)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lineax_solves(dtype):
    import lineax

    model, _, params = problem(dtype)
    operator = fc.fisher(model, params).shifted(1.0)
    lineax_operator = operator.to_lineax()
    assert lineax.is_symmetric(lineax_operator)
    assert lineax.is_positive_semidefinite(lineax_operator)
    v = direction(params)
    ulps = 100  # of the largest entry of v, and of 1, that the residual may have
    tolerance = ulps * np.finfo(dtype).eps
    solution = lineax.linear_solve(lineax_operator, v, lineax.CG(rtol=tolerance, atol=tolerance)).value
    assert jax.tree.structure(solution) == jax.tree.structure(params)
    shifted = np.asarray(FISHER.dense()) + np.eye(47)
    expected = np.linalg.solve(shifted, flat(v).astype(float))
    # A relative residual, here with the rounding of a product that sums 47 numbers, moves the solution by at most as
    # much times the condition number in the norm of the largest entry.
    close(flat(solution), expected, dtype, terms=2 * ulps + 47, steps=np.linalg.cond(shifted, np.inf))


def test_lineax_tags():
    import lineax

    assert not lineax.is_positive_semidefinite(HESSIAN.to_lineax())
    assert lineax.is_symmetric(HESSIAN.to_lineax())
    assert lineax.is_positive_semidefinite(HESSIAN.shifted(9).to_lineax(semidefinite=True))
    assert lineax.is_positive_semidefinite(fc.gauss_newton(MODEL, LOSS, PARAMS).to_lineax())
    assert lineax.is_positive_semidefinite(FISHER.block("dense1").to_lineax())
    assert not lineax.is_positive_semidefinite(FISHER.shifted(-1.0).to_lineax())
    assert not lineax.is_positive_semidefinite(FISHER.to_lineax(semidefinite=False))


# dtypes ----------------------------------------------------------------------------------------------------


def test_leaves_of_several_dtypes():
    """Each leaf keeps its dtype; what is a vector or a matrix has the widest, and at least float32."""
    x = {"half": jnp.ones(3, jnp.bfloat16), "single": jnp.ones((), jnp.float32)}
    h = fc.hessian(lambda x: (x["half"] ** 2).sum().astype(jnp.float32) * x["single"], x)
    expected = np.array([[2, 0, 0, 2], [0, 2, 0, 2], [0, 0, 2, 2], [2, 2, 2, 0.0]])
    assert h.dense().dtype == h.trace().dtype == h.eigsh(1)[0].dtype == h.density(KEY).grid.dtype == jnp.float32
    close(h.dense(), expected, np.float32)
    close(h.eigsh(4)[0], np.linalg.eigvalsh(expected), np.float32)
    form = jax.tree.map(lambda leaf: leaf.dtype, x)
    for tree in (h.mv(x), h.diag(), h.diag("hutchinson", key=KEY).error, h.eigsh(2)[1]):
        assert jax.tree.map(lambda leaf: leaf.dtype, tree) == form
    halves = fc.hessian(
        lambda x: (x["a"] * x["b"].astype(jnp.float16)).sum(),
        {"a": jnp.ones(2, jnp.float16), "b": jnp.ones(2, jnp.bfloat16)},
    )
    close(halves.dense(), np.kron([[0, 1], [1, 0]], np.eye(2)), np.float32)


# misuse ----------------------------------------------------------------------------------------------------


def inside_jit(method):
    return lambda: jax.jit(lambda params: method(fc.fisher(MODEL, params)))(PARAMS)


# name: (what is done, parts of the message in order)
CASES = {
    "mv": (lambda: HESSIAN.mv({"dense1": PARAMS["dense1"]}), ["hessian.mv: v must", "no 'trunk/conv1/bias'"]),
    "matmul": (lambda: FISHER @ jnp.ones(47), ["fisher.mv: v must have the structure"]),
    "mm": (lambda: HESSIAN.mm(PARAMS), ["hessian.mm: vs must share one leading axis", "3 at 'dense1/bias'"]),
    "mm of v": (
        lambda: of_matrix(np.eye(2)).mm({"one": jnp.ones(3), "rest": jnp.ones((3, 2))}),
        ["vs must be float64[3, 1] at 'rest'", "got float64[3, 2]"],
    ),
    "dense": (
        lambda: fc.hessian(jnp.sum, jnp.ones(10_000)).dense(),
        ["10000 x 10000, 0.8 GB of float64", "max_size is 4096. Pass max_size=10000"],
    ),
    "dense limit": (lambda: HESSIAN.dense(max_size=40), ["47 x 47", "max_size is 40"]),
    "chunk": (lambda: HESSIAN.diag(chunk=0), ["hessian: chunk must be an integer of at least 1; got 0"]),
    "method": (lambda: HESSIAN.trace("hutchison"), ["hessian.trace: unknown method", "did you mean 'hutchinson'?"]),
    "diag method": (lambda: HESSIAN.diag("all"), ["hessian.diag: unknown method 'all'"]),
    "no key": (lambda: HESSIAN.diag("hutchinson"), ["hessian.diag: an estimate", "key=jax.random.key(...)"]),
    "one sample": (lambda: HESSIAN.trace("hutchinson", key=KEY, samples=1), ["samples must be", "least 2; got 1"]),
    "sample chunk": (lambda: HESSIAN.trace("hutchinson", key=KEY, chunk=True), ["trace: chunk must", "got True"]),
    "damping": (lambda: HESSIAN.shifted(jnp.ones(2)), ["hessian.shifted: damping must be one", "float64[2]"]),
    "damping of a word": (lambda: HESSIAN.shifted("much"), ["one real number; got a value of type str"]),
    "damping of i": (lambda: HESSIAN.shifted(1j), ["one real number; got complex128[]"]),
    "which": (lambda: HESSIAN.eigsh(1, "la"), ["hessian.eigsh: unknown which 'la'; did you mean 'LA'?"]),
    "k": (lambda: HESSIAN.eigsh(0), ["hessian.eigsh: k must be an integer of at least 1; got 0"]),
    "large k": (lambda: HESSIAN.eigsh(48), ["an operator of size 47 has no 48 eigenvalues"]),
    "not converged": (lambda: HESSIAN.eigsh(3, "SM", maxiter=1), ["of 3 eigenvalues converged; raise maxiter="]),
    "not finite": (
        lambda: fc.hessian(lambda x: (x**1.5).sum(), jnp.array([0.0, 1.0])).eigsh(1),
        ["eigsh: the product", "finite"],
    ),
    "eigsh in jit": (inside_jit(lambda f: f.eigsh(1)), ["fisher.eigsh: SciPy needs", "inside jax.jit", "Use mv"]),
    "scipy in jit": (inside_jit(lambda f: f.to_scipy() @ np.ones(47)), ["fisher.to_scipy: SciPy needs"]),
    "order": (lambda: HESSIAN.density(KEY, order=0), ["hessian.density: order must be", "got 0"]),
    "samples": (lambda: HESSIAN.density(KEY, samples=0), ["hessian.density: samples must be", "got 0"]),
    "smoothing": (lambda: HESSIAN.density(KEY, smoothing=0.0), ["smoothing", "above 0 and at most 1; got 0.0"]),
    "narrow": (lambda: HESSIAN.density(KEY, smoothing=0.0005), ["0.0005 of the", "at least 2018 points; got 1024"]),
    "few points": (lambda: HESSIAN.density(KEY, points=100), ["0.01 of the spectrum", "at least 118", "got 100"]),
    "block": (lambda: HESSIAN.block("trunk/conv2"), ["no entry 'trunk/conv2'; did you mean 'trunk/conv1'?"]),
    "block column": (lambda: HESSIAN.block("trunk", "dens1"), ["no entry 'dens1'; did you mean 'dense1'?"]),
    "below a leaf": (lambda: HESSIAN.block("trunk/conv1/kernel/0"), ["no entry 'trunk/conv1/kernel/0'"]),
    "no dict": (lambda: fc.hessian(jnp.sum, jnp.ones(3)).block("a"), ["no entry 'a'; they are not a nested dict"]),
    "lists": (lambda: fc.hessian(lambda x: x["a"][0] ** 2, {"a": [1.0]}).block("a/0"), ["did you mean 'a'?"]),
}


@pytest.mark.parametrize("name", CASES)
def test_messages(name):
    function, parts = CASES[name]
    with pytest.raises(fc.FuncconvError) as caught:
        function()
    text = str(caught.value)
    begin = 0
    for part in parts:
        assert part in text[begin:], text
        begin = text.index(part, begin) + len(part)


MISSING = {
    "matfree": [
        (lambda: HESSIAN.trace("hutchinson", key=KEY), "hessian.trace", "curvature"),
        (lambda: HESSIAN.diag("hutchinson", key=KEY), "hessian.diag", "curvature"),
        (lambda: HESSIAN.density(KEY), "hessian.density", "curvature"),
    ],
    "scipy": [
        (lambda: HESSIAN.eigsh(1), "hessian.eigsh", "curvature"),
        (lambda: HESSIAN.to_scipy(), "hessian.to_scipy", "curvature"),
    ],
    "lineax": [(lambda: HESSIAN.to_lineax(), "hessian.to_lineax", "curvature")],
    "matplotlib": [(lambda: fc._derivatives.Density(KEY, KEY).plot(), "Density.plot", "draw")],
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_with_what_to_install(package, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package] or [package]:
        monkeypatch.setitem(sys.modules, name, None)
    for function, where, extra in MISSING[package]:
        with pytest.raises(fc.FuncconvError) as caught:
            function()
        text = str(caught.value)
        assert text.startswith(f"{where} needs a package that is not installed")
        assert package in text
        assert text.endswith(f"pip install '.[{extra}]'")

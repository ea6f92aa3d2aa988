"""Spectra that say how far they can be trusted, and functions of matrices, against dense matrices."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from networks import direction, flat, problem

import funcconv as fc

pytestmark = pytest.mark.once

MODEL, LOSS, PARAMS = problem()
HESSIAN = fc.hessian(lambda params: LOSS(MODEL(params)), PARAMS)
FISHER = fc.fisher(MODEL, PARAMS)
KEY = jax.random.key(0)
LANCZOS = {"terms": 47, "steps": 20}


def of_matrix(a, dtype=np.float64):
    """Return the operator of a symmetric matrix, on trees of two leaves."""
    a = jnp.asarray(a, dtype)

    def f(x):
        v = jnp.concatenate([x["one"][None], x["rest"]])
        return v @ a @ v / 2

    return fc.hessian(f, {"one": jnp.zeros((), dtype), "rest": jnp.zeros(len(a) - 1, dtype)})


def tree_of(vector, dtype=np.float64):
    vector = jnp.asarray(vector, dtype)
    return {"one": vector[..., 0], "rest": vector[..., 1:]}


def with_spectrum(values, rng):
    basis = np.linalg.qr(rng.normal(size=(len(values), len(values))))[0]
    return basis * values @ basis.T


@pytest.fixture(scope="module")
def matrix():
    return np.asarray(FISHER.dense())


# errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tol", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_residuals_bound_the_error_of_eigenvalues(rng, tol, dtype):
    values = np.linspace(-1, 1, 100) ** 3
    a = with_spectrum(values, rng).astype(dtype)
    found, vectors, residuals = of_matrix(a, dtype).eigsh(3, tol=tol, residuals=True)
    assert found.dtype == residuals.dtype == dtype
    rows = np.concatenate([vectors["one"][:, None], vectors["rest"]], axis=1)
    close(residuals, np.linalg.norm(rows @ a - found[:, None] * rows, axis=1), dtype)
    exact = np.linalg.eigvalsh(a.astype(float))
    errors = np.abs(np.asarray(found, float)[:, None] - exact).min(1)
    assert (errors <= np.asarray(residuals, float) + 100 * np.finfo(dtype).eps).all()


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_residuals_of_large_and_small_matrices(size):
    _, _, residuals = of_matrix(np.diag([1, 2, 3, 4]) * size, np.float32).eigsh(2, residuals=True)
    assert (residuals < 1e-5 * size).all()


def test_residuals_of_kronecker_factors():
    x, y = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3))), jnp.zeros((5, 2))
    kfac = fc.kfac(lambda w, x: x @ w, lambda z, y: ((z - y) ** 2).sum(), jnp.ones((3, 2)), (x, y))
    _, _, residuals = kfac.eigsh(2, residuals=True)
    close(residuals, np.zeros(2))


def test_an_operator_of_kronecker_factors_can_be_damped():
    x, y = jnp.ones((5, 3)), jnp.zeros((5, 2))
    kfac = fc.kfac(lambda w, x: x @ w, lambda z, y: ((z - y) ** 2).sum(), jnp.ones((3, 2)), (x, y))
    close(kfac.shifted(2.0).trace(), kfac.trace() + 12)
    close(kfac.shifted(2.0).log_det(KEY).value, kfac.log_det(2.0))


def test_the_error_of_a_density_is_its_spread_over_keys():
    estimate = jax.jit(jax.vmap(lambda key: FISHER.density(key, order=10, samples=4, smoothing=0.1)))
    trials = estimate(jax.random.split(KEY, 200))
    # The grids differ a little. Compare at one point of each, in the bulk of the spectrum.
    point = np.argmax(trials.density.mean(0))
    values, errors = np.asarray(trials.density)[:, point], np.asarray(trials.error)[:, point]
    np.testing.assert_allclose(values.std(), np.sqrt((errors**2).mean()), rtol=0.3)


def test_the_error_of_one_sample_is_not_known():
    assert np.isnan(HESSIAN.density(KEY, order=4, samples=1).error).all()


def test_a_density_without_an_error_is_drawn_without_a_band():
    numbers = np.ones(3)
    axes = fc.Density(numbers, numbers).plot()
    assert not axes.collections
    assert len(HESSIAN.density(KEY, order=4, samples=2).plot(axes).collections) == 1


# functions of matrices -------------------------------------------------------------------------------------


def test_functions_of_a_network(matrix):
    v, damped = direction(PARAMS), matrix + 0.1 * np.eye(47)
    values, basis = np.linalg.eigh(damped)

    @jax.jit
    def functions(v, damping):
        return FISHER.inv_sqrt_mv(v, damping=damping), FISHER.exp_mv(v, -damping), FISHER.exp_mv(v)

    root, decayed, grown = functions(v, 0.1)
    assert jax.tree.map(jnp.shape, root) == jax.tree.map(jnp.shape, PARAMS)
    close(flat(root), basis / np.sqrt(values) @ basis.T @ flat(v), **LANCZOS)
    values = values - 0.1
    close(flat(decayed), basis * np.exp(-0.1 * values) @ basis.T @ flat(v), **LANCZOS)
    close(flat(grown), basis * np.exp(values) @ basis.T @ flat(v), **LANCZOS)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_the_log_determinant_is_within_five_standard_errors(matrix, damping):
    estimate = jax.jit(lambda key: FISHER.log_det(key, damping=damping, samples=50))(KEY)
    expected = np.linalg.slogdet(matrix + damping * np.eye(47))[1]
    assert 0 < estimate.error < 0.1 * abs(expected) + 1
    assert abs(estimate.value - expected) < 5 * estimate.error


def test_the_log_determinant_of_a_diagonal_is_exact():
    values = np.array([0.0, 1, 1, 5, 9])
    estimate = of_matrix(np.diag(values)).log_det(KEY, damping=2, samples=3)
    close(estimate.value, np.log(values + 2).sum())
    close(estimate.error, 0)


def test_the_errors_decrease_with_the_order_as_documented(rng):
    condition, size = 100.0, 200
    values = np.linspace(1, condition, size)
    a, v = with_spectrum(values, rng), rng.normal(size=size)
    values, basis = np.linalg.eigh(a)
    operator = of_matrix(a)
    expected = basis / np.sqrt(values) @ basis.T @ v
    rate = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    for order in (5, 10, 20, 40):
        error = np.linalg.norm(flat(operator.inv_sqrt_mv(tree_of(v), order=order)) - expected)
        assert error < 2 * np.linalg.norm(v) * 4 * rate**order


def test_samples_of_a_normal_distribution_have_the_inverse_as_covariance(rng):
    a = with_spectrum(np.array([1.0, 2, 4, 8]), rng)
    operator, count = of_matrix(a), 4000
    samples = jax.jit(jax.vmap(operator.inv_sqrt_mv))(tree_of(rng.normal(size=(count, 4))))
    rows = np.concatenate([samples["one"][:, None], samples["rest"]], axis=1)
    np.testing.assert_allclose(rows.T @ rows / count, np.linalg.inv(a), atol=5 * np.sqrt(2 / count))


@pytest.mark.parametrize("size", [0, 1e-30, 1e30])
def test_functions_of_zero_and_of_small_and_large_vectors(size):
    operator = of_matrix(np.diag([4.0, 9, 16]), np.float32)
    v = tree_of(np.array([2.0, 3, 4]) * size, np.float32)
    close(flat(operator.inv_sqrt_mv(v)) / np.float32(size or 1), np.ones(3) * (size > 0), np.float32, steps=10)
    close(flat(operator.exp_mv(v, 0)) / np.float32(size or 1), np.array([2, 3, 4]) * (size > 0), np.float32, steps=10)


def test_functions_of_several_dtypes():
    x = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones((), jnp.float32)}
    operator = fc.hessian(lambda x: 2 * ((x["half"] ** 2).sum().astype(jnp.float32) + x["single"] ** 2), x)
    for result in (
        operator.inv_sqrt_mv(x),
        operator.exp_mv(x),
        operator.deflated(jax.tree.map(lambda p: p[None], x)) @ x,
    ):
        assert jax.tree.map(lambda leaf: leaf.dtype, result) == jax.tree.map(lambda leaf: leaf.dtype, x)
    assert operator.inv_sqrt_mv(x)["half"].tolist() == [0.5, 0.5]


def test_what_is_not_positive_definite_is_nan_inside_jit():
    indefinite = of_matrix(np.diag([1.0, -1.0, 2.0]))
    v = tree_of(np.ones(3))
    assert np.isnan(jax.jit(indefinite.log_det)(KEY).value)
    assert np.isnan(flat(jax.jit(indefinite.inv_sqrt_mv)(v))).all()
    assert np.isfinite(flat(jax.jit(lambda v: indefinite.inv_sqrt_mv(v, damping=1.5))(v))).all()


# deflation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["mv", "jit"])
def test_deflation_removes_eigenvectors(rng, method):
    values = np.array([-3.0, 0.5, 1, 2, 50, 80])
    a = with_spectrum(values, rng)
    operator = of_matrix(a)
    _, vectors = operator.eigsh(2)
    deflated = operator.deflated(vectors)
    if method == "jit":
        deflated = jax.jit(lambda operator, vectors: operator.deflated(vectors))(operator, vectors)
    assert (deflated.name, deflated.shape) == ("hessian.deflated", (6, 6))
    close(np.linalg.eigvalsh(deflated.dense()), [-3, 0, 0, 0.5, 1, 2], terms=600)
    trace = deflated.trace("hutchinson", key=KEY, samples=10)
    assert trace.error < operator.trace("hutchinson", key=KEY, samples=10).error / 5
    assert FISHER.deflated(jax.tree.map(lambda p: p[None], PARAMS)).semidefinite


def test_deflated_vectors_need_not_be_orthonormal(rng):
    a = rng.normal(size=(6, 6))
    a = a + a.T
    vectors = rng.normal(size=(2, 6)) * [[1e-3], [1e3]]
    basis = np.linalg.qr(vectors.T)[0]
    projection = np.eye(6) - basis @ basis.T
    dependent = np.concatenate([vectors, vectors[:1] / 1e-3 + vectors[1:] / 1e3, np.zeros((1, 6))])
    for rows in (vectors, dependent):
        deflated = of_matrix(a).deflated(tree_of(rows))
        close(deflated.dense(), projection @ a @ projection, steps=10)
    close(of_matrix(a).deflated(tree_of(np.zeros((1, 6)))).dense(), a)


# along training --------------------------------------------------------------------------------------------


def test_a_spectrum_along_training_compiles_once(compilations):
    hessian_at = jax.jit(lambda params: fc.hessian(lambda params: LOSS(MODEL(params)), params))
    points = [jax.tree.map(lambda p, step=step: p * (1 + step / 10), PARAMS) for step in range(3)]
    density = jax.jit(lambda h: h.density(KEY, order=4, samples=2))

    def spectrum(params):
        hessian = hessian_at(params)
        values, vectors, _ = hessian.eigsh(2, tol=0.1, residuals=True)
        return values, density(hessian), hessian.deflated(vectors)

    spectrum(points[0])
    compilations.clear()
    values = [spectrum(params)[0] for params in points[1:]]
    assert not compilations
    assert np.abs(np.asarray(values[0]) - np.asarray(values[1])).max() > 1e-3


# misuse ----------------------------------------------------------------------------------------------------

INDEFINITE = of_matrix(np.diag([1.0, -1.0, 2.0]))
V = tree_of(np.ones(3))
CASES = {
    "one sample": (lambda: HESSIAN.log_det(KEY, samples=1), ["hessian.log_det: samples must be", "least 2; got 1"]),
    "order": (lambda: FISHER.exp_mv(PARAMS, order=0), ["fisher.exp_mv: order must be", "got 0"]),
    "damping": (lambda: FISHER.inv_sqrt_mv(PARAMS, damping="x"), ["inv_sqrt_mv: damping must be one real number"]),
    "t": (lambda: FISHER.exp_mv(PARAMS, 1j), ["fisher.exp_mv: t must be one real number; got complex128[]"]),
    "v": (lambda: FISHER.exp_mv(PARAMS["dense1"]), ["fisher.exp_mv: v must have the structure of the parameters"]),
    "indefinite": (lambda: INDEFINITE.inv_sqrt_mv(V), ["must be positive definite", "about -1", "damping above 1"]),
    "little damping": (lambda: INDEFINITE.log_det(KEY, damping=0.5), ["about -0.5", "damping above 1"]),
    "singular": (lambda: of_matrix(np.diag([1.0, 0, 2])).log_det(KEY), ["positive definite", "rounding errors"]),
    "no vectors": (lambda: FISHER.deflated(PARAMS), ["fisher.deflated: vectors must share one leading axis"]),
    "other vectors": (
        lambda: INDEFINITE.deflated({"one": jnp.ones(2), "rest": jnp.ones((2, 3))}),
        ["hessian.deflated: vectors must be float64[2, 2] at 'rest'"],
    ),
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


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matfree"] or ["matfree"]:
        monkeypatch.setitem(sys.modules, name, None)
    for method in (FISHER.exp_mv, FISHER.inv_sqrt_mv):
        with pytest.raises(fc.FuncconvError, match=r"fisher\.\w+ needs a package .*matfree.*\[curvature\]"):
            method(PARAMS)
    with pytest.raises(fc.FuncconvError, match=r"fisher\.log_det needs"):
        FISHER.log_det(KEY)

"""Laplace approximations against closed forms of linear regression, dense matrices, and drawn parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close, close_to_differences
from jax.flatten_util import ravel_pytree
from scipy import stats

import funcconv as fc

NOISE, PRIOR = 0.3, 0.7  # the variance of the targets' noise, and the precision of the prior
STRUCTURES = ("kron", "diag", "full", "last_layer")
crossed = optax.softmax_cross_entropy_with_integer_labels


def linear(w, x):
    return x @ w


def gaussian(z, y):
    """Return the negative logarithm of a normal density."""
    return (jnp.square(z - y) / NOISE + jnp.log(2 * jnp.pi * NOISE)).sum() / 2


def regression(rng, n=20, inputs=4, outputs=1):
    """Return examples, targets, and the parameters of the largest posterior density."""
    x, y = rng.normal(size=(n, inputs)), rng.normal(size=(n, outputs))
    w = np.linalg.solve(x.T @ x / NOISE + PRIOR * np.eye(inputs), x.T @ y / NOISE)
    return tuple(map(jnp.asarray, (x, y, w)))


def network(*layers, shape=(5, 5, 2)):
    x = fc.Input("x", shape)
    return fc.Graph(x, fc.serial(*layers)(x))


GRAPH = network(fc.Conv(3, 3), jnp.tanh, fc.global_pool, fc.Dense(3))
PARAMS, BATCH = GRAPH.init(jax.random.key(0)), (jnp.ones((2, 5, 5, 2)), jnp.zeros(2, int))


def images(rng, n):
    return jnp.asarray(rng.normal(size=(n, 5, 5, 2))), jnp.asarray(rng.integers(0, 3, n))


def posterior_of(structure, data, params=PARAMS, **options):
    last_layer = "dense1" if structure == "last_layer" else None
    return fc.laplace(GRAPH, crossed, params, data, structure=structure, last_layer=last_layer, **options)


def gauss_newton(params, data):
    """Return the Gauss-Newton matrix of the sum of the losses."""
    x, y = data
    return fc.gauss_newton(lambda params: GRAPH(params, x), lambda z: crossed(z, y).sum(), params)


@pytest.mark.parametrize("batch_size", [7, 128])
def test_linear_regression_has_the_closed_form(batch_size, rng):
    x, y, w = regression(rng)
    posterior = fc.laplace(linear, gaussian, w, (x, y), structure="full", prior_precision=PRIOR, batch_size=batch_size)
    covariance = np.linalg.inv(x.T @ x / NOISE + PRIOR * np.eye(4))
    close(posterior.covariance.dense(), covariance, steps=8)
    close(posterior.params, covariance @ x.T @ y / NOISE, steps=8)
    new = jnp.asarray(rng.normal(size=(9, 4)))
    expected = np.einsum("ni,ij,nj->n", new, covariance, new)
    close(posterior.predictive_variance(new, batch_size=4)[:, 0], expected, steps=8)
    # The targets are normal, with the covariance of the prior's functions and of the noise.
    evidence = stats.multivariate_normal.logpdf(y[:, 0], cov=x @ x.T / PRIOR + NOISE * np.eye(20))
    close(posterior.log_marginal_likelihood(), evidence, steps=8)


def test_the_evidence_is_differentiated(rng):
    x, y, w = regression(rng)
    posterior = fc.laplace(linear, gaussian, w, (x, y), structure="full", prior_precision=PRIOR)

    def evidence(log_prior):
        return posterior.log_marginal_likelihood(jnp.exp(log_prior))

    step, at = float(np.finfo(float).eps) ** (1 / 3), jnp.log(PRIOR)
    differences = (evidence(at + step) - evidence(at - step)) / (2 * step)
    close_to_differences(jax.grad(evidence)(at), differences)
    # At the minimum, the mean and the evidence move together, so that the slope is the one of the closed form.
    exact = jax.grad(
        lambda s: jax.scipy.stats.multivariate_normal.logpdf(
            y[:, 0], jnp.zeros(20), x @ x.T / jnp.exp(s) + NOISE * jnp.eye(20)
        )
    )(at)
    close(jax.grad(evidence)(at), exact, steps=8)


def test_kron_equals_full_for_one_dense_layer_with_squared_loss(rng):
    x, y, w = regression(rng, outputs=3)
    kron, full = (fc.laplace(linear, gaussian, w, (x, y), structure=s) for s in ("kron", "full"))
    close(kron.covariance.dense(), full.covariance.dense(), steps=8)
    close(kron.predictive_variance(x, covariance=True), full.predictive_variance(x, covariance=True), steps=8)
    close(kron.log_marginal_likelihood(0.3), full.log_marginal_likelihood(0.3), steps=8)


def test_each_structure_against_the_dense_matrix(rng):
    data = images(rng, 9)
    whole = gauss_newton(PARAMS, data)
    dense = whole.dense()
    precisions = {
        "full": dense,
        "diag": jnp.diag(jnp.diag(dense)),
        "last_layer": whole.block("dense1").dense(),
        "kron": 9 * fc.kfac(GRAPH, crossed, PARAMS, data).dense(),
    }
    x = images(rng, 4)[0]
    jacobian = jax.vmap(lambda x: jax.jacobian(lambda p: GRAPH(p, x[None])[0])(PARAMS))(x)
    leaves = [leaf.reshape(4, 3, -1) for leaf in jax.tree.leaves(jacobian)]
    rows = {name: jnp.concatenate(leaves, -1) for name in STRUCTURES}
    rows["last_layer"] = jnp.concatenate(leaves[2:], -1)
    for name, precision in precisions.items():
        posterior = posterior_of(name, data, prior_precision=PRIOR, batch_size=4)
        covariance = jnp.linalg.inv(precision + PRIOR * jnp.eye(len(precision)))
        close(posterior.covariance.dense(), covariance, terms=500, steps=8)
        expected = jnp.einsum("noi,ij,npj->nop", rows[name], covariance, rows[name])
        close(posterior.predictive_variance(x, covariance=True), expected, terms=500, steps=8)
        variance = posterior.predictive_variance(x, batch_size=3)
        close(variance, jnp.diagonal(expected, axis1=1, axis2=2), terms=500, steps=8)
        leaves_that_vary = PARAMS["dense1"] if name == "last_layer" else PARAMS
        norm = jnp.square(ravel_pytree(leaves_that_vary)[0]).sum()
        volume = len(precision) * jnp.log(PRIOR) + jnp.linalg.slogdet(covariance)[1]
        evidence = -crossed(GRAPH(PARAMS, data[0]), data[1]).sum() - PRIOR / 2 * norm + volume / 2
        close(posterior.log_marginal_likelihood(), evidence, terms=500, steps=8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_drawn_parameters_have_the_mean_and_covariance(structure, rng):
    """Each mean square along a direction is within six of its standard deviations."""
    posterior, n = posterior_of(structure, images(rng, 9)), 4000
    drawn = posterior.sample(jax.random.key(1), n)
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(lambda leaf: (n, *leaf.shape), PARAMS)
    change = jax.tree.map(lambda d, p: d - p[None], drawn, PARAMS)
    if structure == "last_layer":
        assert not change["conv1"]["kernel"].any()
        change = change["dense1"]
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])(change)
    directions = jnp.asarray(rng.normal(size=(flat.shape[1], 8)))
    along = flat @ directions
    variance = jnp.diag(directions.T @ posterior.covariance.dense() @ directions)
    assert (jnp.abs(along.mean(0)) < 6 * jnp.sqrt(variance / n)).all()
    assert (jnp.abs(jnp.square(along).mean(0) / variance - 1) < 6 * np.sqrt(2 / n)).all()
    outputs = jax.vmap(GRAPH, (0, None))(drawn, BATCH[0])
    assert outputs.shape == (n, 2, 3)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_compiled_functions_take_and_return_it(structure, rng):
    data = images(rng, 5)
    made = jax.jit(lambda params, prior: posterior_of(structure, data, params, prior_precision=prior))(PARAMS, PRIOR)
    eager = posterior_of(structure, data, prior_precision=PRIOR)
    assert repr(made) == repr(eager)
    variance = jax.jit(lambda posterior, x: posterior.predictive_variance(x))(made, data[0])
    close(variance, eager.predictive_variance(data[0]), terms=500, steps=8)
    other = eager.with_prior_precision(2.0)
    close(other.log_marginal_likelihood(), made.log_marginal_likelihood(2.0), terms=500, steps=8)
    assert (other.predictive_variance(data[0]) < variance).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_batches_are_joined(structure, rng):
    x, y = images(rng, 7)
    one = posterior_of(structure, (x, y))
    several = posterior_of(structure, [(x[:3], y[:3]), (x[3:4], y[3:4]), (x[4:], y[4:])])
    close(several.covariance.dense(), one.covariance.dense(), terms=500, steps=8)
    close(several.log_marginal_likelihood(), one.log_marginal_likelihood(), terms=500, steps=8)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_16_bit_parameters_are_summed_in_float32(structure, rng):
    x, y = images(rng, 5)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    posterior = posterior_of(structure, (x.astype(jnp.bfloat16), y), low)
    assert all(block.values.dtype == jnp.float32 for block in posterior.blocks)
    assert posterior.sample(jax.random.key(0), 2)["conv1"]["kernel"].dtype == jnp.bfloat16
    variance = posterior.predictive_variance(x.astype(jnp.bfloat16))
    assert variance.dtype == posterior.log_marginal_likelihood().dtype == jnp.float32
    expected = posterior_of(structure, (x, y)).predictive_variance(x)
    close(variance, expected, dtype=jnp.bfloat16, terms=16, steps=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: posterior_of("kronecker", BATCH), "unknown structure='kronecker'"),
        (lambda: posterior_of("full", BATCH, prior_precision=0), "must be above 0; got 0"),
        (lambda: posterior_of("full", BATCH, prior_precision=jnp.ones(2)), "one positive real number"),
        (lambda: posterior_of("full", BATCH, max_size=60), "would be 69 x 69, .*max_size is 60"),
        (lambda: posterior_of("full", BATCH, batch_size=0), "batch_size must be an integer"),
        (lambda: posterior_of("full", [*BATCH]), r"a tuple \(x, y\).*a list of ArrayImpl"),
        (lambda: posterior_of("full", []), "got a list of nothing"),
        (lambda: posterior_of("full", BATCH[0]), r"a tuple \(x, y\).*; got ArrayImpl"),
        (lambda: posterior_of("full", (BATCH[0], BATCH[1][:1])), "share one leading axis"),
        (lambda: posterior_of("full", [BATCH, (BATCH[0][:, :4], BATCH[1])]), "equal shapes"),
        (lambda: fc.laplace(GRAPH, lambda z, y: (z, y)[0], PARAMS, BATCH), "one floating number"),
        (lambda: fc.laplace(lambda p, x: (p, x.sum())[1], crossed, PARAMS, BATCH), r"floating array \(2, \*outputs\)"),
        (
            lambda: fc.laplace(GRAPH, crossed, PARAMS, BATCH, structure="last_layer"),
            "it is missing; entries are 'conv1', 'conv1/bias', 'conv1/kernel', 'dense1'",
        ),
        (
            lambda: fc.laplace(GRAPH, crossed, PARAMS, BATCH, structure="last_layer", last_layer="dense2"),
            "got 'dense2'; entries are 'conv1'",
        ),
        (lambda: fc.laplace(GRAPH, crossed, PARAMS, BATCH, last_layer="dense1"), "got structure='kron'"),
        (
            lambda: fc.laplace(linear, gaussian, jnp.ones((2, 1)), (jnp.ones((3, 2)), jnp.ones((3, 1))), **LAST),
            "params are not a nested dict",
        ),
        (lambda: posterior_of("diag", BATCH).sample(jax.random.key(0), 0), "n must be an integer of at least 1"),
        (lambda: posterior_of("diag", BATCH).predictive_variance(BATCH[0], batch_size=0), "batch_size must be"),
        (lambda: posterior_of("diag", BATCH).log_marginal_likelihood(-1.0), "must be above 0; got -1.0"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(fc.FuncconvError, match=message):
        call()


LAST = {"structure": "last_layer", "last_layer": "dense1"}

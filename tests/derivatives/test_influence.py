"""Influence functions against training again without an example."""

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optax
import pytest
from compare import close

import funcconv as fc

RIDGE, N = 0.1, 300  # training examples


def logistic(w, x, y):
    """Return the loss of one example with a label of -1 or 1."""
    return jax.nn.softplus(-y * (x @ w))


def minimum(x, y, weights):
    """Return the minimum of the sum of weighted losses with the ridge term, and the gradient there."""

    def objective(w):
        return weights @ jax.vmap(logistic, (None, 0, 0))(w, x, y) + RIDGE / 2 * w @ w

    w = jnp.zeros(x.shape[1])
    for _ in range(12):
        w = w - jnp.linalg.solve(jax.hessian(objective)(w), jax.grad(objective)(w))
    return w, jax.grad(objective)(w)


@pytest.fixture
def problem(rng):
    x = rng.normal(size=(N + 20, 3))
    y = np.where(x @ [1.0, -2.0, 0.5] + rng.logistic(size=N + 20) > 0, 1.0, -1.0)
    x, y = jnp.asarray(x), jnp.asarray(y)
    train, test = (x[:N], y[:N]), (x[N:], y[N:])
    w, gradient = minimum(*train, jnp.full(N, 1 / N))
    close(gradient, jnp.zeros(3))
    return w, train, test


def test_equals_training_again_to_first_order(problem):
    """The bound of the difference, with `d` the change of the parameters and `s = H^-1 g_i / n`:

    The mean `M` of the Hessian without the example along the way satisfies `M d = g_i / n`. The curvature of a logistic
    loss changes by a factor of at most `exp(|x . d|)`, so `(1 - r) H <= M <= (1 + r) H` with
    `r = exp(max_j |x_j . d|) - 1 + h_i`, where `h_i` is the leverage of the example. Hence, in the norm of `H`,
    `|d - s| <= r / (1 - r) |s|`. The loss of a test example has a curvature of at most 1/4.
    """
    w, (x, y), (new_x, new_y) = problem
    estimate = fc.influence(logistic, w, (x, y), (new_x, new_y), damping=RIDGE, tol=1e-12)
    hessian = jax.hessian(lambda w: jax.vmap(logistic, (None, 0, 0))(w, x, y).mean() + RIDGE / 2 * w @ w)(w)
    gradients = fc.per_example_grad(logistic)
    losses = jax.vmap(logistic, (None, 0, 0))
    of_train, of_test = gradients(w, x, y), gradients(w, new_x, new_y)
    inverse = jnp.linalg.inv(hessian)
    leave_out = jax.jit(lambda i: minimum(x, y, jnp.where(jnp.arange(N) == i, 0, 1 / N)))
    changes, bounds = [], []
    for i in range(0, N, 5):
        other, gradient = leave_out(i)
        close(gradient, jnp.zeros(3))
        d, s = other - w, inverse @ of_train[i] / N
        p = jax.nn.sigmoid(x[i] @ w)
        r = jnp.expm1(jnp.abs(x @ d).max()) + p * (1 - p) * (x[i] @ inverse @ x[i]) / N
        first = jnp.sqrt(jnp.einsum("ti,ij,tj->t", of_test, inverse, of_test) * (s @ hessian @ s)) * r / (1 - r)
        assert r < 0.25
        changes.append(losses(other, new_x, new_y) - losses(w, new_x, new_y))
        bounds.append(first + jnp.square(new_x @ d) / 8)
    changes, bounds, estimate = jnp.stack(changes, 1), jnp.stack(bounds, 1), estimate[:, ::5]
    assert (jnp.abs(changes - estimate) <= bounds + 1e-12).all()
    assert jnp.corrcoef(changes.ravel(), estimate.ravel())[0, 1] > 0.999
    assert jnp.linalg.norm(changes - estimate) < 0.05 * jnp.linalg.norm(changes)


def test_linear_regression_has_the_closed_form(rng):
    """Without an example the parameters move by `H^-1 g_i / (n - leverage)`, by the formula of Sherman and Morrison."""
    x, y = jnp.asarray(rng.normal(size=(30, 4))), jnp.asarray(rng.normal(size=30))

    def loss(w, x, y):
        return jnp.square(x @ w - y) / 2

    w = jnp.linalg.lstsq(x, y)[0]
    estimate = fc.influence(loss, w, (x, y), (x, y), tol=1e-14, batch_size=7, chunk=4)
    others = jnp.stack([jnp.linalg.lstsq(jnp.delete(x, i, 0), jnp.delete(y, i))[0] for i in range(30)])
    leverage = jnp.einsum("ni,ij,nj->n", x, jnp.linalg.inv(x.T @ x), x)
    change = (others - w[None]) @ (x * (x @ w - y)[:, None]).T  # of each test example to first order in the change
    close(estimate, change.T * (1 - leverage)[None], steps=8)


def test_every_solver_gives_the_same(problem):
    w, train, test = problem

    def objective(w):
        return jax.vmap(logistic, (None, 0, 0))(w, *train).mean()

    curvature = fc.hessian(objective, w).shifted(RIDGE)
    operator = curvature.to_lineax(semidefinite=True)
    inverse = jnp.linalg.inv(curvature.dense())

    def by_lineax(v):
        return lineax.linear_solve(operator, v, lineax.CG(rtol=1e-12, atol=1e-12)).value

    expected = fc.influence(logistic, w, train, test, damping=RIDGE, tol=1e-13)
    for solver in (by_lineax, lambda v: inverse @ v):
        close(fc.influence(logistic, w, train, test, solver=solver), expected, steps=8)
    compiled = jax.jit(lambda w: fc.influence(logistic, w, train, test, damping=RIDGE, tol=1e-13))(w)
    close(compiled, expected, steps=8)
    assert expected.shape == (20, N)


def test_an_inverse_of_kronecker_factors(rng):
    """For one dense layer with squared loss, K-FAC is exact."""

    def model(params, x):
        return x @ params["w"]

    def loss(z, y):
        return jnp.square(z - y).sum() / 2

    x, y = jnp.asarray(rng.normal(size=(12, 3))), jnp.asarray(rng.normal(size=(12, 2)))
    params = {"w": jnp.asarray(rng.normal(size=(3, 2)))}

    def f(params, x, y):
        return loss(model(params, x[None])[0], y)

    inverse = fc.kfac(model, loss, params, (x, y)).inverse(0.2, "exact")
    ours = fc.influence(f, params, (x, y), (x[:5], y[:5]), solver=inverse)
    close(ours, fc.influence(f, params, (x, y), (x[:5], y[:5]), damping=0.2, tol=1e-13), steps=8)
    # The covariance of a Laplace approximation is the inverse of the sum, not of the mean.
    posterior = fc.laplace(model, loss, params, (x, y), prior_precision=12 * 0.2)
    close(12 * fc.influence(f, params, (x, y), (x[:5], y[:5]), solver=posterior.covariance), ours, steps=8)


def test_a_network(rng):
    x = fc.Input("x", (5, 5, 1))
    graph = fc.Graph(x, fc.serial(fc.Conv(2, 3), jnp.tanh, fc.global_pool, fc.Dense(2))(x))
    params = graph.init(jax.random.key(0))
    images, labels = jnp.asarray(rng.normal(size=(6, 5, 5, 1))), jnp.asarray(rng.integers(0, 2, 6))

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(graph(params, x[None])[0], y)

    train, test = (images[:4], labels[:4]), (images[4:], labels[4:])
    estimate = fc.influence(loss, params, train, test, damping=2.0, tol=1e-12, batch_size=3)

    def mean(params):
        return jax.vmap(loss, (None, 0, 0))(params, *train).mean()

    whole = jax.jit(lambda params: fc.hessian(mean, params).dense())(params)
    of_train, of_test = (
        jnp.concatenate([g.reshape(len(g), -1) for g in jax.tree.leaves(fc.per_example_grad(loss)(params, *data))], 1)
        for data in (train, test)
    )
    expected = of_test @ jnp.linalg.solve(whole + 2 * jnp.eye(len(whole)), of_train.T) / 4
    close(estimate, expected, steps=8)


def test_no_convergence_is_not_silent(problem):
    w, train, test = problem
    with pytest.raises(fc.FuncconvError, match=r"did not converge for \d+ of 20 .* largest relative residual is 0\."):
        fc.influence(logistic, w, train, test, maxiter=1)
    rows = jax.jit(lambda w: fc.influence(logistic, w, train, test, maxiter=1))(w)
    assert jnp.isnan(rows).all(1).any()


X, Y = jnp.ones((2, 3)), jnp.ones(2)
W = jnp.ones(3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), solver="lu"), "unknown solver='lu'"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), solver=3), "got int"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), solver=lambda v: v, damping=1), "damping is for"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), solver=lambda v: v[:1]), "solver.v. must be float64"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), damping=-1), "at least 0; got -1"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), damping=W), "one real number"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), tol=0), "between 0 and 1; got 0"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), maxiter=0), "maxiter must be"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), batch_size=0), "batch_size must be"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y), chunk=0), "chunk must be"),
        (lambda: fc.influence(logistic, W, X, (X, Y)), "train must be a tuple"),
        (lambda: fc.influence(logistic, W, (X, Y), (X, Y[:1])), "test must share one leading axis"),
        (lambda: fc.influence(lambda w, x, y: x * w * y, W, (X, Y), (X, Y)), "one floating number"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(fc.FuncconvError, match=message):
        call()

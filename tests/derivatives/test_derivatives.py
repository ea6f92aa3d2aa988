"""Hessian-vector products, the three curvatures, gradients by example and in batches, against matrices and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close, rounding
from jax.flatten_util import ravel_pytree
from networks import (
    CLASSES,
    EXAMPLES,
    by_differences,
    close_to_differences,
    dense_hessian,
    direction,
    flat,
    network,
    on_vectors,
    problem,
)

import funcconv as fc

pytestmark = pytest.mark.once

MODES = ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
MODEL, LOSS, PARAMS = problem()


def objective(params):
    return LOSS(MODEL(params))


@functools.cache
def product_by(mode):
    """Return the product with the Hessian at PARAMS, compiled once for all tests."""
    return jax.jit(lambda v: fc.hvp(objective, PARAMS, v, mode))


@pytest.fixture(scope="module")
def hessian_matrix():
    return dense_hessian(objective, PARAMS)


# Hessian-vector products -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_agree_with_a_matrix(mode, hessian_matrix):
    v = direction(PARAMS)
    product = product_by(mode)(v)
    assert jax.tree.structure(product) == jax.tree.structure(PARAMS)
    close_to_differences(flat(product), hessian_matrix @ flat(v))


def test_the_modes_agree_with_each_other():
    v = direction(PARAMS)
    first, *others = (flat(product_by(mode)(v)) for mode in MODES)
    for other in others:
        close(other, first)


@pytest.mark.parametrize("mode", MODES)
def test_products_are_symmetric(mode):
    u, v = direction(PARAMS, 1), direction(PARAMS, 2)
    left = flat(u) @ flat(product_by(mode)(v))
    right = flat(v) @ flat(product_by(mode)(u))
    close(left, right)


@pytest.mark.parametrize("mode", MODES)
def test_hvp_is_a_function_like_any_other(mode):
    """It is jitted, mapped over directions, and differentiated: the third derivative by its closed form."""

    def f(x):
        return (x["a"] ** 4).sum() + x["b"] ** 3

    x = {"a": jnp.array([1.0, 2.0]), "b": jnp.asarray(3.0)}
    vs = {"a": jnp.eye(2, dtype=float), "b": jnp.array([1.0, 0.0])}
    product = jax.jit(jax.vmap(lambda v: fc.hvp(f, x, v, mode)))(vs)
    close(product["a"], [[12, 0], [0, 48]])
    close(product["b"], [18, 0])
    third = jax.grad(lambda x: fc.hvp(f, x, jax.tree.map(lambda v: v[0], vs), mode)["a"].sum())(x)
    close(third["a"], [24, 0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_goes_in_comes_out(mode, dtype):
    x = {"a": jnp.ones(3, dtype), "b": jnp.ones((), jnp.float32)}
    product = fc.hvp(lambda x: (x["a"] ** 2).sum().astype(jnp.float32) * x["b"], x, x, mode)
    assert product["a"].dtype == dtype
    assert product["b"].dtype == jnp.float32
    close(product["a"].astype(float), [4, 4, 4])


def test_leaves_are_numbers_too_and_none_is_no_leaf():
    assert fc.hvp(lambda x: x**3, 2.0, 1.0) == 12
    assert fc.hvp(lambda x: x["a"] ** 3, {"a": np.float64(2), "b": None}, {"a": np.float64(1), "b": None})["a"] == 12


def test_linearised_products(hessian_matrix):
    calls = []

    def counted(params):
        calls.append(params)
        return objective(params)

    gradient, product = fc.linearize_hvp(counted, PARAMS)
    traces = len(calls)
    close(flat(gradient), flat(jax.jit(jax.grad(objective))(PARAMS)))
    for seed in (1, 2):
        v = direction(PARAMS, seed)
        close(flat(product(v)), flat(product_by(MODES[0])(v)))
    assert len(calls) == traces
    crossed = jax.jit(lambda params: fc.linearize_hvp(objective, params)[1])(PARAMS)  # a result of jit
    close_to_differences(flat(jax.jit(crossed)(v)), hessian_matrix @ flat(v))


# curvature -------------------------------------------------------------------------------------------------


def test_hessian(hessian_matrix):
    h = fc.hessian(objective, PARAMS)
    assert h.size == 47
    assert h.shape == (47, 47)
    close_to_differences(h.dense(), hessian_matrix)
    v = direction(PARAMS)
    close(flat(h.mv(v)), flat(product_by(MODES[0])(v)))
    close(flat(h @ v), flat(h.mv(v)))


def test_gauss_newton():
    jacobian = by_differences(MODEL, PARAMS)
    middle = dense_hessian(LOSS, MODEL(PARAMS))
    g = fc.gauss_newton(MODEL, LOSS, PARAMS)
    close_to_differences(g.dense(), jacobian.T @ middle @ jacobian)
    eigenvalues = np.linalg.eigvalsh(g.dense())
    assert eigenvalues.min() > -rounding(np.float64, g.size) * eigenvalues.max()


def test_gauss_newton_of_a_linear_model_is_the_hessian(rng):
    x = rng.normal(size=(4, 3))
    target = rng.normal(size=(4, 2))

    def model(params):  # its outputs are a tree
        y = x @ params["w"] + jnp.broadcast_to(params["b"], (4, 2))
        return {"one": y[:, 0], "both": (y, y[0])}

    def loss(outputs):
        return jnp.cosh(outputs["one"]).sum() + ((outputs["both"][0] - target) ** 4).sum() + outputs["both"][1].prod()

    params = {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2))}
    h = fc.hessian(lambda params: loss(model(params)), params)
    close(fc.gauss_newton(model, loss, params).dense(), h.dense())


def outer_products(losses):
    """Return the sum of g gᵀ over the rows of the Jacobian of losses, in a loop."""
    total = 0
    losses, x = on_vectors(losses, PARAMS)
    for g in np.asarray(jax.jacrev(losses)(x)):
        total = total + np.outer(g, g)
    return total


def expected_outer_products(probabilities, log_likelihood):
    """Return the expectation of g gᵀ over the classes of every example, in loops."""
    _, unravel = ravel_pytree(PARAMS)
    x = flat(PARAMS)
    gradient = jax.jit(jax.grad(lambda x, i, y: log_likelihood(MODEL(unravel(x))[i], y)))
    total = 0
    for i in range(EXAMPLES):
        for y in range(CLASSES):
            g = np.asarray(gradient(x, i, y))
            total = total + probabilities[i, y] * np.outer(g, g)
    return total / EXAMPLES


def test_fisher_of_classes_is_an_expectation():
    p = np.asarray(jax.nn.softmax(MODEL(PARAMS)))
    expected = expected_outer_products(p, lambda z, y: jax.nn.log_softmax(z)[y])
    close(fc.fisher(MODEL, PARAMS).dense(), expected)
    close(fc.fisher(MODEL, PARAMS, "categorical").dense(), fc.gauss_newton(MODEL, LOSS, PARAMS).dense())


def test_fisher_of_independent_choices_is_an_expectation():
    p = np.asarray(jax.nn.sigmoid(MODEL(PARAMS)))
    yes = expected_outer_products(p, lambda z, y: jax.nn.log_sigmoid(z[y]))
    no = expected_outer_products(1 - p, lambda z, y: jax.nn.log_sigmoid(-z[y]))
    close(fc.fisher(MODEL, PARAMS, "bernoulli").dense(), yes + no)


def test_fisher_of_means():
    close(fc.fisher(MODEL, PARAMS, "gaussian").dense(), outer_products(lambda p: MODEL(p).ravel()) / EXAMPLES)


def test_empirical_fisher():
    def losses(params):
        return -(jax.nn.log_softmax(MODEL(params))[:, 1] ** 2)

    close(fc.fisher(losses, PARAMS, "empirical").dense(), outer_products(losses) / EXAMPLES)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_all_axes_but_the_last_are_examples(likelihood, rng):
    a = rng.normal(size=(12, 4, 3))
    params = jnp.asarray(rng.normal(size=3))
    flat_axes = fc.fisher(lambda w: a @ w, params, likelihood).dense()
    close(fc.fisher(lambda w: (a @ w).reshape(2, 6, 4), params, likelihood).dense(), flat_axes)
    one = [fc.fisher(lambda w, row=row: row @ w, params, likelihood).dense() for row in a]
    close(np.mean(one, axis=0), flat_axes)


def test_both_precisions():
    matrices = {}
    for dtype in (jnp.float32, jnp.float64):
        model, loss, params = problem(dtype)
        operators = curvatures(model, loss, params)
        matrices[dtype] = [operator.dense() for operator in operators]
        assert all(matrix.dtype == dtype for matrix in matrices[dtype])
        for operator in operators:
            assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(operator.mv(params)))
    for matrix, exact in zip(*matrices.values(), strict=True):
        # An entry sums over 5 examples and 16 positions. The value, its derivative and the derivative of that follow
        # one another, each through two layers with parameters.
        close(matrix, exact, jnp.float32, terms=5 * 16, steps=3 * 2)


def curvatures(model, loss, params):
    return fc.hessian(lambda p: loss(model(p)), params), fc.gauss_newton(model, loss, params), fc.fisher(model, params)


@pytest.mark.parametrize("which", range(3))
def test_operators_inside_jit(which):
    v = direction(PARAMS)
    traces = []

    @jax.jit
    def product(params, v):
        traces.append(params)
        return curvatures(MODEL, LOSS, params)[which].mv(v)

    operator = curvatures(MODEL, LOSS, PARAMS)[which]
    close(flat(product(PARAMS, v)), flat(operator.mv(v)))
    product(PARAMS, direction(PARAMS, 2))
    assert len(traces) == 1
    close(
        jax.jit(lambda p: curvatures(MODEL, LOSS, p)[which].diag()["dense1"]["bias"])(PARAMS),
        operator.diag()["dense1"]["bias"],
    )


def test_a_second_product_traces_nothing():
    calls = []

    def counted(params):
        calls.append(params)
        return objective(params)

    h = fc.hessian(counted, PARAMS)
    assert len(calls) == 1
    h.mv(PARAMS)
    h.mm(jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS))
    h.diag()
    h.block("trunk").mv(PARAMS["trunk"])
    h.eigsh(1)
    assert len(calls) == 1


def test_a_newton_step_solves_a_quadratic(rng):
    a = rng.normal(size=(4, 4))
    matrix = a @ a.T + np.eye(4)
    target = {"x": jnp.asarray(rng.normal(size=3)), "y": jnp.asarray(rng.normal())}

    def f(params):
        d = ravel_pytree(jax.tree.map(jnp.subtract, params, target))[0]
        return d @ matrix @ d / 2

    zero = jax.tree.map(jnp.zeros_like, target)
    tolerance = 1e-14  # of the residual, relative to the gradient

    @jax.jit
    def step(params):
        gradient, product = fc.linearize_hvp(f, params)
        move = jax.scipy.sparse.linalg.cg(product, gradient, tol=tolerance)[0]
        return jax.tree.map(jnp.subtract, params, move)

    # A relative residual moves the solution by at most as much times the condition number. Norms are at most twice the
    # largest of 4 entries, and a product sums 4 numbers.
    terms = 2 * (tolerance / np.finfo(np.float64).eps + 4)
    close(flat(step(zero)), flat(target), terms=terms, steps=np.linalg.cond(matrix))


# gradients by example, and in batches ----------------------------------------------------------------------


def one_loss(params, image, label):
    return -jax.nn.log_softmax(network()(params, image[None])[0])[label]


def mean_loss(params, images, labels):
    return -jax.nn.log_softmax(network()(params, images))[jnp.arange(len(labels)), labels].mean()


def examples(n, dtype=np.float64):
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, 6, 6, 1)).astype(dtype), rng.integers(0, CLASSES, n)


def test_per_example_gradients_equal_a_loop():
    images, labels = examples(4)
    gradients = jax.device_get(jax.jit(fc.per_example_grad(one_loss))(PARAMS, images, labels))
    gradient = jax.jit(jax.grad(one_loss))
    for i in range(4):
        expected = gradient(PARAMS, images[i], labels[i])
        jax.tree.map(lambda g, e, i=i: close(g[i], e), gradients, expected)
    mean = jax.tree.map(lambda g: g.mean(0), gradients)
    jax.tree.map(close, mean, jax.jit(jax.grad(mean_loss))(PARAMS, images, labels))


def test_an_example_is_any_tree():
    gradients = fc.per_example_grad(lambda w, e: (w * e["x"] * e["y"][0]).sum())(
        jnp.ones(2), {"x": jnp.ones((3, 2)), "y": (jnp.arange(3.0),)}
    )
    close(gradients, [[0, 0], [1, 1], [2, 2]])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 100])
def test_batches_add_up_to_the_whole(batch_size):
    images, labels = examples(7)
    value, gradient = jax.jit(fc.value_and_grad_in_batches(mean_loss, batch_size))(PARAMS, images, labels)
    whole, whole_gradient = jax.jit(jax.value_and_grad(mean_loss))(PARAMS, images, labels)
    # Sums over 7 examples and 16 positions; a value and its gradient, each through two layers with parameters.
    same = functools.partial(close, terms=7 * 16, steps=2 * 2)
    jax.tree.map(same, (value, gradient), (whole, whole_gradient))


def test_batches_without_jit():
    images, labels = examples(5)
    value, gradient = fc.value_and_grad_in_batches(mean_loss, 2)(PARAMS, images, labels)
    close(value, mean_loss(PARAMS, images, labels))
    assert jax.tree.structure(gradient) == jax.tree.structure(PARAMS)


def test_batches_of_small_numbers_are_summed_in_float32():
    """A thousand gradients of 1 / 1000 in bfloat16 would stop at 0.5 or so."""
    value, gradient = fc.value_and_grad_in_batches(lambda w, x: (w * x).mean(), 1)(
        jnp.ones((), jnp.bfloat16), jnp.ones(1000, jnp.bfloat16)
    )
    assert value.dtype == gradient.dtype == jnp.bfloat16
    assert value == gradient == 1


def test_memory_of_batches_is_that_of_one():
    images, labels = (jnp.asarray(array) for array in examples(256))

    def temporary(f):
        return jax.jit(f).lower(PARAMS, images, labels).compile().memory_analysis().temp_size_in_bytes

    assert temporary(fc.value_and_grad_in_batches(mean_loss, 8)) < temporary(jax.value_and_grad(mean_loss)) / 4


# misuse ----------------------------------------------------------------------------------------------------

X = {"a": jnp.ones((2, 3)), "b": [jnp.ones(3)]}


def total(x):
    return sum(leaf.sum() for leaf in jax.tree.leaves(x))


# name: (what is done, parts of the message in order)
CASES = {
    "unknown mode": (
        lambda: fc.hvp(total, X, X, "forward-over-backward"),
        ["hvp: unknown mode", "did you mean 'forward-over-rev"],
    ),
    "missing leaf": (
        lambda: fc.hvp(total, X, {"a": X["a"]}),
        ["hvp: v must have the structure of the parameters", "no 'b/0'"],
    ),
    "extra leaf": (lambda: fc.hvp(total, X, X | {"c": 1.0}), ["it has 'c', which is not there"]),
    "other structure": (lambda: fc.hvp(total, X, X | {"b": (X["b"][0],)}), ["expected PyTreeDef", "got PyTreeDef"]),
    "shape of v": (
        lambda: fc.hvp(total, X, X | {"b": [jnp.ones(4)]}),
        ["v must be float64[3] at 'b/0', like the parameters; got float64[4]"],
    ),
    "dtype of v": (
        lambda: fc.hvp(total, X, jax.tree.map(lambda x: x.astype(jnp.float32), X)),
        ["float64[2, 3] at 'a'", "float32"],
    ),
    "v of strings": (lambda: fc.hvp(total, X, X | {"b": ["one"]}), ["at 'b/0'", "got a value of type str"]),
    "bare v": (lambda: fc.hvp(total, jnp.ones(2), jnp.ones(3)), ["v must be float64[2], like", "got float64[3]"]),
    "no scalar": (lambda: fc.hvp(lambda x: x["a"], X, X), ["hvp: f must give one floating", "got float64[2, 3]"]),
    "integer": (lambda: fc.hvp(lambda x: jnp.argmax(x["a"]), X, X), ["one floating number", "got int64[]"]),
    "a tuple": (lambda: fc.hessian(lambda x: (total(x), 1), X), ["hessian: f must give", "got a tuple"]),
    "nothing": (lambda: fc.hessian(lambda _: None, X), ["hessian: f must give", "got a NoneType"]),
    "integer leaf": (
        lambda: fc.hessian(total, X | {"n": jnp.arange(2)}),
        ["real floating", "int64[2] at 'n'", "closure"],
    ),
    "complex leaf": (lambda: fc.hessian(total, jnp.ones(2, complex)), ["got complex128[2]. Leave it out"]),
    "string leaf": (lambda: fc.linearize_hvp(total, {"a": "one"}), ["linearize_hvp", "type str at 'a'"]),
    "no leaf": (lambda: fc.hessian(total, {}), ["params must have at least one array; got {}"]),
    "linearised": (lambda: fc.linearize_hvp(total, X)[1](X["a"]), ["linearize_hvp: v", "it has no 'a'"]),
    "loss of a tree": (lambda: fc.gauss_newton(lambda x: x, lambda y: y, X), ["gauss_newton: loss", "got a dict"]),
    "integer outputs": (
        lambda: fc.gauss_newton(lambda x: {"y": x["a"], "n": 1}, total, X),
        ["model(params)", "[] at 'n'"],
    ),
    "likelihood": (lambda: fc.fisher(total, X, "normal"), ["unknown likelihood 'normal'", "'categorical'"]),
    "outputs in a tree": (lambda: fc.fisher(lambda x: x, X), ["fisher: model(params) must give one array", "a dict"]),
    "outputs of no axis": (lambda: fc.fisher(total, X), ["'categorical'", "(*examples, outputs)", "float64[]"]),
    "losses in a matrix": (lambda: fc.fisher(lambda x: x["a"], X, "empirical"), ["losses (n,)", "float64[2, 3]"]),
    "no examples": (lambda: fc.fisher(lambda x: x["a"][:0], X), ["none empty", "float64[0, 3]"]),
    "sizes": (
        lambda: fc.per_example_grad(jnp.dot)(jnp.ones(2), jnp.ones((3, 2)), jnp.ones(4)),
        ["per_example_grad: the examples must share one leading axis", "got 3 at '0' and float64[4] at '1'"],
    ),
    "an example alone": (lambda: fc.per_example_grad(jnp.dot)(X["a"], 1.0), ["one leading axis; got float64[] at '0'"]),
    "no example": (lambda: fc.per_example_grad(total)(X), ["at least one example; got none"]),
    "of size 0": (lambda: fc.per_example_grad(jnp.dot)(X["a"], jnp.ones((0, 2))), ["at least one", "got 0"]),
    "loss of a batch": (lambda: fc.per_example_grad(jnp.multiply)(jnp.ones(2), X["a"].T), ["f must give one", "[2]"]),
    "batch size": (
        lambda: fc.value_and_grad_in_batches(total, 0),
        ["batch_size must be an integer of at least 1; got 0"],
    ),
    "batch of a float": (lambda: fc.value_and_grad_in_batches(total, 2.0), ["integer", "got 2.0"]),
    "batches of sizes": (
        lambda: fc.value_and_grad_in_batches(jnp.dot, 2)(X["a"], X["b"], jnp.ones(4)),
        ["value_and_grad_in_batches: the examples"],
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

"""Norms of each example's gradient, against the gradients themselves; and that they are not formed where that costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from jaxprs import equations

import funcconv as fc

pytestmark = pytest.mark.once

KEY = jax.random.key(0)


def network(layers, shape):
    """Return a graph and its parameters, which NumPy draws, so that nothing is compiled for them."""
    x = fc.Input("x", shape)
    graph = fc.Graph(x, layers(x))
    rng = np.random.default_rng(0)
    types = jax.eval_shape(graph.init, KEY)
    return graph, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / 4, leaf.dtype), types)


def convolution_twice():
    c = fc.Conv(3, 3, padding=1)
    return fc.serial(
        fc.Conv(3, 3, padding=1), jnp.tanh, c, jnp.tanh, c, jnp.tanh, fc.Pool(2), fc.Flatten(), fc.Dense(3)
    )


def dense_twice():
    d = fc.Dense(12)
    return fc.serial(fc.Flatten(), fc.Dense(12), jnp.tanh, d, jnp.tanh, d, jnp.tanh, fc.Dense(3))


def to_three(*layers):
    return fc.serial(*layers, fc.Flatten(), fc.Dense(3))


NETWORKS = {
    "one use": to_three(fc.Conv(4, 3, stride=2), jnp.tanh, fc.Flatten(), fc.Dense(20), jnp.tanh),
    "few places": to_three(fc.Conv(8, 5, stride=3), jnp.tanh, fc.Conv(40, 2), jnp.tanh),
    "groups": to_three(fc.Conv(24, 5, stride=4), jnp.tanh, fc.Conv(48, 2, groups=2), jnp.tanh),
    "a kernel twice": convolution_twice(),
    "a matrix twice": dense_twice(),
    "no bias": to_three(fc.Conv(4, 4, bias=False, padding="SAME", pad_mode="circular"), jnp.tanh, fc.Pool(3)),
    "transposed and local": to_three(fc.ConvTranspose(3, 3, stride=2), jnp.tanh, fc.Pool(4), fc.LocalConv(2, 2)),
    "a matrix on places": to_three(fc.Dense(5), jnp.tanh, fc.Dense(5), fc.Pool(3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_norm_of_the_gradient(name, rng):
    graph, params = network(NETWORKS[name], (9, 9, 2))
    xs, labels = jnp.asarray(rng.normal(size=(5, 9, 9, 2))), jnp.arange(5) % 3

    def loss(params, x, label):
        return -jax.nn.log_softmax(graph(params, x))[label]

    @jax.jit
    def both(*args):
        return fc.per_example_grad(loss)(*args), fc.per_example_grad_norm(loss)(*args)

    gradients, norms = both(params, xs, labels)
    expected = np.sqrt(sum(np.square(np.asarray(g)).reshape(5, -1).sum(1) for g in jax.tree.leaves(gradients)))
    close(norms, expected, terms=(9 * 9) ** 2)  # a norm sums at most one product for each pair of the 9 x 9 places


def shapes_formed(f, *args):
    return {var.aval.shape for eqn in equations(jax.make_jaxpr(f)(*args)) for var in eqn.outvars}


def test_the_cheaper_way_forms_no_gradient(rng):
    shared = fc.Dense(30)
    graph, params = network(
        fc.serial(fc.Conv(30, 4, stride=4), jnp.tanh, fc.global_pool, shared, jnp.tanh, shared, fc.Dense(2)), (8, 8, 3)
    )
    xs = jnp.asarray(rng.normal(size=(7, 8, 8, 3)))

    def loss(params, x):
        return jnp.sin(graph(params, x)).sum()

    forming = shapes_formed(fc.per_example_grad(loss), params, xs)
    factored = shapes_formed(fc.per_example_grad_norm(loss), params, xs)
    for shape in ((7, 4, 4, 3, 30), (7, 30, 30)):
        assert shape in forming
        assert shape not in factored


def test_many_places_form_the_gradient(rng):
    graph, params = network(fc.serial(fc.Conv(2, 2), fc.global_pool), (8, 8, 1))
    xs = jnp.asarray(rng.normal(size=(7, 8, 8, 1)))
    assert (7, 2, 2, 1, 2) in shapes_formed(fc.per_example_grad_norm(lambda p, x: graph(p, x).sum()), params, xs)


def test_inside_of_other_programs(rng):
    w = jnp.asarray(rng.normal(size=(20, 20)))
    xs = jnp.asarray(rng.normal(size=(3, 20)))

    @jax.jit
    def twice(w, x):
        return jnp.tanh(w @ jnp.tanh(w @ x))

    def loss(w, x):
        looped = jax.lax.scan(lambda x, _: (jnp.tanh(w @ x), None), x, length=2)[0]
        return (twice(w, x) + looped + twice(w.T, x)).sum()

    def plain_norms(w):
        return jnp.linalg.norm(jax.vmap(jax.grad(loss), (None, 0))(w, xs).reshape(3, -1), axis=1)

    @jax.jit
    def norms_and_gradients(w):
        return [
            (norms(w), jax.grad(lambda w, norms=norms: norms(w).sum())(w).sum())
            for norms in (lambda w: fc.per_example_grad_norm(loss)(w, xs), plain_norms)
        ]

    (found, gradient), (expected, expected_gradient) = norms_and_gradients(w)
    close(found, expected)
    # The sum of 400 entries. Each path has two products with w, and each of them a value, a gradient, its norm and the
    # gradient of that.
    close(gradient, expected_gradient, terms=400, steps=2 * 4)


def test_sixteen_bits(rng):
    graph, params = network(fc.serial(fc.Flatten(), fc.Dense(16), jnp.tanh, fc.Dense(16)), (4, 4, 1))
    xs = jnp.asarray(rng.normal(size=(3, 4, 4, 1)))

    def loss(params, x):
        return graph(params, x).sum()

    norms = jax.jit(fc.per_example_grad_norm(loss))
    exact = norms(params, xs)
    half, xs16 = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, xs))
    found = norms(half, xs16)
    assert found.dtype == jnp.float32
    # The values and the cotangents of two layers, and the parameters and inputs, are rounded to bfloat16.
    np.testing.assert_allclose(found, exact, rtol=6 * float(jnp.finfo(jnp.bfloat16).eps))


def test_errors():
    with pytest.raises(fc.FuncconvError, match="per_example_grad: the examples must share one leading axis"):
        fc.per_example_grad_norm(lambda w, x, y: w * x * y)(1.0, np.ones(3), np.ones(4))


@pytest.mark.parametrize("window", [1, 3], ids=["few places", "many places"])
def test_the_kink_at_a_gradient_of_zero(window):
    """An example without a gradient has the norm 0 with derivatives 0, and changes those of no other example."""
    params = fc.init_conv(jax.random.key(0), 2, 3, (window, window), bias=False)
    some = jax.random.normal(jax.random.key(1), (2, 4, 4, 2))
    examples = jnp.concatenate([some, jnp.zeros((1, 4, 4, 2))])

    def loss(params, x):
        return jnp.tanh(fc.conv(params, x, implementation="lax")).sum() ** 2

    norms = jax.jit(fc.per_example_grad_norm(loss))

    def total(params, x):
        return norms(params, x).sum()

    assert float(norms(params, examples)[2]) == 0
    direction = jax.tree.map(jnp.ones_like, params)
    derivatives = (
        jax.grad,
        lambda f: lambda params, x: jax.jvp(lambda params: f(params, x), (params,), (direction,))[1],
        lambda f: lambda params, x: jax.jvp(jax.grad(lambda params: f(params, x)), (params,), (direction,))[1],
        lambda f: (
            lambda params, x: jax.grad(lambda params: jax.jvp(lambda p: f(p, x), (params,), (direction,))[1])(params)
        ),
    )

    @jax.jit
    def every(params, x):
        return [derive(total)(params, x) for derive in derivatives], jax.grad(total, argnums=1)(params, x)

    (found, by_examples), (expected, _) = every(params, examples), every(params, some)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    # A norm sums at most one product for each pair of the 4 x 4 places; it is differentiated up to three times.
    jax.tree.map(lambda a, b: close(a, b, a.dtype, terms=(4 * 4) ** 2, steps=1 + 3), found, expected)
    assert np.isfinite(by_examples).all()
    assert (by_examples[2] == 0).all()


def test_a_norm_of_nan_stays_nan():
    assert np.isnan(fc.per_example_grad_norm(lambda w, x: (w * x).sum())(jnp.ones(2), jnp.array([[jnp.nan, 1.0]]))[0])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("one use", "float32"), ("few places", "bfloat16"), ("groups", "float32"), ("a matrix twice", "bfloat16")],
)
def test_squares_do_not_overflow(name, dtype, rng):
    """The norm of a scaled loss is the scaled norm, also where its square is no float32; and so is its derivative."""
    graph, params = network(NETWORKS[name], (9, 9, 2))
    params, x = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (params, rng.normal(size=(3, 9, 9, 2))))

    def loss(params, x, factor):
        return (graph(params, x).astype("float32") ** 2).sum() * factor

    @jax.jit
    def norms(params, factor):
        found, pullback = jax.vjp(lambda params: fc.per_example_grad_norm(loss)(params, x, jnp.full(3, factor)), params)
        return found, pullback(jnp.ones_like(found))[0]

    plain = jax.tree.leaves(norms(params, jnp.float32(1)))
    for factor in (1e24, 1e-24):
        for found, expected in zip(jax.tree.leaves(norms(params, jnp.float32(factor))), plain, strict=True):
            assert np.abs(np.asarray(expected, "float64")).max() > 0
            close(np.asarray(found, "float64") / factor, np.asarray(expected, "float64"), dtype=dtype, terms=256)

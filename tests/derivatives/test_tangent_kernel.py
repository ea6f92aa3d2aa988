"""The tangent kernel against the Jacobian, and models that are linear in their parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc


def shared():
    """Return a network that uses one kernel twice, and groups."""
    conv = fc.Conv(4, 3, padding=1)
    x = fc.Input("x", (6, 6, 4))
    return fc.Graph(x, fc.serial(conv, jnp.tanh, conv, fc.Conv(8, 3, groups=2), fc.Flatten(), fc.Dense(3))(x))


NETWORKS = {
    "convolutions": lambda: network(fc.Conv(5, 3), jnp.tanh, fc.Conv(4, 3, stride=2), jax.nn.relu, fc.Flatten()),
    "dense": lambda: network(fc.Flatten(), fc.Dense(40), jnp.tanh, fc.Dense(30), jnp.tanh),
    "norms": lambda: network(fc.Conv(4, 3), fc.GroupNorm(2), fc.max_pool, fc.LocalConv(3, 2), fc.Flatten()),
    "transposed": lambda: network(fc.Conv(4, 3, stride=2), fc.ConvTranspose(3, 3, stride=2), fc.global_pool),
    "shared": shared,
}


def network(*layers):
    x = fc.Input("x", (6, 6, 4))
    return fc.Graph(x, fc.serial(*layers, fc.Dense(3))(x))


def jacobians(model, params, x):
    """Return `(n, outputs, parameters)`."""
    leaves = jax.tree.leaves(jax.jacrev(lambda params: model(params, x))(params))
    n, k = model(params, x).reshape(len(x), -1).shape
    return np.concatenate([np.asarray(leaf, np.float64).reshape(n, k, -1) for leaf in leaves], axis=-1)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_kernel_is_that_of_the_jacobian(name, rng):
    graph = NETWORKS[name]()
    params = graph.init(jax.random.key(0))
    x1, x2 = (jnp.asarray(rng.normal(size=(n, 6, 6, 4))) for n in (5, 3))
    j1, j2 = jacobians(graph, params, x1), jacobians(graph, params, x2)
    terms = j1.shape[-1]
    full = np.einsum("iap,jbp->ijab", j1, j2)
    close(fc.ntk(graph, params, x1, x2, of="full", batch_size=2), full, terms=terms, steps=4)
    close(fc.ntk(graph, params, x1, x2), np.einsum("ijaa->ij", full), terms=terms, steps=4)
    close(fc.ntk(graph, params, x1, x2, of="pseudo"), full.mean((2, 3)) * 3, terms=terms, steps=4)
    own = np.einsum("iap,jap->ij", j1, j1)
    for batch_size in (2, 5, 8):
        kernel = jax.jit(lambda params, x, size=batch_size: fc.ntk(graph, params, x, batch_size=size))(params, x1)
        close(kernel, own, terms=terms, steps=4)
    assert np.linalg.eigvalsh(kernel).min() > -1e-10 * np.abs(kernel).max()


@pytest.mark.parametrize("rows", [4, 200])
def test_gradients_are_formed_where_that_takes_less_time(rows, rng):
    """The same kernel as factors and formed: at few places and at many."""
    w, x = jnp.asarray(rng.normal(size=(7, 2))), jnp.asarray(rng.normal(size=(3, rows, 7)))

    def model(w, x):
        return jnp.tanh(x @ w).sum(1)

    j = jacobians(model, w, x)
    close(fc.ntk(model, w, x, of="full"), np.einsum("iap,jbp->ijab", j, j), terms=rows * 14, steps=4)


def test_outputs_of_any_shape_and_trees_of_examples(rng):
    params = {"w": jnp.asarray(rng.normal(size=(3, 2))), "b": jnp.asarray(rng.normal(size=2), jnp.float32)}
    x = {"left": jnp.asarray(rng.normal(size=(4, 3))), "right": jnp.asarray(rng.normal(size=(4, 2)))}

    def model(params, x):
        y = x["left"] @ params["w"] * x["right"] + params["b"].astype(jnp.float64)[None]
        return jnp.stack([y, y**2], 1)  # (n, 2, 2)

    kernel = fc.ntk(model, params, x, of="full")
    assert kernel.shape == (4, 4, 2, 2, 2, 2)
    leaves = [np.asarray(leaf).reshape(4, 4, -1) for leaf in jax.tree.leaves(jax.jacrev(model)(params, x))]
    j = np.concatenate(leaves, -1)
    close(kernel.reshape(4, 4, 4, 4), np.einsum("iap,jbp->ijab", j, j), dtype=np.float32, terms=8, steps=4)
    single = fc.ntk(lambda params, x: model(params, x)[:, 0, 0], params, x)
    close(single, kernel[:, :, 0, 0, 0, 0], dtype=np.float32, terms=8, steps=4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_16_bit_gradients_are_multiplied_in_float32(dtype, rng):
    graph = NETWORKS["dense"]()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), graph.init(jax.random.key(0)))
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 4)), dtype)
    kernel = fc.ntk(graph, params, x)
    assert kernel.dtype == jnp.float32
    j = jacobians(graph, params, x)
    close(kernel, np.einsum("iap,jap->ij", j, j), dtype=dtype, terms=16, steps=4)


def test_the_kernel_as_an_operator(rng):
    graph = NETWORKS["convolutions"]()
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(4, 6, 6, 4)))
    kernel = fc.ntk_operator(graph, params, x)
    full = fc.ntk(graph, params, x, of="full").swapaxes(1, 2).reshape(12, 12)
    close(kernel.dense(), full, terms=1000)
    v = jnp.asarray(rng.normal(size=(4, 3)))
    close(jax.jit(lambda kernel, v: kernel.mv(v))(kernel, v).ravel(), full @ v.ravel(), terms=1000)
    assert kernel.semidefinite
    close(kernel.trace(), np.trace(full), terms=1000)


def test_a_linear_model_is_trained_as_its_kernel_says(rng):
    graph = NETWORKS["convolutions"]()
    params, x = graph.init(jax.random.key(0)), jnp.asarray(rng.normal(size=(4, 6, 6, 4)))
    linear = fc.linearize(graph, params)
    close(linear(params, x), graph(params, x))
    other = jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.normal(size=leaf.shape)), params)
    third = jax.tree.map(lambda a, b: 2 * b - a, params, other)
    close(linear(third, x) - linear(params, x), 2 * (linear(other, x) - linear(params, x)), terms=1000)
    # One step of gradient descent on squares moves the outputs by the kernel times the errors.
    y = jnp.asarray(rng.normal(size=(4, 3)))
    loss = lambda p: jnp.square(linear(p, x) - y).sum() / 2  # noqa: E731
    stepped = jax.tree.map(lambda p, g: p - 1e-3 * g, params, jax.grad(loss)(params))
    moved = linear(stepped, x) - linear(params, x)
    close(moved, -1e-3 * fc.ntk_operator(graph, params, x).mv(linear(params, x) - y), terms=1000)
    close(fc.ntk(linear, other, x), fc.ntk(graph, params, x), terms=1000, steps=4)


W, X = jnp.ones((3, 2)), jnp.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fc.ntk(jnp.dot, W, X, of="sum"), "unknown of='sum'"),
        (lambda: fc.ntk(jnp.dot, W, X, batch_size=0), "batch_size must be an integer of at least 1"),
        (lambda: fc.ntk(jnp.dot, X.T, W[:0]), "at least one example"),
        (lambda: fc.ntk(lambda w, x: (x @ w).sum(), W, X), r"floating array \(2, \*outputs\); got float64\[\]"),
        (lambda: fc.ntk(lambda w, x: {"y": x @ w}, W, X), "got a dict"),
        (lambda: fc.ntk(jnp.dot, W.astype(int), X), "real floating arrays"),
        (lambda: fc.linearize(jnp.dot, W.astype(int)), "real floating arrays"),
        (lambda: fc.ntk_operator(lambda w, x: (w.sum(), x), W, X), "must return one floating array"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(fc.FuncconvError, match=message):
        call()

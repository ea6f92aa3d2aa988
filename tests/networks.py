"""A small network, its data, and ways to form its derivatives that share nothing with the library's."""

import jax
import jax.numpy as jnp
import numpy as np
from compare import close
from jax.flatten_util import ravel_pytree

import funcconv as fc

CLASSES = 3
EXAMPLES = 5


def network():
    """Return a convolution, a pool and a dense layer for images (6, 6, 1): 47 parameters, two of them nested."""
    x = fc.Input("x", (6, 6, 1))
    trunk = fc.Graph(x, fc.serial(fc.Conv(2, 3), jnp.tanh, fc.Pool(2), fc.Flatten())(x), name="trunk")
    return fc.Graph(x, fc.Dense(CLASSES)(trunk(x)))


def problem(dtype=np.float64, examples=EXAMPLES):
    """Return the model with its inputs, the loss with its targets, and the point."""
    rng = np.random.default_rng(0)
    graph = network()
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), graph.init(jax.random.key(0)))
    images = jnp.asarray(rng.normal(size=(examples, 6, 6, 1)), dtype)
    labels = jnp.asarray(rng.integers(0, CLASSES, examples))

    def model(params):
        return graph(params, images)

    def loss(logits):
        return -jax.nn.log_softmax(logits)[jnp.arange(examples), labels].mean()

    return model, loss, params


def direction(params, seed=1):
    """Return a random tree like the parameters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def flat(tree):
    """Return the vector of a tree, as `ravel_pytree` does, and compile nothing."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def on_vectors(f, params):
    """Return a function of vectors, compiled, and the vector of the point."""
    vector, unravel = ravel_pytree(params)
    return jax.jit(lambda x: f(unravel(x))), np.asarray(vector)


# The distance at which differences of fourth order are best: their truncation, h**4, and rounding, eps / h, are equal.
STEP = float(np.finfo(np.float64).eps) ** (1 / 5)


def close_to_differences(derivative, differences, terms=1024):
    """Assert that a derivative equals differences of fourth order, whose error is `STEP**4` for each term."""
    close(derivative, differences, ulps=terms / STEP)


def by_differences(f, params, h=STEP):
    """Return the Jacobian of `f` by central differences of fourth order, one parameter after another."""
    f, x = on_vectors(f, params)
    columns = []
    for i in range(len(x)):
        e = h * np.eye(len(x))[i]
        columns.append((8 * flat(f(x + e)) - 8 * flat(f(x - e)) - flat(f(x + 2 * e)) + flat(f(x - 2 * e))) / (12 * h))
    return np.stack(columns, axis=-1)


def dense_hessian(f, params):
    """Return the Hessian matrix from differences of gradients."""
    return by_differences(jax.grad(f), params)

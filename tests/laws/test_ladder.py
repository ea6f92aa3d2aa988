"""The ladder of derivatives, climbed by every op: each order in every mode, and the modes against each other.

The op is seen as a function `y = f(z)` of all its numbers, its parameters and its input alike, and `s(z)` is the sum of
`c sin(y)`, whose derivatives of every order show those of `f`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cases import EVERYWHERE, ORIGINAL, each
from compare import STEP, close, close_to_differences
from jax import export
from jax.experimental.jet import jet
from jax.flatten_util import ravel_pytree

each_case = each()
each_original = each(rows=ORIGINAL, everywhere=EVERYWHERE)


class Problem:
    """A case as functions of one vector, at a point, with directions."""

    def __init__(self, case, rng, dtype=np.float64):
        self.z, unravel = ravel_pytree(case.draw(rng, dtype))
        self.f = lambda z: case.op(*unravel(z))
        self.like_y = jax.eval_shape(self.f, self.z)
        self.c = jnp.asarray(rng.normal(size=self.like_y.shape), dtype)
        self.u, self.v, self.w = (jnp.asarray(rng.normal(size=self.z.shape), dtype) for _ in range(3))

    def s(self, z):
        return (self.c * jnp.sin(self.f(z))).sum()

    def gradient(self, z):
        return jax.grad(self.s)(z)


def forward_over_reverse(s, z, v):
    return jax.jvp(jax.grad(s), (z,), (v,))[1]


def reverse_over_forward(s, z, v):
    return jax.grad(lambda z: jax.jvp(s, (z,), (v,))[1])(z)


def reverse_over_reverse(s, z, v):
    return jax.grad(lambda z: (jax.grad(s)(z) * v).sum())(z)


HVPS = (forward_over_reverse, reverse_over_forward, reverse_over_reverse)


@each_case
def test_first_order(case, rng):
    problem = Problem(case, rng)
    f, z, v = problem.f, problem.z, problem.v

    @jax.jit
    def climb(z, v, c):
        y, along = jax.jvp(f, (z,), (v,))
        _, pullback = jax.vjp(f, z)
        at_z, linear = jax.linearize(f, z)
        return {
            "values": (y, at_z, f(z)),
            "along": (along, linear(v), jax.vmap(linear)(jnp.stack([v, -v]))[0]),
            "back": (
                pullback(c)[0],
                jax.linear_transpose(linear, z)(c)[0],
                jax.vmap(pullback)(jnp.stack([c, -c]))[0][0],
                jax.grad(jax.checkpoint(lambda z: (c * f(z)).sum()))(z),
            ),
            "jacobians": (jax.jacrev(f)(z), jax.jacfwd(f)(z)),
        }, jax.vmap(lambda e: (f(z + e) - f(z - e)) / (2 * STEP), out_axes=-1)(STEP * jnp.eye(z.size))

    derivatives, differences = climb(z, v, problem.c)
    jacobian = np.asarray(derivatives["jacobians"][0])
    close_to_differences(jacobian, differences, terms=256)
    expected = {
        "values": derivatives["values"][-1],
        "along": jacobian @ np.asarray(v),
        "back": np.tensordot(problem.c, jacobian, problem.c.ndim),
        "jacobians": jacobian,
    }
    for name, results in derivatives.items():
        for way in results:
            close(way, expected[name], ulps=1024)


@each_original
def test_second_order(case, rng):
    seed = rng.integers(2**32)
    problem, single = (Problem(case, np.random.default_rng(seed), dtype) for dtype in (np.float64, np.float32))
    z, u, v = problem.z, problem.u, problem.v

    @jax.jit
    def climb(z, u, v):
        products = [hvp(problem.s, z, v) for hvp in HVPS]
        stacked = jax.vmap(lambda v: forward_over_reverse(problem.s, z, v))(jnp.stack([v, u]))
        linear = jax.linearize(jax.grad(problem.s), z)[1]
        remat = jax.jvp(jax.grad(jax.checkpoint(problem.s)), (z,), (v,))[1]
        many = jax.vmap(lambda z: reverse_over_reverse(problem.s, z, v))(jnp.stack([z, z]))
        results = (*products, stacked[0], linear(v), jax.linear_transpose(linear, z)(v)[0], remat, many[1])
        return results, stacked[1], jax.hessian(problem.s)(z)

    results, of_u, hessian = climb(z, u, v)
    gradient = jax.jit(problem.gradient)
    columns = [(gradient(z + e) - gradient(z - e)) / (2 * STEP) for e in STEP * np.eye(z.size)]
    close_to_differences(hessian, np.stack(columns, -1), terms=1024)
    close(hessian, np.asarray(hessian).T, ulps=1024)
    for way in results:
        close(way, np.asarray(hessian) @ np.asarray(v), ulps=1024)
    close(u @ results[0], v @ of_u, ulps=1024)

    product = jax.jit(lambda z, v: forward_over_reverse(single.s, z, v))(single.z, single.v)
    assert product.dtype == np.float32
    # The value, its derivative along v and the pullback follow one another. None sums more numbers than z or y has; a
    # sum of fewer than 64 counts as the 64 that `close` grants to any function, such as a power or a logarithm.
    close(product, results[0], np.float32, terms=max(64, problem.z.size, problem.like_y.size), steps=3)


@each_original
def test_third_order(case, rng):
    problem = Problem(case, rng)
    z, v, w = problem.z, problem.v, problem.w

    @jax.jit
    def climb(z, v, w):
        forward = jax.jvp(lambda z: forward_over_reverse(problem.s, z, v), (z,), (w,))[1]
        backward = jax.grad(lambda z: (w * forward_over_reverse(problem.s, z, v)).sum())(z)
        scalars = jax.jvp(lambda z: jax.jvp(lambda z: jax.jvp(problem.s, (z,), (v,))[1], (z,), (v,))[1], (z,), (v,))
        again = jax.jvp(lambda z: jax.jvp(problem.s, (z,), (v,))[1], (z,), (v,))[1]
        taylor = jet(problem.s, (z,), ((v, jnp.zeros_like(v), jnp.zeros_like(v)),))
        nested = (problem.s(z), [jax.jvp(problem.s, (z,), (v,))[1], again, scalars[1]])
        return forward, backward, taylor, nested

    forward, backward, taylor, nested = climb(z, v, w)
    close(forward, backward, ulps=4096)
    jax.tree.map(lambda a, b: close(a, b, ulps=4096), taylor, nested)


@each(rows=EVERYWHERE)
def test_exports_for_every_platform(case, rng):
    params, x = case.draw(rng, np.float32, batch=(2,))
    (batch,) = export.symbolic_shape("batch")
    any_batch = jax.ShapeDtypeStruct((batch, *case.x), x.dtype)

    def value_gradient_and_product(params, x):
        def s(x):
            return jnp.sin(case.op(params, x)).sum()

        return case.op(params, x), jax.grad(s)(x), forward_over_reverse(s, x, x)

    exported = export.export(jax.jit(value_gradient_and_product), platforms=("cpu", "cuda", "tpu"))(params, any_batch)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    y, gradient, product = exported.call(params, x)
    close(y, jax.jit(case.op)(params, x), np.float32)
    assert gradient.shape == product.shape == x.shape


@each_case
def test_empty_batches(case, rng):
    params, x = case.draw(rng, batch=(0,))

    @jax.jit
    def derivatives(params, x):
        def s(params, x):
            return jnp.sin(case.op(params, x)).sum()

        gradients = jax.grad(s, argnums=(0, 1))(params, x)
        return gradients, jax.jvp(jax.grad(s), (params, x), (params, x))[1]

    (by_params, by_x), product = derivatives(params, x)
    assert by_x.shape == x.shape
    for array in jax.tree.leaves((by_params, product)):
        assert not array.any()

"""What is particular to pools: no derivative scatters or gathers, and their values at kinks and beyond all bounds."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from compare import close
from jaxprs import primitives

import funcconv as fc

pytestmark = pytest.mark.once

each_pool = each(lambda case: "pool" in case.name)
each_selection = each(lambda case: case.largest)
MOVES = ("scatter", "gather", "reduce_window")


def squares(case, params):
    return lambda x: (case.op(params, x) ** 3).sum()


def hvp(f, x, v):
    return jax.jvp(jax.grad(f), (x,), (v,))[1]


@each_pool
def test_nothing_is_scattered(case, rng):
    params, x = case.draw(rng)
    f = squares(case, params)
    forward = primitives(jax.make_jaxpr(partial(case.op, params))(x))
    assert "iota" not in forward, "an index is computed where none is asked for"
    assert not forward & {"argmax", "argmin"}
    for derivative in (jax.grad(f), lambda x: hvp(f, x, x), lambda x: jax.grad(lambda x: hvp(f, x, x).sum())(x)):
        names = forward | primitives(jax.make_jaxpr(derivative)(x))
        assert not [name for name in names if any(word in name for word in MOVES)]


def test_the_walk_sees_what_is_inside():
    def f(x):
        return jax.jit(jax.checkpoint(lambda x: x[jnp.argsort(x)] ** 2))(x).sum()

    names = primitives(jax.make_jaxpr(jax.grad(f))(jnp.ones(3)))
    assert {"sort", "gather"} <= names
    assert any("scatter" in name for name in names)


@pytest.mark.parametrize("reduce", ["max", "min", "lse", "lp", "median"])
def test_derivatives_beside_a_nan_and_infinities(reduce):
    """Where a value is computed from a NaN its derivative is one, where the NaN is selected the derivative is its."""
    x = jnp.array([1.0, jnp.nan, 2.0, 3.0, jnp.inf, 4.0, -jnp.inf, -jnp.inf, 0.0, 0.0]).reshape(10, 1)

    def f(x):
        return fc.pool(x, (2,), reduce=reduce)[:, 0]

    y = f(x)
    assert np.isnan(y[0])
    for jacobian in (jax.jacfwd(f)(x), jax.jacrev(f)(x)):
        assert np.isfinite(jacobian[1:, 2:]).all()
        expected = [0, 1] if reduce in ("max", "min") else [np.nan, np.nan]
        np.testing.assert_array_equal(jacobian[0, :2, 0], expected)


def derivatives_of(case, params):
    """Return the derivative along `t`, that back from `u`, and how the one back changes with its cotangent."""

    def every(x, t, u):
        def op(x):
            return case.op(params, x)

        def back(x, u):
            return jax.vjp(op, x)[1](u)[0]

        return (
            jax.jvp(op, (x,), (t,))[1],
            back(x, u),
            jax.jvp(back, (x, u), (t, u))[1],
            jax.linear_transpose(lambda t: jax.jvp(op, (x,), (t,))[1], t)(u)[0],
            jax.grad(lambda t: jnp.vdot(jax.jvp(op, (x,), (t,))[1], u))(t),
        )

    return jax.jit(every)


@each_selection
@pytest.mark.parametrize("dtype", ["float64", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_derivatives_at_infinities_go_to_inputs_and_not_to_padding(case, dtype, rng):
    every = derivatives_of(case, {})
    lowest, highest = (np.full(case.x, value) for value in (-np.inf, np.inf))
    mixed = rng.choice([-np.inf, -1.0, 1.0, np.inf], case.x)
    for x in (lowest, highest, np.where(mixed > 0, mixed, -np.inf), np.where(mixed < 0, mixed, np.inf), mixed):
        jacobian = case.jacobian(x)
        t = rng.integers(-4, 5, case.x).astype(dtype)
        u = rng.integers(-4, 5, jacobian.shape[:-1]).astype(dtype)
        along = np.einsum("...cp,pc->...c", jacobian, t.reshape(-1, t.shape[-1]).astype(float))
        flat = jacobian.reshape(-1, *jacobian.shape[-2:])
        back = np.einsum("ocp,oc->pc", flat, u.astype(float).reshape(flat.shape[:2])).reshape(t.shape)
        for found, expected in zip(every(x.astype(dtype), t, u), (along, *[back] * 4), strict=True):
            close(found, expected, dtype, ulps=4)


# lse -------------------------------------------------------------------------------------------------------


def lse(values, **options):
    return fc.global_pool(jnp.asarray(values)[:, None], "lse", spatial=1, **options)[0]


def test_lse_of_infinities():
    assert lse([-np.inf, -np.inf]) == -np.inf
    assert lse([-np.inf, np.inf]) == np.inf
    assert lse([-np.inf, 2.0]) == 2
    assert np.isnan(lse([np.nan, np.inf]))
    x = jnp.array([-np.inf, -np.inf, -np.inf, 2.0, np.inf, 1.0]).reshape(6, 1)
    for order in (1, 2):
        f = partial(fc.pool, window=(2,), reduce="lse", padding=1)
        for _ in range(order):
            f = jax.jacfwd(f)
        assert np.isfinite(jax.jit(f)(x)).all()


def test_lse_of_large_values_and_low_temperatures():
    assert lse([1e300, 1e300], temperature=1e-300) == 1e300
    assert lse(np.float32([1e38, 1e38]), temperature=1e-6) == np.float32(1e38)
    x = np.linspace(-1, 1, 5)
    close(lse(x, temperature=0.25), 0.25 * np.log(np.exp(x / 0.25).sum()))
    assert abs(lse(x, temperature=1e-4) - 1) < 1e-3


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e100])
def test_lse_is_differentiated_by_its_temperature(scale):
    x = jnp.array([0.3, -1.0, 0.7, 0.1]) * scale

    def ours(x, t):
        return lse(x, temperature=t)

    def plain(x, t):
        return t * jax.nn.logsumexp(x / t)

    t = jnp.asarray(0.8 * scale)
    for f in (jax.grad, jax.jacfwd, jax.hessian):
        value, expected = (jax.jit(f(g, argnums=1))(x, t) * scale for g in (ours, plain))
        close(value, expected)
    far = jax.jit(jax.grad(ours, argnums=1))(jnp.float32([1e30, -1e30, -jnp.inf]), jnp.float32(1e-6))
    assert far == 0  # log(1), and not a NaN
    hot = jax.jit(jax.vmap(lambda t: ours(x, t)))(jnp.array([0.5, 1.0]) * scale)
    close(hot / scale, jnp.stack([plain(x, 0.5 * scale), plain(x, scale)]) / scale)


# lp --------------------------------------------------------------------------------------------------------


def lp(x, p):
    return fc.global_pool(x[:, None], "lp", p=p, spatial=1)[0]


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 3.5, 4, 10, math.inf])
def test_lp_of_large_and_small_values(p):
    for size in (1e-300, 1e-30, 1.0, 1e30, 1e300):
        x = np.array([-3.0, 0.0, 1.0, 2.0])
        close(lp(jnp.asarray(x * size), p) / size, np.linalg.norm(x, p), terms=256)
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        largest = float(jnp.finfo(dtype).max) / 4
        y = lp(jnp.array([-largest, 0, 0], dtype), p)
        assert y.dtype == dtype
        close(float(y) / largest, 1, dtype)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, 3.5, 4, math.inf])
def test_lp_at_zeros(p):
    """At a window of zeros every derivative is zero; at single zeros too, but for the curvature of even powers."""
    f = partial(lp, p=p)
    derivatives = jax.jit(lambda x: (jax.grad(f)(x), jax.hessian(f)(x), jax.jacrev(jax.hessian(f))(x)))
    assert not any(derivative.any() for derivative in derivatives(jnp.zeros(3)))
    gradient, hessian, _ = derivatives(jnp.array([0.0, -2.0, 0.0]))
    np.testing.assert_array_equal(gradient, [0, -1, 0])
    close(hessian, np.diag([0.5, 0, 0.5]) if p == 2 else np.zeros((3, 3)))
    if p == 4:  # the fourth derivative of |x| (1 + x^4 / |x|^4)^(1/4) is 6 / |x|^3
        fourth = jax.jit(jax.grad(jax.grad(jax.grad(jax.grad(lambda t: f(jnp.array([t, -2.0])))))))(0.0)
        close(fourth, 6 / 8, terms=1024)


def test_lp_of_infinities():
    for p in (1, 2, 3.5, math.inf):
        assert lp(jnp.array([1.0, -np.inf]), p) == np.inf
        assert np.isnan(lp(jnp.array([1.0, np.nan, np.inf]), p))


def test_lp_beside_a_tiny_tap():
    """The scale is that of the window, so the curvature by a tap far below it is neither lost nor infinite."""
    for dtype, tiny in ((jnp.float32, 1e-30), (jnp.float64, 1e-200)):
        x = jnp.array([1.0, tiny], dtype)
        close(jax.jit(jax.hessian(partial(lp, p=2)))(x)[1, 1], 1, dtype)


# median ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 9, 16, 17, 65])
def test_medians_select_the_first_of_equals(count, rng):
    """By rank of slices, by rank of one array and by sorting."""
    x = rng.integers(0, 3, (2, count + 3, 2)).astype(np.float64)

    def f(x):
        return fc.pool(x, (count,), stride=1, reduce="median")

    y, jacobian = jax.jit(lambda x: (f(x), jax.jacrev(f)(x)))(x)
    expected = np.zeros(jacobian.shape)
    for b, o, c in np.ndindex(y.shape):
        taps = x[b, o : o + count, c]
        which = np.argsort(taps, stable=True)[(count - 1) // 2]
        assert y[b, o, c] == taps[which]
        expected[b, o, c, b, o + which, c] = 1
    np.testing.assert_array_equal(jacobian, expected)


def test_medians_of_infinities_and_nans():
    of_all = jax.jit(partial(fc.global_pool, reduce="median", spatial=1))
    for count in (3, 70):
        x = jnp.full((count, 1), jnp.inf)
        assert of_all(x)[0] == np.inf
        assert np.isnan(of_all(x.at[0].set(jnp.nan))[0])
        with_edges = jax.jit(partial(fc.pool, window=(count,), stride=1, padding=1, reduce="median"))
        assert with_edges(x).tolist() == [[np.inf]] * 3

"""Laws that hold for every op: each test runs over the whole table of cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CHIEF, each
from compare import close

import funcconv as fc

each_case = each()
each_chief = each(rows=CHIEF)
# A blur is a convolution, of which some forms multiply other channels by 0.
each_pool = each(lambda case: "pool" in case.name and not case.name.startswith("blur"))
each_selection = each(lambda case: case.largest)


@each_case
def test_equals_the_loops(case, rng):
    params, x = case.draw(rng)
    close(jax.jit(case.op)(params, x), case.oracle(jax.tree.map(np.asarray, params), np.asarray(x)))


@each_chief
def test_eager_calls_take_numpy_arrays_and_are_as_jitted(case, rng):
    params, x = case.draw(rng, batch=(2,))
    y = case.op(*jax.tree.map(np.asarray, (params, x)))
    assert isinstance(y, jax.Array)
    close(y, jax.jit(case.op)(params, x))


@each_case
def test_any_batch_axes(case, rng):
    params, x = case.draw(rng, batch=(2, 3))
    op = jax.jit(case.op)
    one_by_one = np.stack([np.stack([op(params, each) for each in row]) for row in x])
    close(op(params, x[0]), one_by_one[0])
    close(op(params, x), one_by_one)
    assert op(params, x[:, :0]).shape == (2, 0, *one_by_one.shape[2:])


@each_case
def test_vmap_is_a_loop_on_every_axis(case, rng):
    draws = [case.draw(rng, batch=(2,)) for _ in range(3)]
    params, xs = jax.tree.map(lambda *leaves: np.stack(leaves), *draws)
    op = jax.jit(case.op)
    loop = np.stack([op(params_i, x) for params_i, x in draws])

    @jax.jit
    def every_axis(params, xs):
        mapped = []
        for axis in range(xs.ndim):
            out = axis % loop.ndim
            y = jax.vmap(case.op, in_axes=(0, axis), out_axes=out)(params, jnp.moveaxis(xs, 0, axis))
            mapped.append(jnp.moveaxis(y, out, 0))
        return mapped

    for mapped in every_axis(params, xs):
        close(mapped, loop)
    over_x = jax.jit(jax.vmap(case.op, in_axes=(None, 0)))(draws[0][0], xs)
    close(over_x, np.stack([op(draws[0][0], x) for x in xs]))
    if params:
        last = jax.tree.map(lambda p: np.moveaxis(p, 0, -1), params)
        over_params = jax.jit(jax.vmap(case.op, in_axes=(-1, None)))(last, xs[0])
        close(over_params, np.stack([op(params_i, xs[0]) for params_i, _ in draws]))


@each_case
def test_keeps_bfloat16(case, rng):
    keeps(case, "bfloat16", rng)


@each_chief
@pytest.mark.once
@pytest.mark.parametrize("dtype", ["float16", pytest.param("float32", marks=pytest.mark.slow)])  # others in float64
def test_keeps_the_dtype(case, dtype, rng):
    keeps(case, dtype, rng)


def keeps(case, dtype, rng):
    params, x = case.draw(rng, dtype)

    @jax.jit
    def value_and_gradients(params, x):
        y, pullback = jax.vjp(case.op, params, x)
        return y, pullback(jnp.ones_like(y))

    y, gradients = value_and_gradients(params, x)
    assert y.dtype == dtype
    exact = case.oracle(*jax.tree.map(lambda a: np.asarray(a, np.float64), (params, x)))
    close(y, exact, dtype, ulps=64 if dtype == "float32" else 4)
    assert {g.dtype for g in jax.tree.leaves(gradients)} == {jnp.dtype(dtype)}


@each_selection
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_selections_take_integers(case, dtype, rng):
    x = rng.integers(0, 100, case.x).astype(dtype)
    y = jax.jit(case.op)({}, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, case.oracle({}, x))


@each_case
def test_leaks_no_tracer(case, rng):
    params, x = case.draw(rng)
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda params, x: case.op(params, x).sum(), argnums=1)).lower(params, x)


@each_case
def test_shapes_are_predicted(case, rng):
    params, x = case.draw(rng, batch=(2,))
    node_input = fc.Input("x", case.x)
    graph = fc.Graph(node_input, fc.node(case.op, node_input, params="p"))
    y = jax.jit(graph)({"p": params}, x)
    assert graph.init(jax.random.key(0), p=params) == {"p": params}  # infers every shape on its way
    assert y.shape == jax.eval_shape(case.op, params, x).shape
    close(y, np.stack([case.oracle(*jax.tree.map(np.asarray, (params, each))) for each in x]))


@each_pool
def test_a_nan_is_seen(case, rng):
    """A NaN reaches just the results whose window it is in."""
    params, x = case.draw(rng)
    place = tuple(size // 2 for size in x.shape)
    spike = jnp.zeros(x.shape).at[place].set(1)
    reached = jax.jit(case.windows or case.op)(params, spike) != 0
    np.testing.assert_array_equal(np.isnan(jax.jit(case.op)(params, x.at[place].set(jnp.nan))), reached)

"""Pools of numbers of few bits: floats without infinities, integers of four bits, and sums of 16-bit cotangents."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

pytestmark = pytest.mark.once

FLOATS = [
    "float8_e4m3fn",
    "float8_e4m3b11fnuz",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e5m2",
    "float8_e3m4",
    "float8_e4m3",
    "float4_e2m1fn",
]
REDUCES = ["max", "min", "sum", "mean", "prod", "lse", "lp", "median"]
POOLS = {
    "pool": partial(fc.pool, window=(3, 2), stride=(2, 1), padding=1),
    "apart": partial(fc.pool, window=(3, 2), padding=1),
    "ceil": partial(fc.pool, window=(3, 2), stride=2, ceil_mode=True),
    "global": fc.global_pool,
    "adaptive": partial(fc.adaptive_pool, output_size=(3, 2)),
}


def image(dtype, rng):
    """Return small numbers that the dtype holds exactly."""
    return jnp.asarray(rng.choice([-2.0, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], (2, 4, 5, 2)), jnp.float32).astype(dtype)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [FLOATS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in FLOATS[1:])])
def test_small_floats_are_computed_as_float32(dtype, name, rng):
    """Values are those of float32, rounded once; so are derivatives, and no infinity of the padding is in them."""
    x, pool = image(dtype, rng), POOLS[name]

    @jax.jit
    def every(x, wide):
        found = []
        for options in [*({"reduce": reduce} for reduce in REDUCES), {"reduce": "max", "ties": "split"}]:
            ours, back = jax.vjp(partial(pool, **options), x)
            exact, exact_back = jax.vjp(partial(pool, **options), wide)
            ones = jnp.ones_like(exact)
            found.append((ours, exact, exact.astype(dtype)))
            ours, exact = back(ones.astype(dtype))[0], exact_back(ones)[0]
            found.append((ours, exact, exact.astype(dtype)))
        found.append((*pool(x, reduce="max", return_indices=True), *pool(wide, reduce="max", return_indices=True)))
        return found

    *values, (y, indices, exact_y, exact_indices) = jax.tree.map(
        lambda a: np.asarray(a, a.dtype if a.dtype == np.int32 else np.float32), every(x, x.astype(jnp.float32))
    )
    for ours, exact, rounded in values:
        np.testing.assert_array_equal(ours, rounded)
        assert np.isfinite(ours[np.abs(exact) < float(jnp.finfo(dtype).max)]).all()
    np.testing.assert_array_equal(y, exact_y)
    np.testing.assert_array_equal(indices, exact_indices)


@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_windows_of_the_lowest_small_float(dtype, reduce):
    limits = jnp.finfo(dtype)
    x = jnp.full((4, 1), float(limits.min if reduce == "max" else limits.max), jnp.float32).astype(dtype)
    y, indices = fc.pool(x, (3,), padding=1, reduce=reduce, return_indices=True)
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x[:2], np.float32))
    assert indices[:, 0].tolist() == [0, 2]
    (back,) = jax.vjp(partial(fc.pool, window=(3,), padding=1, reduce=reduce), x)[1](jnp.ones_like(y))
    assert back[:, 0].tolist() == [1, 0, 1, 0]


def test_a_function_sees_a_small_float(rng):
    x = image("float8_e4m3fn", rng)

    def middle(taps, axis):
        assert taps.dtype == x.dtype
        return jax.lax.index_in_dim(taps, 1, axis, keepdims=False)

    y = fc.pool(x, reduce=middle)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(x[:, ::2, 1:4:2], np.float32))


@pytest.mark.parametrize("op", [fc.pool, fc.global_pool, partial(fc.adaptive_pool, output_size=2)])
def test_powers_of_two_alone_are_refused(op):
    x = jnp.ones((1, 4, 4, 1), jnp.float8_e8m0fnu)
    with pytest.raises(fc.FuncconvError, match=r"float8_e8m0fnu.*neither zero nor signs.*x\.astype\(jnp\.float32\)"):
        op(x)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint16", "bool"])
@pytest.mark.parametrize("reduce", ["max", "min", "median"])
def test_small_integers(dtype, reduce, rng):
    if reduce == "median" and dtype == "bool":
        pytest.skip("a median of booleans has no meaning")
    x = jnp.asarray(rng.integers(0, 2 if dtype == "bool" else 7, (2, 6, 1))).astype(dtype)
    y = fc.pool(x, 3, stride=2, padding=1, reduce=reduce)
    assert y.dtype == x.dtype
    expected = fc.pool(x.astype(jnp.float32), 3, stride=2, padding=1, reduce=reduce)
    np.testing.assert_array_equal(np.asarray(y, np.float32), expected)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int32", "uint8", "bool"])
@pytest.mark.parametrize("reduce", ["max", "min"])
def test_indices_of_windows_that_tie_with_padding(dtype, reduce):
    if dtype == "bool":
        lowest = reduce == "min"
    else:
        limits = jnp.iinfo(dtype)
        lowest = int(limits.min if reduce == "max" else limits.max)
    x = jnp.full((5, 3, 1), lowest, dtype)
    for options in ({"stride": 1}, {"stride": 2, "ceil_mode": True}, {}):
        y, indices = fc.pool(x, (3, 2), padding=1, reduce=reduce, return_indices=True, **options)
        assert (y == lowest).all()
        finite = fc.pool(jnp.zeros(x.shape), (3, 2), padding=1, reduce=reduce, return_indices=True, **options)[1]
        np.testing.assert_array_equal(indices, finite)


SUMS = {  # of as many cotangents as a 16-bit sum cannot hold
    "max": partial(fc.pool, window=(900,), stride=1, padding=899),
    "few taps": partial(fc.pool, window=(2,), stride=1, padding=((899, 899),), pad_mode="replicate"),
    "split": partial(fc.pool, window=(900,), stride=1, padding=899, ties="split"),
    "median": partial(fc.pool, window=(901,), stride=1, padding=900, reduce="median"),
    "sum": partial(fc.pool, window=(900,), stride=1, padding=899, reduce="sum"),
    "mean": partial(fc.pool, window=(900,), stride=1, padding=899, reduce="mean"),
    "prod": partial(fc.pool, window=(900,), stride=1, padding=899, reduce="prod"),
    "lse": partial(fc.pool, window=(900,), stride=1, padding=899, reduce="lse", temperature=1e-3),
    "lp": partial(fc.pool, window=(900,), stride=1, padding=899, reduce="lp", p=float("inf")),
    "adaptive": partial(fc.adaptive_pool, output_size=(1800,), reduce="max"),
    "indices": lambda x: fc.pool(x, (900,), stride=1, padding=899, return_indices=True)[0],
    "symmetric": partial(fc.pool, window=(1,), padding=900, pad_mode="symmetric", reduce="sum"),
    "reflect": partial(fc.pool, window=(1,), padding=900, pad_mode="reflect", reduce="sum"),
    "circular": partial(fc.pool, window=(1,), padding=900, pad_mode="circular", reduce="sum"),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_cotangents_are_summed_in_float32(dtype, name, rng):
    op = jax.jit(lambda x, u: jax.vjp(SUMS[name], x)[1](u)[0])
    x = jnp.asarray([[1.0], [3.0], [0.5]])
    u = 1 + rng.integers(0, 8, jax.eval_shape(SUMS[name], x).shape) / 8
    found, exact = op(x.astype(dtype), u.astype(dtype)), op(x, u)
    assert np.abs(exact).max() > 300  # where a sum in bfloat16 has stopped to grow
    close(found, exact, dtype, ulps=1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_unpooled_values_are_summed_in_float32(dtype, rng):
    y = 1 + rng.integers(0, 8, (900, 1)) / 8
    found = fc.max_unpool(y.astype(dtype), jnp.full(y.shape, 899), (900,), stride=1)
    assert found.dtype == dtype
    close(found[899, 0], y.sum(), dtype, ulps=1)

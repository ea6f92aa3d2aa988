"""What `explain` says of a program."""

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

PARAMS = {"kernel": np.ones((3, 3, 8, 20), np.float32)}
X = jax.ShapeDtypeStruct((4, 10, 10, 8), np.float32)


def loss(params, x):
    return jnp.sin(fc.conv(params, x, stride=2)).sum()


def test_a_convolution():
    (row,) = fc.explain(loss, PARAMS, X, platform="cpu")
    assert (row.map, row.form, row.times) == ("conv", "lax", 1)
    explanation = fc.explain(loss, PARAMS, X, platform="cpu")
    assert repr(explanation) == str(explanation)  # the table at the prompt too
    assert (row.image, row.kernel, row.stride) == (X.shape, (3, 3, 8, 20), (2, 2))
    assert row.flops == 2 * (4 * 4 * 4) * (3 * 3 * 8 * 20)
    assert row.bytes == 4 * (4 * 10 * 10 * 8 + 3 * 3 * 8 * 20 + 4 * 4 * 4 * 20)


def test_derivatives():
    found = fc.explain(jax.grad(loss, argnums=(0, 1)), PARAMS, X, platform="cpu")
    forms = {row.map: row.form for row in found}
    assert forms == {"conv": "lax", "conv_input_grad": "stride_phases", "conv_kernel_grad": "exchanged_axes"}
    assert found.flops == 3 * found[0].flops
    again = fc.explain(lambda p, x: fc.hvp(lambda p: loss(p, x), p, p), PARAMS, X, platform="cpu")
    assert {row.map: row.times for row in again} == {"conv": 2, "conv_kernel_grad": 1}


def test_loops_are_counted():
    def f(params, x):
        square = {"kernel": params["kernel"][..., :8]}
        return jax.lax.scan(lambda x, _: (fc.conv(square, x, padding=1), None), x, length=7)[0]

    (row,) = fc.explain(jax.jit(f), PARAMS, X)
    assert row.times == 7


def test_other_platforms_and_implementations():
    assert [row.form for row in fc.explain(jax.grad(loss), PARAMS, X, platform="tpu")] == ["lax", "lax"]
    assert fc.explain(lambda p, x: fc.conv(p, x, implementation="lax"), PARAMS, X) == ()
    each = fc.explain(jax.vmap(jax.grad(lambda p, x: loss(p, x[None])), (None, 0)), PARAMS, X, platform="cpu")
    assert {row.map: row.form for row in each} == {"conv": "lax", "conv_kernel_grad": "batched_product"}
    assert len({row.flops for row in each}) == 1


def test_pools():
    def of_pool(x):
        return jnp.square(fc.max_pool(x, 4, stride=2)).sum()

    (row,) = fc.explain(of_pool, X)
    assert (row.map, row.form, row.image, row.kernel, row.stride) == ("extreme", "fold", X.shape, (4, 4), (2, 2))
    assert row.flops == 16 * 4 * 4 * 4 * 8
    assert row.bytes == 4 * (4 * 10 * 10 * 8 + 4 * 4 * 4 * 8)
    assert {row.map for row in fc.explain(jax.grad(of_pool), X)} == {"pick", "place"}
    mapped = fc.explain(jax.vmap(jax.grad(lambda x: of_pool(x[None]))), X)
    assert {row.image for row in mapped} == {X.shape}


def test_it_prints_as_a_table():
    lines = str(fc.explain(loss, PARAMS, X, platform="cpu")).splitlines()
    assert lines[0].split() == ["map", "image", "kernel", "stride", "groups", "times", "MFLOP", "MB", "form", "why"]
    assert lines[1].split()[:9] == ["conv", "4x10x10x8", "3x3x8x20", "2x2", "1", "1", "0.2", "0.02", "lax"]
    assert str(fc.explain(jnp.sin, X)).split() == lines[0].split()

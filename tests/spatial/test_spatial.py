"""Images spread over devices: values, gradients and products with the Hessian are those of one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from jax.sharding import AxisType

import funcconv as fc

pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")


def mesh_of(*sizes):
    names = ("rows", "columns")[: len(sizes)]
    return jax.make_mesh(
        sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=jax.devices()[: np.prod(sizes)]
    )


def check(local, whole, params, x, mesh, names):
    """Compare values and derivatives of a spread op with those of the op on one device."""
    spec = jax.P(None, *names)
    spread = jax.shard_map(local, mesh=mesh, in_specs=(jax.P(), spec), out_specs=spec)

    def derivatives(op):
        def s(params, x):
            return jnp.sin(op(params, x)).sum()

        def of(params, x):
            gradient = jax.grad(s, argnums=(0, 1))
            return op(params, x), gradient(params, x), jax.jvp(gradient, (params, x), (params, x))[1]

        return jax.jit(of)

    found, expected = derivatives(spread)(params, x), derivatives(whole)(params, x)
    jax.tree.map(lambda a, b: close(jax.device_get(a), b, ulps=2048), found, expected)


def conv_problem(rng, sizes, window, groups=1):
    params = {"kernel": rng.normal(size=(*window, 4 // groups, 2 * groups)), "bias": rng.normal(size=2 * groups)}
    return params, rng.normal(size=(2, *sizes, 4))


CONVS = {
    "same": ((16, 6), (3, 3), {"padding": "SAME"}),
    "valid": ((20, 6), (5, 2), {}),  # 16 windows: what a device computes is not where its block is
    "stride": ((16, 6), (3, 3), {"padding": "SAME", "stride": 2}),
    "stride-as-wide-as-the-window": ((16, 4), (2, 2), {"stride": 2}),
    "groups": ((16, 6), (3, 3), {"padding": 1, "groups": 2}),
    "depthwise": ((16, 6), (3, 3), {"padding": 1, "groups": 4}),
    "dilation": ((16, 6), (3, 2), {"padding": "SAME", "dilation": (3, 1)}),
    "several-hops": ((8, 4), (13, 1), {"padding": ((6, 6), (0, 0))}),
    "one-sided": ((16, 4), (5, 1), {"padding": "CAUSAL"}),
    "cropped": ((20, 4), (3, 1), {"padding": ((-3, 1), (0, 0))}),
    "reflect": ((16, 6), (5, 3), {"padding": (2, 1), "pad_mode": "reflect"}),
    "symmetric": ((16, 6), (5, 3), {"padding": ((3, 1), (1, 1)), "pad_mode": "symmetric"}),
    "replicate": ((16, 6), (5, 3), {"padding": "SAME", "pad_mode": ("replicate", "reflect")}),
    "circular": ((16, 6), (5, 3), {"padding": "SAME", "pad_mode": "circular"}),
    "circular-several-hops": ((8, 4), (13, 1), {"padding": ((6, 6), (0, 0)), "pad_mode": "circular"}),
    "reflect-several-hops": ((8, 4), (13, 1), {"padding": ((6, 6), (0, 0)), "pad_mode": "reflect"}),
    "wider-than-the-image": ((8, 4), (21, 1), {"padding": ((10, 10), (0, 0)), "pad_mode": "symmetric"}),
    "flip": ((16, 6), (3, 2), {"padding": "SAME", "flip": True}),
}


def rows(of, slow):
    """Return the mark that runs a test over the rows; some show what others do too, and are slow."""
    return pytest.mark.parametrize(
        "name",
        [pytest.param(each, marks=pytest.mark.slow if each in slow else pytest.mark.once) for each in of],
    )


@rows(CONVS, {"flip", "symmetric", "one-sided", "dilation", "depthwise", "reflect-several-hops"})
def test_conv_by_rows(name, rng):
    sizes, window, options = CONVS[name]
    names = ("rows", None)
    params, x = conv_problem(rng, sizes, window, options.get("groups", 1))
    local = partial(fc.spatial.conv, axis_names=names, **options)
    check(local, partial(fc.conv, **options), params, x, mesh_of(4), names)


@pytest.mark.parametrize("name", ["same", "stride", "reflect", "circular"])
def test_conv_by_rows_and_columns(name, rng):
    (rows, _), window, options = CONVS[name]
    names = ("rows", "columns")
    params, x = conv_problem(rng, (rows, 12), window)
    local = partial(fc.spatial.conv, axis_names=names, **options)
    check(local, partial(fc.conv, **options), params, x, mesh_of(2, 2), names)


POOLS = {
    "max": ((16, 6), 2, {}),
    "max-overlapping": ((16, 6), 3, {"stride": 2, "padding": 1}),
    "max-padded": ((16, 6), (5, 3), {"stride": 1, "padding": "SAME"}),
    "max-split": ((16, 6), 3, {"stride": 1, "padding": "SAME", "ties": "split"}),
    "mean": ((16, 6), 3, {"reduce": "mean", "stride": 1, "padding": 1}),
    "mean-include": ((16, 6), 3, {"reduce": "mean", "stride": 1, "padding": 1, "count_include_pad": True}),
    "mean-ceil": ((16, 6), 3, {"reduce": "mean", "stride": 2, "padding": (0, 1), "ceil_mode": True}),
    "mean-ceil-include": (
        (16, 6),
        3,
        {"reduce": "mean", "stride": 2, "padding": (0, 1), "ceil_mode": True, "count_include_pad": True},
    ),
    "lse-several-hops": ((8, 4), (13, 1), {"reduce": "lse", "stride": 1, "padding": ((6, 6), (0, 0))}),
    "median": ((16, 6), (3, 2), {"reduce": "median", "stride": 1, "padding": "SAME"}),
    "sum-reflect": ((16, 6), 3, {"reduce": "sum", "stride": 1, "padding": 1, "pad_mode": "reflect"}),
    "max-circular": ((16, 6), 3, {"stride": 2, "padding": 1, "pad_mode": ("circular", None)}),
    "cropped": ((20, 4), (3, 1), {"stride": 1, "padding": ((-3, 1), (0, 0))}),
    "cropped-ceil": ((20, 4), (3, 1), {"stride": 2, "padding": ((0, -4), (0, 0)), "ceil_mode": True}),
}


@rows(POOLS, {"max", "max-split", "mean-include", "mean-ceil", "cropped", "sum-reflect", "max-padded"})
def test_pool_by_rows(name, rng):
    sizes, window, options = POOLS[name]
    names = ("rows", None)
    x = rng.permutation(2 * int(np.prod(sizes)) * 3).reshape(2, *sizes, 3) / 50.0

    def local(params, x):
        del params
        return fc.spatial.pool(x, window, axis_names=names, **options)

    check(local, lambda params, x: fc.pool(x, window, **options), {}, x, mesh_of(4), names)  # noqa: ARG005


@pytest.mark.parametrize("name", ["max-padded", "mean-include"])
def test_pool_by_rows_and_columns(name, rng):
    (rows, _), window, options = POOLS[name]
    names = ("rows", "columns")
    x = rng.permutation(2 * rows * 12 * 3).reshape(2, rows, 12, 3) / 50.0

    def local(params, x):
        del params
        return fc.spatial.pool(x, window, axis_names=names, **options)

    check(local, lambda params, x: fc.pool(x, window, **options), {}, x, mesh_of(2, 2), names)  # noqa: ARG005


def test_no_more_is_moved_than_the_halo(rng):
    """The compiled program has permutations between neighbours, and gathers nothing."""
    params, x = conv_problem(rng, (16, 6), (3, 3))
    names = ("rows", None)
    local = partial(fc.spatial.conv, axis_names=names, padding="SAME")
    spread = jax.shard_map(
        local, mesh=mesh_of(4), in_specs=(jax.P(), jax.P(None, *names)), out_specs=jax.P(None, *names)
    )
    text = jax.jit(jax.grad(lambda x: spread(params, x).sum())).lower(x).compile().as_text()
    assert "collective-permute" in text
    assert "all-gather" not in text


def bad(call, *, devices=4, shape=(1, 8, 4, 2)):
    spec = jax.P(None, "rows")
    return jax.shard_map(call, mesh=mesh_of(devices), in_specs=spec, out_specs=spec)(jnp.ones(shape))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: fc.spatial.pool(x, 3, axis_names=("rows", None), stride=1), ["6 windows", "4 devices of 'rows'"]),
        (lambda x: fc.spatial.pool(x, 2, axis_names=("lines", None)), ["'lines' is not an axis", "jax.shard_map"]),
        (lambda x: fc.spatial.pool(x, 2, axis_names="rows"), ["axis_names must be a tuple", "'rows'"]),
        (lambda x: fc.spatial.pool(x, (2, 2), axis_names=("rows",) * 4), ["axis_names must be a tuple"]),
        (lambda x: fc.spatial.conv({"kernel": jnp.ones((3, 2, 2))}, x, axis_names=("rows", None)), ["2 spatial axes"]),
        (lambda x: fc.spatial.halo_exchange(x, -1, 0, axis=1, axis_name="rows"), ["before=-1, after=0"]),
    ],
)
def test_bad_calls_say_what_was_expected(call, words):
    with pytest.raises(fc.FuncconvError) as error:
        bad(call)
    for word in words:
        assert word in str(error.value)


REFUSED_POOLS = {
    "windows wholly before the image": {"window": (1,), "stride": 1, "padding": ((6, 3),), "reduce": "mean"},
    "windows wholly behind the image": {"window": (2,), "stride": 2, "padding": ((0, 6),), "reduce": "max"},
    "gaps of a dilation": {"window": (2,), "stride": 1, "dilation": 9, "padding": ((8, 7),), "reduce": "sum"},
    "a function and padding": {"window": (2,), "stride": 1, "padding": ((1, 0),), "reduce": jnp.median},
}


@pytest.mark.parametrize("name", REFUSED_POOLS)
def test_pool_refuses_as_the_pool_of_the_whole_image_does(name):
    options, spec = REFUSED_POOLS[name], jax.P(None, "rows")
    x = jnp.ones((1, 6, 1))
    with pytest.raises(fc.FuncconvError) as expected:
        fc.pool(x, **options)
    spread = jax.shard_map(
        partial(fc.spatial.pool, axis_names=("rows",), **options), mesh=mesh_of(3), in_specs=spec, out_specs=spec
    )
    with pytest.raises(fc.FuncconvError) as found:
        spread(x)
    assert str(found.value) == str(expected.value)

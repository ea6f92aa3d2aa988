"""Derivatives on a mesh of four devices equal those on one: mapped by hand, spread by XLA, or spread by type."""

import jax
import jax.numpy as jnp
import pytest
from cases import CASES, EVERYWHERE
from compare import close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

IN_THE_SUITE = {
    "conv-everything",
    "conv-depthwise",
    "conv-modes",
    "conv_transpose-everything",
    "local_conv-everything",
    "max_pool-overlapping",
    "max_pool-split",
    "avg_pool",
    "global_pool-max",
    "adaptive_pool",
    "dense",
    "flatten-channels-first",
    "graph-siamese",
}
SPREAD, WHOLE = PartitionSpec("devices"), PartitionSpec()

each_case = pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            case,
            id=case.name,
            marks=[
                *([] if case.name in IN_THE_SUITE else [pytest.mark.slow]),
                *([] if case.name in EVERYWHERE else [pytest.mark.once]),
            ],
        )
        for case in CASES
    ],
)
pytestmark = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")


def mesh_of(kind):
    return jax.make_mesh((4,), ("devices",), axis_types=(kind,))


def problem(case, rng):
    """Return the gradient and the product with the Hessian of a sum over the batch, and a point."""

    def s(params, x):
        return jnp.sin(case.op(params, x)).sum()

    def derivatives(params, x):
        gradient = jax.grad(s, argnums=(0, 1))
        return gradient(params, x), jax.jvp(gradient, (params, x), (params, x))[1]

    return s, derivatives, *case.draw(rng, batch=(8,))


def agree(found, expected):
    jax.tree.map(lambda a, b: close(jax.device_get(a), b, ulps=1024), found, expected)


@each_case
def test_inside_of_shard_map(case, rng):
    _, derivatives, params, x = problem(case, rng)
    each = (WHOLE, SPREAD)  # by the parameters a sum over the devices, by the input a part on each
    spread = jax.shard_map(derivatives, mesh=mesh_of(AxisType.Auto), in_specs=(WHOLE, SPREAD), out_specs=(each, each))
    agree(jax.jit(spread)(params, x), jax.jit(derivatives)(params, x))


@each_case
def test_outside_of_shard_map(case, rng):
    s, derivatives, params, x = problem(case, rng)

    def total(params, x):
        return jax.shard_map(
            lambda params, x: jax.lax.psum(s(params, x), "devices"),
            mesh=mesh_of(AxisType.Auto),
            in_specs=(WHOLE, SPREAD),
            out_specs=WHOLE,
        )(params, x)

    def outside(params, x):
        gradient = jax.grad(total, argnums=(0, 1))
        return gradient(params, x), jax.jvp(gradient, (params, x), (params, x))[1]

    agree(jax.jit(outside)(params, x), jax.jit(derivatives)(params, x))


@each_case
def test_spread_by_xla(case, rng):
    _, derivatives, params, x = problem(case, rng)
    spread = jax.device_put(x, NamedSharding(mesh_of(AxisType.Auto), SPREAD))
    found = jax.jit(derivatives)(params, spread)
    agree(found, jax.jit(derivatives)(params, x))


@each_case
def test_spread_by_type(case, rng):
    _, derivatives, params, x = problem(case, rng)
    expected = jax.jit(derivatives)(params, x)
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        spread = jax.device_put(params, WHOLE), jax.device_put(x, SPREAD)
        found = jax.jit(derivatives)(*spread)
        assert jax.typeof(found[0][1]).sharding.spec[0] == "devices"
        agree(found, expected)
        if case.name.startswith(("conv", "max_pool", "dense")):
            of_each = jax.jit(jax.vmap(lambda params, x: derivatives(params, x[None])[0][1], (None, 0)))
            agree(of_each(*spread)[:, 0], expected[0][1])

"""Every op on every mesh: values and derivatives are those of one device, whichever axes are spread."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, EVERYWHERE, SLOW
from compare import close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv._primitives.forms import choice as _choice

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

MESHES = (8,), (2, 4), (4, 2)
KINDS = "batch", "channels", "space", "kernel", "window"
ON_ONE_AXIS = [((8,), (kind,)) for kind in KINDS]
ON_TWO_AXES = [(mesh, kinds) for mesh in MESHES[1:] for kinds in itertools.permutations(KINDS, 2)]
# Each mesh and each kind once: what an op meets at least.
SAMPLE = ((8,), ("window",)), ((2, 4), ("batch", "kernel")), ((4, 2), ("channels", "space"))
MORE = ((8,), ("space",)), ((2, 4), ("space", "kernel")), ((4, 2), ("kernel", "batch"))


def specs_of(kinds, params, x):
    """Return how parameters and an input `(batch, *spatial, channels)` are spread; the i-th kind by the i-th axis."""
    names = dict(zip(kinds, "ab", strict=False))
    in_space = [names.get("space") if axis == 0 else None for axis in range(x.ndim - 2)]

    def of_parameter(leaf):
        if leaf.ndim < 2:
            return PartitionSpec(names.get("kernel")) if leaf.ndim else PartitionSpec()
        return PartitionSpec(names.get("window"), *[None] * (leaf.ndim - 2), names.get("kernel"))

    return jax.tree.map(of_parameter, params), PartitionSpec(names.get("batch"), *in_space, names.get("channels"))


def problem(case, rng, batch):
    """Return a function that gives the value, both cotangents and a Hessian-vector product, and its arguments."""
    params, x = case.draw(rng, batch=(batch,))
    random = lambda like: jnp.asarray(rng.normal(size=like.shape))  # noqa: E731
    cotangent, tangents = random(jax.eval_shape(case.op, params, x)), jax.tree.map(random, (params, x))

    def derivatives(params, x):
        y, pullback = jax.vjp(case.op, params, x)
        gradient = jax.grad(lambda params, x: jnp.sin(case.op(params, x)).sum(), argnums=(0, 1))
        like = jax.tree.map(alike, tangents, (params, x))
        return y, pullback(alike(cotangent, y)), jax.jvp(gradient, (params, x), like)[1]

    return derivatives, params, x


def alike(array, other):
    """Return an array that is spread as another, where types say how."""
    sharding = jax.typeof(other).sharding
    return array if sharding.mesh.empty or sharding.mesh.are_all_axes_auto else jax.sharding.reshard(array, sharding)


def mesh_of(sizes, kind):
    return jax.make_mesh(sizes, tuple("ab"[: len(sizes)]), axis_types=(kind,) * len(sizes))


def agree(actual, expected):
    jax.tree.map(lambda a, b: close(jax.device_get(a), b, ulps=2048), actual, expected)


def rows(keep=lambda case: True):  # noqa: ARG005
    """Return cases with meshes and kinds: the rows of an op take turns, so that it meets each at least once.

    On a second version of JAX, the rows are enough that stand for each kind of derivative.
    """
    kept, turns = [case for case in CASES if keep(case)], {}
    for case in kept:
        turns.setdefault(case.name.split("-")[0], []).append(case)
    chosen = set()
    for cases in turns.values():
        fast = [case for case in cases if case.name not in SLOW] or cases[:1]
        for i, where in zip(range(max(len(SAMPLE), len(fast))), itertools.cycle((*SAMPLE, *MORE))):
            chosen.add((fast[i % len(fast)].name, *where))
    found = []
    for case, (mesh, kinds) in itertools.product(kept, (*ON_ONE_AXIS, *ON_TWO_AXES)):
        fast = (case.name, mesh, kinds) in chosen
        if fast or case.params or {"kernel", "window"}.isdisjoint(kinds):
            name = f"{case.name}-{'x'.join(map(str, mesh))}-{'-'.join(kinds)}"
            marks = [] if fast else [pytest.mark.slow]
            marks += [] if case.name in EVERYWHERE else [pytest.mark.once]
            found.append(pytest.param(case, mesh, kinds, id=name, marks=marks))
    return pytest.mark.parametrize(("case", "sizes", "kinds"), found)


def check_automatic(case, sizes, kinds, rng):
    derivatives, params, x = problem(case, rng, batch=6)  # which four and eight devices do not divide
    mesh, specs = mesh_of(sizes, AxisType.Auto), specs_of(kinds, params, x)

    def spread(params, x):
        # A constraint, unlike an argument, may spread an axis over devices that do not divide it.
        place = lambda leaf, spec: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))  # noqa: E731
        return derivatives(*jax.tree.map(place, (params, x), specs))

    agree(jax.jit(spread)(params, x), jax.jit(derivatives)(params, x))


@rows()
def test_automatic_axes(case, sizes, kinds, rng):
    check_automatic(case, sizes, kinds, rng)


@rows(lambda case: case.name.startswith("conv"))
def test_automatic_axes_and_the_forms_of_large_arrays(case, sizes, kinds, monkeypatch, rng):
    monkeypatch.setattr(_choice, "_FEW_PRODUCTS", 0)
    check_automatic(case, sizes, kinds, rng)


def dividing(spec, leaf, mesh):
    """Return a spec without the axes that do not divide the array, which an argument may not be spread over."""
    padded = (*spec, *[None] * (leaf.ndim - len(spec)))
    kept = (name if name and leaf.shape[i] % mesh.shape[name] == 0 else None for i, name in enumerate(padded))
    return PartitionSpec(*kept)


@rows()
def test_explicit_axes(case, sizes, kinds, rng):
    if case.name == "graph-siamese":  # slices the channels itself, which JAX refuses where they are sharded
        kinds = tuple("" if kind == "channels" else kind for kind in kinds)
    derivatives, params, x = problem(case, rng, batch=8)
    expected = jax.jit(derivatives)(params, x)
    mesh, specs = mesh_of(sizes, AxisType.Explicit), specs_of(kinds, params, x)
    with jax.set_mesh(mesh):
        place = lambda leaf, spec: jax.device_put(leaf, dividing(spec, leaf, mesh))  # noqa: E731
        spread = jax.tree.map(place, (params, x), specs)
        agree(jax.jit(derivatives)(*spread), expected)


GROUPED = {"groups": ((3, 2, 2, 8), 4), "depthwise": ((3, 2, 1, 16), 8), "wide": ((2, 2, 17, 68), 2)}


def lowered(name, platform, mesh=None, **options):
    """Return the program of the derivatives of a grouped convolution, lowered for a platform."""
    kernel, groups = GROUPED[name]
    image = (8, 9, 8, kernel[-2] * groups)

    def loss(kernel, x):
        y = fc.conv({"kernel": kernel}, x, groups=groups, padding=1, stride=(2, 1), **options)
        return jnp.sin(y).sum()

    def derivatives(*arrays):
        return jax.jvp(jax.grad(loss, argnums=(0, 1)), arrays, arrays)

    spread = lambda spec: mesh and NamedSharding(mesh, spec)  # noqa: E731
    kernel = jax.ShapeDtypeStruct(kernel, jnp.float32, sharding=spread(PartitionSpec()))
    image = jax.ShapeDtypeStruct(image, jnp.float32, sharding=spread(PartitionSpec("a")))
    if mesh is None:
        return jax.export.export(jax.jit(derivatives), platforms=[platform])(kernel, image).mlir_module()
    return jax.jit(derivatives).trace(kernel, image).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
@pytest.mark.parametrize("name", GROUPED)
def test_no_grouped_convolution_is_left_to_the_partitioner(name, platform):
    """XLA's partitioner has wrong results for them. A program that is exported may be called on many devices."""
    grouped = re.compile(r"(?:batch|feature)_group_count = (?!1\b)")
    for kind in (AxisType.Auto, AxisType.Explicit):
        assert not grouped.search(lowered(name, platform, mesh_of((2, 4), kind)))
    assert not grouped.search(lowered(name, platform))
    assert grouped.search(lowered(name, platform, implementation="lax"))


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_batch_on_one_axis_of_two(name, dtype, rng):
    """The kernel gradient is no sum over the other axis; also with sums in a dtype of their own."""
    (*window, inputs, outputs), groups = GROUPED[name]
    shapes = (*window, inputs, outputs), (8, 9, 8, inputs * groups), (8, 10 - window[0], 9 - window[1], outputs)
    kernel, x, g = (jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    mesh = mesh_of((2, 4), AxisType.Auto)

    def kernel_gradient(kernel, x, g, accumulate_dtype):
        def op(kernel):
            return fc.conv({"kernel": kernel}, x, groups=groups, accumulate_dtype=accumulate_dtype)

        return jax.vjp(op, kernel)[1](g)[0]

    gradient = jax.jit(kernel_gradient, static_argnums=3)
    for accumulate in (None, np.float32):
        specs = PartitionSpec(), PartitionSpec("a"), PartitionSpec("a")
        spread = [
            jax.device_put(array, NamedSharding(mesh, spec)) for array, spec in zip((kernel, x, g), specs, strict=True)
        ]
        actual = gradient(*spread, accumulate)
        assert actual.dtype == dtype
        close(jax.device_get(actual), gradient(kernel, x, g, accumulate), dtype=dtype, ulps=64)


def test_a_grouped_convolution_on_axes_that_are_not_mapped(rng):
    """Inside of a `jax.shard_map` over one axis the other one is left to XLA."""
    kernel, x = jnp.asarray(rng.normal(size=(3, 2, 8))), jnp.asarray(rng.normal(size=(8, 9, 8)))

    def gradient(kernel, x):
        x = jax.lax.with_sharding_constraint(x, PartitionSpec("b"))
        of = jax.grad(lambda kernel: jnp.sin(fc.conv({"kernel": kernel}, x, groups=4)).sum())
        return jax.lax.psum(of(jax.lax.pcast(kernel, "a", to="varying")), "a")

    mesh = mesh_of((2, 4), AxisType.Auto)
    mapped = jax.shard_map(
        gradient, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("a")), out_specs=PartitionSpec(), axis_names={"a"}
    )
    expected = jax.grad(lambda kernel: jnp.sin(fc.conv({"kernel": kernel}, x, groups=4)).sum())(kernel)
    close(jax.device_get(jax.jit(mapped)(kernel, x)), expected)

"""Every op on every mesh: values and derivatives are those of one device, whichever axes are spread."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, EVERYWHERE, SLOW, Case
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


def problem(case, rng, *batch):
    """Return a function that gives the value, a gradient and a Hessian-vector product, and its arguments."""
    params, x = case.draw(rng, batch=batch)
    tangents = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), (params, x))

    def derivatives(params, x):
        gradient = jax.grad(lambda params, x: jnp.sin(case.op(params, x)).sum(), argnums=(0, 1))
        like = jax.tree.map(alike, tangents, (params, x))
        return case.op(params, x), jax.jvp(gradient, (params, x), like)

    return derivatives, params, x


def alike(array, other):
    """Return an array that is spread as another, where types say how."""
    sharding = jax.typeof(other).sharding
    return array if sharding.mesh.empty or sharding.mesh.are_all_axes_auto else jax.sharding.reshard(array, sharding)


def mesh_of(sizes, kind):
    return jax.make_mesh(sizes, tuple("ab"[: len(sizes)]), axis_types=(kind,) * len(sizes))


def agree(actual, expected):
    jax.tree.map(lambda a, b: close(jax.device_get(a), b, ulps=2048), actual, expected)


def dividing(spec, leaf, sizes):
    """Return a spec without the mesh axes that do not divide the array, which an argument may not be spread over."""
    padded = (*spec, *[None] * (leaf.ndim - len(spec)))
    kept = (name if name and leaf.shape[i] % sizes[name] == 0 else None for i, name in enumerate(padded))
    return PartitionSpec(*kept)


def spreads(arrays, sizes, kinds, *, whole_parts):
    """Return whether a row spreads any array; with `whole_parts`, only over devices that divide it."""
    specs = jax.tree.leaves(specs_of(kinds, *arrays), is_leaf=lambda spec: isinstance(spec, PartitionSpec))
    if whole_parts:
        by_name = dict(zip("ab", sizes, strict=False))
        specs = [dividing(spec, leaf, by_name) for spec, leaf in zip(specs, jax.tree.leaves(arrays), strict=True)]
    return any(name for spec in specs for name in spec)


def rows(keep=lambda case: True, *, batch, whole_parts=False):  # noqa: ARG005
    """Return cases with meshes and kinds: the rows of an op take turns, so that it meets each at least once.

    Rows that spread nothing are left out, for instance over the window of a pool. On a second version of JAX, the rows
    are enough that stand for each kind of derivative.
    """
    kept, turns = [case for case in CASES if keep(case)], {}
    for case in kept:
        turns.setdefault(case.name.split("-")[0], []).append(case)
    chosen = set()
    for cases in turns.values():
        fast = [case for case in cases if case.name not in SLOW] or cases[:1]
        for i, where in zip(range(max(len(SAMPLE), len(fast))), itertools.cycle((*SAMPLE, *MORE))):
            chosen.add((fast[i % len(fast)].name, *where))
    draw = lambda case: case.draw(np.random.default_rng(0), batch=(batch,))  # noqa: E731
    arrays = {case.name: jax.eval_shape(partial(draw, case)) for case in kept}
    found = []
    for case, (mesh, kinds) in itertools.product(kept, (*ON_ONE_AXIS, *ON_TWO_AXES)):
        fast = (case.name, mesh, kinds) in chosen
        wanted = fast or case.params or {"kernel", "window"}.isdisjoint(kinds)
        if wanted and spreads(arrays[case.name], mesh, kinds, whole_parts=whole_parts):
            name = f"{case.name}-{'x'.join(map(str, mesh))}-{'-'.join(kinds)}"
            marks = [] if fast else [pytest.mark.slow]
            marks += [] if case.name in EVERYWHERE else [pytest.mark.once]
            found.append(pytest.param(case, mesh, kinds, id=name, marks=marks))
    return pytest.mark.parametrize(("case", "sizes", "kinds"), found)


def check_automatic(case, sizes, kinds, rng):
    derivatives, params, x = problem(case, rng, 6)  # which four and eight devices do not divide
    mesh, specs = mesh_of(sizes, AxisType.Auto), specs_of(kinds, params, x)

    def spread(params, x):
        # A constraint, unlike an argument, may spread an axis over devices that do not divide it.
        place = lambda leaf, spec: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))  # noqa: E731
        return derivatives(*jax.tree.map(place, (params, x), specs))

    agree(jax.jit(spread)(params, x), jax.jit(derivatives)(params, x))


@rows(batch=6)
def test_automatic_axes(case, sizes, kinds, rng):
    check_automatic(case, sizes, kinds, rng)


@rows(lambda case: case.name.startswith("conv"), batch=6)
def test_automatic_axes_and_the_forms_of_large_arrays(case, sizes, kinds, monkeypatch, rng):
    monkeypatch.setattr(_choice, "_FEW_PRODUCTS", 0)
    check_automatic(case, sizes, kinds, rng)


@rows(batch=8, whole_parts=True)
def test_explicit_axes(case, sizes, kinds, rng):
    if case.name == "graph-siamese":  # slices the channels itself, which JAX refuses where they are sharded
        kinds = tuple("" if kind == "channels" else kind for kind in kinds)
    derivatives, params, x = problem(case, rng, 8)
    expected = jax.jit(derivatives)(params, x)
    mesh, specs = mesh_of(sizes, AxisType.Explicit), specs_of(kinds, params, x)
    with jax.set_mesh(mesh):
        place = lambda leaf, spec: jax.device_put(leaf, dividing(spec, leaf, mesh.shape))  # noqa: E731
        spread = jax.tree.map(place, (params, x), specs)
        agree(jax.jit(derivatives)(*spread), expected)


def trained_batch_norm(params, x):
    """Return a number that depends on the output of a batch norm and on its next state."""
    scale_and_bias = {name: params[name] for name in ("scale", "bias")}
    state = {name: params[name] for name in ("mean", "var")}
    y, state = fc.batch_norm(scale_and_bias, state, x, train=True)
    return jnp.sin(y).sum() + jnp.sin(state["mean"]).sum() + jnp.sin(state["var"]).sum()


OF_PARAMETERS = [
    Case(name, op, None, x, params)
    for name, op, x, params in (
        ("conv", fc.conv, (5, 2), {"kernel": (2, 2, 4), "bias": (4,)}),
        ("conv_transpose", fc.conv_transpose, (4, 2), {"kernel": (2, 4, 2), "bias": (4,)}),
        ("local_conv", fc.local_conv, (5, 2), {"kernel": (4, 2, 2, 4), "bias": (4, 4)}),
        ("dense", fc.dense, (4,), {"kernel": (4, 2), "bias": (2,)}),
        (
            "dense of images and flatten",
            lambda params, x: fc.dense(params, fc.flatten(x, spatial=1)),
            (2, 2),
            {"kernel": (4, 2), "bias": (2,)},
        ),
        ("layer_norm", fc.layer_norm, (3, 4), {"scale": (4,), "bias": (4,)}),
        ("layer_norm of images", fc.layer_norm, (2, 4), {"scale": (2, 4), "bias": (2, 4)}),
        ("group_norm", lambda params, x: fc.group_norm(params, x, 2, spatial=1), (3, 4), {"scale": (4,), "bias": (4,)}),
        ("instance_norm", partial(fc.instance_norm, spatial=1), (3, 4), {"scale": (4,), "bias": (4,)}),
        ("rms_norm", fc.rms_norm, (3, 4), {"scale": (4,)}),
        ("local_response_norm", lambda _, x: fc.local_response_norm(x, 3), (3, 4), {}),
        (
            "weight_norm",
            lambda params, x: fc.conv(fc.weight_norm(params), x),
            (5, 2),
            {"kernel": (2, 2, 4), "scale": (4,), "bias": (4,)},
        ),
        (
            "weight_norm of local_conv",
            lambda params, x: fc.local_conv(fc.weight_norm(params, axis=(0, -1)), x),
            (5, 2),
            {"kernel": (4, 2, 2, 4), "scale": (4, 4)},
        ),
        ("batch_norm", trained_batch_norm, (3, 4), dict.fromkeys(("scale", "bias", "mean", "var"), (4,))),
    )
]
# Parameters and inputs on mesh axes that JAX cannot combine: the batch and the outputs on the same axis, and the axis
# that is summed or multiplied on different axes. Also the second of two batch axes, which JAX cannot merge.
CONFLICTS = {
    "same": (("a", None, "b"), ("b", "a"), "a"),
    "different": ((None, "b", "a"), ("b", None), "b"),
}


@pytest.mark.parametrize("case", OF_PARAMETERS, ids=lambda case: case.name)
def test_explicit_axes_of_parameters_and_inputs_conflict(case, rng):
    derivatives, params, x = problem(case, rng, 4, 2)
    expected = jax.jit(derivatives)(params, x)
    with jax.set_mesh(mesh_of((2, 2), AxisType.Explicit)):
        for (first, second, channels), (window, outputs), vector in CONFLICTS.values():

            def place(leaf, window=window, outputs=outputs, vector=vector):
                entries = [window, *[None] * (leaf.ndim - 2), outputs] if leaf.ndim > 1 else [vector]
                return jax.device_put(leaf, PartitionSpec(*entries))

            spread = jax.device_put(x, PartitionSpec(first, second, *[None] * (x.ndim - 3), channels))
            agree(jax.jit(derivatives)(jax.tree.map(place, params), spread), expected)


def test_running_statistics_keep_their_explicit_axes(rng):
    """A loop such as `jax.lax.scan` needs a state of one type, so it does not follow the sharding of the input."""
    with jax.set_mesh(mesh_of((2, 2), AxisType.Explicit)):
        x = jax.device_put(jnp.asarray(rng.normal(size=(4, 3, 4))), PartitionSpec("a", None, "b"))
        for spec in (PartitionSpec("a"), PartitionSpec(None)):
            state = jax.device_put(fc.init_batch_stats(4, dtype=np.float64), spec)
            _, new = jax.jit(lambda state: fc.batch_norm({}, state, x, train=True))(state)
            assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)


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
        found = gradient(*spread, accumulate)
        assert found.dtype == dtype
        # 16-bit products are summed in float32: only the sums of the eight devices may be rounded to 16 bits.
        terms = 8 * 9 * 8 if dtype == "float32" else 8
        close(jax.device_get(found), gradient(kernel, x, g, accumulate), dtype=dtype, terms=terms)


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

"""Training on a mesh of devices: each device computes its share, and the results are those of one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close as close_arrays
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import funcconv as fc

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices"),
    pytest.mark.usefixtures("climate_of_a_user"),
]
F32 = np.float32
EXAMPLES = 48
MESHES = {
    "auto": ((4,), (AxisType.Auto,)),
    "explicit": ((4,), (AxisType.Explicit,)),
    "auto2": ((2, 2), (AxisType.Auto,) * 2),
    "explicit2": ((2, 2), (AxisType.Explicit,) * 2),
}


def mesh_of(name):
    shape, kinds = MESHES[name]
    return jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=kinds, devices=jax.devices()[:4])


@pytest.fixture(scope="module")
def network():
    x = fc.Input("x", (8, 8, 3))
    layers = fc.Conv(16, 3, padding="SAME"), jnp.tanh, fc.Pool(2, reduce="mean"), fc.Flatten(), fc.Dense(4)
    return fc.Graph(x, fc.serial(*layers)(x))


@pytest.fixture
def batch(rng):
    x, y = rng.normal(size=(EXAMPLES, 8, 8, 3)), rng.normal(size=(EXAMPLES, 4))
    return {"x": x.astype(F32), "y": y.astype(F32)}


def training(network, mesh=None, **options):
    def loss(params, batch, *, key, state):
        del key, state
        return jnp.square(network(params, batch["x"]) - batch["y"]).mean()

    init, step = fc.train.make_step(loss, optax.sgd(0.1, momentum=0.9), mesh=mesh, **options)
    params = jax.tree.map(lambda leaf: leaf.astype(F32), network.init(jax.random.key(0)))
    return init(params, jax.random.key(1)), step


def placed(batch, mesh):
    where = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda leaf: jax.device_put(leaf, where), batch)


def close(a, b):
    """Compare trees of which the largest sums are over examples and positions, taken in another order."""
    terms = EXAMPLES * 8 * 8
    jax.tree.map(lambda x, y: close_arrays(jax.device_get(x), jax.device_get(y), F32, ulps=terms), a, b)


# accumulation: each device has its share of each part -----------------------------------------------------------


def images_on_a_device(text):
    """The batch sizes of the activations in a compiled program, (batch, 8, 8, 16)."""
    return {int(size) for size in re.findall(r"f32\[(\d+),8,8,16\]", text)}


def gathered(text):
    """The shapes that a compiled program moves between devices, but for sums."""
    return re.findall(r"= \S*?\w+\[([\d,]*)\]\S* (?:all-gather|all-to-all|collective-permute)\(", text)


@pytest.mark.parametrize("parts", [2, 6])
@pytest.mark.parametrize("kind", MESHES)
def test_each_device_computes_its_share_of_each_part(network, batch, kind, parts):
    mesh = mesh_of(kind)
    state, step = training(network, mesh, accumulate=parts)
    compiled = jax.jit(step).lower(state, placed(batch, mesh)).compile()
    share = EXAMPLES // parts // mesh.shape["data"]
    assert images_on_a_device(compiled.as_text()) == {share}
    assert not gathered(compiled.as_text())
    alone, single = training(network, accumulate=parts)
    whole = jax.jit(single).lower(alone, batch).compile()
    work, all_work = (program.cost_analysis()["flops"] for program in (compiled, whole))
    assert work < 2 * all_work / mesh.shape["data"]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_batch_that_the_caller_spread_is_not_gathered_either(network, batch, kind):
    """Without mesh=, by the sharding of the batch alone."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
    state, step = training(network, accumulate=3)
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(step).lower(state, placed(batch, mesh)).compile()
    assert images_on_a_device(compiled.as_text()) == {EXAMPLES // 3 // 4}
    assert not gathered(compiled.as_text())


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_a_part_is_every_nth_example(parts):
    """So a part is shared by devices that have consecutive examples; its key is that of its number."""

    def loss(params, batch, *, key, state):
        del state
        return (params["w"] * batch["n"]).mean(), {"first": batch["n"][0], "noise": jax.random.uniform(key, dtype=F32)}

    init, step = fc.train.make_step(loss, optax.sgd(1.0), accumulate=parts, has_aux=True)
    state = init({"w": jnp.float32(0)}, jax.random.key(1))
    _, metrics = step(state, {"n": jnp.arange(12, dtype=F32)})
    assert metrics["first"] == np.mean(np.arange(parts))
    key = jax.random.fold_in(state.key, 0)
    keys = [jax.random.fold_in(key, i) for i in range(parts)] if parts > 1 else [key]
    noise = np.mean([jax.random.uniform(key, dtype=F32) for key in keys])
    close_arrays(metrics["noise"], noise, F32, ulps=parts)


@pytest.mark.parametrize("size", [48, 24, 36, 20, 4, 100])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_mini_batches_are_shared_by_the_devices(batch, kind, size):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])

    def loss(params, x):
        return jnp.square(fc.conv(params, x, padding="SAME")).mean()

    params = {"kernel": batch["x"][:16, :3, :3].transpose(1, 2, 3, 0)}
    x = placed(batch["x"], mesh)
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    compiled = jax.jit(fc.value_and_grad_in_batches(loss, size)).lower(everywhere, x).compile()
    sizes = {size, EXAMPLES % size} - {0} if size < EXAMPLES else {EXAMPLES}
    assert images_on_a_device(compiled.as_text()) == {size // 4 for size in sizes}
    assert not gathered(compiled.as_text())
    close(compiled(everywhere, x), jax.value_and_grad(loss)(params, batch["x"]))


def test_a_mini_batch_that_devices_cannot_share(batch):
    """By type it is refused; where XLA chooses, it is computed with communication."""

    def loss(w, y):
        return jnp.square(y * w).mean()

    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,), devices=jax.devices()[:4])
        w = jax.device_put(F32(2), NamedSharding(mesh, PartitionSpec()))
        derivative = jax.jit(fc.value_and_grad_in_batches(loss, 10))
        if kind == AxisType.Auto:
            close(derivative(w, placed(batch["y"], mesh)), jax.value_and_grad(loss)(F32(2), batch["y"]))
        else:
            with pytest.raises(fc.FuncconvError, match=r"48 examples.* 4 devices, .*multiple of 4; got 10"):
                derivative(w, placed(batch["y"], mesh))


def same_places(state, before):
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(before), strict=True):
        assert leaf.sharding.is_equivalent_to(other.sharding, leaf.ndim)
        assert leaf.sharding.mesh == other.sharding.mesh


# every kind of mesh ---------------------------------------------------------------------------------------------

OPTIONS = {
    "parts": {"accumulate": 3},
    "all": {"accumulate": 2, "ema": 0.9, "clip": 0.5, "loss_scale": "dynamic", "frozen": "conv1/bias"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", MESHES)
def test_steps_on_a_mesh_are_those_of_one_device(network, batch, kind, options, compilations):
    mesh, options = mesh_of(kind), OPTIONS[options]
    partition = {"dense1/kernel": PartitionSpec(None, "model")} if "model" in mesh.shape else None
    alone, single = training(network, **options)
    state, step = training(network, mesh, partition=partition, **options)
    first = state
    single, compiled = jax.jit(single), fc.train.compile(step)
    counts = []
    for _ in range(3):
        alone, known = single(alone, batch)
        state, metrics = compiled(jax.tree.map(jnp.copy, state), placed(batch, mesh))
        close((state.params, state.ema, metrics), (alone.params, alone.ema, known))
        counts.append(len(compilations))
    assert counts[0] == counts[-1]
    same_places(state, first)


@pytest.mark.parametrize("kind", MESHES)
def test_a_step_on_a_mesh_takes_every_way_to_call_it(network, batch, kind):
    """From the host or spread, eager, in a scan, in the context of the mesh, and by fit with checkpoints."""
    mesh = mesh_of(kind)
    state, step = training(network, mesh)
    known, _ = jax.jit(step)(state, placed(batch, mesh))
    if kind in ("auto", "explicit2"):  # one of each type: an eager step compiles each of its operations
        close(step(state, placed(batch, mesh))[0].params, known.params)
    close(jax.jit(step)(state, batch)[0].params, known.params)
    with jax.set_mesh(mesh):
        close(jax.jit(step)(state, batch)[0].params, known.params)
        close(jax.jit(step)(state, placed(batch, mesh))[0].params, known.params)
    twice, _ = jax.jit(lambda state, batch: jax.lax.scan(lambda s, _: step(s, batch), state, length=2))(state, batch)
    close(twice.params, jax.jit(step)(known, batch)[0].params)


@pytest.mark.parametrize("kind", MESHES)
def test_a_run_on_a_mesh_goes_on(network, batch, kind, tmp_path):
    mesh = mesh_of(kind)
    partition = {"dense1/kernel": PartitionSpec("model")} if "model" in mesh.shape else None
    state, step = training(network, mesh, partition=partition)

    def run(steps, **options):
        where = NamedSharding(mesh, PartitionSpec("data"))
        data = fc.train.batches(batch, 16, jax.random.key(0), sharding=where)
        return fc.train.fit(step, state, data, steps=steps, progress=False, **options)

    run(2, checkpoint=tmp_path)
    resumed, _ = run(4, checkpoint=tmp_path)
    known, history = run(4)
    assert fc.train.digest(resumed) == fc.train.digest(known)
    assert history.compilations == 1
    same_places(resumed, state)


# what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"partition": {"dense1/kernel": (None, "model")}},
            r"partition\['dense1/kernel'\] must be a PartitionSpec; "
            r"got \(None, 'model'\)\. Write jax\.P\(None, 'model'\)",
        ),
        ({"partition": {"dense1/kernel": "model"}}, r"got 'model'\. Write jax\.P\('model'\)"),
        ({"partition": {"dense1/kernel": None}}, r"must be a PartitionSpec; got None\. Write jax\.P\(\.\.\.\)"),
        ({"partition": PartitionSpec("model")}, r"partition must be a dict such as .*got P"),
        ({"partition": {"dense1/kernel": PartitionSpec("model", "model")}}, "'dense1/kernel'.*'model' more than once"),
        ({"partition": {"dense1/kernel": PartitionSpec(("model", "model"))}}, "'model' more than once"),
        ({"partition": {"dense1/kernel": PartitionSpec(None, "modle")}}, r"'modle', but .*\('data', 'model'\)"),
        ({"partition": {"dense1/bias": PartitionSpec(None, "model")}}, r"'dense1/bias' has shape \(4,\), which has"),
        ({"partition": {"conv1/kernel": PartitionSpec("model")}}, r"\(3, 3, 3, 16\), of which 3 cannot be cut into 2"),
        ({"partition": {"dense1/kernel": PartitionSpec(PartitionSpec.UNCONSTRAINED)}}, "UNCONSTRAINED"),
        ({"mesh": jax.devices()}, "mesh must be a jax.sharding.Mesh"),
        ({"mesh": "data"}, "mesh must be a jax.sharding.Mesh"),
        ({"mesh": None, "partition": {"dense1/kernel": PartitionSpec("model")}}, "give mesh="),
    ],
)
@pytest.mark.parametrize("kind", ["auto2", "explicit2"])
def test_options_that_do_not_fit_a_mesh(network, kind, options, said):
    options = {"mesh": mesh_of(kind), **options}
    with pytest.raises(fc.FuncconvError, match=said):
        training(network, **options)


@pytest.mark.parametrize(
    ("change", "parts", "said"),
    [
        ({"weight": F32(1)}, 1, "the entry 'weight' of the batch is a scalar.*one value for each example"),
        ({"weight": F32(1)}, 2, "the entry 'weight' of the batch is a scalar"),
        ({"mask": np.ones(3, F32)}, 1, "the entry 'mask' of the batch has 3 examples, .* 2 devices, the axis 'data'"),
        ({"mask": np.ones(3, F32)}, 2, r"a batch of \[3, 48\] cannot be cut into 2 equal parts; .*mask: \(3,\)"),
        ({}, 16, r"'x' of the batch has 48 examples, .*16 parts \(accumulate=16\)\. Take a multiple of 32 examples"),
        ({}, 5, r"a batch of \[48\] cannot be cut into 5 equal parts"),
    ],
)
@pytest.mark.parametrize("kind", ["auto2", "explicit2"])
def test_batches_that_do_not_fit_a_mesh(network, batch, kind, change, parts, said):
    state, step = training(network, mesh_of(kind), accumulate=parts)
    with pytest.raises(fc.FuncconvError, match=said):
        jax.jit(step)(state, {**batch, **change})


def test_a_scalar_without_a_mesh_is_left_alone(network, batch):
    state, step = training(network)
    jax.eval_shape(step, state, {**batch, "weight": F32(1)})


@pytest.mark.parametrize("kinds", [(AxisType.Manual,) * 2, (AxisType.Explicit, AxisType.Auto)])
def test_axes_of_other_types_are_refused(network, kinds):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "model"), axis_types=kinds)
    with pytest.raises(fc.FuncconvError, match=rf"all be Auto or all be Explicit; got 'data': {kinds[0].name}, "):
        training(network, mesh)

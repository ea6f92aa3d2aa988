"""Memory of the caller: what training keeps is copied, and what a caller keeps is not overwritten."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv.train._step import memory as _memory

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32


def aligned(values):
    """Return a copy of an array at an address that lets JAX use the memory as it is."""
    values = np.asarray(values)
    memory = np.empty(values.nbytes + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    array = memory[begin : begin + values.nbytes].view(values.dtype).reshape(values.shape)
    array[...] = values
    return array


def distance(params, batch, *, key, state):
    del key, state
    return jnp.square(params["w"] - batch).mean()


def slow_distance(params, batch, *, key, state):
    """Read the batch once more after long work, so that a step is still under way when the iterator goes on."""
    late = batch
    for _ in range(20):
        late = jnp.tanh(late @ params["matrix"])
    return distance(params, batch + 0 * late, key=key, state=state)


def test_buffers_that_an_iterator_refills():
    size, steps = 400, 12
    init, step = fc.train.make_step(slow_distance, optax.sgd(0.1), frozen="matrix")

    def batches():
        buffer = aligned(np.zeros((size, size), F32))
        for number in range(steps):
            buffer[:] = number % 7
            yield {"nested": buffer}["nested"]

    state = init({"w": jnp.zeros(()), "matrix": jnp.eye(size) * 0.1}, jax.random.key(0))
    state, history = fc.train.fit(step, state, batches(), steps=steps, progress=False)
    w, losses = 0.0, []
    for number in range(steps):
        losses.append((w - number % 7) ** 2)
        w -= 0.1 * 2 * (w - number % 7)
    close(np.asarray(history["loss"]), losses, F32, terms=size, steps=steps)
    close(float(state.params["w"]), w, F32, terms=size, steps=steps)


def test_arrays_of_batches_may_change_afterwards():
    images, labels = np.arange(12.0).reshape(6, 2), np.arange(6)
    for view in (images, np.broadcast_to(images, images.shape), images[:, ::-1]):
        data = fc.train.batches({"x": view, "y": labels}, 3, epochs=1)
        images += 1
        labels[:] = -1
        batches = [*data]
        images -= 1
        labels[:] = np.arange(6)
        np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), view)
        np.testing.assert_array_equal(np.concatenate([batch["y"] for batch in batches]), labels)


def test_arrays_that_cannot_change_are_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    fixed = np.arange(6.0)
    fixed.flags.writeable = False
    written = np.arange(6.0)
    for array, options in ((mapped, {}), (mapped[1:], {}), (fixed, {}), (written, {"copy": False})):
        data = fc.train.batches(array, 2, **options)
        assert np.shares_memory(data._examples._arrays, array)
    assert not np.shares_memory(fc.train.batches(written, 2)._examples._arrays, written)
    on_device = jnp.arange(6.0)
    assert np.shares_memory(fc.train.batches(on_device, 2)._examples._arrays, np.asarray(on_device))


def test_a_state_has_memory_of_its_own():
    params, model = {"w": aligned(np.ones(64, F32))}, {"seen": aligned(np.zeros(64, F32))}
    init, _ = fc.train.make_step(distance, optax.sgd(0.1), ema=0.9)
    state = init(params, jax.random.key(0), model)
    params["w"][:] = 7
    model["seen"][:] = 7
    for leaf, expected in ((state.params["w"], 1), (state.ema["w"], 1), (state.model["seen"], 0)):
        assert (np.asarray(leaf) == expected).all()


def keeps_parameters():
    """Return an optimizer whose state is the parameters, as that of some schedule-free ones."""
    return optax.GradientTransformation(lambda params: params, lambda g, state, *_: (g, state))


def test_a_compiled_step_overwrites_nothing_of_the_caller():
    shared = jnp.ones(64)
    params, key, model = {"w": shared, "v": shared}, jax.random.key(0), {"seen": shared}
    init, step = fc.train.make_step(distance, keeps_parameters(), ema=0.9)
    state, _ = fc.train.compile(step)(init(params, key, model), jnp.zeros(64))
    assert np.isfinite(state.params["w"]).all()
    assert not any(array.is_deleted() for array in (shared, key))
    fc.train.compile(step)(init(params, key, model), jnp.zeros(64))


def test_python_numbers_as_parameters_compile_once():
    init, step = fc.train.make_step(distance, optax.adam(0.1), ema=0.9)
    data = fc.train.batches(np.ones(8, F32), 4)
    state = init({"w": 0.0}, jax.random.key(0), {"seen": 0})
    _, history = fc.train.fit(step, state, data, steps=3, progress=False)
    assert history.compilations == 1


def on_mesh(mesh_axes):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*mesh_axes))


KEEPS = {
    "the state": lambda state: state,
    "the parameters": lambda state: state.params,
    "one array": lambda state: state.params["w"],
    "an alias": lambda state: jax.device_put(state.params["w"], state.params["w"].sharding),
    "a part": lambda state: state.params["w"].addressable_data(0),
    "a view": lambda state: np.asarray(state.params["w"].addressable_data(0)),
    "the key": lambda state: state.key,
    "the data of the key": lambda state: jax.random.key_data(state.key),
    "the optimizer's state": lambda state: state.optimizer,
}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("kept", KEEPS)
def test_what_evaluate_keeps_stays(kept, devices):
    if devices > jax.device_count():
        pytest.skip("needs four devices: set jax_num_cpu_devices")
    init, step = fc.train.make_step(distance, optax.adam(0.1))
    state = init({"w": jnp.zeros(64), "v": jnp.zeros(3)}, jax.random.key(0))
    if devices > 1:
        spread = {"w": on_mesh(["data"]), "v": on_mesh([])}
        state = jax.tree.map_with_path(
            lambda path, leaf: jax.device_put(leaf, spread.get(getattr(path[-1], "key", None), on_mesh([]))), state
        )
    found, expected = [], []

    def numbers(tree):
        leaves = jax.tree.leaves(tree)
        keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
        return [
            np.array(jax.random.key_data(leaf) if is_key else leaf) for leaf, is_key in zip(leaves, keys, strict=True)
        ]

    def evaluate(state):
        found.append(KEEPS[kept](state))
        expected.append(numbers(found[-1]))
        return {"one": 1.0}

    data = fc.train.batches(np.ones((8, 64), F32), 4)
    fc.train.fit(step, state, data, steps=5, evaluate=evaluate, every=1, progress=False)
    assert len(found) == 5
    for tree, values in zip(found, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, numbers(tree), values)


@pytest.mark.parametrize("devices", [1, 4])
def test_nothing_is_copied_that_nobody_keeps(devices):
    if devices > jax.device_count():
        pytest.skip("needs four devices: set jax_num_cpu_devices")
    where = jax.devices()[0] if devices == 1 else on_mesh(["data"])
    tree = {"w": jax.device_put(jnp.ones(64), where), "v": jax.device_put(jnp.ones(8), where)}
    given = _memory.lent(tree)
    del given
    back = _memory.taken_back(tree)
    assert all(back[name] is tree[name] for name in tree)
    kept = _memory.lent(tree)["w"]
    back = _memory.taken_back(tree)
    assert back["v"] is tree["v"]
    assert back["w"] is not tree["w"]
    assert back["w"].sharding == tree["w"].sharding
    jax.jit(lambda w: w + 1, donate_argnums=0)(back["w"])
    np.testing.assert_array_equal(kept, np.ones(64))


def test_steps_reuse_memory_between_evaluations_that_keep_nothing():
    init, step = fc.train.make_step(distance, optax.sgd(0.1))
    addresses = []

    def evaluate(state):
        addresses.append(state.params["w"].unsafe_buffer_pointer())
        return {"sum": state.params["w"].sum()}

    run = partial(fc.train.fit, step, steps=6, evaluate=evaluate, every=1, progress=False)
    run(init({"w": jnp.zeros(1 << 12)}, jax.random.key(0)), fc.train.batches(np.ones((4, 1 << 12), F32), 4))
    assert len(set(addresses)) == 1


def test_a_log_that_changes_its_record():
    init, step = fc.train.make_step(distance, optax.sgd(0.1))
    seen = []
    _, history = fc.train.fit(
        step,
        init({"w": jnp.zeros(())}, jax.random.key(0)),
        fc.train.batches(np.ones(8, F32), 4),
        steps=3,
        log=[lambda record: record.clear(), seen.append],
        progress=False,
    )
    assert history.steps("loss") == [1, 2, 3]
    assert seen == history.records

"""Optimizers that evaluate the loss themselves see the loss and the gradient of the step, with all its options."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close as close_arrays
from jax.sharding import AxisType
from optax import contrib

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
F32 = np.float32
EXAMPLES, STEPS = 24, 4
PERTURB = optax.chain(contrib.normalize(), optax.sgd(0.05))
OPTIMIZERS = {
    "lbfgs": optax.lbfgs,
    "backtracking": lambda: optax.chain(
        optax.sgd(0.5), optax.scale_by_backtracking_linesearch(8, decrease_factor=0.5, store_grad=True)
    ),
    "sam": lambda: contrib.sam(optax.sgd(0.1, momentum=0.9), PERTURB, sync_period=3, opaque_mode=True),
    "sam in a chain": lambda: optax.chain(optax.scale(0.5), contrib.sam(optax.sgd(0.1), PERTURB, opaque_mode=True)),
    "sophia": lambda: contrib.sophia(0.01, update_interval=2),
}


@pytest.fixture(scope="module")
def network():
    x = fc.Input("x", (6, 6, 2))
    layers = fc.Conv(4, 3), jnp.tanh, fc.Pool(2, reduce="mean"), fc.Flatten(), fc.Dense(3)
    return fc.Graph(x, fc.serial(*layers)(x))


@pytest.fixture
def batch(rng):
    x, y = rng.normal(size=(EXAMPLES, 6, 6, 2)), rng.normal(size=(EXAMPLES, 3))
    return {"x": x.astype(F32), "y": y.astype(F32)}


def close(found, expected, **options):
    options = {"terms": EXAMPLES * 36 * 18, "steps": STEPS} | options
    jax.tree.map(lambda a, b: close_arrays(jax.device_get(a), jax.device_get(b), F32, **options), found, expected)


def norm(tree):
    return np.linalg.norm(np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]))


def squares(network, params, batch, *, key, state):
    del key, state
    return jnp.square(network(params, batch["x"]) - batch["y"]).mean()


def trained(network, batch, name, steps=STEPS, loss=squares, model=None, **options):
    init, step = fc.train.make_step(partial(loss, network), OPTIMIZERS[name](), **options)
    params = jax.tree.map(lambda leaf: leaf.astype(F32), network.init(jax.random.key(0)))
    state, step = init(params, jax.random.key(1), model), jax.jit(step)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state, metrics


def by_hand(network, batch, name, frozen=None):
    """Train as the documentation of optax does."""
    params = jax.tree.map(lambda leaf: leaf.astype(F32), network.init(jax.random.key(0)))
    fixed = {} if frozen is None else {frozen: params.pop(frozen)}

    def value(params):
        return squares(network, params | fixed, batch, key=None, state=None)

    optimizer = OPTIMIZERS[name]()

    @jax.jit
    def step(params, state):
        loss, gradients = jax.value_and_grad(value)(params)
        if "sam" in name:
            extra_args = {"grad_fn": lambda params, _: jax.grad(value)(params)}
        elif name == "sophia":
            extra_args = {"obj_fn": value}
        else:
            extra_args = {"value": loss, "grad": gradients, "value_fn": value}
        updates, state = optimizer.update(gradients, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params | fixed


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_optax(network, batch, name):
    state, _ = trained(network, batch, name)
    close(state.params, by_hand(network, batch, name))


def probe():
    """An optimizer that changes nothing, and keeps what the functions return that it is given."""

    def init(params):
        gradients = dict.fromkeys(("grad", "of_value", "of_grad_fn", "curvature"), params)
        return gradients | dict.fromkeys(("value", "value_fn", "along"), jnp.zeros((), F32))

    def update(updates, state, params, *, value, grad, value_fn, grad_fn, obj_fn):
        del state
        of_params, of_value = jax.value_and_grad(value_fn)(params)
        state = {
            "value": value,
            "value_fn": of_params,
            "grad": grad,
            "of_value": of_value,
            "of_grad_fn": grad_fn(params, 0),
            "along": jax.jvp(value_fn, (params,), (grad,))[1],
            "curvature": jax.jvp(jax.grad(obj_fn), (params,), (grad,))[1],
        }
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


OPTIONS = {
    "none": {},
    "frozen": {"frozen": "conv1"},
    "group": {},
    "accumulate": {"accumulate": 3},
    "loss_scale": {"loss_scale": 2.0**15, "compute_dtype": "float16"},
    "bfloat16": {"compute_dtype": "bfloat16"},
    "clip": {"clip": 1e-3},
    "all": {"accumulate": 2, "clip": 1e-2, "frozen": "dense1/bias", "ema": 0.9, "loss_scale": 1024.0},
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("options", OPTIONS)
def test_the_functions_are_the_loss_of_the_step(network, batch, options, dtype):
    """With a factor of 1e-6, gradients in float16 would be 0 without the scale of the loss."""
    factor = F32(1e-6 if options == "loss_scale" else 1)

    def loss(params, batch, *, key, state):
        x = batch["x"].astype(jax.tree.leaves(params)[0].dtype)
        return squares(network, params, batch | {"x": x}, key=key, state=state) * factor

    params = jax.tree.map(lambda leaf: leaf.astype(dtype), network.init(jax.random.key(0)))
    optimizer = {"conv1": optax.sgd(0.1), "*": probe()} if options == "group" else probe()
    init, step = fc.train.make_step(loss, optimizer, **OPTIONS[options])
    state, metrics = jax.jit(step)(init(params, jax.random.key(1)), batch)
    assert state.skipped == 0
    seen = state.optimizer
    if options == "group":
        seen = seen.inner_states["*"].inner_state
        assert isinstance(seen["of_value"]["conv1"]["kernel"], optax.MaskedNode)
    close(seen["value_fn"], metrics["loss"])
    for name in ("of_value", "of_grad_fn"):
        jax.tree.map(partial(same, dtype=dtype), seen[name], seen["grad"])
    assert {leaf.dtype for leaf in jax.tree.leaves(seen["grad"])} == {jnp.dtype(dtype)}
    scale = norm(seen["grad"])
    assert scale > 1e-8
    clip = OPTIONS[options].get("clip")
    assert clip is None or scale == pytest.approx(clip, rel=0.01)
    assert float(seen["along"]) == pytest.approx(scale**2, rel=0.01)
    if dtype == jnp.float32 and options in ("none", "frozen", "accumulate", "clip"):
        fixed = {"conv1": params["conv1"]} if options == "frozen" else {}
        trained_params = {name: value for name, value in params.items() if name not in fixed}
        plain = jax.grad(lambda part: loss(part | fixed, batch, key=None, state=None))
        expected = jax.jvp(plain, (trained_params,), (without_masks(seen["grad"]),))[1]
        jax.tree.map(partial(same, dtype=dtype), without_masks(seen["curvature"]), expected)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_functions_of_a_weighted_loss_are_its_mean(network, batch, accumulate):
    def loss(params, batch, *, key, state):
        del key, state
        weights = jnp.abs(batch["y"][:, 0])
        errors = jnp.square(network(params, batch["x"]) - batch["y"]).mean(-1)
        return fc.train.Weighted((errors * weights).sum(), weights.sum())

    init, step = fc.train.make_step(loss, probe(), accumulate=accumulate)
    state, metrics = jax.jit(step)(init(network.init(jax.random.key(0)), jax.random.key(1)), batch)
    close(state.optimizer["value_fn"], metrics["loss"])
    for name in ("of_value", "of_grad_fn"):
        jax.tree.map(partial(same, dtype=F32), state.optimizer[name], state.optimizer["grad"])


def without_masks(tree):
    return {name: entry for name, entry in tree.items() if jax.tree.leaves(entry)}


def same(found, expected, dtype):
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=64 * float(jnp.finfo(dtype).eps) * scale)


@pytest.mark.parametrize(
    ("name", "kind", "devices"), [("lbfgs", "Auto", 2), ("lbfgs", "Explicit", 4), ("sam", "Explicit", 4)]
)
@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_steps_on_a_mesh_are_those_of_one_device(network, batch, name, kind, devices):
    kind = getattr(AxisType, kind)
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(kind,), devices=jax.devices()[:devices])
    alone, _ = trained(network, batch, name, accumulate=3)
    state, _ = trained(network, batch, name, accumulate=3, mesh=mesh)
    close(state.params, alone.params)
    assert len(jax.tree.leaves(state.params)[0].sharding.device_set) == devices


def test_a_line_search_of_a_group(network, batch):
    """It sees the other parameters as constants, as if they were frozen."""
    init, step = fc.train.make_step(partial(squares, network), {"conv1": optax.sgd(0.0), "*": optax.lbfgs()})
    state, step = init(network.init(jax.random.key(0)), jax.random.key(1)), jax.jit(step)
    for _ in range(STEPS):
        state, _ = step(state, batch)
    close(state.params, by_hand(network, batch, "lbfgs", "conv1"))


@pytest.mark.parametrize("name", ["lbfgs", "sam"])
def test_training_in_float16(network, batch, name):
    state, metrics = trained(network, batch, name, compute_dtype="float16")
    assert state.skipped == 0
    assert metrics["loss"] < trained(network, batch, name, steps=1)[1]["loss"]


@pytest.mark.parametrize("build", [optax.lbfgs, OPTIMIZERS["sam"]])
def test_callbacks_see_the_key_and_the_state_of_the_step(batch, build):
    """And change no state of the model: running statistics are updated once."""
    x = fc.Input("x", (6, 6, 2))
    layers = fc.Conv(4, 3), fc.BatchNorm(count=True), jnp.tanh, fc.Dropout(0.5), fc.Flatten(), fc.Dense(3)
    graph = fc.Graph(x, fc.serial(*layers)(x))

    def loss(params, batch, *, key, state):
        y, state = graph.apply(params, state, batch["x"], key=key, train=True)
        return jnp.square(y - batch["y"]).mean(), {"state": state}

    init, step = fc.train.make_step(loss, build(), has_aux=True)
    first = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state())
    after, metrics = jax.jit(step)(first, batch)
    key = jax.random.fold_in(first.key, 0)
    _, expected = loss(first.params, batch, key=key, state=first.model)
    close(after.model["batch_norm1"], expected["state"]["batch_norm1"])
    # A step of L-BFGS never increases the loss with the same dropout.
    again, _ = loss(after.params, batch, key=key, state=first.model)
    assert again < metrics["loss"]


def test_a_second_gradient_that_is_not_finite_is_skipped():
    def loss(params, batch, *, key, state):
        del key, state
        return jnp.sqrt(params["w"]) * batch  # SAM goes to a larger loss, the optimizer below to a negative number

    perturb = optax.chain(contrib.normalize(), optax.sgd(-5.0))
    init, step = fc.train.make_step(loss, contrib.sam(optax.sgd(0.1), perturb, opaque_mode=True))
    state, metrics = step(init({"w": F32(4.0)}, jax.random.key(0)), F32(1))
    assert (float(state.params["w"]), int(metrics["skipped"])) == (4, 1)


def test_an_error_of_the_optimizer_is_not_hidden(network, batch):
    def init(params):
        return optax.EmptyState() if params else None

    def update(updates, state, params=None, **extra_args):
        msg = f"unexpected keyword argument of another function: {len((updates, state, params, extra_args))}"
        raise TypeError(msg)

    first, step = fc.train.make_step(partial(squares, network), optax.GradientTransformationExtraArgs(init, update))
    with pytest.raises(TypeError, match="of another function"):
        step(first(network.init(jax.random.key(0)), jax.random.key(1)), batch)


def test_an_optimizer_state_without_arrays_is_refused(network):
    def with_text(params):
        return {"mode": "fast", "count": len(params)}

    init, _ = fc.train.make_step(
        partial(squares, network), optax.GradientTransformation(with_text, optax.sgd(1).update)
    )
    with pytest.raises(fc.FuncconvError, match="its entry 'mode' is a str"):
        init(network.init(jax.random.key(0)), jax.random.key(1))


def test_runs_with_lbfgs_resume_exactly(network, batch, tmp_path):
    init, step = fc.train.make_step(partial(squares, network), optax.lbfgs(memory_size=3), average="mean")
    state = init(network.init(jax.random.key(0)), jax.random.key(1))

    def run(steps, **options):
        data = fc.train.batches(batch, 12, jax.random.key(2))
        return fc.train.fit(step, state, data, steps=steps, progress=False, **options)[0]

    expected = run(6)
    run(3, checkpoint=tmp_path)
    assert fc.train.digest(run(6, checkpoint=tmp_path, on_change="raise")) == fc.train.digest(expected)

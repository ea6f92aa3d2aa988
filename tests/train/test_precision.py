"""The dtypes of a step: sums over many numbers are formed in float32, and targets keep their dtype."""

from collections import namedtuple
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close as close_arrays

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

F32 = np.float32
close = partial(close_arrays, dtype=F32)
NARROW = [jnp.bfloat16, jnp.float16]
ids = partial(pytest.mark.parametrize, ids=lambda value: jnp.dtype(value).name)


def product(params, batch, *, key, state):
    del key, state
    return (params["w"] * batch).sum()


def one_step(loss, optimizer, params, batch, model=None, **options):
    init, step = fc.train.make_step(loss, optimizer, **options)
    return jax.jit(step)(init(params, jax.random.key(0), model), batch)


# norms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "gradient"),
    [
        (np.float16, [300, 0, 0]),
        (np.float16, [6e4, -6e4, 0]),
        (np.float16, [1e-7, 1e-7, 0]),
        (jnp.bfloat16, [1e20, 2e20, 0]),
        (F32, [1e30, 1e30, -1e30]),
        (F32, [3e38, 3e38, 3e38]),
        (F32, [1e-30, 2e-30, 0]),
    ],
)
def test_norms_of_any_size_are_clipped(dtype, gradient):
    g = np.asarray(jnp.asarray(gradient, dtype), np.float64)
    params = {"w": jnp.zeros(3, dtype), "v": jnp.zeros(())}
    state, metrics = one_step(product, optax.sgd(1.0), params, jnp.asarray(gradient, dtype), clip=1.0, loss_scale=1)
    norm = np.linalg.norm(g)
    assert metrics["grad_norm"].dtype == F32
    expected = norm if norm < np.finfo(F32).max else np.inf
    np.testing.assert_allclose(metrics["grad_norm"], expected, rtol=16 * np.finfo(F32).eps)
    assert int(metrics["skipped"]) == 0
    assert state.params["w"].dtype == dtype
    found = np.asarray(state.params["w"], np.float64)
    np.testing.assert_allclose(found, -g * min(1, 1 / norm), rtol=2 * float(jnp.finfo(dtype).eps))


@ids("dtype", NARROW)
def test_the_norm_of_many_16_bit_numbers(dtype):
    count = 100_000
    params = {"w": jnp.zeros(count, dtype)}
    _, metrics = one_step(product, optax.sgd(0.1), params, jnp.ones(count, dtype), loss_scale=1)
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(count), rtol=count * np.finfo(F32).eps)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_gradients_that_are_not_finite_are_left_out(bad):
    state, metrics = one_step(product, optax.sgd(1.0), {"w": jnp.ones(3)}, jnp.asarray([1.0, bad, 0]), clip=1.0)
    assert int(metrics["skipped"]) == 1
    assert not np.isfinite(metrics["grad_norm"])
    assert (state.params["w"] == 1).all()


@pytest.mark.parametrize("gradient", [0.0, 2.0])
def test_a_clipped_step_is_differentiable(gradient):
    """By the batch, which is the gradient: the clipped one does not depend on it, and that of zero is itself."""
    init, step = fc.train.make_step(product, optax.sgd(1.0), clip=1.0)
    state = init({"w": jnp.zeros(())}, jax.random.key(0))

    def moved(batch):
        after, metrics = step(state, batch)
        return after.params["w"], metrics["grad_norm"]

    by_w, by_norm = jax.jacobian(moved)(jnp.float32(gradient))
    close(by_w, -1 if gradient == 0 else 0, ulps=8)
    close(by_norm, 0 if gradient == 0 else 1, ulps=8)


# sums ---------------------------------------------------------------------------------------------------------


@ids("dtype", NARROW)
def test_parts_are_added_in_float32(dtype):
    """512 parts, of which the first is as large as all others: in 16 bits, adding 1 to 256 or more changes nothing."""
    count = 4096
    batch = jnp.ones(count, dtype).at[0].set(count)

    def loss(params, batch, *, key, state):
        del key
        part = batch.sum(dtype=jnp.float32).astype(batch.dtype)
        return params["w"] * part / len(batch), {"seen": part, "state": {"parts": state["parts"] + 1}}

    state, metrics = one_step(
        loss,
        optax.sgd(1.0),
        {"w": jnp.zeros((), dtype)},
        batch,
        {"parts": jnp.int32(0)},
        accumulate=count,
        has_aux=True,
        loss_scale=1,
    )
    expected = (2 * count - 1) / count
    close(metrics["grad_norm"], expected, ulps=count)
    assert state.params["w"].dtype == metrics["seen"].dtype == dtype
    np.testing.assert_allclose(float(state.params["w"]), -expected, rtol=float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(float(metrics["seen"]), expected, rtol=float(jnp.finfo(dtype).eps))
    assert int(state.model["parts"]) == count


@ids("dtype", NARROW)
def test_the_average_of_16_bit_parameters(dtype):
    """In 16 bits it would stop at a half: a thousandth of the rest is then less than half a unit in the last place."""
    steps, decay = 20_000, 0.999
    init, step = fc.train.make_step(product, optax.sgd(1.0), ema=decay, loss_scale=1)
    state = init({"w": jnp.zeros((), dtype), "v": jnp.zeros(())}, jax.random.key(0))
    state, _ = step(state, -jnp.ones((), dtype))  # from here on the parameter is 1
    state = jax.jit(lambda state: jax.lax.fori_loop(0, steps, lambda _, s: step(s, jnp.zeros((), dtype))[0], state))(
        state
    )
    assert state.ema["w"].dtype == dtype
    assert state.ema["v"].dtype == F32
    np.testing.assert_allclose(float(state.ema["w"]), 1 - decay ** (steps + 1), rtol=float(jnp.finfo(dtype).eps))


def test_the_average_of_wide_parameters_is_kept_once():
    init, step = fc.train.make_step(product, optax.sgd(1.0), ema=0.5)
    state, _ = step(init({"w": jnp.zeros(())}, jax.random.key(0)), jnp.ones(()))
    assert state.ema_float32 is None
    close(state.ema["w"], -0.5, ulps=4)


def test_a_scale_is_removed_in_float32():
    """The gradient 2 ** -30 is 0 in float16, and 2 ** -18 times a scale of 2 ** 12."""

    def loss(params, batch, *, key, state):
        del key, state
        return params["w"].astype(jnp.float32) * batch

    options = {"loss_scale": 2.0**12, "clip": 2.0**-40}
    _, metrics = one_step(loss, optax.sgd(1.0), {"w": jnp.zeros((), jnp.float16)}, jnp.float32(2.0**-30), **options)
    assert float(metrics["grad_norm"]) == 2.0**-30


@pytest.mark.parametrize("exponent", [126, 127])
def test_a_dynamic_scale_stays_finite(exponent):
    """It is doubled after 2,000 finite steps, but not beyond the largest power of two of float32."""
    init, step = fc.train.make_step(product, optax.sgd(0.0), loss_scale="dynamic")
    state = init({"w": jnp.ones((), jnp.float32)}, jax.random.key(0))
    scale = replace(state.scale, factor=jnp.float32(2.0**exponent), good=jnp.int32(1999))
    state = replace(state, scale=scale)
    state, metrics = jax.jit(step)(state, jnp.float32(2.0**-40))
    assert float(state.scale.factor) == 2.0**127
    assert int(state.scale.good) == int(state.skipped) == 0
    assert float(metrics["grad_norm"]) == 2.0**-40


@pytest.mark.parametrize("scale", [float("inf"), float("nan"), 0])
def test_a_scale_that_is_not_finite(scale):
    with pytest.raises(fc.FuncconvError, match="finite"):
        fc.train.make_step(product, optax.sgd(0.1), loss_scale=scale)


# compute_dtype --------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["image", "label"])
EXACT = 100001.0  # in float16 it is infinite, and in bfloat16 99840


def seen_dtypes(batch, **options):
    """Return the dtypes of the leaves of a batch as the loss receives them."""
    seen = []

    def loss(params, batch, *, key, state):
        del key, state
        seen.append(jax.tree.map(lambda leaf: jnp.dtype(leaf.dtype).name, batch))
        return 0 * params["w"] + 1

    one_step(loss, optax.sgd(0.0), {"w": jnp.zeros(())}, batch, compute_dtype="bfloat16", **options)
    return seen[0]


@pytest.mark.parametrize(
    ("batch", "options", "expected"),
    [
        ({"x": 0.5, "y": 0.5}, {}, {"x": "bfloat16", "y": "float32"}),
        ({"image": 0.5, "label": 1}, {}, {"image": "bfloat16", "label": "int32"}),
        ({"y": 0.5}, {}, {"y": "float32"}),
        (
            {"Inputs": {"left": 0.5, "right": 0.5}, "targets": [0.5, 0.5]},
            {},
            {"Inputs": {"left": "bfloat16", "right": "bfloat16"}, "targets": ["float32"] * 2},
        ),
        ((0.5, 0.5), {}, ("bfloat16", "float32")),
        (({"a": 0.5}, {"b": 0.5}), {}, ({"a": "bfloat16"}, {"b": "float32"})),
        ((0.5, 1, 2), {}, ("bfloat16", "int32", "int32")),
        (Pair(0.5, 0.5), {}, Pair("bfloat16", "float32")),
        (0.5, {}, "bfloat16"),
        ({"id": 3}, {}, {"id": "int32"}),
        (
            {"left": 0.5, "right": 0.5, "same": 0.5},
            {"inputs": ("left", "right")},
            {"left": "bfloat16", "right": "bfloat16", "same": "float32"},
        ),
        ({"x": 0.5, "y": 0.5}, {"inputs": "y"}, {"x": "float32", "y": "bfloat16"}),
        ({"x": 0.5, "y": 0.5}, {"inputs": ()}, {"x": "float32", "y": "float32"}),
        ((0.5, 0.5, 0.5), {"inputs": ["0", "1"]}, ("bfloat16", "bfloat16", "float32")),
        ({"in": {"a": 0.5}, "b": 0.5}, {"inputs": "in/*"}, {"in": {"a": "bfloat16"}, "b": "float32"}),
    ],
)
def test_inputs_are_cast_and_targets_are_not(batch, options, expected):
    batch = jax.tree.map(lambda value: jnp.full((4,), value), batch)
    assert seen_dtypes(batch, **options) == expected


@pytest.mark.parametrize(
    ("batch", "options", "said"),
    [
        ({"left": 0.5, "right": 0.5}, {}, r"which is 'left', 'right' of the batch\?.*inputs='left'"),
        ((0.5, 0.5, 0.5), {}, r"which is '1', '2' of the batch\?"),
        ({"x": 0.5, "weight": 0.5}, {}, r"which is 'weight'.*floating entries are 'weight', 'x'"),
        ({"x": 0.5, "y": 0.5}, {"inputs": "z"}, r"inputs='z' is no entry of the batch, which has 'x', 'y'"),
    ],
)
def test_inputs_are_never_guessed(batch, options, said):
    batch = jax.tree.map(lambda value: jnp.full((4,), value), batch)
    with pytest.raises(fc.FuncconvError, match=said) as error:
        seen_dtypes(batch, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_of_exact_targets(dtype, weak, parts):
    def loss(params, batch, *, key, state):
        del key, state
        return jnp.abs(batch["y"] - params["w"] * batch["x"]).mean()

    y = jnp.full((4,), EXACT) if weak else jnp.full((4,), EXACT, F32)
    _, metrics = one_step(
        loss, optax.sgd(0.0), {"w": jnp.zeros(())}, {"x": jnp.ones(4), "y": y}, compute_dtype=dtype, accumulate=parts
    )
    assert float(metrics["loss"]) == EXACT


def test_a_network_trains_in_bfloat16(rng):
    """Parameters and images are cast, so that layers find one dtype, and float targets are not."""
    x = fc.Input("image", (6, 6, 1))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jnp.tanh, fc.Flatten(), fc.Dense(1))(x))

    def loss(params, batch, *, key, state):
        del key
        y, state = graph.apply(params, state, batch["image"], train=True)
        assert y.dtype == jnp.bfloat16
        assert batch["target"].dtype == F32
        return jnp.square(y[:, 0] - batch["target"]).mean(), {"state": state}

    batch = {"image": rng.normal(size=(8, 6, 6, 1)).astype(F32), "target": rng.normal(size=8).astype(F32)}
    init, step = fc.train.make_step(loss, optax.sgd(0.1), compute_dtype=jnp.bfloat16, has_aux=True)
    state, losses = init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state()), []
    for _ in range(20):
        state, metrics = jax.jit(step)(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.model))} == {np.dtype(F32)}


# compute_dtype by pattern -------------------------------------------------------------------------------------------


def dtypes_by_pattern(params, batch, **options):
    """Return the names of the dtypes of parameters and batch as the loss receives them."""
    seen = []

    def loss(params, batch, *, key, state):
        del key, state
        seen.append(jax.tree.map(lambda leaf: jnp.dtype(leaf.dtype).name, (params, batch)))
        return sum(leaf.astype(F32).sum() for leaf in jax.tree.leaves(params))

    state, _ = one_step(loss, optax.sgd(1.0), params, batch, **options)
    stored, given = (jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (state.params, params))
    assert stored == given
    return seen[0]


def two_parts():
    return {"head": {"kernel": jnp.zeros(2), "bias": jnp.zeros(2)}, "trunk": {"kernel": jnp.zeros(2)}}


B, F, H = "bfloat16", "float32", "float16"


@pytest.mark.parametrize(
    ("compute_dtype", "inputs", "head", "trunk", "x"),
    [
        ({"head/*": F, "*": B}, None, (F, F), B, B),
        ({"head/bias": jnp.float32, "head": H, "*": jnp.bfloat16}, None, (F, H), B, B),
        ({"trunk/*": B}, (), (F, F), B, F),  # what no pattern matches keeps its dtype
        ({"trunk/*": B}, {"x": H}, (F, F), B, H),
        ({"head": H, "trunk": B, "*": B}, None, (H, H), B, B),  # "*" is that of the inputs
        ({"*": B}, "x", (B, B), B, B),
        (B, {"x": F}, (B, B), B, F),
        (B, {"x": H, "*": F}, (B, B), B, H),  # the first pattern counts
    ],
)
def test_dtypes_by_pattern(compute_dtype, inputs, head, trunk, x):
    options = {"compute_dtype": compute_dtype, "inputs": inputs}
    params, batch = dtypes_by_pattern(two_parts(), {"x": jnp.zeros(3), "y": jnp.zeros(3)}, **options)
    assert params == {"head": {"bias": head[0], "kernel": head[1]}, "trunk": {"kernel": trunk}}
    assert batch == {"x": x, "y": F}


def test_integers_keep_their_dtype():
    params, batch = dtypes_by_pattern(
        {"w": jnp.zeros(2), "table": jnp.arange(3)},
        (jnp.zeros(2), jnp.arange(2)),
        compute_dtype={"*": B},
        frozen="table",
    )
    assert (params, batch) == ({"w": B, "table": "int32"}, (B, "int32"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compute_dtype": {"heads/*": F, "*": B}}, r"'heads/\*' matches no parameter; the parameters are head/bias"),
        ({"compute_dtype": {"*": B, "head/*": F}}, r"'head/\*' has no effect: '\*' comes before.*'head/bias'. Put"),
        ({"compute_dtype": {"head/*": F}}, r"has the patterns 'head/\*', which do not give the dtype of the inputs"),
        ({"compute_dtype": {"head/*": F}, "inputs": "x"}, r"do not give the dtype of the inputs\. Add the pattern"),
        ({"compute_dtype": {}}, "dict from patterns to dtypes"),
        ({"compute_dtype": {3: F}}, "dict from patterns to dtypes"),
        ({"compute_dtype": {"*": "int8"}}, r"compute_dtype\['\*'\] must be a floating dtype.*'int8'"),
        ({"compute_dtype": {"*": None}}, r"compute_dtype\['\*'\] must be a floating dtype.*None"),
        ({"compute_dtype": "bfloat"}, "compute_dtype must be a floating dtype.*'bfloat'"),
        ({"compute_dtype": B, "inputs": {"x": "int8"}}, r"inputs\['x'\] must be a floating dtype"),
        ({"compute_dtype": B, "inputs": {"z": F}}, "inputs='z' is no entry of the batch"),
        ({"inputs": {"x": F}}, "gives dtypes, which needs the dtype of the parameters; give compute_dtype="),
    ],
)
def test_patterns_of_dtypes_that_do_nothing(options, said):
    with pytest.raises(fc.FuncconvError, match=said):
        dtypes_by_pattern(two_parts(), {"x": jnp.zeros(3)}, **options)


@pytest.mark.parametrize("options", [{"compute_dtype": {"head": H, "*": F}}, {"compute_dtype": F, "inputs": {"x": H}}])
def test_float16_anywhere_has_a_dynamic_scale(options):
    init, step = fc.train.make_step(lambda *_, **__: 0.0, optax.sgd(1.0), **options)
    assert init(two_parts(), jax.random.key(0)).scale is not None
    assert step.options["loss_scale"] == "dynamic"


def test_a_head_in_float32(rng):
    """The trunk computes in bfloat16 and the head in float32; a layer between them casts."""
    x = fc.Input("image", (6, 6, 1))
    trunk = fc.Graph(x, fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Flatten())(x), name="trunk")
    graph = fc.Graph(x, fc.serial(trunk, lambda x: x.astype("float32"), fc.Dense(1, name="head"))(x))

    def loss(params, batch, *, key, state):
        del key, state
        assert params["trunk"]["conv1"]["kernel"].dtype == batch["image"].dtype == jnp.bfloat16
        y = graph(params, batch["image"])
        assert y.dtype == params["head"]["kernel"].dtype == F32
        return jnp.square(y[:, 0] - batch["target"]).mean()

    batch = {"image": rng.normal(size=(8, 6, 6, 1)).astype(F32), "target": rng.normal(size=8).astype(F32)}
    options = {"compute_dtype": {"head/*": "float32", "*": "bfloat16"}}
    init, step = fc.train.make_step(loss, optax.sgd(0.1), **options)
    state, losses = init(graph.init(jax.random.key(0)), jax.random.key(1)), []
    for _ in range(20):
        state, metrics = jax.jit(step)(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(F32)}

"""Weighted means: any split of a batch, over micro-batches and devices, gives what one large batch gives."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close
from jax.sharding import AxisType

import funcconv as fc

EXAMPLES, TOKENS, FEATURES = 48, 5, 3
PARTS, DEVICES = (1, 2, 3, 4), (1, 2, 4)
TERMS = EXAMPLES * TOKENS * FEATURES  # products that the loss and its gradient sum
DTYPES = {"float32": np.float32, "float64": np.float64, "bfloat16": jnp.bfloat16}
MASKS = {
    "some": lambda rng: rng.integers(0, 2, (EXAMPLES, TOKENS)),
    "one micro-batch has none": lambda rng: (
        rng.integers(1, 3, (EXAMPLES, TOKENS)) * (np.arange(EXAMPLES) % 4 != 1)[:, None]
    ),
    "one example": lambda _: np.ones((EXAMPLES, TOKENS)) * (np.arange(EXAMPLES) == 7)[:, None],
    "none": lambda _: np.zeros((EXAMPLES, TOKENS)),
}


def errors(params, batch):
    """One error for each token, `(examples, tokens)`, in the dtype of the batch."""
    return jnp.square(jnp.einsum("etf,f->et", batch["x"], params["w"].astype(batch["x"].dtype)) - batch["y"])


def loss(params, batch, *, key, state):
    del key, state
    error = errors(params, batch)
    mask = batch["mask"]
    small = fc.train.Weighted((error < 1).sum(0), jnp.float32(len(error)))
    metrics = {"largest": fc.train.Sum((error > 9).sum()), "small": small, "mean": error.mean()}
    return fc.train.Weighted((error * mask).sum(), mask.sum()), metrics


def problem(rng, dtype, mask):
    """Return a batch in at least float32, and parameters in a dtype."""
    of_batch = np.float64 if dtype == np.float64 else np.float32
    x, y = rng.normal(size=(EXAMPLES, TOKENS, FEATURES)), rng.normal(size=(EXAMPLES, TOKENS))
    batch = {"x": x, "y": y, "mask": MASKS[mask](rng)}
    batch = {name: jnp.asarray(array, of_batch) for name, array in batch.items()}
    return batch, {"w": jnp.asarray(rng.normal(size=FEATURES), dtype)}


def mesh_of(count, kind=AxisType.Auto):
    return jax.make_mesh((count,), ("data",), axis_types=(kind,), devices=jax.devices()[:count])


def gradient_of_step(params, batch, the_loss=loss, has_aux=True, **options):
    """Return the gradient that a step gives the optimizer, the next state and the metrics."""
    seen = optax.GradientTransformation(
        lambda params: params, lambda grads, *_: (jax.tree.map(jnp.zeros_like, grads), grads)
    )
    init, step = fc.train.make_step(the_loss, seen, has_aux=has_aux, **options)
    state, metrics = jax.jit(step)(init(params, jax.random.key(0)), batch)
    return state.optimizer, state, metrics


@pytest.mark.parametrize("mask", ["some", "one micro-batch has none", "one example"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_split_is_one_large_batch(rng, dtype, mask):
    """The gradient, the loss and the metrics are those of the formula, for each number of parts and devices."""
    batch, params = problem(rng, DTYPES[dtype], mask)

    def mean(params):
        error = errors(params, batch)
        return (error * batch["mask"]).sum() / batch["mask"].sum()

    value, gradient = jax.value_and_grad(mean)(params)
    error = errors(params, batch)
    for parts in PARTS:
        for devices in DEVICES:
            mesh = None if devices == 1 else mesh_of(devices)
            found, state, metrics = gradient_of_step(params, batch, accumulate=parts, mesh=mesh)
            # In 16 bits, only the gradient of each part is rounded, on each device.
            terms = parts + devices if dtype == "bfloat16" else TERMS
            close(found["w"], gradient["w"], DTYPES[dtype], terms=terms)
            close(metrics["loss"], value, value.dtype, terms=TERMS)
            close(metrics["small"], (error < 1).mean(0), np.float32, terms=EXAMPLES)
            close(metrics["mean"], error.mean(), error.dtype, terms=TERMS)
            assert metrics["largest"] == (error > 9).sum()
            assert int(state.skipped) == 0


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_on_meshes_of_each_kind(rng, kind):
    batch, params = problem(rng, np.float32, "some")
    expected, _, known = gradient_of_step(params, batch)
    found, _, metrics = gradient_of_step(params, batch, accumulate=3, mesh=mesh_of(4, AxisType[kind]))
    close(found["w"], expected["w"], terms=TERMS)
    jax.tree.map(lambda a, b: close(a, b, np.float32, terms=TERMS), metrics, known)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("devices", DEVICES)
def test_a_total_weight_of_zero_changes_nothing(rng, parts, devices):
    """There is no mean, so the loss is NaN; the step is counted as skipped, and the dynamic scale stays."""
    batch, params = problem(rng, np.float32, "none")
    mesh = None if devices == 1 else mesh_of(devices)
    optimizer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))  # changes without a gradient
    init, step = fc.train.make_step(
        loss, optimizer, has_aux=True, accumulate=parts, mesh=mesh, ema=0.9, loss_scale="dynamic"
    )
    before = init(params, jax.random.key(0))
    after, metrics = jax.jit(step)(before, batch)
    kept = [(state.params, state.optimizer, state.ema, state.scale) for state in (before, after)]
    jax.tree.map(np.testing.assert_array_equal, *kept)
    assert np.isnan(metrics["loss"])
    assert metrics["grad_norm"] == 0
    assert (int(after.step), int(after.skipped)) == (1, 1)
    further, _ = jax.jit(step)(after, {**batch, "mask": jnp.ones_like(batch["mask"])})
    assert int(further.skipped) == 1
    assert np.isfinite(further.params["w"]).all()


def test_a_loss_that_is_not_finite_still_lowers_the_scale(rng):
    batch, params = problem(rng, np.float32, "some")
    _, state, _ = gradient_of_step(params, {**batch, "y": batch["y"] * np.inf}, loss_scale="dynamic")
    assert (float(state.scale.factor), int(state.skipped)) == (2.0**14, 1)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_weight_is_a_constant_for_the_gradient(parts):
    """That of sum / stop_gradient(weight), also if the weight depends on the parameters."""

    def weighted(params, batch, *, key, state):
        del key, state
        weights = jax.nn.sigmoid(params["w"] * batch)
        return fc.train.Weighted((weights * batch).sum(), weights.sum())

    def constant(w):
        weights = jax.nn.sigmoid(w * batch)
        return (weights * batch).sum() / jax.lax.stop_gradient(weights.sum())

    batch, w = jnp.arange(4.0), jnp.asarray(0.3)
    found, _, _ = gradient_of_step({"w": w}, batch, weighted, has_aux=False, accumulate=parts)
    close(found["w"], jax.grad(constant)(w), terms=16)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_derivative_of_the_step_includes_the_weight(parts):
    """Such as a meta-gradient by the weights of examples, compared with differences."""

    def weighted(params, batch, *, key, state):
        del key, state
        return fc.train.Weighted((batch["m"] * jnp.square(params["w"] - batch["y"])).sum(), batch["m"].sum())

    init, step = fc.train.make_step(weighted, optax.sgd(0.1), accumulate=parts)
    first, y, m = init({"w": jnp.zeros(())}, jax.random.key(0)), jnp.arange(4.0), jnp.array([1.0, 0.5, 2, 0.25])
    after = lambda m: step(first, {"y": y, "m": m})[0].params["w"]  # noqa: E731
    expected = 0.2 * (y / m.sum() - (m * y).sum() / m.sum() ** 2)  # w = 0.2 * (m · y) / sum(m)
    close(after(m), 0.2 * (m * y).sum() / m.sum(), terms=16)
    close(jax.grad(after)(m), expected, terms=16)


def test_a_weighted_mean_over_examples_is_the_scalar(rng):
    """With the same weight for all, gradient and loss are those of a loss that returns the mean."""
    batch, params = problem(rng, np.float32, "some")
    mean, _, known = gradient_of_step(params, batch, lambda p, b, **_: errors(p, b).mean(), has_aux=False)
    for parts in PARTS:
        of = lambda p, b, **_: fc.train.Weighted.of(errors(p, b))  # noqa: E731
        found, _, metrics = gradient_of_step(params, batch, of, has_aux=False, accumulate=parts)
        close(found["w"], mean["w"], terms=TERMS)
        close(metrics["loss"], known["loss"], terms=TERMS)


def test_the_sum_in_sixteen_bits_does_not_overflow():
    """The gradient of a sum over many examples would, in float16 with a scale."""
    batch = jnp.ones(4096, np.float16)

    def weighted(params, batch, *, key, state):
        del key, state
        return fc.train.Weighted.of(params["w"] * batch)

    found, state, metrics = gradient_of_step({"w": jnp.float16(1)}, batch, weighted, has_aux=False, loss_scale=2.0**13)
    assert (float(found["w"]), float(metrics["loss"]), int(state.skipped)) == (1, 1, 0)


@pytest.mark.parametrize("dtype", [*DTYPES.values(), np.float16, np.int8, np.bool_])
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_weighted_of_values(rng, dtype, axes):
    values = jnp.asarray(rng.integers(0, 2, (300, 2)), dtype)
    weights = np.asarray(rng.integers(0, 3, (300, 2)[:axes]), np.float32) if axes else None
    found = fc.train.Weighted.of(values, weights)
    whole = np.ones((300, 2)) if weights is None else np.broadcast_to(weights.reshape(300, -1), (300, 2))
    assert found.sum.dtype == found.weight.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert float(found.sum) == (np.asarray(values, np.float64) * whole).sum()  # small integers are exact
    assert float(found.weight) == whole.sum()
    close(found.mean, np.average(np.asarray(values, np.float64), weights=whole), found.mean.dtype, terms=2)


def test_values_without_weight_are_left_out():
    found = fc.train.Weighted.of(jnp.array([1, jnp.nan, jnp.inf, 3]), jnp.array([True, False, False, True]))
    assert float(found.mean) == 2
    assert np.isnan(fc.train.Weighted.of(jnp.ones(2), jnp.zeros(2)).mean)
    of_classes = fc.train.Weighted(jnp.array([1.0, 2, 0]), jnp.array([2, 1, 0]))
    np.testing.assert_array_equal(of_classes.mean, [0.5, 2, np.nan])


VECTOR = jnp.ones(3, np.float32)
ONE = np.float32(1)
MISTAKES = {
    "a vector": (
        fc.train.Weighted(VECTOR, ONE),
        "sum of the loss must be a floating scalar, .*sum=float32 of shape (3,)",
    ),
    "a weight of a vector": (
        fc.train.Weighted(ONE, VECTOR),
        "weight=float32 of shape (3,)). Sum over the examples and",
    ),
    "an integer": (fc.train.Weighted(jnp.int32(1), ONE), "a floating scalar.*sum=int32"),
    "a text": (fc.train.Weighted(ONE, "2"), "weight=a str"),
    "nothing": (fc.train.Weighted(ONE, None), "weight=a NoneType"),
    "a complex weight": (fc.train.Weighted(ONE, np.complex64(1)), "weight=complex64"),
    "a pair": ((ONE, ONE), "must return a scalar; got a tuple .* or return train.Weighted(sum, weight)"),
    "a sum": (fc.train.Sum(ONE), "must return a scalar of a floating dtype.* got a Sum"),
}


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_weighted_loss(mistake, parts):
    returned, said = MISTAKES[mistake]
    pattern = re.escape(said).replace(r"\.\*", ".*")
    with pytest.raises(fc.FuncconvError, match=pattern) as error:
        gradient_of_step({"w": ONE}, jnp.ones(4), lambda *_, **__: returned, has_aux=False, accumulate=parts)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            fc.train.Weighted(VECTOR, np.ones(2, np.float32)),
            r"sum of the metric 'm' .*the same shape; got Weighted\(sum",
        ),
        (fc.train.Sum("text"), r"value of the metric 'm' must be real numbers; got Sum\(value=a str\)"),
    ],
)
def test_mistakes_in_a_weighted_metric(metric, said):
    with pytest.raises(fc.FuncconvError, match=said):
        gradient_of_step({"w": ONE}, jnp.ones(4), lambda p, *_, **__: (p["w"], {"m": metric}))


def test_weights_of_other_axes():
    with pytest.raises(fc.FuncconvError, match=r"values, which have shape \(4, 3\); got weights of shape \(3,\)"):
        fc.train.Weighted.of(jnp.ones((4, 3)), jnp.ones(3))

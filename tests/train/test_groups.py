"""Optimizers and learning rates for groups of parameters, weight decay, and the learning rates that a step reports."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import close as close_arrays
from optax import contrib

import funcconv as fc

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
F32 = np.float32
PARAMS = {"trunk": {"conv1": {"kernel": F32([1.0, 2.0]), "bias": F32([3.0])}}, "head": {"kernel": F32([4.0])}}
close = partial(close_arrays, dtype=F32)


def loss(params, batch, *, key, state):
    del key, state
    return sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params)) * batch


def after(optimizer, steps=1, **options):
    init, step = fc.train.make_step(loss, optimizer, **options)
    state = init(PARAMS, jax.random.key(0))
    for _ in range(steps):
        state, metrics = step(state, F32(0.5))  # so the gradient is equal to the parameters
    return state, metrics


def test_the_first_matching_pattern_counts():
    state, _ = after({"trunk/*/bias": optax.sgd(1.0), "trunk": optax.sgd(0.5), "*": optax.sgd(0.25)})
    assert jax.tree.map(lambda leaf: leaf.tolist(), state.params) == {
        "trunk": {"conv1": {"kernel": [0.5, 1.0], "bias": [0.0]}},
        "head": {"kernel": [3.0]},
    }


def test_factors_multiply_the_learning_rate():
    """Of adamw, weight decay and momentum included."""
    state, _ = after(optax.adamw(0.1, weight_decay=0.3), 3, lr_factors={"trunk/*": 0.5, "*": 2.0})
    expected, _ = after({"trunk/*": optax.adamw(0.05, weight_decay=0.3), "*": optax.adamw(0.2, weight_decay=0.3)}, 3)
    jax.tree.map(close, state.params, expected.params)


def test_frozen_parameters_need_no_pattern():
    state, _ = after({"head": optax.adam(0.1)}, frozen="trunk")
    assert state.params["trunk"]["conv1"]["bias"] == 3
    assert state.params["head"]["kernel"] != 4


SGD = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("optimizer", "factors", "said"),
    [
        ({"trunk": SGD}, None, r"no pattern of optimizer matches 'head/kernel'; the patterns are 'trunk'"),
        (SGD, {"head": 1.0}, r"no pattern of lr_factors matches 'trunk/conv1/bias', 'trunk/conv1/kernel'"),
        ({"tail": SGD, "*": SGD}, None, r"'tail' of optimizer is the first matching pattern of no trained parameter"),
        (SGD, {"*": 1.0, "head": 2.0}, r"'head' of lr_factors is the first .*'head/kernel' \('\*'\)"),
        (contrib.schedule_free_sgd(), {"*": 1.0}, "lr_factors multiply .* schedule_free continues from its own"),
        (optax.lookahead(SGD, 2, 0.5), {"*": 1.0}, "but lookahead continues"),
        (optax.lbfgs(), {"*": 1.0}, "but a line search continues"),
        (contrib.sam(SGD, SGD), {"*": 1.0}, "but sam without opaque_mode continues"),
        (optax.chain(contrib.mechanize(SGD)), {"*": 1.0}, "but mechanize continues"),
    ],
)
def test_patterns_that_do_not_fit(optimizer, factors, said):
    init, _ = fc.train.make_step(loss, optimizer, lr_factors=factors)
    with pytest.raises(fc.FuncconvError, match=said):
        init(PARAMS, jax.random.key(0))


@pytest.mark.parametrize(
    ("optimizer", "factors", "said"),
    [
        ({}, None, "optimizer is an empty dict"),
        ({"*": 0.1}, None, r"optimizer\['\*'\] must be an optax optimizer.* got 0.1. Factors .* lr_factors="),
        (0.1, None, "optimizer must be an optax optimizer"),
        (SGD, [0.1], "lr_factors must be a dict"),
        (SGD, {"*": -1.0}, r"lr_factors\['\*'\] must be a finite number of at least 0; got -1.0"),
        (SGD, {"*": True}, "must be a finite number"),
        ({"*": SGD}, {"*": 1.0}, "lr_factors need one optimizer"),
    ],
)
def test_options_of_the_wrong_type(optimizer, factors, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.make_step(loss, optimizer, lr_factors=factors)


def test_groups_resume_and_are_compared(tmp_path):
    """Their patterns have slashes, which no file name can have."""

    def run(steps, rate=0.1, **options):
        optimizer = {"trunk/*": optax.adam(rate), "*": optax.lookahead(optax.sgd(0.1, momentum=0.9), 2, 0.5)}
        init, step = fc.train.make_step(loss, optimizer)
        state = init(PARAMS, jax.random.key(0))
        return fc.train.fit(step, state, iter([F32(0.5)] * 6), steps=steps, progress=False, **options)[0]

    run(3, checkpoint=tmp_path)
    resumed = run(6, checkpoint=tmp_path, on_change="raise")
    assert fc.train.digest(resumed) == fc.train.digest(run(6))
    with pytest.warns(UserWarning, match="learning_rate: 0.1 then, 0.2 now"):
        run(6, 0.2, checkpoint=tmp_path)


# weight decay -------------------------------------------------------------------------------------------


def test_kernels_have_weight_decay():
    x = fc.Input("x", (6, 6, 2))
    layers = fc.WeightNorm(fc.Conv(4, 3)), fc.BatchNorm(), fc.LayerNorm(), fc.LocalConv(2, 2), fc.Flatten(), fc.Dense(3)
    params = fc.Graph(x, fc.serial(*layers)(x)).init(jax.random.key(0))
    mask = fc.train.decay_mask(params)
    names = {jax.tree_util.keystr(path, simple=True, separator="/") for path, m in jax.tree.leaves_with_path(mask) if m}
    assert names == {"conv1/kernel", "local_conv1/kernel", "dense1/kernel"}
    assert jax.tree.structure(mask) == jax.tree.structure(params)


def test_weight_decay_of_adamw_with_a_mask():
    params = {"conv1": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, "table": jnp.ones(4)}
    for frozen in ((), "conv1/bias"):
        mask = partial(fc.train.decay_mask, no_decay="table")
        init, step = fc.train.make_step(
            loss,
            {"conv1": optax.adamw(1.0, weight_decay=0.1, mask=fc.train.decay_mask), "*": optax.adamw(1.0, mask=mask)},
            frozen=frozen,
        )
        state, _ = step(init(params, jax.random.key(0)), F32(0))  # the gradient is 0
        close(state.params["conv1"]["kernel"], np.full((3, 2), 0.9, F32))
        assert (state.params["conv1"]["bias"] == 1).all()
        assert (state.params["table"] == 1).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"which are 'embedding' of shape \(4, 2\), 'norm/kernel' of shape \(3,\)\? Name them"),
        ({"decay": "*", "no_decay": "norm"}, "'norm/kernel' matches patterns of decay and of no_decay"),
        ({"decay": ("embedding", "tail"), "no_decay": "norm"}, "decay pattern 'tail' matches no parameter"),
    ],
)
def test_parameters_of_other_names_are_not_guessed(options, said):
    params = {"embedding": jnp.ones((4, 2)), "norm": {"kernel": jnp.ones(3)}}
    with pytest.raises(fc.FuncconvError, match=said):
        fc.train.decay_mask(params, **options)
    assert fc.train.decay_mask(params, decay="embedding", no_decay="norm") == {
        "embedding": True,
        "norm": {"kernel": False},
    }


# learning rates -----------------------------------------------------------------------------------------

RATE = 0.25
SCHEDULE = optax.linear_schedule(1.0, 0.0, 4)  # in the third step it is 0.5


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.sgd(RATE), RATE),
        (optax.adamw(RATE), RATE),
        (optax.adam(SCHEDULE), 0.5),
        (optax.chain(optax.clip(1.0), optax.lion(SCHEDULE)), 0.5),
        (optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(SCHEDULE), optax.scale(-1.0)), 0.5),
        (optax.named_chain(("a", optax.scale_by_adam()), ("b", optax.scale(-RATE))), RATE),
        (optax.inject_hyperparams(optax.lars)(SCHEDULE), 0.5),
        (optax.chain(optax.clip(1.0), optax.inject_hyperparams(optax.rprop)(RATE)), RATE),
        (optax.chain(optax.sgd(RATE), contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.99)), RATE / 4),
        (optax.lookahead(optax.adam(RATE), 2, 0.5), None),
        (optax.rprop(RATE), None),  # scales by -1 at last
        (optax.adafactor(RATE), None),
        (optax.polyak_sgd(), None),
        (optax.lars(RATE), None),  # momentum comes last
        (optax.scale(RATE), None),  # of no descent
        (contrib.prodigy(RATE), None),
        (contrib.mechanize(optax.sgd(RATE)), None),
        (optax.MultiSteps(optax.sgd(RATE), 2), None),
    ],
)
def test_the_learning_rate_is_right_or_missing(optimizer, expected):
    _, metrics = after(optimizer, 3, report_learning_rate=True)
    assert ("learning_rate" in metrics) == (expected is not None)
    if expected is not None:
        assert float(metrics["learning_rate"]) == expected
    assert "learning_rate" not in after(optimizer, 1)[1]


def test_learning_rates_of_groups():
    _, metrics = after({"trunk": optax.adam(RATE), "*": optax.rprop(0.1)}, report_learning_rate=True)
    assert {name: float(value) for name, value in metrics.items() if "rate" in name} == {"learning_rate/trunk": RATE}
    _, metrics = after(optax.adam(RATE), report_learning_rate=True, lr_factors={"trunk": 0.5, "*": 1.0})
    rates = {name: float(value) for name, value in metrics.items() if "rate" in name}
    assert rates == {"learning_rate/trunk": RATE / 2, "learning_rate/*": RATE}


def test_the_learning_rate_of_a_line_search_gives_its_step():
    init, step = fc.train.make_step(
        loss, optax.chain(optax.scale(-1.0), optax.scale_by_zoom_linesearch(9)), report_learning_rate=True
    )
    first = init(PARAMS, jax.random.key(0))
    state, metrics = step(first, F32(0.5))
    rate = float(metrics["learning_rate"])
    jax.tree.map(lambda new, old: close(new, old - rate * old), state.params, first.params)


def test_a_loss_must_not_report_the_same_metric():
    def with_rate(params, batch, *, key, state):
        return loss(params, batch, key=key, state=state), {"learning_rate": F32(1)}

    init, step = fc.train.make_step(with_rate, optax.sgd(RATE), has_aux=True)
    assert step(init(PARAMS, jax.random.key(0)), F32(1))[1]["learning_rate"] == 1
    init, step = fc.train.make_step(with_rate, optax.sgd(RATE), has_aux=True, report_learning_rate=True)
    with pytest.raises(fc.FuncconvError, match="a metric 'learning_rate', which the step reports itself; rename it"):
        step(init(PARAMS, jax.random.key(0)), F32(1))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_groups_on_a_mesh(kind):
    """The slow parameters, and the average, are spread as the parameters are."""
    kinds = (getattr(jax.sharding.AxisType, kind),) * 2
    mesh = jax.make_mesh((2, 2), ("data", "model"), axis_types=kinds, devices=jax.devices()[:4])

    def mean(params, batch, *, key, state):
        return loss(params, batch.mean(), key=key, state=state)

    def trained(**options):
        groups = {"head": contrib.schedule_free_sgd(0.1), "*": optax.lookahead(optax.adam(0.1), 2, 0.5)}
        init, step = fc.train.make_step(mean, groups, report_learning_rate=True, **options)
        state = init(PARAMS, jax.random.key(0))
        for _ in range(3):
            state, _ = jax.jit(step)(state, np.full(4, 0.5, F32))
        return state

    partition = {"trunk/*/kernel": jax.P("model")}
    spread = trained(mesh=mesh, partition=partition)
    jax.tree.map(
        lambda a, b: close(jax.device_get(a), b), fc.train.eval_params(spread), fc.train.eval_params(trained())
    )
    assert spread.optimizer.inner_states["*"].inner_state.slow["trunk"]["conv1"]["kernel"].sharding.spec == jax.P(
        "model"
    )
    averaged = trained(mesh=mesh, partition=partition, average="mean", average_start=1)
    jax.tree.map(lambda a, b: close(jax.device_get(a), b), averaged.ema, trained(average="mean", average_start=1).ema)
    assert averaged.ema["trunk"]["conv1"]["kernel"].sharding.spec == jax.P("model")

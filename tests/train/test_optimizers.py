"""Each optimizer of optax and `optax.contrib` trains a small convolutional network, as it is."""

import inspect
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import funcconv as fc

pytestmark = [
    pytest.mark.usefixtures("climate_of_a_user"),
    pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning"),
]
STEPS = 20
PERTURB = optax.chain(contrib.normalize(), optax.sgd(0.05))
HAS_OLD_DOG = "reps_rel" in inspect.signature(contrib.dog).parameters  # optax 0.2.5
FIRST_STEP_OF_DOG = {"reps_rel": 1e-2} if HAS_OLD_DOG else {"init_step": ("heuristic", 1e-2)}
# The learning rates of optimizers that need another one than 0.01.
RATES = {
    **dict.fromkeys(("sgd", "optimistic_gradient_descent", "novograd", "sm3", "fromage"), 0.1),
    **dict.fromkeys(("adadelta", "lars", "schedule_free_sgd", "momo", "cocob"), 1.0),
    **dict.fromkeys(("dowg",), 1.0),
    "lars": 0.1,
    "radam": 0.1,
}
# Optimizers without a learning rate, or with other arguments.
BUILT = {
    "lbfgs": optax.lbfgs,
    "polyak_sgd": partial(optax.polyak_sgd, max_learning_rate=0.5),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "lookahead": lambda: optax.lookahead(optax.adam(0.01), sync_period=4, slow_step_size=0.5),
    "contrib.schedule_free": lambda: contrib.schedule_free(optax.adam(0.01, b1=0.0), 0.01),
    "contrib.mechanize": lambda: contrib.mechanize(optax.sgd(1.0), s_init=1e-2),
    "contrib.sam": lambda: contrib.sam(optax.sgd(0.1), PERTURB),
    "contrib.sam, opaque": lambda: contrib.sam(optax.sgd(0.1), PERTURB, opaque_mode=True),
    "contrib.dadapt_adamw": lambda: contrib.dadapt_adamw(1.0, estim_lr0=1e-3),
    "contrib.prodigy": lambda: contrib.prodigy(1.0, estim_lr0=1e-3),
    "contrib.dog": lambda: contrib.dog(1.0, **FIRST_STEP_OF_DOG),
    "contrib.galore": lambda: contrib.galore(0.01, rank=2, weight_dimension_numbers=galore_numbers),
    # Parts of optimizers that evaluate the loss, or use its value.
    "scale_by_backtracking_linesearch": lambda: optax.chain(
        optax.scale(-1.0), optax.scale_by_backtracking_linesearch(10, store_grad=True)
    ),
    "scale_by_zoom_linesearch": lambda: optax.chain(optax.scale(-1.0), optax.scale_by_zoom_linesearch(10)),
    "contrib.reduce_on_plateau": lambda: optax.chain(optax.adam(0.01), contrib.reduce_on_plateau()),
}
# Functions that return a transformation and are not tried, with the reason.
NOT_TRIED = {
    **dict.fromkeys(
        ("contrib.dpsgd", "contrib.differentially_private_aggregate"),
        "needs one gradient for each example, of which a step computes the sum",
    ),
    **dict.fromkeys(
        (
            *("adaptive_grad_clip", "clip", "clip_by_block_rms", "clip_by_global_norm", "normalize_by_update_norm"),
            *("add_decayed_weights", "add_noise", "apply_every", "apply_if_finite", "centralize", "ema", "identity"),
            *("freeze", "keep_params_nonnegative", "measure_with_ema", "scale", "set_to_zero", "snapshot", "trace"),
            *("zero_nans", "stateless", "stateless_with_tree_map", "contrib.normalize"),
        ),
        "changes updates, but is no optimizer by itself",
    ),
    **dict.fromkeys(
        (
            *("chain", "conditionally_mask", "conditionally_transform", "flatten", "inject_hyperparams", "masked"),
            *("inject_stateful_hyperparams", "multi_transform", "named_chain", "partition", "selective_transform"),
            *("with_extra_args_support", "contrib.split_real_and_imaginary"),
        ),
        "combines or wraps other transformations",
    ),
}


def reason_not_to_try(name):
    """Return why a function is not tried, or None."""
    if name.rpartition(".")[2].startswith("scale_by_") and name not in BUILT:
        return "a part of the optimizers that are tried"
    return NOT_TRIED.get(name)


def galore_numbers(params):
    """The last axis of a kernel against all others; none for biases."""

    def numbers(leaf):
        axes = tuple(range(leaf.ndim - 1))
        return contrib.GaLoreDimensionNumbers(reduction_axis=axes, output_axis=leaf.ndim - 1) if leaf.ndim > 1 else None

    return jax.tree.map(numbers, params)


def names():
    """Return the names of the functions that return an optimizer or a part of one."""
    found = []
    for module, prefix in ((optax, ""), (contrib, "contrib.")):
        for name, function in sorted(vars(module).items()):
            if name.startswith("_") or not (inspect.isfunction(function) or isinstance(function, partial)):
                continue
            signature = inspect.signature(function)
            if "learning_rate" in signature.parameters or "GradientTransformation" in str(signature.return_annotation):
                found.append(prefix + name)
    return found


def built(name):
    """Return an optimizer by its name, with its defaults but for the learning rate."""
    if name in BUILT:
        return BUILT[name]()
    last = name.rpartition(".")[2]
    function = getattr(contrib if name.startswith("contrib.") else optax, last)
    return function(learning_rate=RATES.get(last, 0.01))


NAMES = names()
TRIED = [name for name in NAMES if reason_not_to_try(name) is None]


@cache
def problem():
    image = fc.Input("x", (6, 6, 1))
    layers = fc.Conv(4, 3), jnp.tanh, fc.Pool(2, reduce="mean"), fc.Flatten(), fc.Dense(2)
    network = fc.Graph(image, fc.serial(*layers)(image))
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    x = np.float32(0.5 * rng.normal(size=(32, 6, 6, 1)) + label[:, None, None, None])

    def loss(params, batch, *, key, state):
        del key, state
        logits = network(params, batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return loss, network.init(jax.random.key(0)), {"x": x, "label": label}


@pytest.mark.parametrize("name", [*TRIED, "contrib.sam, opaque"])
def test_an_optimizer_reduces_the_loss(name):
    loss, params, batch = problem()
    init, step = fc.train.make_step(loss, built(name))
    first = init(params, jax.random.key(1))

    @jax.jit
    def trained(state):
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=STEPS)

    state, metrics = trained(first)  # the scan also says that no step changes a shape or a dtype
    assert not state.skipped
    final = loss(fc.train.eval_params(state), batch, key=None, state=None)
    assert final < 0.9 * metrics["loss"][0], metrics["loss"]


def test_each_name_is_tried_or_has_a_reason():
    versions = {"freeze", "measure_with_ema", "selective_transform", "snapshot"}  # not in optax 0.2.5
    assert NOT_TRIED.keys() - set(NAMES) <= versions


def test_every_state_survives_a_checkpoint(tmp_path):
    _, params, _ = problem()
    states = {}
    for name in TRIED:
        init, _ = fc.train.make_step(problem()[0], built(name))
        states[name] = init(params, jax.random.key(1))
    fc.train.save(tmp_path, states, step=1)
    restored = fc.train.restore(tmp_path, jax.tree.map(jnp.zeros_like, states))
    assert fc.train.digest(restored) == fc.train.digest(states)
    assert jax.tree.structure(restored) == jax.tree.structure(states)

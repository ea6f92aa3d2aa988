"""The state before the first step, and the state after a step."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.patterns import path_of
from ..._common.types import Array
from .._distributed.partition import on_every_device, placed, shardings, spread_batch
from .._optimizer.call import update_with
from .._optimizer.learning_rate import learning_rates
from .._state import Scale, State
from .compute_dtypes import check_patterns_of_dtypes
from .frozen import check_frozen, trained, with_frozen
from .gradient import gradient
from .memory import copied
from .options import StepOptions
from .parameters.average import first_average, next_average
from .parameters.callbacks import Callbacks
from .sums import clipped, like, scale_and_norm
from .totals import Weighted

# The dynamic scale of the loss begins high. The first steps halve it until their gradients are finite in 16 bits.
_FIRST_SCALE = 2.0**15
_MAX_SCALE = 2.0**127  # the largest power of 2 in float32
_GOOD_STEPS = 2000  # steps with finite gradients before the scale is doubled, as in PyTorch's GradScaler


def initial_state(options: StepOptions, params: Any, key: Array, model: Any) -> State:
    """Return the state before the first step.

    Args:
        options: of the step.
        params: a tree of arrays, which are copied.
        key: a typed key.
        model: the state of the model, a tree of arrays, or None.

    Raises:
        FuncconvError: if the key is not typed, or a parameter cannot be trained, frozen, cast or sharded as the options
            say.
    """
    if not jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key):
        msg = f"train: the key must be a typed one, jax.random.key(seed); got {jnp.result_type(key)}"
        raise FuncconvError(msg)
    params, model = copied(params), copied({} if model is None else model)
    check_frozen(params, model, options.frozen)
    check_patterns_of_dtypes(params, options.compute_dtype)
    transform_state = options.transform.init(trained(params, options.frozen))
    _check_optimizer_state(transform_state)
    average = first_average(options, params)
    state = State(
        step=_zero(),
        params=params,
        optimizer=copied(transform_state),
        key=copied(key),
        model=model,
        skipped=_zero(),
        scale=Scale(jnp.float32(_FIRST_SCALE), _zero()) if options.has_dynamic_scale else None,
        monitored=jnp.float32(jnp.inf) if options.optimizer_value == "monitor" else None,
        **({"ema": None} | average),
    )
    mesh = options.mesh
    return state if mesh is None else placed(state, shardings(state, mesh, options.partition))


def update(options: StepOptions, state: State, batch: Any) -> tuple[State, dict[str, Array]]:
    """Return the next state and the metrics of the step."""
    mesh = options.auto_mesh
    if mesh is not None:
        batch = spread_batch(batch, mesh)
    factor: Any = state.scale.factor if state.scale else options.loss_scale
    gradients, loss, metrics, model = gradient(options, state, batch, factor)
    is_empty = None  # whether there was nothing to take the mean of, which says nothing about the scale
    if isinstance(loss, Weighted):
        is_empty, loss = loss.weight == 0, loss.mean
    gradients = jax.tree.map(lambda leaf: leaf / jnp.asarray(factor, leaf.dtype), gradients)
    scale_of_norm, scaled_norm = scale_and_norm(gradients)
    finite = jnp.isfinite(loss) & jnp.isfinite(scaled_norm)
    trained_params = trained(state.params, options.frozen)
    if options.clip is not None:
        gradients = clipped(gradients, options.clip, scale_of_norm, scaled_norm)
    gradients = like(gradients, trained_params)
    callbacks = Callbacks(options, state, batch, factor)
    value = loss if state.monitored is None else state.monitored.astype(loss.dtype)
    offered = {"value": value, "grad": gradients, **callbacks.offered()}
    updates, optimizer_state = update_with(options.transform, gradients, state.optimizer, trained_params, offered)
    if callbacks.called:  # the functions return other values and gradients, which may not be finite
        finite &= jnp.isfinite(scale_and_norm(updates)[1])
    params = with_frozen(optax.apply_updates(trained_params, updates), state.params)
    average = next_average(options, state, params)

    # A step that is not finite changes nothing, so that one bad batch does not end the run with NaN everywhere.
    old = (state.params, state.optimizer, state.model, {name: getattr(state, name) for name in average})
    new = (params, optimizer_state, model, average)
    params, optimizer_state, model, average = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
    scale = state.scale and _next_scale(state.scale, finite)
    if is_empty is not None:
        scale = jax.tree.map(lambda old, new: jnp.where(is_empty, old, new), state.scale, scale)
    state = replace(
        state,
        step=state.step + 1,
        params=params,
        optimizer=optimizer_state,
        model=model,
        scale=scale,
        skipped=skipped,
        **average,
    )
    if mesh is not None:
        state = lax.with_sharding_constraint(state, shardings(state, mesh, options.partition))  # type: ignore[no-untyped-call]
        # `fit` reads them in every process. A scalar is on every device anyway.
        whole = partial(jax.tree.map, lambda leaf: on_every_device(leaf, mesh) if jnp.ndim(leaf) else leaf)
        metrics = {name: whole(metric) for name, metric in metrics.items()}
    own = {"loss": loss, "grad_norm": scale_of_norm * scaled_norm, "skipped": skipped}
    if options.report_learning_rate:
        own |= learning_rates(options.optimizer, options.lr_factors, old[1], new[1])
    if clash := own.keys() & metrics.keys():
        msg = f"train: the loss returned a metric {sorted(clash)[0]!r}, which the step reports itself; rename it"
        raise FuncconvError(msg)
    return state, own | metrics


def _check_optimizer_state(state: Any) -> None:
    """Refuse a state that has other leaves than arrays and numbers, which no step and no checkpoint could take."""
    for path, leaf in jax.tree.leaves_with_path(state):
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            msg = (
                f"train: the state of an optimizer must have only arrays and numbers; its entry {path_of(path)!r} is a "
                f"{type(leaf).__name__}. Let the optimizer close over it instead"
            )
            raise FuncconvError(msg)


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


def _next_scale(scale: Scale, finite: Array) -> Scale:
    """Return the scale after a step: halved if its gradient was not finite, doubled after many that were."""
    good_steps = jnp.where(finite, scale.good + 1, 0)
    grows = good_steps >= _GOOD_STEPS
    factor = jnp.where(finite, jnp.where(grows, scale.factor * 2, scale.factor), jnp.maximum(scale.factor / 2, 1))
    return Scale(jnp.minimum(factor, _MAX_SCALE), jnp.where(grows, 0, good_steps).astype(jnp.int32))

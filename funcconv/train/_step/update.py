"""The state before the first step, and the state after a step."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ..._common.errors import FuncconvError
from ..._common.types import Array
from .._distributed.partition import on_every_device, placed, shardings, spread_batch
from .._state import Scale, State
from .compute_dtypes import check_patterns_of_dtypes
from .frozen import check_frozen, trained, with_frozen
from .gradient import gradient
from .memory import copied
from .options import StepOptions
from .sums import averaged, clipped, float32_average, like, scale_and_norm
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
    has_average = options.ema is not None
    state = State(
        step=_zero(),
        params=params,
        optimizer=copied(options.transform.init(trained(params, options.frozen))),
        key=copied(key),
        model=model,
        ema=copied(params) if has_average else None,
        skipped=_zero(),
        scale=Scale(jnp.float32(_FIRST_SCALE), _zero()) if options.has_dynamic_scale else None,
        ema_float32=float32_average(copied(params)) if has_average else None,
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
    updates, optimizer_state = options.transform.update(
        gradients, state.optimizer, trained_params, value=loss, grad=gradients
    )
    params = with_frozen(optax.apply_updates(trained_params, updates), state.params)
    averages = None if options.ema is None else averaged(params, state.ema, state.ema_float32, options.ema)

    # A step that is not finite changes nothing, so that one bad batch does not end the run with NaN everywhere.
    old_averages = None if options.ema is None else (state.ema, state.ema_float32)
    old = (state.params, state.optimizer, state.model, old_averages)
    new = (params, optimizer_state, model, averages)
    params, optimizer_state, model, averages = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    skipped = state.skipped + jnp.where(finite, 0, 1).astype(jnp.int32)
    scale = state.scale and _next_scale(state.scale, finite)
    if is_empty is not None:
        scale = jax.tree.map(lambda old, new: jnp.where(is_empty, old, new), state.scale, scale)
    ema, ema_float32 = averages or (None, None)
    state = State(state.step + 1, params, optimizer_state, state.key, model, ema, scale, skipped, ema_float32)
    if mesh is not None:
        state = lax.with_sharding_constraint(state, shardings(state, mesh, options.partition))  # type: ignore[no-untyped-call]
        # `fit` reads them in every process. A scalar is on every device anyway.
        whole = partial(jax.tree.map, lambda leaf: on_every_device(leaf, mesh) if jnp.ndim(leaf) else leaf)
        metrics = {name: whole(metric) for name, metric in metrics.items()}
    return state, {"loss": loss, "grad_norm": scale_of_norm * scaled_norm, "skipped": skipped, **metrics}


def _zero() -> Array:
    return jnp.zeros((), jnp.int32)


def _next_scale(scale: Scale, finite: Array) -> Scale:
    """Return the scale after a step: halved if its gradient was not finite, doubled after many that were."""
    good_steps = jnp.where(finite, scale.good + 1, 0)
    grows = good_steps >= _GOOD_STEPS
    factor = jnp.where(finite, jnp.where(grows, scale.factor * 2, scale.factor), jnp.maximum(scale.factor / 2, 1))
    return Scale(jnp.minimum(factor, _MAX_SCALE), jnp.where(grows, 0, good_steps).astype(jnp.int32))

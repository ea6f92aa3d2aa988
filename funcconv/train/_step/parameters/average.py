"""The average of the parameters over the steps: an exponential moving average, or their mean."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from ..._state import State
from ..compute_dtypes import cast_parameters
from ..loss import takes_average
from ..memory import copied
from ..options import StepOptions
from ..sums import averaged, float32_average


def first_average(options: StepOptions, params: Any) -> dict[str, Any]:
    """Return the entries of the first state that belong to the average; empty if there is none."""
    if not options.has_average:
        return {}
    average = {"ema": copied(params), "ema_float32": float32_average(copied(params))}
    return average | ({"average_count": jnp.zeros((), jnp.int32)} if options.average == "mean" else {})


def next_average(options: StepOptions, state: State, params: Any) -> dict[str, Any]:
    """Return the entries of the next state that belong to the average; empty if there is none.

    Args:
        options: of the step.
        state: before the step.
        params: after the step.
    """
    entries: dict[str, Any] = {}
    if options.average == "mean":
        # Before the mean begins, the count is 0, and the average is equal to the parameters.
        weight: Any = 1 / (state.average_count + 1).astype(jnp.float32)
        has_begun = state.step >= options.average_start
        entries["average_count"] = state.average_count + has_begun.astype(jnp.int32)
    elif options.ema is None:
        return {}
    elif options.average_start > 0:
        weight = jnp.where(state.step >= options.average_start, jnp.float32(1 - options.ema), 1)
    else:
        weight = 1 - options.ema
    entries["ema"], entries["ema_float32"] = averaged(params, state.ema, state.ema_float32, weight)
    return entries


def average_argument(options: StepOptions, state: State) -> dict[str, Any]:
    """Return the average before the step as the argument `average` of the loss, if the loss has one."""
    if not (options.has_average and takes_average(options.loss)):
        return {}
    average = lax.stop_gradient(state.ema)
    return {"average": average if options.compute_dtype is None else cast_parameters(average, options.compute_dtype)}

"""The monitored value in the state, for optimizers that take the value of a loss."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from .._state import State
from .best import Monitor


def is_monitored(state: State) -> bool:
    """Whether a state has a monitored value; a state of the user's own has none."""
    return getattr(state, "monitored", None) is not None


def check_monitored(state: State, monitor: Monitor | None) -> None:
    """Refuse a step whose optimizer waits for a monitored value, if there is none."""
    if is_monitored(state) and monitor is None:
        msg = (
            'train: make_step(optimizer_value="monitor") passes the monitored value to the optimizer; give fit '
            "evaluate=, and the name of one of its metrics as monitor="
        )
        raise FuncconvError(msg)


def with_monitored(state: State, value: float, monitor: Monitor) -> State:
    """Return the state with the value of an evaluation, of which a smaller one is better; unchanged if it has none."""
    if not is_monitored(state):
        return state
    old = state.monitored
    new = jnp.full(old.shape, value if monitor.mode == "min" else -value, old.dtype)
    return replace(state, monitored=jax.device_put(new, old.sharding))

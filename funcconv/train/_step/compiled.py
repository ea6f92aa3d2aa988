"""The compiled step of a run. It counts how often it was traced, and returns its metrics as one array."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ..._primitives.tuning import Tuning
from .._state import State
from .step import Step, chosen_tuning, compile


class CompiledStep:
    """A compiled step that warns when it is compiled again.

    The scalar metrics are returned as one array, because each fetch from a device takes time. `names` has their names
    in the same order, `times` how often the step was traced.

    Args:
        step: of `make_step`.
        tuning: the measured forms and the compiler options, or None for those of the step.
    """

    def __init__(self, step: Step, tuning: Tuning | None = None) -> None:
        self._step, self.times, self._warned_times = step, 0, 1
        self._batch_types: list[Any] = []  # of the last two traces
        self.names: tuple[str, ...] = ()
        self.jitted: Any = compile(self._traced, chosen_tuning("fit", step, tuning))

    def __call__(self, state: State, batch: Any) -> Any:
        """Return the next state and the metrics."""
        return self.jitted(state, batch)

    def warn_if_compiled_again(self, step: int) -> None:
        """Warn if this step was traced and is not the first."""
        if self.times > self._warned_times:
            self._warned_times = self.times
            old, new = self._batch_types
            msg = (
                f"the step was compiled again at step {step} ({self.times} times by now): the batch was {old}, is {new}"
            )
            warnings.warn(msg, stacklevel=4)

    def _traced(self, state: State, batch: Any) -> Any:
        # Python runs this function only while JAX traces it.
        self.times += 1
        batch_type = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", batch)
        self._batch_types = [*self._batch_types[-1:], batch_type]
        state, metrics = self._step(state, batch)
        scalars = {name: jnp.asarray(value) for name, value in metrics.items() if jnp.ndim(value) == 0}
        self.names = tuple(scalars)
        has_64_bits = any(value.dtype.itemsize > 4 for value in scalars.values())
        dtype = jnp.float64 if has_64_bits else jnp.float32
        return state, jnp.array([value.astype(dtype) for value in scalars.values()], dtype)

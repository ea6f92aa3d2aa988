"""The compiled step of a run: it counts how often it was traced, and gives its metrics as one array."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from .._state import State
from .step import Step, compile


class CompiledStep:
    """A compiled step that warns when it is compiled again.

    Its metrics, those that are numbers, come as one array, which is fetched at once. `names` says which they are.

    Args:
        step: of `make_step`.
    """

    def __init__(self, step: Step) -> None:
        self._step, self.times, self._told = step, 0, 1
        self._shapes: list[Any] = []
        self.names: tuple[str, ...] = ()
        self.jitted: Any = compile(self._traced)

    def __call__(self, state: State, batch: Any) -> Any:
        """Return the next state and the metrics."""
        return self.jitted(state, batch)

    def tell(self, number: int) -> None:
        """Warn if the step was traced again."""
        if self.times > self._told:
            self._told = self.times
            was, now = self._shapes
            msg = f"the step was compiled anew, for the {self.times}. time, at step {number}: {was} came to be {now}"
            warnings.warn(msg, stacklevel=4)

    def _traced(self, state: State, batch: Any) -> Any:
        self.times += 1
        self._shapes = [*self._shapes[-1:], jax.tree.map(lambda each: f"{each.dtype}{list(each.shape)}", batch)]
        state, metrics = self._step(state, batch)
        numbers = {name: jnp.asarray(value) for name, value in metrics.items() if jnp.ndim(value) == 0}
        self.names = tuple(numbers)
        wide = any(value.dtype.itemsize > 4 for value in numbers.values())
        dtype = jnp.float64 if wide else jnp.float32
        return state, jnp.array([value.astype(dtype) for value in numbers.values()], dtype)

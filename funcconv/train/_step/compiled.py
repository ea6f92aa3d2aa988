"""The compiled step of a run. It counts how often it was traced, and returns its metrics as one array."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.patterns import path_of
from ..._common.types import Array, Shape
from ..._primitives.tuning import Tuning
from .._state import State
from .described import described, is_real
from .step import Step, chosen_tuning, compile

_MAX_NUMBERS = 10_000  # of a metric, because every step is recorded


# The names of the scalar metrics of a step, and the names and shapes of those that are arrays. They belong to a traced
# program, and can differ for a batch of another shape.
Layout: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, Shape], ...]]


def unpacked(layout: Layout, numbers: Array) -> dict[str, Any]:
    """Return the metrics of a step by their names, as numbers and lists of numbers."""
    scalars, arrays = layout
    if not arrays:
        return dict(zip(scalars, numbers.tolist(), strict=True))
    values = np.asarray(numbers)
    begin = len(scalars)
    record = dict(zip(scalars, values[:begin].tolist(), strict=True))
    for name, shape in arrays:
        end = begin + math.prod(shape)
        record[name] = values[begin:end].reshape(shape).tolist()
        begin = end
    return record


class CompiledStep:
    """A compiled step that warns when it is compiled again. `times` says how often it was traced.

    Args:
        step: of `make_step`.
        tuning: the measured forms and the compiler options, or None for those of the step.
    """

    def __init__(self, step: Step, tuning: Tuning | None = None) -> None:
        self._step, self.times, self._warned_times = step, 0, 1
        self._batch_types: list[dict[str, str]] = []  # of the last two traces
        self.jitted: Any = compile(self._traced, chosen_tuning("fit", step, tuning))

    def __call__(self, state: State, batch: Any, number: int) -> tuple[State, tuple[Layout, Array]]:
        """Return the next state, and the layout and the numbers of the metrics.

        The note of an error says how the batch differs from those of earlier steps.

        Args:
            state: before the step.
            batch: of the step.
            number: of the step, for the note.
        """
        try:
            state, metrics = self.jitted(state, batch)
        except Exception as error:
            if self._batch_types and (changes := _changes(self._batch_types[-1], _types(batch))):
                error.add_note(f"train: the batch of step {number} differs from those before: {changes}")
            raise
        ((layout, numbers),) = metrics.items()
        return state, (layout, numbers)

    def warn_if_compiled_again(self, step: int) -> None:
        """Warn if this step was traced and is not the first."""
        if self.times > self._warned_times:
            self._warned_times = self.times
            changes = _changes(*self._batch_types) or "shapes and dtypes are the same, but not the sharding"
            msg = f"the step was compiled again at step {step} ({self.times} times by now): in its batch, {changes}"
            warnings.warn(msg, stacklevel=4)

    def _traced(self, state: State, batch: Any) -> Any:
        # Python runs this function only while JAX traces it.
        self.times += 1
        state, metrics = self._step(state, batch)
        scalars = {name: jnp.asarray(value) for name, value in metrics.items() if jnp.ndim(value) == 0}
        arrays = {name: jnp.asarray(value) for name, value in metrics.items() if name not in scalars}
        for name, value in arrays.items():
            if value.size > _MAX_NUMBERS or not is_real(value):
                msg = (
                    f"train: fit records each metric in each step, at most {_MAX_NUMBERS} real numbers; {name!r} is "
                    f"{described(value)}, {value.size} numbers. Return its mean, or leave it out"
                )
                raise FuncconvError(msg)
        has_64_bits = any(value.dtype.itemsize > 4 for value in (scalars | arrays).values())
        dtype = jnp.float64 if has_64_bits else jnp.float32
        numbers = jnp.array([value.astype(dtype) for value in scalars.values()], dtype)
        if arrays:
            numbers = jnp.concatenate([numbers, *(value.astype(dtype).ravel() for value in arrays.values())])
        layout = tuple(scalars), tuple((name, value.shape) for name, value in arrays.items())
        self._batch_types = [*self._batch_types[-1:], _types(batch)]
        # JAX stores the keys of a dict with the traced program. An array alone, because each fetch takes time.
        return state, {layout: numbers}


def _types(batch: Any) -> dict[str, str]:
    """Return the dtype and shape of each entry of a batch by its path; its Python type if it is no array."""
    return {path_of(path) or "the batch": _type(leaf) for path, leaf in jax.tree.leaves_with_path(batch)}


def _type(leaf: Any) -> str:
    try:
        return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    except (TypeError, ValueError):  # a text, or an object
        return type(leaf).__name__


def _changes(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """Return how the types of the entries of two batches differ, or an empty text."""
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name, 'missing')}, is {new.get(name, 'missing')}" for name in names)

"""The numbers that are attributed, as a function of the inputs of a graph."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Array, Params
from .._graph.evaluate.call import mode_of
from .._graph.evaluate.rows import Mode, evaluate
from .._graph.infer.check_parameters import checked_entries
from .._graph.masked.values import unmasked
from .._graph.use.graph import Graph
from ._inputs import Inputs, read_inputs
from ._target import Of, Select, with_target

_NONE: Mapping[Any, Any] = MappingProxyType({})


class Scores(NamedTuple):
    """One number for each example, and what it is computed from."""

    graph: Graph  # with the outputs that are needed
    params: Params
    mode: Mode
    inputs: Inputs
    select: Select

    def __call__(self, arrays: Sequence[Array], edits: Mapping[int, Callable[[Any], Any]] = _NONE) -> Array:
        """Return the numbers (*batch) for other arrays, with edits to values on the way."""
        values = self.values(arrays, edits)
        return self.of([values[i] for i in self.graph._results])

    def values(self, arrays: Sequence[Array], edits: Mapping[int, Callable[[Any], Any]] = _NONE) -> list[Any]:
        """Return the values of all nodes."""
        entries = checked_entries(self.graph, self.params, arrays)
        xs = self.inputs.with_arrays(arrays)
        return evaluate(self.graph._rows, entries, xs, self.inputs.batch, self.mode, edits)[0]

    def of(self, outputs: Sequence[Any]) -> Array:
        """Return the numbers (*batch) for these outputs."""
        outputs = [unmasked(output) for output in outputs]
        return self.select(jax.tree.unflatten(self.graph._tree, outputs), self.inputs.batch)

    def gradient(self, arrays: Sequence[Array]) -> list[Any]:
        """Return the derivative by each input; None by an input that is not floating."""
        moving = self.inputs.moving

        def scores(moved: Sequence[Array]) -> Array:
            by_number = dict(zip(moving, moved, strict=True))
            return self([by_number.get(i, array) for i, array in enumerate(arrays)])

        numbers, pullback = jax.vjp(scores, [arrays[i] for i in moving])
        (gradients,) = pullback(jnp.ones_like(numbers))
        by_number = dict(zip(moving, gradients, strict=True))
        return [by_number.get(i) for i in range(len(arrays))]

    def check_moving(self) -> None:
        """Refuse inputs by none of which one can differentiate."""
        if not self.inputs.moving:
            arrays = zip(self.inputs.names, self.inputs.arrays, strict=True)
            types = ", ".join(f"{name!r} {array.dtype}" for name, array in arrays)
            msg = (
                f"{self.inputs.method}: at least one input must be real and floating, because it is differentiated; "
                f"got {types}. Cast an image, for example with x.astype(jnp.float32)"
            )
            raise FuncconvError(msg)


def scores_of(graph: Graph, params: Params, x: Any, of: Of, state: Mapping[str, Any] | None, method: str) -> Scores:
    """Return the numbers that are attributed as a function.

    Args:
        graph: a graph.
        params: its parameters.
        x: its inputs.
        of: what is attributed.
        state: the state of the graph.
        method: the public function, for messages.

    Raises:
        FuncconvError: if the inputs or the state are not those of the graph, or `of` has no meaning for it.
    """
    targeted, select = with_target(graph, of, method)
    return Scores(targeted, params, mode_of(graph, state), read_inputs(graph, x, method), select)

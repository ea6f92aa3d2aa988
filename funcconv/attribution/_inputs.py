"""The inputs of a graph as a list of arrays, and results in the structure in which the inputs were given."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.types import Array, Shape
from .._graph.evaluate.inputs import batch_axes, input_arrays
from .._graph.masked.values import hidden, unmasked
from .._ops.masks import Masked
from .._windows.layout import as_array


class Inputs(NamedTuple):
    """The inputs of one call."""

    method: str  # the public function, for messages
    xs: tuple[Any, ...]  # arrays, or `Masked`, in the order of declaration
    names: tuple[str, ...]  # of the inputs, or the keys of a graph with a dict of inputs
    batch: Shape
    kind: type  # of what the caller passed: dict, tuple, or else one array

    @property
    def arrays(self) -> list[Array]:
        """The arrays, without masks."""
        return [unmasked(x) for x in self.xs]

    @property
    def moving(self) -> list[int]:
        """The numbers of the inputs by which one can differentiate."""
        return [i for i, x in enumerate(self.arrays) if jnp.issubdtype(x.dtype, jnp.floating)]

    def with_arrays(self, arrays: Sequence[Array]) -> list[Any]:
        """Return other arrays with the masks of the inputs."""
        pairs = zip(self.xs, arrays, strict=True)
        return [hidden(Masked(array, x.mask)) if isinstance(x, Masked) else array for x, array in pairs]

    def structured(self, values: Sequence[Any]) -> Any:
        """Return one value for each input as the caller passed the inputs: one, a tuple or a dict."""
        if self.kind is dict:
            return dict(zip(self.names, values, strict=True))
        return tuple(values) if self.kind is tuple else values[0]

    def for_each(self, what: str, option: Any, *, by_position: bool = True) -> list[Any]:
        """Return an option for each input: from a dict by name, from a tuple like the inputs, or the same for all."""
        if isinstance(option, Mapping):
            if set(option) != set(self.names):
                msg = (
                    f"{self.method}: a dict for {what} must have the names of the inputs, {list(self.names)}; got "
                    f"{list(option)}"
                )
                raise FuncconvError(msg)
            return [option[name] for name in self.names]
        if by_position and self.kind is tuple and isinstance(option, tuple):
            if len(option) != len(self.xs):
                msg = f"{self.method}: a tuple for {what} must have {len(self.xs)} entries, as x has; got {len(option)}"
                raise FuncconvError(msg)
            return list(option)
        return [option] * len(self.xs)

    def arrays_like(self, what: str, option: Any, only: Sequence[int] | None = None) -> list[Array]:
        """Return an array like each input, from a number or an array that broadcasts to it; or only for some inputs."""
        like = list(self.arrays)  # of the other inputs, themselves
        options = self.for_each(what, option)
        for i in range(len(like)) if only is None else only:
            like[i] = self._array_like(f"{what} for input {self.names[i]!r}", options[i], like[i])
        return like

    def _array_like(self, what: str, value: Any, x: Array) -> Array:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and (isinstance(value, int) or jnp.issubdtype(x.dtype, jnp.inexact)):
            return jnp.full(x.shape, value, x.dtype)
        array = as_array(self.method, what, value)
        ends = zip(reversed(array.shape), reversed(x.shape), strict=False)
        if array.dtype != x.dtype or array.ndim > x.ndim or any(size not in (1, whole) for size, whole in ends):
            msg = (
                f"{self.method}: {what} must be a number, or an array {x.dtype} that broadcasts to {x.shape}; got "
                f"{array.dtype}{list(array.shape)}. Cast or reshape it"
            )
            raise FuncconvError(msg)
        return jnp.broadcast_to(array, x.shape)


def read_inputs(graph: Any, x: Any, method: str) -> Inputs:
    """Return the inputs of a graph, given as one array, as a tuple in the order of declaration, or as a dict by name.

    Args:
        graph: a graph.
        x: the inputs.
        method: the public function, for messages.

    Raises:
        FuncconvError: if the inputs are not those of the graph.
    """
    kind = dict if isinstance(x, Mapping) else object
    if kind is dict:
        xs = input_arrays(graph, (x,) if graph._keys is not None else (), {} if graph._keys is not None else x)
    elif isinstance(x, tuple) and not isinstance(x, Masked):
        kind, xs = tuple, input_arrays(graph, x, {})
    else:
        xs = input_arrays(graph, (x,), {})
    names = graph.inputs if graph._keys is None else tuple(graph._keys)
    return Inputs(method, tuple(xs), names, batch_axes(graph, xs), kind)

"""The order of the features of a flattened image."""

from collections.abc import Callable
from math import prod
from typing import Any

import jax
import numpy as np

from ...._common.types import Shape
from ...._graph.declare.layers import Flatten
from ...._graph.name.flatten import Row
from ...._graph.to_file.registry import name_of
from ...._graph.use.graph import Graph


class Shapes:
    """The shapes of the values, parameters and states of a graph, inferred once, on first use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._values: list[Any] | None = None

    def value(self, number: int) -> Shape:
        """Return the shape of a value, by its number."""
        if self._values is None:
            shapes = self.graph.shapes()
            self._values = [shapes[name] for name in self.graph.nodes]
        return self._values[number].shape  # type: ignore[no-any-return]

    def drawn(self, row: Row) -> Any:
        """Return the shapes and dtypes of the parameters that a row draws; None if it draws none."""
        if not row.op.draws:
            return None
        shapes = [self.value(number) for number in row.inputs]
        return jax.eval_shape(lambda key: row.op.draw(key, *shapes), jax.eval_shape(jax.random.key, 0))

    def state(self, row: Row) -> Any:
        """Return the shapes and dtypes of the state of a row; `{}` if it keeps none."""
        if not row.op.stateful:
            return {}
        return jax.eval_shape(lambda: row.op.first_state(*(self.value(number) for number in row.inputs)))


class Features:
    """The order of the input features of a layer, which differs in PyTorch if they are a flattened image."""

    def __init__(self, shapes: Shapes, row: Row, flatten_order: str) -> None:
        self._shapes, self._row, self._flatten_order = shapes, row, flatten_order

    def is_permuted(self) -> bool:
        return self._order() is not None

    def to_own(self, array: np.ndarray) -> np.ndarray:
        order = self._order()
        return array if order is None or len(array) != len(order) else array[order]

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        order = self._order()
        return array if order is None or len(array) != len(order) else array[np.argsort(order)]

    def _order(self) -> np.ndarray | None:
        """Return the position in PyTorch of each feature, None if it is the same."""
        image = flattened_image(self._shapes.graph, self._row, self._shapes.value)
        if image is None or self._flatten_order == "channels_last" or prod(image[:-1]) == 1 or image[-1] == 1:
            return None
        return np.moveaxis(np.arange(prod(image)).reshape(image[-1], *image[:-1]), 0, -1).ravel()


def flattened_image(graph: Graph, row: Row, shape_of: Callable[[int], Shape]) -> Shape | None:
    """Return the shape of the image, channels last, that was flattened channels last into the features of a row.

    Args:
        graph: the graph.
        row: a row with one input.
        shape_of: the shape of a value, by its number.

    Returns:
        The shape; None if no image was flattened, or in PyTorch's order.
    """
    (number,) = row.inputs
    input_count = len(graph.inputs)
    if number < input_count or len(shape_of(number)) != 1:
        return None
    size = shape_of(number)
    while number >= input_count:
        before = graph.rows[number - input_count]
        if len(before.inputs) != 1 or "funcconv.torch" in _registered(before):
            return None
        shape = shape_of(before.inputs[0])
        if len(shape) > 1 and size == (prod(shape),):
            is_channels_first = isinstance(before.op, Flatten) and before.op.order == "channels_first"
            return None if is_channels_first else shape
        if shape != size:  # only elementwise functions between the flattening and the layer keep the positions
            return None
        (number,) = before.inputs
    return None


def _registered(row: Row) -> str:
    """Return the name of a row's function in files."""
    op: Any = getattr(row.op, "op", None)
    while hasattr(op, "func"):
        op = op.func
    return name_of(op) or ""

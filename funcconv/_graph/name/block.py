"""The rows of a block, a network with one input whose shape is not declared."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from ..declare.function import as_layer
from ..declare.node import Node
from .flatten import Row, flatten

INPUT = "block_input"  # the name of a block's input


@dataclass(frozen=True, repr=False)
class Block:
    """What `repeat` repeats: the rows of a network with one input, as far as they do not depend on its shape.

    Attributes:
        rows: the nodes; value 0 is the input.
        result: the number of the value that it returns.
        declared: the shape of the input, if the block was a graph, which declares it.
    """

    rows: tuple[Row, ...]
    result: int
    declared: Shape | None = None

    # Layers are keys of caches, so a block is hashed often.
    @cached_property
    def _hash(self) -> int:
        return hash((self.rows, self.result, self.declared))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return ", ".join(row.operation for row in self.rows)

    @cached_property
    def paths(self) -> tuple[tuple[str, ...] | None, ...]:
        """The path of the entry of each row."""
        return tuple(tuple(row.params.split("/")) if row.params else None for row in self.rows)

    @cached_property
    def undecided(self) -> bool:
        """Whether it is not known of a function if it is written for one example or for a batch."""
        return any(row.op.undecided for row in self.rows)

    @cached_property
    def mapped(self) -> "Block":
        """The same block, in which functions that may be written for either are written for one example."""
        rows = tuple(row._replace(op=_mapped(row.op)) for row in self.rows)
        return Block(rows, self.result, self.declared)


def _mapped(op: Any) -> Any:
    return op.mapped if op.undecided else op


def block_of(layer: Any, kind: str) -> Block:
    """Return the rows of a layer, composition, graph or function; errors begin with `kind`."""
    layer = as_layer(layer, kind)
    start = _Start()
    signature = getattr(layer, "_signature", None)  # of a graph
    if signature is not None and len(signature) != 1:
        msg = f"{kind}: a block has one input; got a graph with the inputs {', '.join(row.name for row in signature)}"
        raise FuncconvError(msg)
    result = layer(start)
    if not isinstance(result, Node):
        msg = (
            f"{kind}: a block returns one value, which is the input of the next copy; {layer!r} returns "
            f"{type(result).__name__} of {len(result)} values. Merge them, for example with fc.add"
        )
        raise FuncconvError(msg)
    rows, _, numbers = flatten([start], [result])  # type: ignore[list-item]
    return Block(rows, numbers[result], None if signature is None else signature[0].shape)


class _Start(Node):
    """The input of a block."""

    name = INPUT

    @property
    def spec(self) -> Any:
        """None: the shape is not known."""
        return None

    def __repr__(self) -> str:
        return "<input of the block>"

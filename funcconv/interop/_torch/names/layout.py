"""The name of each array of a graph in PyTorch's state dict, and its order of axes there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...._common.types import Params
from ...._graph.name.entries import get
from ...._graph.name.flatten import Row
from ...._graph.use.graph import Graph
from ..weighted import _WithWeights
from .array import TorchArray, same
from .features import Shapes
from .layers import arrays_of, has_module


@dataclass(frozen=True)
class TorchLayout:
    """All arrays of a graph, with their names and orders of axes in PyTorch.

    Attributes:
        arrays: in the order of first use, those of an entry in PyTorch's order.
        aliases: further names of arrays: pairs of an alias and a name.
        root: the entry whose arrays have no module in front of their names in PyTorch; `""` if there is none.
    """

    arrays: tuple[TorchArray, ...]
    aliases: tuple[tuple[str, str], ...]
    root: str

    @property
    def entries(self) -> tuple[str, ...]:
        """The paths of the entries with arrays, in the order of first use."""
        return tuple(dict.fromkeys(array.entry for array in self.arrays))


def torch_layout(
    op: str, graph: Graph, *, flatten_order: str = "channels_first", params: Params | None = None
) -> TorchLayout:
    """Return the names and orders of axes of the arrays of a graph in PyTorch.

    Args:
        op: the name of the public function, for messages.
        graph: the graph.
        flatten_order: how the PyTorch module flattens an image in front of a linear map.
        params: the parameters. With them, the arrays of a layer for which PyTorch has no module keep their names and
            their order of axes. Default: None, there must be no such layer.

    Returns:
        The layout.

    Raises:
        FuncconvError: if PyTorch has no module for the layer of an entry.
    """
    rows: dict[str, Row] = {}
    for row in graph.rows:
        if row.params and (row.params not in rows or isinstance(rows[row.params].op, _WithWeights)):
            rows[row.params] = row  # a layer knows more about its arrays than other uses of them
    arrays: list[TorchArray] = []
    aliases: list[tuple[str, str]] = []
    root = ""
    shapes = Shapes(graph)
    for entry, row in rows.items():
        if isinstance(row.op, _WithWeights):
            aliases += row.op.aliases
            root = row.op.root or root
            arrays += [
                TorchArray(
                    entry,
                    path,
                    in_state=kind != "param",
                    name=name,
                    is_whole_name=True,
                    to_own=same,
                    to_torch=same,
                    stored=kind != "constant",
                )
                for path, _, _, kind, name in row.op.arrays
            ]
        elif params is not None and not has_module(row.op):
            leaves = _leaf_paths(get(params, tuple(entry.split("/"))))
            arrays += [_whole_name(entry, path) for path in leaves]
            arrays += [_whole_name(entry, path, in_state=True) for path in _leaf_paths(shapes.state(row))]
        else:
            arrays += arrays_of(op, shapes, entry, row, flatten_order)
    return TorchLayout(tuple(arrays), tuple(aliases), root)


def _whole_name(entry: str, path: str, *, in_state: bool = False) -> TorchArray:
    name = f"{entry}/{path}".strip("/").replace("/", ".")
    return TorchArray(entry, path, in_state=in_state, name=name, is_whole_name=True, to_own=same, to_torch=same)


def _leaf_paths(entry: Any, path: str = "") -> list[str]:
    if isinstance(entry, Mapping):
        below = ((f"{path}/{name}" if path else str(name), value) for name, value in entry.items())
        return [leaf for name, value in below for leaf in _leaf_paths(value, name)]
    return [] if entry is None else [path]

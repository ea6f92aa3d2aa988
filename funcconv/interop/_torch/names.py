"""The name of each array of a graph in PyTorch's state dict, and its order of axes there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params, Shape
from ..._graph.declare.conv_layers import Conv, ConvTranspose
from ..._graph.declare.layers import Dense, Flatten
from ..._graph.declare.training_layers.batch_norm import BatchNorm
from ..._graph.declare.training_layers.kernels import WeightStandardize
from ..._graph.declare.training_layers.norms import GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from ..._graph.name.entries import get
from ..._graph.name.flatten import Row
from ..._graph.to_file.registry import name_of
from ..._graph.use.graph import Graph
from .weighted import _WithWeights

COUNTER = "num_batches_tracked"  # of batch norms
TORCH_NAMES = {  # of the arrays of layers
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "count": COUNTER,
}

Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TorchArray:
    """An array of a graph, with its name and order of axes in PyTorch.

    Attributes:
        entry: the path of the entry, such as `"layer1/conv"`.
        path: where it is in the entry, such as `"kernel"`; `""` is the entry itself.
        in_state: whether it is in the state, and not in the parameters.
        name: its name in the module of the entry, such as `"weight"`; if `is_whole_name`, in the outermost module.
        is_whole_name: whether the name is that of a traced module, which no other name can replace.
        to_own: converts PyTorch's array.
        to_torch: converts the graph's array.
        stored: whether PyTorch's state dict has it.
    """

    entry: str
    path: str
    in_state: bool
    name: str
    is_whole_name: bool
    to_own: Convert
    to_torch: Convert
    stored: bool = True


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
    shapes = _Shapes(graph)
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
                    to_own=_same,
                    to_torch=_same,
                    stored=kind != "constant",
                )
                for path, _, _, kind, name in row.op.arrays
            ]
        elif params is not None and not _has_module(row):
            leaves = _leaf_paths(get(params, tuple(entry.split("/"))))
            arrays += [_whole_name(entry, path) for path in leaves]
        else:
            arrays += _of_layer(op, shapes, entry, row, flatten_order)
    return TorchLayout(tuple(arrays), tuple(aliases), root)


def _same(array: np.ndarray) -> np.ndarray:
    return array


class _Shapes:
    """The shapes of the values and entries of a graph, inferred once, on first use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._values: list[Any] | None = None

    def value(self, number: int) -> Shape:
        if self._values is None:
            shapes = self.graph.shapes()
            self._values = [shapes[name] for name in self.graph.nodes]
        return self._values[number].shape  # type: ignore[no-any-return]


_NORMS = (BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm)
_WITH_MODULE = (Conv, ConvTranspose, Dense, *_NORMS)


def _has_module(row: Row) -> bool:
    """Return whether PyTorch has a module for the layer of a row."""
    layer = row.op.layer if isinstance(row.op, WeightStandardize) else row.op
    return isinstance(layer, _WITH_MODULE)


def _whole_name(entry: str, path: str) -> TorchArray:
    name = f"{entry}/{path}".strip("/").replace("/", ".")
    return TorchArray(entry, path, in_state=False, name=name, is_whole_name=True, to_own=_same, to_torch=_same)


def _leaf_paths(entry: Any, path: str = "") -> list[str]:
    if isinstance(entry, Mapping):
        below = ((f"{path}/{name}" if path else str(name), value) for name, value in entry.items())
        return [leaf for name, value in below for leaf in _leaf_paths(value, name)]
    return [] if entry is None else [path]


def _of_layer(op: str, shapes: _Shapes, entry: str, row: Row, flatten_order: str) -> list[TorchArray]:
    """Return the arrays of an entry that a layer uses."""
    layer: Any = row.op.layer if isinstance(row.op, WeightStandardize) else row.op
    if isinstance(layer, Conv | ConvTranspose):
        # PyTorch: (out, in // groups, *window); funcconv: (*window, in // groups, out). A transposed convolution has
        # (in, out // groups, *window), which is the kernel of the convolution that it transposes.
        return [
            _param(entry, "kernel", "weight", _kernel_to_own, _kernel_to_torch),
            *([_param(entry, "bias", "bias")] if layer.bias else []),
        ]
    if isinstance(layer, Dense):
        order = _Features(shapes, row, flatten_order)
        return [
            _param(entry, "kernel", "weight", lambda w: order.to_own(w.T), lambda w: order.to_torch(w).T),
            *([_param(entry, "bias", "bias")] if layer.bias else []),
        ]
    if isinstance(layer, _NORMS):
        to_own, to_torch = _norm_order(op, shapes, row, layer, flatten_order)
        used = [name for name in ("scale", "bias") if getattr(layer, name, False)]
        arrays = [_param(entry, name, TORCH_NAMES[name], to_own, to_torch) for name in used]
        if isinstance(layer, BatchNorm):
            arrays += [_statistic(entry, name, to_own, to_torch) for name in ("mean", "var")]
            if layer.count:
                arrays.append(_statistic(entry, "count", _same, _counter))
        return arrays
    msg = (
        f"{op}: PyTorch has no module for the layer {layer!r} of the entry {entry!r}. Convert its arrays yourself, and "
        "the others with a graph without it (graph.subgraph)"
    )
    raise FuncconvError(msg)


def _param(entry: str, path: str, name: str, to_own: Convert = _same, to_torch: Convert = _same) -> TorchArray:
    return TorchArray(entry, path, in_state=False, name=name, is_whole_name=False, to_own=to_own, to_torch=to_torch)


def _statistic(entry: str, path: str, to_own: Convert, to_torch: Convert) -> TorchArray:
    name = TORCH_NAMES[path]
    return TorchArray(entry, path, in_state=True, name=name, is_whole_name=False, to_own=to_own, to_torch=to_torch)


def _kernel_to_own(weight: np.ndarray) -> np.ndarray:
    return np.moveaxis(weight, (0, 1), (-1, -2)) if weight.ndim > 1 else weight


def _kernel_to_torch(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-1, -2), (0, 1)) if kernel.ndim > 1 else kernel


def _counter(count: np.ndarray) -> np.ndarray:
    return count.astype(np.int64)  # PyTorch counts in 64 bits


def _norm_order(op: str, shapes: _Shapes, row: Row, layer: Any, flatten_order: str) -> tuple[Convert, Convert]:
    if isinstance(layer, LayerNorm | RMSNorm) and layer.axes > 1:
        return lambda w: np.moveaxis(w, 0, -1), lambda w: np.moveaxis(w, -1, 0)
    order = _Features(shapes, row, flatten_order)
    if isinstance(layer, GroupNorm) and layer.groups > 1 and order.is_permuted():
        msg = (
            f"{op}: the entry {row.params!r} has groups of a flattened image, and PyTorch forms other groups. Flatten "
            "the image with order='channels_first'"
        )
        raise FuncconvError(msg)
    return order.to_own, order.to_torch


class _Features:
    """The order of the input features of a layer, which differs in PyTorch if they are a flattened image."""

    def __init__(self, shapes: _Shapes, row: Row, flatten_order: str) -> None:
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

"""Weights of PyTorch, which are the same numbers with another order of axes."""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params, Shape
from ..._graph.declare.conv_layers import Conv, ConvTranspose
from ..._graph.declare.layers import Dense, Flatten
from ..._graph.declare.training_layers import BatchNorm, GroupNorm, LayerNorm, WeightStandardize
from ..._graph.name.entries import get
from ..._graph.use.graph import Graph
from .._matching import Entry, entries, matched, trees

_NORMS = {"weight": "scale", "bias": "bias"}
_STATE = {"running_mean": "mean", "running_var": "var"}
_COUNTER = "num_batches_tracked"  # of batch norms; graphs have no such counter


def from_torch(
    graph: Graph, state_dict: Mapping[str, Any], *, names: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the weights of a PyTorch module to the parameters and the state of a graph.

    Args:
        graph: a graph of `Conv`, `ConvTranspose`, `Dense`, `BatchNorm`, `GroupNorm`, `LayerNorm` and layers without
            parameters. If a `Dense` follows a `Flatten` in the order channels last, its rows are permuted to that
            order.
        state_dict: `module.state_dict()`, or a dict of NumPy arrays with the same names.
        names: the path of a module for each entry of the graph, such as `{"conv1": "features.0"}`. Default: modules and
            entries are paired in order: the order of `state_dict`, and the order of first use in the graph.

    Returns:
        `(params, state)`. `state` is `{}` if the graph has none. Dtypes are those of the tensors. Arrays of 64 bits are
        NumPy arrays unless `jax_enable_x64` is set, because JAX would narrow them.

    Raises:
        FuncconvError: if modules and entries cannot be paired; if the shape of an array differs from its entry (the
            message lists all of them); if a value is not a tensor or an array of numbers.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.Conv(4, (3, 2))(x))
        >>> weights = {"features.0.weight": np.ones((4, 3, 3, 2)), "features.0.bias": np.zeros(4)}
        >>> params, _ = fc.interop.from_torch(graph, weights)
        >>> params["conv1"]["kernel"].shape
        (3, 2, 3, 4)
    """
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state_dict.items():
        module, _, array_name = name.rpartition(".")
        if array_name != _COUNTER:
            try:
                modules.setdefault(module, {})[array_name] = as_numpy(value)
            except FuncconvError as error:
                msg = f"from_torch: {name!r}: {error}"
                raise FuncconvError(msg) from None
    converted = []
    for entry, module in matched("from_torch", entries(graph), modules, names):
        arrays = modules[module]
        own_names = _NORMS | (_STATE if entry.state else {})
        if unknown := [name for name in arrays if name not in own_names]:
            msg = f"from_torch: {module!r} has {', '.join(unknown)}, which {entry.row.op!r} does not have"
            raise FuncconvError(msg)
        weight_names = [name for name in arrays if name in _NORMS]
        params = {_own_name(entry, name): _to_own(graph, entry, name, arrays[name]) for name in weight_names}
        order = _features(graph, entry)
        state = {_STATE[name]: arrays[name][order] for name in arrays if name in _STATE}
        converted.append((entry, module, params, state))
    return trees("from_torch", converted)


def to_torch(
    graph: Graph, params: Params, state: Params | None = None, *, names: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Convert the parameters of a graph to the state dict of a PyTorch module.

    Args:
        graph: a graph of `Conv`, `ConvTranspose`, `Dense`, `BatchNorm`, `GroupNorm`, `LayerNorm` and layers without
            parameters. If a `Dense` follows a `Flatten` in the order channels last, its rows are permuted to PyTorch's
            order.
        params: the parameters of the graph.
        state: the state of the graph, such as running statistics. Default: `graph.init_state()`.
        names: the path of a module for each entry of the graph, such as `{"conv1": "features.0"}`. Default: the names
            of the entries, with `.` in place of `/`.

    Returns:
        NumPy arrays by name. Load them by
        `module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})`.

    Raises:
        FuncconvError: if PyTorch has no module for the layer of an entry, or `names` does not match the entries.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.Conv(4, (3, 2))(x))
        >>> found = fc.interop.to_torch(graph, graph.init(jax.random.key(0)), names={"conv1": "features.0"})
        >>> sorted(found), found["features.0.weight"].shape
        (['features.0.bias', 'features.0.weight'], (4, 3, 3, 2))
    """
    graph_entries = entries(graph)
    names = {entry.path: entry.path.replace("/", ".") for entry in graph_entries} if names is None else names
    arrays: dict[str, np.ndarray] = {}
    for entry, module in matched("to_torch", graph_entries, {name: {} for name in names.values()}, names):
        for name, value in get(params, tuple(entry.path.split("/"))).items():
            if value is None:
                continue
            array_name = "bias" if name == "bias" else "weight"
            arrays[f"{module}.{array_name}"] = np.array(_from_own(graph, entry, array_name, np.asarray(value)))
        if entry.state:
            statistics = get(graph.init_state() if state is None else state, tuple(entry.path.split("/")))
            order = np.argsort(_features(graph, entry))
            arrays |= {
                f"{module}.{torch_name}": np.array(statistics[own_name])[order]
                for torch_name, own_name in _STATE.items()
            }
            arrays[f"{module}.{_COUNTER}"] = np.zeros((), np.int64)
    return arrays


def as_numpy(value: Any) -> np.ndarray:
    """Return a tensor or an array as a NumPy array of the same dtype."""
    array = value
    if hasattr(value, "detach"):
        try:
            tensor = value.detach().cpu().resolve_conj().resolve_neg()
            dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))  # JAX adds bfloat16 and float8 to NumPy
            array = tensor.numpy() if dtype.isbuiltin == 1 else tensor.float().numpy().astype(dtype)
        except (TypeError, RuntimeError, NotImplementedError) as error:  # quantized, sparse, without data
            reason = str(error).splitlines()[0]
            msg = f"a tensor of {value.dtype} and shape {tuple(value.shape)} cannot become an array: {reason}"
            raise FuncconvError(msg) from error
    array = np.asarray(array)
    if not (array.dtype.kind in "biufc" or jnp.issubdtype(array.dtype, jnp.number)):
        msg = f"weights must be tensors or arrays of numbers; got a {type(value).__name__}, {str(value)[:50]!r}"
        raise FuncconvError(msg)
    return array


def _own_name(entry: Entry, name: str) -> str:
    if name == "bias":
        return "bias"
    return "scale" if isinstance(entry.row.op, BatchNorm | GroupNorm | LayerNorm) else "kernel"


def _layer(entry: Entry) -> Any:
    op = entry.row.op
    return op.layer if isinstance(op, WeightStandardize) else op


def _to_own(graph: Graph, entry: Entry, name: str, array: np.ndarray) -> np.ndarray:
    op = _layer(entry)
    if isinstance(op, LayerNorm) and op.axes > 1 and array.ndim == op.axes:
        return np.moveaxis(array, 0, -1)
    if isinstance(op, BatchNorm | GroupNorm | LayerNorm):
        return np.take(array, _features(graph, entry, len(array)))
    if name == "bias":
        return array
    if isinstance(op, Conv | ConvTranspose) and array.ndim > 2:
        # (out, in // groups, *window); transposed (in, out // groups, *window), which is the kernel of the convolution
        return np.moveaxis(array, (0, 1), (-1, -2))
    if isinstance(op, Dense) and array.ndim == 2:
        return np.take(array.T, _features(graph, entry, array.shape[1]), axis=0)
    msg = f"from_torch: the entry {entry.path!r} is of {op!r}; a weight of shape {array.shape} is not one of it"
    raise FuncconvError(msg)


def _from_own(graph: Graph, entry: Entry, name: str, array: np.ndarray) -> np.ndarray:
    op = _layer(entry)
    if isinstance(op, LayerNorm) and op.axes > 1:
        return np.moveaxis(array, -1, 0)
    if isinstance(op, BatchNorm | GroupNorm | LayerNorm):
        return array[np.argsort(_features(graph, entry))]
    if name == "bias":
        return array
    if isinstance(op, Conv | ConvTranspose):
        return np.moveaxis(array, (-1, -2), (0, 1))
    if isinstance(op, Dense):
        return array[np.argsort(_features(graph, entry))].T
    msg = f"to_torch: the entry {entry.path!r} is of {op!r}, for which PyTorch has no module"
    raise FuncconvError(msg)


def _features(graph: Graph, entry: Entry, torch_features: int | None = None) -> np.ndarray:
    """Return the position in PyTorch of each input feature of a layer. It differs if they are a flattened image.

    PyTorch flattens an image with its channels first.
    """
    features = entry.inputs[0][-1]
    image = _flattened(graph, entry)
    if image is None or torch_features not in (None, features):  # a wrong count is reported later, with all shapes
        return np.arange(features if torch_features is None else torch_features)
    if isinstance(entry.row.op, GroupNorm) and entry.row.op.groups > 1:
        msg = f"the entry {entry.path!r} has groups of a flattened image: flatten it with order='channels_first'"
        raise FuncconvError(msg)
    return np.moveaxis(np.arange(features).reshape(image[-1], *image[:-1]), 0, -1).ravel()


def _flattened(graph: Graph, entry: Entry) -> Shape | None:
    """Return the shape of the image, channels last, that was flattened into the input features of a layer, or None."""
    shapes, input_count = graph.shapes(), len(graph.inputs)
    (index,) = entry.row.inputs
    size = shapes[graph.nodes[index]].shape
    while index >= input_count:
        row = graph.rows[index - input_count]
        shape_before = shapes[graph.nodes[row.inputs[0]]].shape if len(row.inputs) == 1 else None
        if shape_before is None:
            return None
        if len(shape_before) > 1 and size == (prod(shape_before),):
            is_channels_first = isinstance(row.op, Flatten) and row.op.order == "channels_first"
            return None if is_channels_first else shape_before
        if shape_before != size:  # only elementwise functions between the flattening and the layer keep the positions
            return None
        (index,) = row.inputs
    return None

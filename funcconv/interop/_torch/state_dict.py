"""The parameters and the state of a graph as a state dict of PyTorch."""

import contextlib
from collections.abc import Iterator

import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params
from ..._graph.declare.training_layers.spectral_norm import SpectralNorm
from ..._graph.name.entries import get, replaced
from ..._graph.use.graph import Graph
from .names.array import COUNTER, TorchArray, names_of, whole_path
from .names.features import Shapes
from .names.layout import TorchLayout, torch_layout
from .names.parametrizations import old_names
from .pairing import Names, modules_of_entries


def to_torch(
    graph: Graph,
    params: Params,
    state: Params | None = None,
    *,
    names: Names | None = None,
    flatten_order: str = "channels_first",
    parametrizations: bool = True,
) -> dict[str, np.ndarray]:
    """Convert the parameters of a graph to the state dict of a PyTorch module.

    Args:
        graph: a graph that `trace_torch` returned, or one of `Conv`, `ConvTranspose`, `Dense`, `BatchNorm`,
            `GroupNorm`, `InstanceNorm`, `LayerNorm`, `RMSNorm`, `WeightStandardize`, `WeightNorm` and `SpectralNorm`
            (of `Conv`, `ConvTranspose` or `Dense`; the last with `norm="kernel"`), functions that draw a vector, such
            as a scale `(1, 1, channels)`, and layers without parameters.
        params: the parameters of the graph, or a tree like them, such as gradients.
        state: the state of the graph, such as running statistics. It is needed if the graph has one. Default: None.
        names: the path of a module for each entry of the graph, such as `{"conv1": "features.0"}`, or a list of paths
            where PyTorch has the same weights under several names. Default: None, the names of the entries, with `.` in
            place of `/`.
        flatten_order: how the module flattens an image in front of a linear map: `"channels_first"` for
            `torch.nn.Flatten` and `view`, `"channels_last"` if the channels are moved to the last axis before. It
            matters if the graph flattens with its channels last. Default: `"channels_first"`.
        parametrizations: whether normalized kernels have the names of `torch.nn.utils.parametrizations`, such as
            `parametrizations.weight.original0`, or the older ones of `torch.nn.utils.weight_norm` and `spectral_norm`,
            such as `weight_g`. Default: True.

    Returns:
        NumPy arrays by name, in PyTorch's order: for each module weight, bias, statistics. The vectors of a
        `SpectralNorm` that have not begun are those with which its next use begins. Load them by
        `module.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})`.

    Raises:
        FuncconvError: if PyTorch has no module for the layer of an entry, if `names` does not match the entries, if two
            entries of one module differ, or if the graph has a state and `state` is None.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.Conv(4, (3, 2))(x))
        >>> arrays = fc.interop.to_torch(graph, graph.init(jax.random.key(0)), names={"conv1": "features.0"})
        >>> {name: array.shape for name, array in arrays.items()}
        {'features.0.weight': (4, 3, 3, 2), 'features.0.bias': (4,)}
    """
    layout = torch_layout("to_torch", graph, flatten_order=flatten_order)
    modules = modules_of_entries("to_torch", graph, layout, None, names, None)
    arrays: dict[str, np.ndarray] = {}
    counted = {array.entry for array in layout.arrays if array.name == COUNTER}
    for array, converted in converted_arrays("to_torch", layout, params, begun_state(graph, params, state)):
        for name in names_of(array, modules.get(array.entry, ())) if array.stored else ():
            if name in arrays and not np.array_equal(arrays[name], converted):
                msg = f"to_torch: two entries are {name!r} in PyTorch, but differ; the second is {array.entry!r}"
                raise FuncconvError(msg)
            arrays[name] = converted.copy()
            if array.name == "running_var" and array.entry not in counted:
                arrays[f"{name.removesuffix('running_var')}{COUNTER}"] = np.zeros((), np.int64)
    arrays |= {alias: arrays[name].copy() for alias, name in layout.aliases if name in arrays}
    if parametrizations:
        return arrays
    kept = {array.name for array in layout.arrays if array.is_whole_name} | {alias for alias, _ in layout.aliases}
    older = old_names(arrays)
    return {name if name in kept else older[name]: value for name, value in arrays.items()}


def begun_state(graph: Graph, params: Params, state: Params | None) -> Params | None:
    """Return the state in which no power iteration has yet to begin: PyTorch has no vectors of zeros.

    Args:
        graph: the graph.
        params: its parameters.
        state: its state; None if it has none.

    Returns:
        The state, with other vectors in those entries of a `SpectralNorm` that have zeros.
    """
    shapes = Shapes(graph)
    for row in graph.rows if state is not None else ():
        if isinstance(row.op, SpectralNorm):
            path = tuple(str(row.params).split("/"))
            with contextlib.suppress(KeyError):  # a missing entry has its own message
                entry = get(state or {}, path)
                if not np.any(entry["left"]):
                    begun = row.op.begun(get(params, path), entry, shapes.value(row.inputs[0]))
                    state = replaced(state, path, begun)
    return state


def converted_arrays(
    op: str, layout: TorchLayout, params: Params, state: Params | None
) -> Iterator[tuple[TorchArray, np.ndarray]]:
    """Convert the arrays of a graph to the order of axes of PyTorch.

    Args:
        op: the name of the public function, for messages.
        layout: their names and orders of axes in PyTorch.
        params: the parameters.
        state: the state; None if the graph has none.

    Yields:
        Each array of the layout that the trees have.

    Raises:
        FuncconvError: if the graph has a state and `state` is None, or if an array is missing.
    """
    if state is None and any(array.in_state and array.stored for array in layout.arrays):
        entries = ", ".join(dict.fromkeys(array.entry for array in layout.arrays if array.in_state))
        msg = (
            f"{op}: the graph has a state ({entries}), but state is None. Call {op}(graph, params, state), with "
            "graph.init_state() for a graph that was never trained"
        )
        raise FuncconvError(msg)
    for array in layout.arrays:
        try:
            value = get((state or {}) if array.in_state else params, tuple(whole_path(array).split("/")))
        except KeyError:
            value = None
        if value is None and array.name == "bias":
            continue
        if value is None:
            msg = f"{op}: the {'state has' if array.in_state else 'parameters have'} no {whole_path(array)!r}"
            raise FuncconvError(msg)
        yield array, np.array(array.to_torch(np.asarray(value)))

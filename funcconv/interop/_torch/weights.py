"""Weights of PyTorch: they have the same entries in another order of axes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Params
from ..._graph.name.entries import get, put
from ..._graph.use.graph import Graph
from .._matching import copied
from .arrays import as_numpy as as_numpy
from .names import COUNTER, TorchArray, TorchLayout, torch_layout
from .pairing import expected_shapes, modules_of_entries
from .use import by_use, check_on_example, traced_weights

Names = Mapping[str, str | Sequence[str]]


def from_torch(
    graph: Graph,
    source: Any,
    example: Any = None,
    *,
    names: Names | None = None,
    pairing: str | None = None,
    flatten_order: str = "channels_first",
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Convert the weights of a PyTorch module to the parameters and the state of a graph.

    With a module and an example, the module is traced, and its weights are paired by their use. Their names do not
    matter. With a state dict they are paired by name, if the graph has the names of the module, as traced graphs have;
    otherwise by shape, if only one pairing is possible.

    Args:
        graph: a graph that `trace_torch` returned, or one of `Conv`, `ConvTranspose`, `Dense`, `BatchNorm`,
            `GroupNorm`, `InstanceNorm`, `LayerNorm`, `RMSNorm`, `WeightStandardize` (of `Conv` or `Dense`) and layers
            without parameters.
        source: a `torch.nn.Module`, or its `state_dict()`, or a dict of NumPy arrays with the same names.
        example: an input of the module, with a batch axis in front; for several inputs a tuple. The weights are paired
            by it, or checked if the pairing is known: graph and module must compute the same. It is needed if `source`
            is a module whose names the graph does not have. Default: None.
        names: the path of a module for each entry of the graph, such as `{"conv1": "features.0"}`, or a list of paths
            where PyTorch has the same weights under several names. Two entries may have the same module. Default: None,
            the pairing described above.
        pairing: `"order"` pairs the modules in the order of the state dict with the entries in the order of first use.
            Use it if you know that both orders agree. Default: None, the pairing described above.
        flatten_order: how the module flattens an image in front of a linear map. A state dict does not contain this:
            `"channels_first"` for `torch.nn.Flatten` and `view`, `"channels_last"` if the channels are moved to the
            last axis before. It matters if the graph flattens with its channels last. A module with an example is
            traced, so that it is not needed. Default: `"channels_first"`.

    Returns:
        `(params, state)`. `state` is `{}` if the graph has none. Dtypes are those of the tensors. Arrays of 64 bits are
        NumPy arrays unless `jax_enable_x64` is set, because JAX would narrow them.

    Raises:
        FuncconvError: if modules and entries cannot be paired, or in several ways (the message lists them); if the
            shape of an array differs from its entry; if a value is not a tensor or an array of numbers.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.Conv(4, (3, 2))(x))
        >>> weights = {"features.0.weight": np.ones((4, 3, 3, 2)), "features.0.bias": np.zeros(4)}
        >>> params, _ = fc.interop.from_torch(graph, weights)
        >>> params["conv1"]["kernel"].shape
        (3, 2, 3, 4)
    """
    if pairing not in (None, "order"):
        msg = f"from_torch: pairing must be None or 'order'; got {pairing!r}"
        raise FuncconvError(msg)
    if flatten_order not in ("channels_first", "channels_last"):
        msg = f"from_torch: flatten_order must be 'channels_first' or 'channels_last'; got {flatten_order!r}"
        raise FuncconvError(msg)
    layout = torch_layout("from_torch", graph, flatten_order=flatten_order)
    module = source if hasattr(source, "state_dict") else None
    is_traced = any(array.is_whole_name for array in layout.arrays) or layout.root != ""
    if module is not None:
        if names is None and pairing is None and not _has_names_of(layout, module):
            if example is None:
                msg = "from_torch: a module needs an example of its input, from_torch(graph, module, example)"
                raise FuncconvError(msg)
            return by_use(graph, module, example)
        # The graph's state can have buffers that a state dict leaves out, and constants that only a trace finds.
        left_out = {array.name for array in layout.arrays if not array.stored}
        buffers = {name: buffer for name, buffer in module.named_buffers() if name in left_out}
        if left_out - set(buffers) and example is not None:
            return traced_weights(graph, module, example)
        source = {**module.state_dict(), **buffers}
    arrays = {}
    for name, value in source.items():
        try:
            arrays[name] = as_numpy(value)
        except FuncconvError as error:
            msg = f"from_torch: {name!r}: {error}"
            raise FuncconvError(msg) from None
    modules = modules_of_entries("from_torch", graph, layout, arrays, names, pairing)
    own = _own_trees(graph, layout, arrays, modules)
    if module is not None and example is not None:
        check_on_example(graph, own, module, example, is_traced=is_traced)
    return own


def _has_names_of(layout: TorchLayout, module: Any) -> bool:
    """Whether a graph was traced from a module of these names, so that its weights are paired by name."""
    if any(array.is_whole_name for array in layout.arrays):
        return True
    names = set(module.state_dict())
    return all(
        name in names
        for array in layout.arrays
        for name in names_of(array, [array.entry.replace("/", ".")])
        if array.name not in ("bias", COUNTER)
    )


def _own_trees(
    graph: Graph, layout: TorchLayout, arrays: Mapping[str, np.ndarray], modules: Mapping[str, Sequence[str]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the state, from the arrays of PyTorch."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    for entry in layout.entries:
        put(params, tuple(entry.split("/")), {})
    problems = _unknown(graph, layout, arrays, modules)
    expected = expected_shapes(graph)
    for array in layout.arrays:
        first, *others = names_of(array, modules.get(array.entry, ()))
        value, path = arrays.get(first), _whole_path(array)
        if value is None and array.name == COUNTER:
            value = np.zeros((), np.int32)  # a counter starts at 0
        if value is None and not array.stored:
            problems.append(
                f"{first!r} of the graph is a constant of the module, which a state dict lacks: pass the module and an "
                "example, or take the entry from the state that trace_torch returned"
            )
            continue
        shape = expected.get((array.in_state, path))
        own = None if value is None else array.to_own(value)
        if value is None or own is None or (shape is not None and own.shape != shape):
            shape_text = "missing" if own is None else str(own.shape)
            module = first.rpartition(".")[0]
            problems.append(f"{path} is {shape}, that of {module!r} is {shape_text}")
            continue
        for name in others:
            if name not in arrays or not np.array_equal(arrays[name], value, equal_nan=value.dtype.kind == "f"):
                problems.append(f"{first!r} and {name!r} differ, but are one entry of the graph, {array.entry!r}")
        put(state if array.in_state else params, tuple(path.split("/")), copied(own))
    if problems:
        msg = "from_torch: the weights do not fit:\n  " + "\n  ".join(problems)
        raise FuncconvError(msg)
    return params, state


def _unknown(
    graph: Graph, layout: TorchLayout, arrays: Mapping[str, np.ndarray], modules: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the arrays of modules that the entries do not have."""
    ops = {row.params: row.op for row in reversed(graph.rows) if row.params}
    known = {array.name for array in layout.arrays if array.is_whole_name} | {alias for alias, _ in layout.aliases}
    known |= {name for array in layout.arrays for name in names_of(array, modules.get(array.entry, ()))}
    unknown = []
    for entry, paths in modules.items():
        for path in paths:
            own = [name for name in arrays if name.rpartition(".")[0] == path and name not in known]
            own = [name.rpartition(".")[2] for name in own if not name.endswith(COUNTER)]
            unknown += [f"{path!r} has {name}, which {ops[entry]!r} does not have" for name in own]
    return unknown


def to_torch(
    graph: Graph,
    params: Params,
    state: Params | None = None,
    *,
    names: Names | None = None,
    flatten_order: str = "channels_first",
) -> dict[str, np.ndarray]:
    """Convert the parameters of a graph to the state dict of a PyTorch module.

    Args:
        graph: a graph that `trace_torch` returned, or one of `Conv`, `ConvTranspose`, `Dense`, `BatchNorm`,
            `GroupNorm`, `InstanceNorm`, `LayerNorm`, `RMSNorm`, `WeightStandardize` (of `Conv` or `Dense`) and layers
            without parameters.
        params: the parameters of the graph, or a tree like them, such as gradients.
        state: the state of the graph, such as running statistics. It is needed if the graph has one. Default: None.
        names: the path of a module for each entry of the graph, such as `{"conv1": "features.0"}`, or a list of paths
            where PyTorch has the same weights under several names. Default: None, the names of the entries, with `.` in
            place of `/`.
        flatten_order: how the module flattens an image in front of a linear map: `"channels_first"` for
            `torch.nn.Flatten` and `view`, `"channels_last"` if the channels are moved to the last axis before. It
            matters if the graph flattens with its channels last. Default: `"channels_first"`.

    Returns:
        NumPy arrays by name, in PyTorch's order: for each module weight, bias, statistics. Load them by
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
    for array, converted in converted_arrays("to_torch", layout, params, state):
        for name in names_of(array, modules.get(array.entry, ())) if array.stored else ():
            if name in arrays and not np.array_equal(arrays[name], converted):
                msg = f"to_torch: two entries are {name!r} in PyTorch, but differ; the second is {array.entry!r}"
                raise FuncconvError(msg)
            arrays[name] = converted.copy()
            if array.name == "running_var" and array.entry not in counted:
                arrays[f"{name.removesuffix('running_var')}{COUNTER}"] = np.zeros((), np.int64)
    return arrays | {alias: arrays[name].copy() for alias, name in layout.aliases if name in arrays}


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
            value = get((state or {}) if array.in_state else params, tuple(_whole_path(array).split("/")))
        except KeyError:
            value = None
        if value is None and array.name == "bias":
            continue
        if value is None:
            msg = f"{op}: the {'state has' if array.in_state else 'parameters have'} no {_whole_path(array)!r}"
            raise FuncconvError(msg)
        yield array, np.array(array.to_torch(np.asarray(value)))


def names_of(array: TorchArray, modules: Sequence[str]) -> list[str]:
    """Return the names of an array in the state dict of PyTorch, for the modules that its entry stands for."""
    if array.is_whole_name:
        return [array.name]
    return [f"{module}.{array.name}" if module else array.name for module in modules]


def _whole_path(array: TorchArray) -> str:
    return f"{array.entry}/{array.path}" if array.path else array.entry

"""The weights of a PyTorch module as the parameters and the state of a graph."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.entries import put
from ..._graph.use.graph import Graph
from ..._weight_files.arrays import as_numpy
from .._matching import copied
from .names.array import COUNTER, names_of, split_name, whole_path
from .names.layout import TorchLayout, torch_layout
from .names.parametrizations import current_names
from .pairing import Names, expected_shapes, modules_of_entries
from .use import by_use, check_on_example, traced_weights


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
            `GroupNorm`, `InstanceNorm`, `LayerNorm`, `RMSNorm`, `WeightStandardize`, `WeightNorm` and `SpectralNorm`
            (of `Conv`, `ConvTranspose` or `Dense`; the last with `norm="kernel"`), functions that draw a vector, such
            as a scale `(1, 1, channels)`, and layers without parameters.
        source: a `torch.nn.Module`, or its `state_dict()`, or a dict of NumPy arrays with the same names. Normalized
            kernels may have the names of `torch.nn.utils.parametrizations` or the older ones of `torch.nn.utils`.
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
    current = _current_names(layout, source)
    for name, value in source.items():
        try:
            arrays[current[name]] = as_numpy(value)
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
    names = set(_current_names(layout, module.state_dict()).values())
    return all(
        name in names
        for array in layout.arrays
        for name in names_of(array, [array.entry.replace("/", ".")])
        if array.name not in ("bias", COUNTER)
    )


def _current_names(layout: TorchLayout, names: Iterable[str]) -> dict[str, str]:
    """Return the names of the layout for those of a state dict; a traced graph keeps the names of its module."""
    kept = {array.name for array in layout.arrays if array.is_whole_name} | {alias for alias, _ in layout.aliases}
    return {name: name if name in kept else current for name, current in current_names(names).items()}


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
        value, path = arrays.get(first), whole_path(array)
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
            module, _ = split_name(first)
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
            own = [split_name(name)[1] for name in arrays if split_name(name)[0] == path and name not in known]
            own = [name for name in own if name != COUNTER]
            unknown += [f"{path!r} has {name}, which {ops[entry]!r} does not have" for name in own]
    return unknown

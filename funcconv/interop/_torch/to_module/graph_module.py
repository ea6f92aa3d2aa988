"""Graphs as modules of PyTorch."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from math import prod
from typing import Any

import jax

from ...._common.errors import FuncconvError
from ...._common.optional_packages import needs
from ...._common.types import Params
from ...._graph.evaluate.inputs import in_order, wanted_inputs
from ...._graph.name.entries import put
from ...._graph.name.flatten import Row
from ...._graph.use.graph import Graph
from ..names.array import COUNTER, names_of
from ..names.layout import torch_layout
from ..pairing import modules_of_entries
from ..state_dict import begun_state, converted_arrays
from .functions import Value, mapped
from .layers import Run, runner
from .lazy_torch import torch
from .stored import Stored, add_aliases, add_counters, register, stored, tensor_of

_OP = "to_torch_module"


def to_torch_module(graph: Graph, params: Params, state: Params | None = None) -> Any:
    """Convert a graph to a PyTorch module that computes the same, with a copy of the weights.

    The parameters and buffers of the module have the names and the order of axes of `to_torch`, so the state dict of a
    module that was traced can be loaded into the new module, and the other way round. Entries for which PyTorch has no
    module, such as those of `LocalConv`, keep the names and the order of axes of the graph.

    Args:
        graph: a graph of layers of funcconv and of functions that PyTorch has too: those of `jax.nn`, `jax.numpy` and
            funcconv that files of graphs can name, and those of traced modules.
        params: the parameters of the graph.
        state: the state of the graph, such as running statistics. It is needed if the graph has one. Default: None.

    Returns:
        A `torch.nn.Module`. It is called with tensors that have the axes of the graph's inputs, with batch axes in
        front, and returns tensors in the structure of the graph's outputs. `module.train()` makes dropout active, and
        batch norms then normalize by the batch and update their statistics, and spectral norms update their vectors;
        `module.eval()` selects evaluation. Call `eval()` on a part of the module to keep its norms in evaluation mode.
        A new module is in evaluation mode.

        Derivatives are those of the graph, also at kinks: the derivative of `jax.nn.leaky_relu` at 0 is 1, as in JAX.
        Only those of `jax.numpy.median` where several numbers are equal, and of `power` and `sqrt` where a derivative
        is infinite, may differ.

    Raises:
        FuncconvError: if PyTorch is not installed, if PyTorch has no counterpart of a layer, a function or an option
            (the message names the node), or if parameters or state do not have the arrays of the graph.

    Example:
        >>> import funcconv as fc, jax, torch
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3, name="first"), jax.nn.relu, fc.max_pool)(x))
        >>> params = graph.init(jax.random.key(0))
        >>> module = fc.interop.to_torch_module(graph, params)
        >>> {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        {'first.weight': (4, 3, 3, 3), 'first.bias': (4,)}
        >>> x = torch.rand(2, 8, 8, 3)
        >>> bool(abs(graph(params, x.numpy()) - module(x).detach().numpy()).max() < 1e-5)
        True
    """
    with needs("torch", "a module of PyTorch"):
        import torch as _  # noqa: F401
    module = _graph_module()(graph)  # raises an error if PyTorch has no counterpart
    layout = torch_layout(_OP, graph, params=params)
    modules = modules_of_entries(_OP, graph, layout, None, None, None)
    arrays: list[Stored] = []
    for array, converted in converted_arrays(_OP, layout, params, begun_state(graph, params, state)):
        (name,) = [array.name] if array.is_whole_name else names_of(array, modules[array.entry])
        description, positions = stored(array, name, converted.shape, f"_positions{len(arrays)}")
        arrays.append(description)
        register(module, name, tensor_of(converted), array)
        if positions is not None:
            module.register_buffer(str(description.positions), positions, persistent=False)
    add_counters(module, arrays)
    add_aliases(module, layout.aliases)
    module._plan.set_arrays(arrays)
    return module.eval()


class Plan:
    """The plan of a module: the graph, the places of its arrays, and the PyTorch functions of its rows.

    It contains no tensors, so copies of a module share it.

    Args:
        graph: the graph.
        arrays: where the module has its arrays. Default: none yet.
    """

    def __init__(self, graph: Graph, arrays: Sequence[Stored] = ()) -> None:
        self.graph = graph
        self.runs = [runner(row) for row in graph.rows]
        self.set_arrays(arrays)

    def set_arrays(self, arrays: Sequence[Stored]) -> None:
        """Set where the module has the arrays of the graph."""
        self.arrays = tuple(arrays)
        self.by_entry: dict[str, list[Stored]] = {}
        for array in arrays:
            self.by_entry.setdefault(array.entry, []).append(array)

    def __reduce__(self) -> Any:
        return Plan, (self.graph, self.arrays)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Plan":
        del memo
        return self

    def run(self, module: Any, xs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """Evaluate the graph.

        Args:
            module: the module that has the arrays.
            xs: the inputs in the order of declaration.
            named: instead, the inputs by name.

        Returns:
            The outputs in their structure.
        """
        inputs, batch = _inputs(self.graph, xs, named)
        size = prod(batch)
        values = [Value(x, has_batch=True) for x in inputs]
        entries: dict[str, tuple[Any, Any]] = {}
        device = inputs[0].device if inputs else torch.device("cpu")
        # Constants are made on the device of the inputs.
        with nullcontext() if device.type == "cpu" else device:
            for row, run in zip(self.graph.rows, self.runs, strict=True):
                values.append(self._run_row(module, row, run, [values[i] for i in row.inputs], size, entries))

        def output(number: int) -> Any:
            array = values[number].for_batch(size)
            return array if len(batch) == 1 else mapped(lambda y: y.reshape(*batch, *y.shape[1:]), array)

        return jax.tree.unflatten(self.graph._tree, [output(number) for number in self.graph._results])

    def _run_row(
        self, module: Any, row: Row, run: Run, xs: list[Value], size: Any, entries: dict[str, tuple[Any, Any]]
    ) -> Value:
        """Compute a row, and copy its next state into the module."""
        entry = row.params or ""
        if entry and entry not in entries:
            entries[entry] = self._read(module, entry)
        params, state = entries.get(entry, (None, None))
        owner = self._owner(module, entry) if row.op.stateful else module
        try:
            value, new_state = run(params, state, xs, size, owner.training)
        except FuncconvError as error:
            msg = f"node {row.name!r}: {error}"
            raise FuncconvError(msg) from None
        except Exception as error:
            error.add_note(f"in node {row.name!r} of the graph, which is {row.op!r}")
            raise
        if owner.training and new_state is not state:
            for array in self.by_entry[entry]:
                if array.in_state:
                    array.set(module, new_state[array.path])
            if "count" not in new_state and hasattr(owner, COUNTER):  # a batch norm whose graph does not count
                owner.get_buffer(COUNTER).add_(1)
            entries[entry] = (params, new_state)  # which further uses of the entry continue
        return value

    def _read(self, module: Any, entry: str) -> tuple[Any, Any]:
        """Return the parameters and the state of an entry, in the order of axes of the graph."""
        trees: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for array in self.by_entry.get(entry, ()):
            if not array.path:
                return (None, array.get(module)) if array.in_state else (array.get(module), None)
            put(trees[array.in_state], tuple(array.path.split("/")), array.get(module))
        return trees

    def _owner(self, module: Any, entry: str) -> Any:
        """Return the module whose mode decides whether an entry is used as in training."""
        array = next((array for array in self.by_entry.get(entry, ()) if array.in_state), None)
        return module if array is None else module.get_submodule(array.name.rpartition(".")[0])


@cache
def _graph_module() -> Any:
    """Return the class of modules that compute a graph. It is created on first use: PyTorch is optional."""

    class GraphModule(torch.nn.Module):  # type: ignore[misc]
        """A graph as a module of PyTorch."""

        def __init__(self, graph: Graph) -> None:
            super().__init__()
            self._plan = Plan(graph)

        def forward(self, *xs: Any, **named: Any) -> Any:
            """Evaluate the graph on tensors."""
            return self._plan.run(self, xs, named)

    GraphModule.__qualname__ = "GraphModule"  # where `pickle` finds it
    return GraphModule


def __getattr__(name: str) -> Any:
    if name == "GraphModule":
        return _graph_module()
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def _inputs(graph: Graph, xs: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[Any], tuple[Any, ...]]:
    """Return the inputs with one batch axis, and the sizes of their batch axes."""
    xs = in_order(graph, xs, named)
    if graph._keys is not None and len(xs) == 1 and isinstance(xs[0], Mapping):
        xs = [xs[0][key] for key in graph._keys]
    if len(xs) != len(graph.inputs):
        msg = f"the module takes {wanted_inputs(graph)}; got {len(xs)}"
        raise FuncconvError(msg)
    batch: tuple[Any, ...] | None = None
    inputs = []
    for (name, shape, _), x in zip(graph._signature, xs, strict=True):
        if not isinstance(x, torch.Tensor):
            msg = f"input {name!r} must be a tensor; got {type(x).__name__}"
            raise FuncconvError(msg)
        k = x.ndim - len(shape)
        if k < 0 or tuple(x.shape[k:]) != shape or (batch is not None and batch != tuple(x.shape[:k])):
            same = "" if batch is None else f", with the batch axes {batch} of the inputs before it"
            msg = f"input {name!r} must have shape (*batch, {', '.join(map(str, shape))}){same}; got {tuple(x.shape)}"
            raise FuncconvError(msg)
        batch = tuple(x.shape[:k])
        inputs.append(x if k == 1 else x.reshape(prod(batch), *shape))
    return inputs, batch or ()

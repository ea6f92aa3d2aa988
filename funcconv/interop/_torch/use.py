"""Weights of a module and an example: pair them by their use in the traced module, and check the results."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.entries import get, put
from ..._graph.use.graph import Graph
from ..._weight_files.arrays import as_numpy
from .._matching import Entry, trees
from .._pairing import paired
from .names.layout import TorchLayout, torch_layout
from .program import outputs_in_evaluation
from .trace import differences, leaves_of_outputs, trace_torch
from .weighted import _WithWeights

_OF_STATES = ("mean", "var", "count", "left", "right")


def by_use(graph: Graph, module: Any, example: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of a module for a graph, paired by their use in the traced module.

    Args:
        graph: a graph that computes the same, on arrays with their channels last.
        module: the module.
        example: an input, or a tuple of them.

    Returns:
        `(params, state)`.

    Raises:
        FuncconvError: if no pairing gives the same results.
    """
    traced, params, state = trace_torch(module, example, layout="NHWC")
    special = [row.params for row in traced.rows if isinstance(row.op, _WithWeights) and not row.op.optional]
    if special:
        msg = (
            "from_torch: the module uses weights in a way for which there is no layer "
            f"({', '.join(map(str, special[:5]))}). Use the graph that trace_torch returns, or a state dict and names="
        )
        raise FuncconvError(msg)
    modules = {path: _entry_arrays(params, path) | _entry_arrays(state, path) for path in traced.entries}

    def evaluate(drawn: Mapping[str, Mapping[str, Any]], *xs: Any) -> Any:
        drawn_params: dict[str, Any] = {}
        drawn_state: dict[str, Any] = {}
        for path, arrays in drawn.items():
            parts = tuple(path.split("/"))
            put(drawn_params, parts, {name: arrays[name] for name in _entry_arrays(params, path)})
            if _entry_arrays(state, path):
                put(drawn_state, parts, {name: arrays[name] for name in _entry_arrays(state, path)})
        return traced.apply(drawn_params, drawn_state, *xs)[0]

    problems = []
    for order in ("channels_first", "channels_last"):
        layout = torch_layout("from_torch", graph, flatten_order=order)

        def from_module(entry: Entry, arrays: Mapping[str, Any], layout: TorchLayout = layout) -> Any:
            return _from_traced(layout, entry, arrays)

        try:
            pairs = paired("from_torch", graph, modules, from_module, evaluate, "names={entry: module}")
            own = trees("from_torch", [(entry, name, *from_module(entry, modules[name])) for entry, name in pairs])
        except FuncconvError as error:
            problems.append(str(error))
            continue
        difference = _difference(graph, own, traced, (params, state), example)
        if difference is None:
            return own
        problems.append(f"from_torch: with all weights paired, graph and module differ {difference}")
    raise FuncconvError(problems[0])


def _entry_arrays(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        return dict(get(tree, tuple(path.split("/"))))
    except KeyError:
        return {}


def _from_traced(layout: TorchLayout, entry: Entry, arrays: Mapping[str, Any]) -> Any:
    """Return the arrays of a traced module, which has the layers of funcconv, for an entry of another graph."""
    params = {name: array for name, array in arrays.items() if name not in _OF_STATES}
    state = {name: array for name, array in arrays.items() if name in _OF_STATES}
    if "count" not in entry.state:
        state.pop("count", None)
    elif "count" not in state and "mean" in state:
        state["count"] = np.zeros((), np.int32)
    for array in layout.arrays:
        tree = state if array.in_state else params
        value = tree.get(array.path)
        if array.entry == entry.path and value is not None and np.ndim(value):
            if array.path == "kernel" and np.ndim(value) == 2:
                tree[array.path] = array.to_own(value.T)  # the rows of a linear map, in the order of its features
            elif np.ndim(value) == 1:
                tree[array.path] = array.to_own(value)
    return params, state


def _difference(graph: Graph, own: Any, traced: Graph, weights: Any, example: Any) -> str | None:
    """Return how a graph differs from the traced module on the example; None if only by rounding."""
    examples = example if isinstance(example, tuple | list) else (example,)
    xs = [_channels_last(as_numpy(x)) for x in examples]
    results = [jax.tree.leaves(net.apply(*trees, *xs)[0]) for net, trees in ((graph, own), (traced, weights))]
    return differences(*results)


def _channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def traced_weights(graph: Graph, module: Any, example: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights of a module for a graph that was traced from an equal module.

    Args:
        graph: the graph.
        module: the module.
        example: an input of the module, or a tuple of them.

    Returns:
        `(params, state)`.

    Raises:
        FuncconvError: if the graph was traced from a different module.
    """
    for layout in ("NCHW", "NHWC"):
        traced, params, state = trace_torch(module, example, layout=layout)
        if traced == graph:
            return params, state
    msg = "from_torch: the graph was traced from another module, or from an example of another shape; trace it again"
    raise FuncconvError(msg)


def check_on_example(graph: Graph, own: Any, module: Any, example: Any, *, is_traced: bool) -> None:
    """Raise an error if graph and module compute different results with these weights.

    Args:
        graph: the graph; one that was not traced has its channels last.
        own: its parameters and its state.
        module: the module.
        example: an input of the module, or a tuple of them.
        is_traced: whether the graph was traced from a module.

    Raises:
        FuncconvError: if the results differ.
    """
    examples = example if isinstance(example, tuple | list) else (example,)
    shapes = [row.shape for row in graph._signature]
    as_they_are = is_traced and all(tuple(x.shape[1:]) == shape for x, shape in zip(examples, shapes, strict=True))
    move = (lambda array: array) if as_they_are else _channels_last
    outputs = outputs_in_evaluation(module, examples)
    results = jax.tree.leaves(graph.apply(*own, *(move(as_numpy(x)) for x in examples))[0])
    difference = differences(results, [move(as_numpy(y)) for y in leaves_of_outputs(outputs)])
    if difference is not None:
        msg = (
            f"from_torch: with these weights, graph and module differ {difference}: is each entry paired with its "
            "module? Without names=, a module and an example are paired by use"
        )
        raise FuncconvError(msg)

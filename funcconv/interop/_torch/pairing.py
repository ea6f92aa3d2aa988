"""Which module of PyTorch each entry of a graph stands for: by name, by shape, or by use."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.entries import get, put
from ..._graph.use.graph import Graph
from .._matching import Entry, entries, side_by_side, trees
from .._pairing import fitting_pairs, paired
from .arrays import as_numpy
from .names import COUNTER, TorchArray, TorchLayout, torch_layout
from .program import outputs_in_evaluation
from .trace import differences, leaves_of_outputs, trace_torch
from .weighted import WithWeights

_SOLUTIONS = (
    "pass the module and an example, from_torch(graph, module, example), so that the weights are paired by use; "
    "name the module of each entry, names={entry: module}; or pass pairing='order', if the order of the state dict "
    "is that of first use in the graph"
)


def modules_of_entries(
    op: str,
    graph: Graph,
    layout: TorchLayout,
    arrays: Mapping[str, np.ndarray] | None,
    names: Mapping[str, str | Sequence[str]] | None,
    pairing: str | None,
) -> dict[str, list[str]]:
    """Return the paths of the modules that each entry stands for.

    Args:
        op: the name of the public function, for messages.
        graph: the graph.
        layout: its arrays as PyTorch has them.
        arrays: PyTorch's arrays by name; None if there are none yet.
        names: the names that the user gives.
        pairing: `"order"` or None.

    Returns:
        One path or several for each entry that a layer uses.

    Raises:
        FuncconvError: if it is not certain which belong together.
    """
    paths = [entry for entry in layout.entries if not _has_whole_names(layout, entry)]
    by_path = {path: [""] if path == layout.root else [path.replace("/", ".")] for path in paths}
    if names is not None:
        return _by_names(op, layout, paths, arrays, names)
    if arrays is None:
        return by_path
    expected = {name for array in layout.arrays for name in _names(array, by_path)}
    required = {
        name
        for array in layout.arrays
        if array.stored and array.name not in ("bias", COUNTER)
        for name in _names(array, by_path)
    }
    known = expected | {alias for alias, _ in layout.aliases}
    if required <= set(arrays) or len(paths) < len(layout.entries):
        return _checked_by_path(op, arrays, by_path, known, required)
    modules = _modules(arrays)
    if pairing == "order":
        if len(paths) != len(modules):
            raise FuncconvError(_counts(op, paths, modules))
        return {path: [module] for path, module in zip(paths, modules, strict=True)}
    return _by_shape(op, graph, layout, modules)


def _has_whole_names(layout: TorchLayout, entry: str) -> bool:
    return any(array.is_whole_name for array in layout.arrays if array.entry == entry)


def _names(array: TorchArray, modules: Mapping[str, Sequence[str]]) -> list[str]:
    if array.is_whole_name:
        return [array.name]
    return [f"{module}.{array.name}" if module else array.name for module in modules.get(array.entry, ())]


def _modules(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each module, in the order of the state dict."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        module, _, own = name.rpartition(".")
        modules.setdefault(module, {})[own] = array
    return modules


def _counts(op: str, paths: Sequence[str], modules: Mapping[str, Any]) -> str:
    lines = side_by_side(list(paths), list(modules))
    return f"{op}: the graph has {len(paths)} entries and the other side {len(modules)} modules:\n{lines}"


def _by_names(
    op: str,
    layout: TorchLayout,
    paths: Sequence[str],
    arrays: Mapping[str, np.ndarray] | None,
    names: Mapping[str, str | Sequence[str]],
) -> dict[str, list[str]]:
    given = {entry: [name] if isinstance(name, str) else list(name) for entry, name in names.items()}
    used = {name for modules in given.values() for name in modules}
    problems = [f"the graph has no entry {entry!r}" for entry in given if entry not in paths]
    problems += [f"the entry {entry!r} has no name on the other side" for entry in paths if entry not in given]
    if arrays is not None:
        modules = _modules(arrays)
        problems += [f"there is no module {name!r}" for name in used if name not in modules]
        whole = {array.name for array in layout.arrays if array.is_whole_name}
        own = [
            name for name, module in modules.items() if any(f"{name}.{key}".lstrip(".") not in whole for key in module)
        ]
        problems += [f"the module {name!r} belongs to no entry" for name in own if name not in used]
    if problems:
        msg = f"{op}: the names do not fit:\n  " + "\n  ".join(problems)
        raise FuncconvError(msg)
    return given


def _checked_by_path(
    op: str,
    arrays: Mapping[str, np.ndarray],
    by_path: dict[str, list[str]],
    known: set[str],
    required: set[str],
) -> dict[str, list[str]]:
    """Return the pairing by path, if neither side has something that the other does not have."""
    left = [
        f"{name!r} of the state dict is not in the graph"
        for name in arrays
        if name not in known and not name.endswith(COUNTER)
    ]
    left += [f"{name!r} of the graph is not in the state dict" for name in sorted(required) if name not in arrays]
    if left:
        msg = f"{op}: the names do not fit:\n  " + "\n  ".join(left)
        raise FuncconvError(msg)
    return by_path


def _by_shape(
    op: str, graph: Graph, layout: TorchLayout, modules: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, list[str]]:
    """Return the only pairing in which all shapes fit."""
    own = {entry.path: entry for entry in entries(graph)}
    if len(own) != len(modules):
        raise FuncconvError(_counts(op, list(own), modules))

    def from_module(entry: Entry, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        return _converted(layout, entry, arrays)

    pairs, fitting = fitting_pairs(op, own, modules, from_module)
    if len(pairs) < len(own):
        lines = [
            f"  {path}: {', '.join(name for name in fitting[path] if name not in pairs.values())}"
            for path in own
            if path not in pairs
        ]
        msg = (
            f"{op}: several modules have the shapes of an entry:\n"
            + "\n".join(lines)
            + f"\nThree solutions: {_SOLUTIONS}"
        )
        raise FuncconvError(msg)
    return {path: [name] for path, name in pairs.items()}


def _converted(layout: TorchLayout, entry: Entry, arrays: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of a module of PyTorch as the parameters and the state of an entry."""
    params: dict[str, Any] = {}
    state: dict[str, Any] = {}
    left = dict(arrays)
    for array in layout.arrays:
        if array.entry == entry.path:
            value = left.pop(array.name, None)
            if value is None and array.name == COUNTER:
                value = np.zeros((), np.int32)
            if value is not None:
                (state if array.in_state else params)[array.path] = array.to_own(value)
    left.pop(COUNTER, None)
    return params | left, state  # what is left over does not fit, and is told with its name


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
    special = [row.params for row in traced.rows if isinstance(row.op, WithWeights)]
    if special:
        msg = (
            "from_torch: the module uses weights in a way that no layer does "
            f"({', '.join(map(str, special[:5]))}): use the graph that trace_torch returns, or a state dict and names="
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
    params = {name: array for name, array in arrays.items() if name not in ("mean", "var", "count")}
    state = {name: array for name, array in arrays.items() if name in ("mean", "var", "count")}
    if "count" not in entry.state:
        state.pop("count", None)
    elif "count" not in state and state:
        state["count"] = np.zeros((), np.int32)
    for array in layout.arrays:
        tree = state if array.in_state else params
        value = tree.get(array.path)
        if array.entry == entry.path and value is not None and np.ndim(value):
            if array.path == "kernel" and np.ndim(value) == 2:
                tree[array.path] = array.to_own(value.T)  # the rows of a linear map, in the order of its features
            elif array.path != "kernel":
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


def check_on_example(graph: Graph, own: Any, module: Any, example: Any, *, is_traced: bool) -> None:
    """Refuse weights with which a graph does not compute what the module computes.

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

"""Pair the entries of a graph with modules of PyTorch: by name, by shape, or by use."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Shape
from ..._graph.use.graph import Graph
from ..._weight_files.closest_names import closest_names
from .._matching import Entry, entries, side_by_side
from .._pairing import fitting_pairs
from .names.array import COUNTER, TorchArray, split_name
from .names.features import Shapes
from .names.layout import TorchLayout
from .weighted import _WithWeights

Names = Mapping[str, str | Sequence[str]]

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
    names: Names | None,
    pairing: str | None,
) -> dict[str, list[str]]:
    """Return the paths of the PyTorch modules for each entry.

    Args:
        op: the name of the public function, for messages.
        graph: the graph.
        layout: the names and orders of axes of its arrays in PyTorch.
        arrays: PyTorch's arrays by name; None if they are not known.
        names: the names that the user passed.
        pairing: `"order"` or None.

    Returns:
        One path or several for each entry that a layer uses.

    Raises:
        FuncconvError: if the pairing is not unique.
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
    if len(paths) < len(layout.entries) or (pairing is None and required <= set(arrays)):
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
        module, own = split_name(name)
        modules.setdefault(module, {})[own] = array
    return modules


def _counts(op: str, paths: Sequence[str], modules: Mapping[str, Any]) -> str:
    lines = side_by_side(list(paths), list(modules))
    listed = closest_names(paths, modules, right_side="the state dict")
    return f"{op}: the graph has {len(paths)} entries and the other side {len(modules)} modules:\n{lines}\n{listed}"


def _by_names(
    op: str,
    layout: TorchLayout,
    paths: Sequence[str],
    arrays: Mapping[str, np.ndarray] | None,
    names: Names,
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
    """Return the pairing by path, if both sides have the same paths."""
    unknown = [name for name in arrays if name not in known and not name.endswith(COUNTER)]
    missing = sorted(name for name in required if name not in arrays)
    if unknown or missing:
        listed = closest_names(missing, unknown, right_side="the state dict")
        msg = f"{op}: the names of graph and state dict differ; pass names= for other names:\n{listed}"
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

    try:
        pairs, fitting = fitting_pairs(op, own, modules, from_module)
    except FuncconvError:  # an entry fits no module: their differences in order say the most
        return {path: [module] for path, module in zip(own, modules, strict=True)}
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
    return params | left, state  # arrays without a counterpart are reported by name


def expected_shapes(graph: Graph) -> dict[tuple[bool, str], Shape]:
    """Return the shapes of a graph's arrays by whether they are in the state, and path, as far as layers draw them."""
    shapes: dict[tuple[bool, str], Shape] = {}
    inferred = Shapes(graph)
    drawn = jax.eval_shape(graph.init, jax.eval_shape(jax.random.key, 0))
    for path, leaf in jax.tree.leaves_with_path(drawn):
        shapes[False, jax.tree_util.keystr(path, simple=True, separator="/")] = leaf.shape
    for row in graph.rows:
        if row.op.stateful and not isinstance(row.op, _WithWeights):  # whose state comes from the module
            for path, leaf in jax.tree.leaves_with_path(inferred.state(row)):
                shapes[True, f"{row.params}/{jax.tree_util.keystr(path, simple=True, separator='/')}"] = leaf.shape
    return shapes

"""Pairing of the entries of a graph with modules, if the user does not name them: by shapes, names or use."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError
from .._common.types import Array
from .._graph.name.entries import put
from .._graph.use.graph import Graph
from .._weight_files.closest_names import closest_names
from ._matching import Entry, entries, shape_of, side_by_side
from ._uses import orders_of_use

Arrays = Mapping[str, Any]  # by name: "kernel", "bias", ...
Pairs = dict[str, str]  # the names of modules by the paths of entries
_BATCH_SIZE = 3  # of the random inputs on which both networks are compared


def paired(
    op: str,
    graph: Graph,
    modules: Mapping[str, Arrays],
    from_module: Callable[[Entry, Arrays], tuple[Arrays, Arrays]],
    evaluate: Callable[..., Any] | None,
    advice: str,
) -> list[tuple[Entry, str]]:
    """Pair the entries of a graph with modules, if only one pairing is possible.

    Args:
        op: the name of the public function, for messages.
        graph: the graph.
        modules: the arrays of each module.
        from_module: returns the parameters and the state of an entry, from the arrays of a module.
        evaluate: computes the other network, called as `evaluate(modules, *xs)`; None if it cannot be evaluated.
        advice: the argument with which it could be evaluated, for messages.

    Returns:
        Pairs of an entry and the name of a module.

    Raises:
        FuncconvError: if an entry or a module is left over, or more than one pairing is possible.
    """
    by_path = {entry.path: entry for entry in entries(graph)}
    names = sorted(modules, key=_natural)
    if len(by_path) != len(modules):
        lines = side_by_side(list(by_path), names)
        msg = (
            f"{op}: the graph has {len(by_path)} entries and the other side {len(modules)} modules:\n{lines}\n"
            f"{closest_names(by_path, names)}"
        )
        raise FuncconvError(msg)
    pairs, fitting = fitting_pairs(op, by_path, modules, from_module)
    if len(pairs) < len(by_path):
        candidates_by_path = {path: [name for name in fitting[path] if name not in pairs.values()] for path in by_path}
        paths_by_candidates: dict[str, list[str]] = {}
        for path in by_path:
            if path not in pairs:
                paths_by_candidates.setdefault(", ".join(candidates_by_path[path]), []).append(path)
        lines = "\n".join(f"  {', '.join(paths)}: {candidates}" for candidates, paths in paths_by_candidates.items())
        choice = f"more than one module has the shapes of an entry:\n{lines}\nPass {advice} or names={{entry: module}}"
        equal_names = {path: path for path in by_path if path in fitting[path]}
        if evaluate is not None:
            try:
                pairs_by_use = _by_use(graph, by_path, modules, from_module, fitting, equal_names, evaluate)
            except Exception as error:
                msg = f"{op}: the module cannot be evaluated ({type(error).__name__}: {error}), and {choice}"
                raise FuncconvError(msg) from error
            if pairs_by_use is None:
                msg = (
                    f"{op}: graph and module compute different results, if their weights are paired in the order of "
                    f"execution or depth first from the results. Check that both compute the "
                    f"same function. If they do, {choice}"
                )
                raise FuncconvError(msg)
            pairs = pairs_by_use
        elif len(equal_names) == len(by_path):
            pairs = equal_names
        else:
            msg = f"{op}: {choice}"
            raise FuncconvError(msg)
    return [(entry, pairs[path]) for path, entry in by_path.items()]


def fitting_pairs(
    op: str,
    by_path: Mapping[str, Entry],
    modules: Mapping[str, Arrays],
    from_module: Callable[[Entry, Arrays], tuple[Arrays, Arrays]],
) -> tuple[Pairs, dict[str, list[str]]]:
    """Return the pairs that every complete pairing contains, and for each entry the modules that have its shapes."""
    names = sorted(modules, key=_natural)
    fitting = {
        path: [name for name in names if _has_shapes_of(entry, from_module(entry, modules[name]))]
        for path, entry in by_path.items()
    }
    return _forced_pairs(op, by_path, modules, fitting), fitting


def _natural(name: str) -> list[Any]:
    """Return a key that sorts `Dense_10` after `Dense_2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _has_shapes_of(entry: Entry, arrays: tuple[Arrays, Arrays]) -> bool:
    """Return whether arrays have the names and shapes of an entry's arrays."""
    return all(
        {name: shape_of(array) for name, array in expected.items()}
        == {name: shape_of(array) for name, array in found.items()}
        for expected, found in zip((entry.params, entry.state), arrays, strict=True)
    )


def _forced_pairs(
    op: str, by_path: Mapping[str, Entry], modules: Mapping[str, Arrays], fitting: Mapping[str, Sequence[str]]
) -> Pairs:
    """Return the pairs that every complete pairing contains.

    If there is only one way to pair all, some entry fits one module alone (a bipartite graph with a unique perfect
    matching has a vertex with one edge). Without that pair there is still only one way, so this finds all of it.
    """
    pairs: Pairs = {}
    while True:
        used = set(pairs.values())
        candidates = {
            path: [name for name in fitting[path] if name not in used] for path in by_path if path not in pairs
        }
        if unpaired := [path for path, names in candidates.items() if not names]:
            lines = [f"no module fits the entry {path!r}, with {_shapes(by_path[path])}" for path in unpaired]
            lines += [f"the module {name!r} has {_listed(modules[name])}" for name in modules if name not in used]
            msg = f"{op}: the weights do not fit:\n  " + "\n  ".join(lines)
            raise FuncconvError(msg)
        paths_by_name: dict[str, list[str]] = {}
        for path, names in candidates.items():
            for name in names:
                paths_by_name.setdefault(name, []).append(path)
        new_pairs = {path: names[0] for path, names in candidates.items() if len(names) == 1}
        new_pairs |= {paths[0]: name for name, paths in paths_by_name.items() if len(paths) == 1}
        if not new_pairs:
            return pairs
        for path, name in new_pairs.items():
            if name not in pairs.values():
                pairs[path] = name


def _by_use(
    graph: Graph,
    by_path: Mapping[str, Entry],
    modules: Mapping[str, Arrays],
    from_module: Callable[[Entry, Arrays], tuple[Arrays, Arrays]],
    fitting: Mapping[str, Sequence[str]],
    equal_names: Pairs,
    evaluate: Callable[..., Any],
) -> Pairs | None:
    """Return a pairing with which graph and module compute the same results, or None.

    Both are evaluated on random weights. With the given weights, such as zeros, a wrong pairing might go unnoticed.
    """

    def evaluate_graph(weights: Mapping[str, tuple[Arrays, Arrays]], *xs: Array) -> Any:
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for path, (entry_params, entry_state) in weights.items():
            put(params, tuple(path.split("/")), dict(entry_params))
            if by_path[path].state:
                put(state, tuple(path.split("/")), dict(entry_state))
        return graph.apply(params, state, *xs)[0]

    rng = np.random.default_rng(0)  # so that the pairing is the same in every run
    shapes = graph.shapes()
    xs = [_drawn(rng, (_BATCH_SIZE, *shapes[name].shape), shapes[name].dtype) for name in graph.inputs]
    drawn = {
        module: {name: _weights(rng, name, array) for name, array in sorted(arrays.items())}
        for module, arrays in modules.items()
    }
    expected = evaluate(drawn, *xs)
    any_weights = {path: from_module(entry, drawn[fitting[path][0]]) for path, entry in by_path.items()}
    pairings = [equal_names]
    for graph_order, module_order in zip(
        orders_of_use(evaluate_graph, any_weights, xs), orders_of_use(evaluate, drawn, xs), strict=True
    ):
        pairing: Pairs = {}
        for path in graph_order:
            name = next((name for name in module_order if name in fitting[path] and name not in pairing.values()), None)
            pairing |= {} if name is None else {path: name}
        pairings.append(pairing)
    for pairing in pairings:
        if len(pairing) == len(by_path) and _agree(
            evaluate_graph({path: from_module(entry, drawn[pairing[path]]) for path, entry in by_path.items()}, *xs),
            expected,
        ):
            return pairing
    return None


def _drawn(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    numbers = rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.inexact) else rng.integers(0, 2, shape)
    return jnp.asarray(numbers, dtype)


def _weights(rng: np.random.Generator, name: str, array: Any) -> Array:
    """Return random weights with which activations neither grow nor vanish. Variances are positive."""
    shape = jnp.shape(array)
    if name in ("scale", "var"):
        numbers = rng.uniform(0.5, 1.5, shape)
    else:
        numbers = rng.normal(size=shape) / math.sqrt(max(math.prod(shape[:-1]), 4))
    return jnp.asarray(numbers, jnp.asarray(array).dtype)


def _agree(graph_results: Any, module_results: Any) -> bool:
    """Return whether results are the same up to rounding: half of the digits are."""
    graph_results, module_results = (jax.tree.leaves(result) for result in (graph_results, module_results))
    if [jnp.shape(result) for result in graph_results] != [jnp.shape(result) for result in module_results]:
        return False
    for graph_result, module_result in zip(graph_results, module_results, strict=True):
        float_dtypes = [
            result.dtype for result in (graph_result, module_result) if jnp.issubdtype(result.dtype, jnp.inexact)
        ]
        eps = max((float(jnp.finfo(dtype).eps) for dtype in float_dtypes), default=0.0)  # type: ignore[no-untyped-call]
        a, b = (np.asarray(result, np.float64) for result in (graph_result, module_result))
        if not np.abs(a - b).max(initial=0) <= np.sqrt(eps) * np.abs(b).max(initial=0):
            return False
    return True


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape_of(array)}" for name, array in arrays.items())


def _shapes(entry: Entry) -> str:
    return _listed({**entry.params, **entry.state})

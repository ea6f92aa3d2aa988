"""Which module holds the weights of which entry, if nobody names them: by shapes, by equal names, or by use."""

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
from ._matching import Entry, entries, shape_of, side_by_side
from ._uses import orders_of_use

Arrays = Mapping[str, Any]  # by name: "kernel", "bias", ...
Pairs = dict[str, str]  # the names of modules by the paths of entries
_EXAMPLES = 3


def paired(
    op: str,
    graph: Graph,
    modules: Mapping[str, Arrays],
    taken: Callable[[Entry, Arrays], tuple[Arrays, Arrays]],
    evaluate: Callable[..., Any] | None,
    remedy: str,
) -> list[tuple[Entry, str]]:
    """Pair the entries of a graph with modules, if it is certain which belong together.

    Args:
        op: who asks, for messages.
        graph: the graph.
        modules: the arrays of each module.
        taken: returns the parameters and the state that an entry takes from the arrays of a module.
        evaluate: computes the other network, called as `evaluate(modules, *xs)`; None if it cannot be evaluated.
        remedy: the argument with which it could be evaluated, for messages.

    Returns:
        Pairs of an entry and the name of a module.

    Raises:
        FuncconvError: if an entry or a module is left over, or more than one pairing is possible.
    """
    own = {entry.path: entry for entry in entries(graph)}
    names = sorted(modules, key=_natural)
    if len(own) != len(modules):
        lines = side_by_side(list(own), names)
        msg = f"{op}: the graph has {len(own)} entries and the other side {len(modules)} modules:\n{lines}"
        raise FuncconvError(msg)
    fitting = {
        path: [name for name in names if _fits(entry, taken(entry, modules[name]))] for path, entry in own.items()
    }
    pairs = _only_ones(op, own, modules, fitting)
    if len(pairs) < len(own):
        open_entries = {path: [name for name in fitting[path] if name not in pairs.values()] for path in own}
        alike: dict[str, list[str]] = {}
        for path in own:
            if path not in pairs:
                alike.setdefault(", ".join(open_entries[path]), []).append(path)
        lines = "\n".join(f"  {', '.join(paths)}: {candidates}" for candidates, paths in alike.items())
        choice = f"more than one module has the shapes of an entry:\n{lines}\nPass {remedy} or names={{entry: module}}"
        same = {path: path for path in own if path in fitting[path]}
        if evaluate is not None:
            try:
                found = _by_use(graph, own, modules, taken, fitting, same, evaluate)
            except Exception as error:
                msg = f"{op}: the module cannot be evaluated ({type(error).__name__}: {error}), and {choice}"
                raise FuncconvError(msg) from error
            if found is None:
                msg = (
                    f"{op}: graph and module give different results, whether their weights are paired in the order in "
                    f"which the programs run or in which the results depend on them. Do they compute the same? "
                    f"Otherwise, {choice}"
                )
                raise FuncconvError(msg)
            pairs = found
        elif len(same) == len(own):
            pairs = same
        else:
            msg = f"{op}: {choice}"
            raise FuncconvError(msg)
    return [(entry, pairs[path]) for path, entry in own.items()]


def _natural(name: str) -> list[Any]:
    """Return a key that sorts `Dense_10` after `Dense_2`."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _fits(entry: Entry, found: tuple[Arrays, Arrays]) -> bool:
    """Return whether arrays have the names and the shapes of those of an entry."""
    return all(
        {name: shape_of(each) for name, each in wanted.items()}
        == {name: shape_of(each) for name, each in given.items()}
        for wanted, given in zip((entry.params, entry.state), found, strict=True)
    )


def _only_ones(
    op: str, own: Mapping[str, Entry], modules: Mapping[str, Arrays], fitting: Mapping[str, Sequence[str]]
) -> Pairs:
    """Return the pairs without which not all can be paired.

    If there is only one way to pair all, some entry fits one module alone (a bipartite graph with a unique perfect
    matching has a vertex with one edge). Without that pair there is still only one way, so this finds all of it.
    """
    pairs: Pairs = {}
    while True:
        used = set(pairs.values())
        left = {path: [name for name in fitting[path] if name not in used] for path in own if path not in pairs}
        if unpaired := [path for path, names in left.items() if not names]:
            lines = [f"no module fits the entry {path!r}, with {_shapes(own[path])}" for path in unpaired]
            lines += [f"the module {name!r} has {_listed(modules[name])}" for name in modules if name not in used]
            msg = f"{op}: the weights do not fit:\n  " + "\n  ".join(lines)
            raise FuncconvError(msg)
        users: dict[str, list[str]] = {}
        for path, names in left.items():
            for name in names:
                users.setdefault(name, []).append(path)
        new = {path: names[0] for path, names in left.items() if len(names) == 1}
        new |= {paths[0]: name for name, paths in users.items() if len(paths) == 1}
        if not new:
            return pairs
        for path, name in new.items():
            if name not in pairs.values():
                pairs[path] = name


def _by_use(
    graph: Graph,
    own: Mapping[str, Entry],
    modules: Mapping[str, Arrays],
    taken: Callable[[Entry, Arrays], tuple[Arrays, Arrays]],
    fitting: Mapping[str, Sequence[str]],
    same: Pairs,
    evaluate: Callable[..., Any],
) -> Pairs | None:
    """Return pairs with which the graph computes what the modules compute, or None.

    Both are evaluated on random weights, since with those given, zeros for example, a wrong pairing may show nothing.
    """

    def evaluate_graph(weights: Mapping[str, tuple[Arrays, Arrays]], *xs: Array) -> Any:
        params: dict[str, Any] = {}
        state: dict[str, Any] = {}
        for path, (learnt, kept) in weights.items():
            put(params, tuple(path.split("/")), dict(learnt))
            if own[path].state:
                put(state, tuple(path.split("/")), dict(kept))
        return graph.apply(params, state, *xs)[0]

    rng = np.random.default_rng(0)
    shapes = graph.shapes()
    xs = [_drawn(rng, (_EXAMPLES, *shapes[name].shape), shapes[name].dtype) for name in graph.inputs]
    drawn = {
        module: {name: _weights(rng, name, array) for name, array in sorted(arrays.items())}
        for module, arrays in modules.items()
    }
    expected = evaluate(drawn, *xs)
    some = {path: taken(entry, drawn[fitting[path][0]]) for path, entry in own.items()}
    ways = [same]
    for ours, theirs in zip(orders_of_use(evaluate_graph, some, xs), orders_of_use(evaluate, drawn, xs), strict=True):
        way: Pairs = {}
        for path in ours:
            name = next((name for name in theirs if name in fitting[path] and name not in way.values()), None)
            way |= {} if name is None else {path: name}
        ways.append(way)
    for way in ways:
        if len(way) == len(own) and _agree(
            evaluate_graph({path: taken(entry, drawn[way[path]]) for path, entry in own.items()}, *xs), expected
        ):
            return way
    return None


def _drawn(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    numbers = rng.normal(size=shape) if jnp.issubdtype(dtype, jnp.inexact) else rng.integers(0, 2, shape)
    return jnp.asarray(numbers, dtype)


def _weights(rng: np.random.Generator, name: str, array: Any) -> Array:
    """Return random weights that neither let activations grow nor vanish; variances are above zero."""
    shape = jnp.shape(array)
    if name in ("scale", "var"):
        numbers = rng.uniform(0.5, 1.5, shape)
    else:
        numbers = rng.normal(size=shape) / math.sqrt(max(math.prod(shape[:-1]), 4))
    return jnp.asarray(numbers, jnp.asarray(array).dtype)


def _agree(found: Any, expected: Any) -> bool:
    """Return whether results are the same but for rounding."""
    found, expected = (jax.tree.leaves(each) for each in (found, expected))
    if [jnp.shape(each) for each in found] != [jnp.shape(each) for each in expected]:
        return False
    for ours, theirs in zip(found, expected, strict=True):
        floats = [each.dtype for each in (ours, theirs) if jnp.issubdtype(each.dtype, jnp.inexact)]
        eps = max((float(jnp.finfo(dtype).eps) for dtype in floats), default=0.0)  # type: ignore[no-untyped-call]
        a, b = (np.asarray(each, np.float64) for each in (ours, theirs))
        if not np.abs(a - b).max(initial=0) <= np.sqrt(eps) * np.abs(b).max(initial=0):
            return False
    return True


def _listed(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shape_of(array)}" for name, array in arrays.items())


def _shapes(entry: Entry) -> str:
    return _listed({**entry.params, **entry.state})

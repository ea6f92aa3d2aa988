"""Whose weights are whose: the entries of a graph beside the modules of another library, by name or in order."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from .._errors import FuncconvError
from .._flatten import Row
from .._graph import Graph
from .._typing import Shape

Arrays = Mapping[str, Any]  # by name: "kernel", "bias", ...


class Entry(NamedTuple):
    """An entry of a graph's parameters, at its first use."""

    path: str
    row: Row
    inputs: tuple[Shape, ...]  # without batch axes
    params: Mapping[str, Any]  # shapes and dtypes
    state: Mapping[str, Any]


def entries(graph: Graph) -> list[Entry]:
    """Return the entries of a graph in the order of first use."""
    found: dict[str, Entry] = {}
    shapes, state = graph.shapes(), graph.init_state()
    for row, params in zip(graph.rows, graph.entry_shapes(), strict=True):
        if row.params and row.params not in found:
            own = at(state, row.params) if row.op.stateful else {}
            inputs = tuple(shapes[graph.nodes[i]].shape for i in row.inputs)
            found[row.params] = Entry(row.params, row, inputs, params, own)
    return list(found.values())


def matched(
    op: str, own: Sequence[Entry], others: Mapping[str, Arrays], names: Mapping[str, str] | None
) -> list[tuple[Entry, str]]:
    """Pair the entries of a graph with modules.

    Args:
        op: who asks, for messages.
        own: the entries.
        others: the arrays of each module, in the order of the modules.
        names: of modules by those of entries; None pairs them in order.

    Returns:
        Pairs of an entry and the name of a module.

    Raises:
        FuncconvError: if names are unknown, or without `names` there are not as many on both sides.
    """
    if names is None:
        if len(own) != len(others):
            lines = _side_by_side([entry.path for entry in own], list(others))
            msg = f"{op}: the graph has {len(own)} entries and the other side {len(others)} modules:\n{lines}"
            raise FuncconvError(msg)
        return list(zip(own, others, strict=True))
    wrong = [
        *(f"the graph has no entry {name!r}" for name in names if name not in {entry.path for entry in own}),
        *(f"the entry {entry.path!r} has no name on the other side" for entry in own if entry.path not in names),
        *(f"there is no module {name!r}" for name in names.values() if name not in others),
        *(f"the module {name!r} is nobody's" for name in others if name not in names.values()),
    ]
    if wrong:
        msg = f"{op}: the names do not fit:\n  " + "\n  ".join(wrong)
        raise FuncconvError(msg)
    return [(entry, names[entry.path]) for entry in own]


def check_shapes(op: str, found: Iterable[tuple[Entry, str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Refuse arrays of other names or shapes than the entries have; every difference is told."""
    wrong = []
    for entry, module, params, state in found:
        for wanted, given in ((entry.params, params), (entry.state, state)):
            for name in dict.fromkeys([*wanted, *given]):
                sides = [_shape(each.get(name)) for each in (wanted, given)]
                if sides[0] != sides[1]:
                    wrong.append(f"{entry.path}/{name} is {sides[0]}, that of {module!r} is {sides[1]}")
    if wrong:
        msg = f"{op}: the weights do not fit:\n  " + "\n  ".join(wrong)
        raise FuncconvError(msg)


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the entry at a path."""
    *above, last = path.split("/")
    for name in above:
        tree = tree.setdefault(name, {})
    tree[last] = value


def at(tree: Mapping[str, Any], path: str) -> Any:
    """Return the entry at a path."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def _shape(array: Any) -> str:
    return "missing" if array is None else str(tuple(jax.numpy.shape(array)))


def _side_by_side(left: Sequence[str], right: Sequence[str]) -> str:
    count = max(len(left), len(right))
    pairs = zip([*left, *["-"] * (count - len(left))], [*right, *["-"] * (count - len(right))], strict=True)
    return "\n".join(f"  {a}  {b}" for a, b in pairs)

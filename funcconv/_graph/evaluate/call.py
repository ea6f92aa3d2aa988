"""A graph evaluated on arrays: the values of all nodes, and the values as a function of the parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Params, Shape
from ..infer.check_parameters import checked_entries
from ..masked.values import unmasked
from ..name import entries as _entries
from .inputs import batch_axes
from .inside import Inside, checked_edit, inner_edit, is_inside
from .rows import Mode, Run, evaluate

# What takes the place of values, by the names of their nodes: an array, or a function of the value.
Edits: TypeAlias = Mapping[str, Any]


def mode_of(graph: Any, state: Mapping[str, Any] | None) -> Mode:
    """Return how a graph is evaluated with a state, outside of training."""
    if state is None and graph._stateful:
        entries = ", ".join(map("/".join, graph._stateful))
        msg = f"graph: the graph keeps a state ({entries}); got None. Pass state=, such as graph.init_state()"
        raise FuncconvError(msg)
    state = {} if state is None else state
    _entries.check(state, graph._stateful, what="the state", optional=graph._optional)
    paths = (*graph._stateful, *(path for path in graph._optional if _entries.has(state, path)))
    return Mode({"/".join(path): _entries.get(state, path) for path in paths})


def all_values(
    graph: Any,
    params: Params,
    xs: Sequence[Any],
    mode: Mode,
    *,
    masked: bool,
    edits: Edits | None = None,
    found: dict[str, Any] | None = None,
) -> tuple[list[Any], dict[str, Any]]:
    """Return every value, the inputs and then the rows, and the next states.

    Args:
        graph: a graph.
        params: its parameters.
        xs: its inputs, arrays or `Masked`.
        mode: how it is evaluated.
        masked: whether values whose positions are not all real are `Masked`, or only the arrays.
        edits: for the names of nodes, what takes the place of their values: an array, or a function of the value.
        found: gets the values inside of copies by their names. Default: None, they are not kept.
    """
    edits = edits or {}
    entries = checked_entries(graph, params, [unmasked(x) for x in xs])
    inner = [name for name in edits if name not in graph.nodes and is_inside(graph._rows, name)]
    inside = Inside({name: inner_edit(name, edits[name]) for name in inner}, found)
    by_number = {
        number_of(graph, name, "edits"): checked_edit(name, edit) for name, edit in edits.items() if name not in inner
    }
    values, states = evaluate(graph._rows, entries, xs, batch_axes(graph, xs), mode, by_number, inside)
    if not masked:
        values = [unmasked(value) for value in values]
        if found is not None:
            found.update({name: unmasked(value) for name, value in found.items()})
    return values, states


def as_function(graph: Any, xs: Sequence[Any], batch: Shape, mode: Mode) -> Run:
    """Return all values at these inputs as a function of the parameters, and of edits to values on the way.

    Values are arrays without their masks.
    """

    def run(params: Params, edits: Mapping[int, Callable[[Any], Any]]) -> list[Any]:
        entries = checked_entries(graph, params, [unmasked(x) for x in xs])
        return [unmasked(value) for value in evaluate(graph._rows, entries, xs, batch, mode, edits)[0]]

    return run


def number_of(graph: Any, name: str, method: str) -> int:
    """Return the number of a node's value; errors begin with the name of the method that needs it."""
    if name not in graph.nodes:
        msg = f"{method}: the graph has no node {name!r}{suggest(name, graph.nodes)}"
        raise FuncconvError(msg)
    return graph.nodes.index(name)  # type: ignore[no-any-return]

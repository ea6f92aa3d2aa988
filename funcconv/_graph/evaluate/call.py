"""A graph evaluated on arrays: the values of all nodes, and the values as a function of the parameters."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Params, Shape
from ..._windows.layout import as_array
from ..infer.check_parameters import checked_entries
from ..masked.values import unmasked
from ..name import entries as _entries
from .inputs import batch_axes
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
    graph: Any, params: Params, xs: Sequence[Any], mode: Mode, *, masked: bool, edits: Edits | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Return every value, the inputs and then the rows, and the next states.

    Args:
        graph: a graph.
        params: its parameters.
        xs: its inputs, arrays or `Masked`.
        mode: how it is evaluated.
        masked: whether values whose positions are not all real are `Masked`, or only the arrays.
        edits: for the names of nodes, what takes the place of their values: an array, or a function of the value.
    """
    entries = checked_entries(graph, params, [unmasked(x) for x in xs])
    by_number = {number_of(graph, name, "edits"): _checked_edit(name, edit) for name, edit in (edits or {}).items()}
    values, states = evaluate(graph._rows, entries, xs, batch_axes(graph, xs), mode, by_number)
    return values if masked else [unmasked(value) for value in values], states


def as_function(graph: Any, xs: Sequence[Any], batch: Shape, mode: Mode) -> Run:
    """Return all values at these inputs as a function of the parameters, and of edits to values on the way.

    Values are arrays without their masks.
    """

    def run(params: Params, edits: Mapping[int, Callable[[Any], Any]]) -> list[Any]:
        entries = checked_entries(graph, params, [unmasked(x) for x in xs])
        return [unmasked(value) for value in evaluate(graph._rows, entries, xs, batch, mode, edits)[0]]

    return run


def _checked_edit(name: str, edit: Any) -> Callable[[Any], Any]:
    """Return an edit as a function that refuses a result of another shape or dtype than the value."""

    def edited(value: Any) -> Any:
        new = edit(value) if callable(edit) else edit
        new = jax.tree.map(lambda leaf: as_array("edits", f"the value of node {name!r}", leaf), new)
        before, after = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree) for tree in (value, new))
        if before != after:
            msg = (
                f"edits: the new value of node {name!r} must be like its value, {_types(value)}; got {_types(new)}. "
                "Broadcast and cast it, for example with a function: lambda value: jnp.zeros_like(value)"
            )
            raise FuncconvError(msg)
        return new

    return edited


def _types(value: Any) -> Any:
    types = jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", value)
    return types if isinstance(types, str) else repr(types)


def number_of(graph: Any, name: str, method: str) -> int:
    """Return the number of a node's value; errors begin with the name of the method that needs it."""
    if name not in graph.nodes:
        msg = f"{method}: the graph has no node {name!r}{suggest(name, graph.nodes)}"
        raise FuncconvError(msg)
    return graph.nodes.index(name)  # type: ignore[no-any-return]

"""The Jacobian of a node of a graph by a node or by parameters, for each example of a batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Params, Shape
from ..._ops.masks import Masked
from ..evaluate.call import as_function, number_of
from ..evaluate.inputs import batch_axes
from ..evaluate.rows import Mode, Run
from ..name import entries as _entries
from ..name.flatten import Row
from .at_nodes import example, jacobian, one_example, own_jacobian, with_example


def jacobian_by_example(
    graph: Any, params: Params, xs: Sequence[Array], mode: Mode, of: str, wrt: str, *, local: bool
) -> Any:
    """Return the Jacobian `(*batch, *of, *wrt)`.

    Args:
        graph: a graph.
        params: its parameters.
        xs: its inputs, in the order of declaration.
        mode: how it is evaluated.
        of: the name of a node.
        wrt: the name of a node, or the path of parameters.
        local: whether only the operation at `of` is differentiated, and not all paths that lead to it.

    Returns:
        An array, or a tree of them.

    Raises:
        FuncconvError: if there is no such node or parameter, or the operation at `of` does not take it.
    """
    batch = batch_axes(graph, xs)
    _entries.check(params, graph._entries, optional=graph._optional)
    number, variable = number_of(graph, of, "jacobian"), _variable(graph, wrt, params)
    first = len(graph._signature)
    row = graph._rows[number - first] if number >= first else None
    if local:
        if any(isinstance(x, Masked) for x in xs):
            msg = (
                "jacobian: local=True differentiates one operation on arrays; got Masked inputs. Leave out local=, or "
                "pass the array of one example"
            )
            raise FuncconvError(msg)
        variable = _own_variable(graph, of, row, wrt, variable)

    def derivative(run: Run, run_row: Callable[..., Any]) -> Any:
        if not local or row is None:
            return jacobian(run, number, variable, params)
        values = run(params, {})
        entry = _entries.get(params, tuple(row.params.split("/"))) if row.params else None
        return own_jacobian(partial(run_row, row), row, entry, [values[i] for i in row.inputs], variable)

    def apply(row: Row, entry: Any, *xs: Any, batch: Shape = ()) -> Any:
        own_state = mode.states[str(row.params)] if row.op.stateful else None
        return row.op.run(entry, own_state, *xs, batch=batch, key=None, train=False)[0]

    def of_example_alone(*xs: Array) -> Any:
        return derivative(as_function(graph, xs, (), mode), apply)

    def of_example_in_batch(*index: Array) -> Any:
        run = as_function(graph, xs, batch, mode)
        values = run(params, {})

        def run_row(row: Row, entry: Any, *xs: Any) -> Any:
            whole = [with_example(values[i], index, x) for i, x in zip(row.inputs, xs, strict=True)]
            return example(apply(row, entry, *whole, batch=batch), index)

        return derivative(one_example(run, index), run_row)

    # An op that is written for a batch may compute the result of an example from the others.
    mixes_examples = any(getattr(row.op, "batched", False) for row in graph._rows)
    of_example, operands = (of_example_in_batch, jnp.indices(batch)) if mixes_examples else (of_example_alone, xs)
    for _ in batch:
        of_example = jax.vmap(of_example)
    return of_example(*operands)


def _variable(graph: Any, name: str, params: Params) -> int | _entries.Path:
    """Return the number of a node's value, or the path of parameters."""
    if name in graph.nodes:
        return number_of(graph, name, "jacobian")
    # The prefix distinguishes an entry from a node of the same name, which is found first.
    path = tuple(name.removeprefix("params/").split("/"))
    try:
        _entries.get(params, path)
    except (KeyError, IndexError, TypeError):
        known = (*graph.nodes, *graph.entries)
        msg = f"jacobian: the graph has no node and no parameters {name!r}{suggest(name, known)}"
        raise FuncconvError(msg) from None
    return path


def _own_variable(
    graph: Any, of: str, row: Row | None, name: str, variable: int | _entries.Path
) -> int | _entries.Path:
    """Return the variable as a row sees it: one of its inputs, or a path below its entry."""
    if row is not None:
        if isinstance(variable, int) and variable in row.inputs:
            return variable
        entry = tuple(row.params.split("/")) if row.params else None
        if not isinstance(variable, int) and entry and variable[: len(entry)] == entry:
            return variable[len(entry) :]
    takes = [graph.nodes[i] for i in row.inputs] + ([row.params] if row.params else []) if row else []
    msg = (
        f"jacobian: with local=True, wrt= must be an input of the node {of!r}, which takes "
        f"{', '.join(map(repr, takes)) or 'nothing'}; got {name!r}. Leave out local= for the derivative along all paths"
    )
    raise FuncconvError(msg)

"""Derivatives by each use of shared parameters: every use gets a copy of the entry, under the name of its node."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from ..._common.types import Array, Params
from ..._derivatives import Operator, hessian
from ..evaluate.call import mode_of
from ..infer.check_parameters import checked_entries
from ..name import entries as _entries


def copied_parameters(graph: Any, params: Params) -> dict[str, Any]:
    """Return the parameters of `graph.unshared()`: each use has the entry that it shares."""
    uses = zip(graph._rows, checked_entries(graph, params), strict=True)
    return _entries.tree_of({row.name: entry for row, entry in uses if row.params and entry is not None})


def copied_state(graph: Any, state: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the state of `graph.unshared()`: each use has the entry that it shares."""
    states = mode_of(graph, state).states
    rows = (row for row in graph._rows if row.op.stateful and str(row.params) in states)
    return _entries.tree_of({row.name: states[str(row.params)] for row in rows})


def grad_by_use(graph: Any, loss: Callable[[Any], Array]) -> Callable[..., dict[str, Any]]:
    """Return the function that gives the gradient of a loss by each use of the parameters."""
    unshared = graph.unshared()

    def by_use(params: Params, *xs: Any, state: Mapping[str, Any] | None = None, **named: Any) -> dict[str, Any]:
        states = copied_state(graph, state)
        gradient = jax.grad(lambda copies: loss(unshared.apply(copies, states, *xs, **named)[0]))
        return gradient(copied_parameters(graph, params))  # type: ignore[no-any-return]

    return by_use


def hessian_by_use(graph: Any, loss: Callable[[Any], Array]) -> Callable[..., Operator]:
    """Return the function that gives the Hessian of a loss by the uses of the parameters."""
    unshared = graph.unshared()

    def by_use(params: Params, *xs: Any, state: Mapping[str, Any] | None = None, **named: Any) -> Operator:
        states, copies = copied_state(graph, state), copied_parameters(graph, params)
        return hessian(lambda copies: loss(unshared.apply(copies, states, *xs, **named)[0]), copies)

    return by_use

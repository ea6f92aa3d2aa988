"""The order in which a traced program uses its weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from .._common.traced_programs import called


# Compared by identity: two operations with equal operands are different values.
@dataclass(eq=False)
class _Value:
    """The result of an operation in a program, with its operands."""

    operands: Sequence["_Value"]
    data: bool = False  # whether it depends on the inputs
    owners: tuple[str, ...] = ()  # the owners of the weights that it depends on, if it does not depend on inputs


def orders_of_use(program: Callable[..., Any], weights: Mapping[str, Any], xs: Sequence[Any]) -> list[list[str]]:
    """Return the owners of weights in the order in which a program uses the weights.

    A weight is used by the first operation that combines it with a value that depends on the inputs.

    Args:
        program: called as `program(weights, *xs)`.
        weights: a tree of arrays for each owner.
        xs: the inputs.

    Returns:
        Two orders of all owners: as the program runs, and depth first from its results, operands from left to right.
        They differ where a network branches.
    """
    traced = jax.make_jaxpr(program)(dict(weights), *xs).jaxpr
    owners = [path[0].key for path, _ in jax.tree.leaves_with_path(dict(weights))]
    weight_values = [_Value((), owners=(owner,)) for owner in owners]
    inputs = [_Value((), data=True) for _ in traced.invars[len(weight_values) :]]
    computed: list[_Value] = []
    results = _walked(traced, [*weight_values, *inputs], computed)
    all_owners = [owner for owner in weights]
    return [
        list(dict.fromkeys([*(owner for value in values for owner in _met(value)), *all_owners]))
        for values in (computed, _depth_first(results))
    ]


def _met(value: _Value) -> Iterable[str]:
    """Return the owners of weights that this operation combines with a value that depends on the inputs."""
    return (owner for operand in value.operands if value.data and not operand.data for owner in operand.owners)


def _walked(jaxpr: Any, arguments: Sequence[_Value], computed: list[_Value]) -> list[_Value]:
    """Return the results of a program. Append the results of its operations, also of inner calls, to `computed`."""
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, arguments, strict=True))
    constant = _Value(())

    def read(atom: Any) -> _Value:
        return constant if isinstance(atom, core.Literal) else values.get(atom, constant)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = called(eqn)
        if inner is not None:
            results = _walked(inner, operands, computed)
        else:
            depends_on_inputs = any(operand.data for operand in operands)
            owners = (
                ()
                if depends_on_inputs
                else tuple(dict.fromkeys(owner for operand in operands for owner in operand.owners))
            )
            value = _Value(operands, depends_on_inputs, owners)
            computed.append(value)
            results = [value] * len(eqn.outvars)
        values |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _depth_first(results: Sequence[_Value]) -> list[_Value]:
    """Return the values in an order in which operands come before results."""
    ordered: dict[_Value, None] = {}
    # An explicit stack, because a program can be deeper than Python's recursion limit.
    stack = [(value, False) for value in reversed(results)]
    while stack:
        value, expanded = stack.pop()
        if expanded:
            ordered[value] = None
        elif value not in ordered:
            stack.append((value, True))
            stack += [(operand, False) for operand in reversed(value.operands) if operand not in ordered]
    return list(ordered)

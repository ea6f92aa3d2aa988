"""In which order a traced program uses its weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core

from .._common.traced_programs import called


@dataclass(eq=False)
class _Value:
    """A number of a program, with those that it is computed of."""

    operands: Sequence["_Value"]
    data: bool = False  # whether it depends on the inputs
    owners: tuple[str, ...] = ()  # whose weights it depends on, if it depends on nothing else


def orders_of_use(program: Callable[..., Any], weights: Mapping[str, Any], xs: Sequence[Any]) -> list[list[str]]:
    """Return the owners of weights in the order in which a program uses them.

    A weight is used where it first meets a number that depends on the inputs.

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
    first = [_Value((), owners=(owner,)) for owner in owners]
    inputs = [_Value((), data=True) for _ in traced.invars[len(first) :]]
    run: list[_Value] = []
    results = _walked(traced, [*first, *inputs], run)
    rest = [owner for owner in weights]
    return [
        list(dict.fromkeys([*(owner for value in values for owner in _met(value)), *rest]))
        for values in (run, _depth_first(results))
    ]


def _met(value: _Value) -> Iterable[str]:
    """Return whose weights meet data where this value is computed."""
    return (owner for each in value.operands if value.data and not each.data for owner in each.owners)


def _walked(jaxpr: Any, given: Sequence[_Value], run: list[_Value]) -> list[_Value]:
    """Return the results of a program, and add the values that it computes, calls inlined, to those that ran."""
    known: dict[Any, _Value] = dict(zip(jaxpr.invars, given, strict=True))
    constant = _Value(())

    def read(atom: Any) -> _Value:
        return constant if isinstance(atom, core.Literal) else known.get(atom, constant)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        inner = called(eqn)
        if inner is not None:
            results = _walked(inner, operands, run)
        else:
            data = any(each.data for each in operands)
            owners = () if data else tuple(dict.fromkeys(owner for each in operands for owner in each.owners))
            value = _Value(operands, data, owners)
            run.append(value)
            results = [value] * len(eqn.outvars)
        known |= zip(eqn.outvars, results, strict=True)
    return [read(atom) for atom in jaxpr.outvars]


def _depth_first(results: Sequence[_Value]) -> list[_Value]:
    """Return values after those that they are computed of."""
    found: dict[_Value, None] = {}
    stack = [(value, False) for value in reversed(results)]
    while stack:
        value, expanded = stack.pop()
        if expanded:
            found[value] = None
        elif value not in found:
            stack.append((value, True))
            stack += [(each, False) for each in reversed(value.operands) if each not in found]
    return list(found)

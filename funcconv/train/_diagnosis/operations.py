"""The operations of a traced program as a list, without calls, and their values as functions of the arguments."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..._common.traced_programs import called

_TRANSFORMED = re.compile(r"\w+\(([^()]*)\)")  # a part of a name stack, such as `transpose(jvp(conv1))`
KINDS = ("NaN", "infinity")
_OF_JAX = frozenset({"", "checkpoint", "remat", "rematted_computation"})


@dataclass(frozen=True)
class Operation:
    """An operation of a program. Values are numbered: the arguments first, then the results in order."""

    eqn: Any
    inputs: tuple[Any, ...]  # the number of a value, or a `Literal`
    outputs: tuple[int, ...]
    stack: str  # the names and the transformations around it

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of its inputs that are no literals."""
        return tuple(entry for entry in self.inputs if isinstance(entry, int))


class Operations:
    """A traced program.

    Args:
        closed: a `ClosedJaxpr`.
        stack: the names and the transformations around it.
    """

    def __init__(self, closed: Any, stack: str = "") -> None:
        self.consts = tuple(closed.consts)
        self.avals: list[Any] = []
        self.list: list[Operation] = []
        start = {var: self._number(var.aval) for var in (*closed.jaxpr.constvars, *closed.jaxpr.invars)}
        self.results = self._add(closed.jaxpr, start, stack)
        self.maker = {number: operation for operation in self.list for number in operation.outputs}

    def _number(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _add(self, jaxpr: Any, start: dict[Any, Any], stack: str) -> list[Any]:
        """Append the operations of a program; return the numbers or literals of its results."""
        numbers = dict(start)

        def read(atom: Any) -> Any:
            return atom if isinstance(atom, core.Literal) else numbers[atom]

        for eqn in jaxpr.eqns:
            inputs, inner = tuple(map(read, eqn.invars)), called(eqn)
            inner_stack = "/".join(filter(None, (stack, str(eqn.source_info.name_stack))))
            if inner is not None:
                outputs = self._add(inner, dict(zip(inner.invars, inputs, strict=True)), inner_stack)
            else:
                outputs = [self._number(var.aval) for var in eqn.outvars]
                self.list.append(Operation(eqn, inputs, tuple(outputs), inner_stack))
            numbers |= zip(eqn.outvars, outputs, strict=True)
        return [read(var) for var in jaxpr.outvars]

    def kinds(self, args: Sequence[Any]) -> np.ndarray:
        """Return for each value whether it has a NaN, and whether it has an infinity, `(values, 2)`."""

        def tests(*args: Any) -> list[Any]:  # not one array, because the values may be on meshes of different types
            return [_tests(value) for _, value in sorted(self._evaluate(args, self.list).items())]

        return np.array(jax.device_get(jax.jit(tests)(*args))).reshape(-1, 2)

    def values(self, args: Sequence[Any], numbers: Iterable[int]) -> dict[int, Any]:
        """Return some of the values by their numbers."""
        wanted = sorted(set(numbers))
        needed, operations = set(wanted), []
        for operation in reversed(self.list):
            if needed.intersection(operation.outputs):
                operations.append(operation)
                needed.update(operation.numbers)

        def select(*args: Any) -> list[Any]:
            values = self._evaluate(args, operations[::-1])
            return [values[number] for number in wanted]

        return dict(zip(wanted, jax.jit(select)(*args), strict=True))

    def _evaluate(self, args: Sequence[Any], operations: Sequence[Operation]) -> dict[int, Any]:
        values: dict[int, Any] = dict(enumerate((*self.consts, *args)))
        for operation in operations:
            eqn = operation.eqn
            operands = [values[entry] if isinstance(entry, int) else entry.val for entry in operation.inputs]
            with eqn.ctx.manager:  # the mesh that was set where the operation was traced
                bound = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            values.update(zip(operation.outputs, bound if eqn.primitive.multiple_results else [bound], strict=True))
        return values


def kinds_of(values: Iterable[Any]) -> set[str]:
    """Return which of NaN and infinity arrays or numbers have."""
    found: Any = np.array([_tests(value) for value in values]).reshape(-1, 2).any(0)
    return {name for name, is_found in zip(KINDS, found, strict=True) if is_found}


def _tests(value: Any) -> tuple[Any, Any]:
    """Return whether an array has a NaN, and whether it has an infinity."""
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return False, False
    return jnp.isnan(value).any(), jnp.isinf(value).any()


def scope_of(stack: str) -> str:
    """Return the names in a name stack, without transformations: `"block/conv1"` of `"jvp(block)/jvp(conv1)"`."""
    names = stack
    while (shorter := _TRANSFORMED.sub(r"\1", names)) != names:
        names = shorter
    parts = [part for part in names.split("/") if part not in _OF_JAX]
    for size in range(1, len(parts) // 2 + 1):  # JAX repeats the names of a program that is computed again
        if parts[-size:] == parts[-2 * size : -size]:
            return "/".join(parts[:-size])
    return "/".join(parts)

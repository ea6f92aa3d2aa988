"""Loops and branches: the pass in which a number is not finite for the first time."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

from .operations import Operation, kinds_of


class Pass(NamedTuple):
    """One pass of a loop, or the branch that was taken."""

    number: int | None  # from 1; None for a branch
    program: Any  # a `ClosedJaxpr`
    args: Sequence[Any]
    results: Sequence[Any]


def first_bad_pass(operation: Operation, operands: Sequence[Any]) -> Pass | None:
    """Return the first pass whose results have a NaN or an infinity that its arguments do not have.

    Args:
        operation: an operation of a program.
        operands: its values.

    Returns:
        The pass, or None if the operation is not a loop or a branch.
    """
    passes = _PASSES.get(operation.eqn.primitive.name)
    if passes is None:
        return None
    return next(
        (each for each in passes(operation.eqn, operands) if kinds_of(each.results) - kinds_of(each.args)), None
    )


def _of_scan(eqn: Any, operands: Sequence[Any]) -> Iterator[Pass]:
    (program,) = core.jaxprs_in_params(eqn.params)
    program = _closed(program)
    inner = program.jaxpr
    # The arrays that a scan runs over have one axis more than inside of it, and so have the results that it stacks.
    is_row = [_ndim(outer) > _ndim(var) for outer, var in zip(eqn.invars, inner.invars, strict=True)]
    carries = sum(_ndim(outer) == _ndim(var) for outer, var in zip(eqn.outvars, inner.outvars, strict=True))
    whole = [operand for operand, row in zip(operands, is_row, strict=True) if not row]
    consts, carry = whole[: len(whole) - carries], whole[len(whole) - carries :]
    rows = [operand for operand, row in zip(operands, is_row, strict=True) if row]
    run = jax.jit(core.jaxpr_as_fun(program))
    length = eqn.params["length"]
    for number in range(length):
        index = length - 1 - number if eqn.params["reverse"] else number
        args = [*consts, *carry, *(row[index] for row in rows)]
        results = run(*args)
        yield Pass(number + 1, program, args, results)
        carry = results[:carries]


def _of_while(eqn: Any, operands: Sequence[Any]) -> Iterator[Pass]:
    condition, body = _closed(eqn.params["cond_jaxpr"]), _closed(eqn.params["body_jaxpr"])
    first, second = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]
    of_condition, of_body, carry = operands[:first], operands[first:second], operands[second:]
    continues, run = jax.jit(core.jaxpr_as_fun(condition)), jax.jit(core.jaxpr_as_fun(body))
    number = 1
    while bool(continues(*of_condition, *carry)[0]):
        args = [*of_body, *carry]
        carry = run(*args)
        yield Pass(number, body, args, carry)
        number += 1


def _of_cond(eqn: Any, operands: Sequence[Any]) -> Iterator[Pass]:
    branches = eqn.params["branches"]
    index, *args = operands
    program = _closed(branches[min(max(int(index), 0), len(branches) - 1)])
    yield Pass(None, program, args, jax.jit(core.jaxpr_as_fun(program))(*args))


_PASSES = {"scan": _of_scan, "while": _of_while, "cond": _of_cond}


def _closed(program: Any) -> Any:
    return program if hasattr(program, "jaxpr") and hasattr(program, "consts") else core.ClosedJaxpr(program, ())


def _ndim(var: Any) -> int:
    return len(getattr(var.aval, "shape", ()))

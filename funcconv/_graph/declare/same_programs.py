"""Whether two traced programs have the same operations in the same order."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core


def same_program(one: Any, other: Any) -> bool:
    """Whether two programs have the same operations in the same order."""
    if len(one.consts) != len(other.consts):
        return False
    consts = all(
        a is b or (is_concrete(a) and is_concrete(b) and np.array_equal(a, b))
        for a, b in zip(one.consts, other.consts, strict=True)
    )
    return consts and _same_jaxpr(one.jaxpr, other.jaxpr)


def _same_jaxpr(one: Any, other: Any) -> bool:
    # Variables of two programs are the same if they are defined in the same order.
    numbers: tuple[dict[Any, int], dict[Any, int]] = ({}, {})

    def define(a: Sequence[Any], b: Sequence[Any]) -> bool:
        for variables, known in zip((a, b), numbers, strict=True):
            for variable in variables:
                known[variable] = len(known)
        return [v.aval for v in a] == [v.aval for v in b]

    def read(a: Any, b: Any) -> bool:
        if isinstance(a, core.Literal) or isinstance(b, core.Literal):
            return type(a) is type(b) and bool(a.aval == b.aval) and bool(np.array_equal(a.val, b.val, equal_nan=True))
        return numbers[0][a] == numbers[1][b]

    return (
        define([*one.constvars, *one.invars], [*other.constvars, *other.invars])
        and len(one.eqns) == len(other.eqns)
        and all(
            a.primitive is b.primitive
            and len(a.invars) == len(b.invars)
            and all(map(read, a.invars, b.invars))
            and _same_option(a.params, b.params)
            and define(a.outvars, b.outvars)
            for a, b in zip(one.eqns, other.eqns, strict=True)
        )
        and len(one.outvars) == len(other.outvars)
        and all(map(read, one.outvars, other.outvars))
    )


def _same_option(a: Any, b: Any) -> bool:
    """Whether two options of an operation agree; functions among them are rules for derivatives."""
    if hasattr(a, "consts") and hasattr(b, "consts"):
        return same_program(a, b)
    if hasattr(a, "eqns") and hasattr(b, "eqns"):
        return _same_jaxpr(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same_option(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same_option, a, b))
    if callable(a) and callable(b) and not isinstance(a, type):
        return True  # two traces make two functions, of which nobody can tell whether they are equal
    try:
        return bool(a == b)
    except Exception:  # arrays, for example: then the results are compared
        return False


def is_concrete(array: Any) -> bool:
    return not isinstance(array, jax.core.Tracer)

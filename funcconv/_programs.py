"""Calls within traced programs."""

from typing import Any

from jax.extend import core

_CALLS = {
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call",
}  # fmt: skip


def called(eqn: Any) -> Any:
    """Return the program that a call runs straight through on its operands, None where there is no such thing."""
    if is_call(eqn):
        for inner in core.jaxprs_in_params(eqn.params):
            jaxpr = getattr(inner, "jaxpr", inner)
            sizes = len(jaxpr.invars), len(jaxpr.outvars)
            if sizes == (len(eqn.invars), len(eqn.outvars)) and not jaxpr.constvars:
                return jaxpr
    return None


def is_call(eqn: Any) -> bool:
    """Return whether an operation is a call, rather than a loop or an operation of its own."""
    return eqn.primitive.name in _CALLS

"""Kinds of operations in traced programs (jaxprs), and calls of inner programs."""

from typing import Any

from jax.extend import core

# Names of primitives. JAX has renamed some of them, so the names of several versions are here.
_CALLS = frozenset(
    ["jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2", "custom_jvp_call", "custom_vjp_call"]
)

_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp clz complex conj convert_element_type
    copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
    le lgamma log log1p logistic lt max min mul ne neg nextafter not one_minus_square or polygamma population_count pow
    pvary real reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
_REDUCED = "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin reduce"
ELEMENTWISE, REDUCED = frozenset(_ELEMENTWISE.split()), frozenset(_REDUCED.split())


def called(eqn: Any) -> Any:
    """Return the program that a call runs on its operands, or None if the operation is not such a call."""
    if is_call(eqn):
        for inner in core.jaxprs_in_params(eqn.params):
            jaxpr = getattr(inner, "jaxpr", inner)
            sizes = len(jaxpr.invars), len(jaxpr.outvars)
            if sizes == (len(eqn.invars), len(eqn.outvars)) and not jaxpr.constvars:
                return jaxpr
    return None


def is_call(eqn: Any) -> bool:
    """Return whether an operation is a call of a program, not a loop or a single operation."""
    return eqn.primitive.name in _CALLS


def is_transposed(eqn: Any) -> bool:
    """Return whether an operation is part of a backward pass, which JAX makes by transposition."""
    # With the parenthesis, because a node may be called "conv_transpose1".
    return "transpose(" in str(eqn.source_info.name_stack)

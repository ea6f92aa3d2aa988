"""Which nodes of a graph are ReLUs."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from .._common.errors import FuncconvError
from .._common.types import Shape
from .._graph.declare.function import Function
from .._graph.declare.inference import remembered, spec
from .._graph.declare.known_functions import is_elementwise, takes_batch_axes
from .._graph.name.flatten import Row

# ReLU and ReLU6.
_FORMS: Sequence[Callable[[Any], Any]] = (lambda x: np.maximum(x, 0), lambda x: np.clip(x, 0, 6))


def is_relu(method: str, row: Row, entry: Any, xs: Sequence[Any], batch: Shape) -> bool:
    """Return whether a node computes a ReLU of its one input.

    Args:
        method: the public function, for messages.
        row: the node.
        entry: its parameters.
        xs: its inputs, without masks.
        batch: the batch axes.

    Raises:
        FuncconvError: if the node is a function of the user's that computes a ReLU among other operations.
    """
    op = row.op
    if not isinstance(op, Function):
        return False
    own, operands = jax.tree.map(spec, (entry, tuple(xs)))
    kind = remembered(op, f"relu {batch}", (own, operands), lambda: _kind(op, own, operands, batch))
    if kind == "part":
        msg = (
            f"{method}: node {row.name!r}: {op!r} computes max(x, 0) among other operations, so its rule cannot be "
            "changed. Make the ReLU a node of its own, jax.nn.relu"
        )
        raise FuncconvError(msg)
    return bool(kind == "whole")


def _kind(op: Function, entry: Any, xs: Any, batch: Shape) -> str:
    """Return "whole" for a function that is a ReLU, "part" for one that computes one among others, or "none"."""
    if op.op in (jax.nn.relu, jax.nn.relu6) or _computes_relu(op, xs, batch):
        return "whole"
    if is_elementwise(op.op) or takes_batch_axes(op.op):
        return "none"
    program = jax.make_jaxpr(partial(op.apply, batch=batch))(entry, *xs)
    return "part" if any(_is_max_with_zero(eqn) for eqn in _equations(program.jaxpr)) else "none"


def _computes_relu(op: Function, xs: Any, batch: Shape) -> bool:
    """Return whether a function has the values of a ReLU on numbers of both signs, in an array of the same rank."""
    if op.parametric or len(xs) != 1 or not hasattr(xs[0], "dtype") or not jnp.issubdtype(xs[0].dtype, jnp.floating):
        return False
    shape = (8, *range(2, 2 + len(xs[0].shape) - len(batch)))  # different sizes, so that no axes are exchanged
    # Numbers from -8 to 8 with few digits, not in order.
    x = ((np.arange(math.prod(shape)) * 13 % 33 - 16) / 2).reshape(shape).astype(xs[0].dtype)
    try:
        with jax.ensure_compile_time_eval():
            y = jax.jit(jax.vmap(op.op))(x)
        return any(y.dtype == x.dtype and np.array_equal(np.asarray(y), form(x)) for form in _FORMS)
    except Exception:  # the function is the user's, and may take other shapes only
        return False


def _equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the operations of a program that contain no others."""
    for eqn in jaxpr.eqns:
        inner = list(core.jaxprs_in_params(eqn.params))
        if not inner:
            yield eqn
        for program in inner:
            yield from _equations(getattr(program, "jaxpr", program))


def _is_max_with_zero(eqn: Any) -> bool:
    operands = [var for var in eqn.invars if isinstance(var, core.Literal)]
    return bool(eqn.primitive.name == "max" and any(np.all(operand.val == 0) for operand in operands))

"""Arithmetic of nodes: `a + b`, `2 * a`, `a @ b`, `-a`, `abs(a)` and `a[i]` as layers."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from ..._common.dtypes import in_wide
from ..._common.types import Shape
from .function import Function
from .node import Node, use_operators


@dataclass(frozen=True, repr=False)
class _Arithmetic(Function):
    """An elementwise operation of two nodes, or of one and a number; a value of lower rank is spread by example."""

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        del params
        rank, k = max(x.ndim for x in xs), len(batch)
        spread = [x if x.ndim == rank else x.reshape(batch + (1,) * (rank - x.ndim) + x.shape[k:]) for x in xs]
        shape = jnp.broadcast_shapes(*(x.shape for x in spread))
        # A gradient is a sum over the copies: in 16 bits, that of a gate for a whole image would be wrong.
        return self.op(*(x if x.shape == shape else in_wide(lambda x: jnp.broadcast_to(x, shape), x) for x in spread))


@dataclass(frozen=True)
class WithNumber:
    """An operation of two with a number on one side, as a function of the other."""

    op: Callable[[Any, Any], Any]
    number: complex
    first: bool
    # 2 and 2.0 are equal, but give results of other dtypes, so the type takes part in comparisons.
    kind: type

    @property
    def __name__(self) -> str:
        return self.op.__name__

    def __call__(self, x: Any) -> Any:
        return self.op(self.number, x) if self.first else self.op(x, self.number)


def _apply(op: Callable[..., Any], *operands: Any) -> Node:
    """Apply an operator to one node, to two, or to a node and a number."""
    if len(operands) == 1:
        return Function(op)(*operands)
    # Called on batches, `@` would take a batch axis of vectors for an axis of a matrix.
    if op is operator.matmul:
        return Function(op, batched=False)(*operands)
    a, b = operands
    for number, node, first in ((a, b, True), (b, a, False)):
        # A bool is likely a mistake. It is left among the operands, where it is refused because it is no node.
        if isinstance(number, int | float | complex) and not isinstance(number, bool):
            return _Arithmetic(WithNumber(op, number, first, type(number)))(node)
    return _Arithmetic(op)(a, b)


use_operators(_apply)

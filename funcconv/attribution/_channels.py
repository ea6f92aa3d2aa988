"""Whether the last axis of an input has its channels."""

from functools import partial
from typing import Any

import jax

from .._common.errors import FuncconvError
from .._common.traced_programs import called
from .._graph.declare.function import Function
from .._graph.infer.rows import input_specs
from .._graph.use.graph import Graph


def check_channels_last(graph: Graph, method: str) -> None:
    """Refuse an input whose last axis a node moves elsewhere first, as that of a network of images `(C, H, W)`."""
    specs = input_specs(graph._signature)
    for row in graph._rows:
        if len(row.inputs) != 1 or row.inputs[0] >= len(specs) or row.params or not isinstance(row.op, Function):
            continue
        program = jax.make_jaxpr(partial(row.op.apply, None, batch=()))(specs[row.inputs[0]])
        if _moves_last_axis(program.jaxpr):
            name = graph.inputs[row.inputs[0]]
            msg = (
                f"{method}: the channels of each input must be its last axis, but node {row.name!r} moves the last "
                f"axis of {name!r}, {specs[row.inputs[0]].shape}, elsewhere. Declare the input as (*spatial, "
                'channels); for a module of PyTorch, use trace_torch(..., layout="NHWC")'
            )
            raise FuncconvError(msg)


def _moves_last_axis(jaxpr: Any) -> bool:
    """Whether the first operation on the argument of a program is a transposition of its last axis."""
    (x,) = jaxpr.invars
    for eqn in jaxpr.eqns:
        if x in [var for var in eqn.invars if not hasattr(var, "val")]:
            inner = called(eqn)
            if inner is not None and len(inner.invars) == 1:
                return _moves_last_axis(inner)
            return bool(eqn.primitive.name == "transpose" and eqn.params["permutation"][-1] != len(x.aval.shape) - 1)
    return False

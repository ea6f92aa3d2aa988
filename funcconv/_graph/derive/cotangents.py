"""The cotangents of a graph's outputs: ones, or those that the caller gives."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._windows.layout import as_array
from ..declare.inference import shapes


def output_cotangents(graph: Any, cotangent: Any, outputs: Sequence[Any], batch: Shape) -> list[Any]:
    """Return the cotangent of each output, of the output's shape and dtype.

    Args:
        graph: a graph.
        cotangent: in the structure of the outputs; None means ones, where each output is one number for each example.
        outputs: the shapes and dtypes of the outputs.
        batch: the batch axes.

    Returns:
        An array or a tree for each output.

    Raises:
        FuncconvError: if an output is not floating, or the cotangent is missing or not like the outputs.
    """
    for name, output in zip(graph.outputs, outputs, strict=True):
        for leaf in jax.tree.leaves(output):
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                msg = (
                    f"backward: all outputs must be floating; the output {name!r} is {leaf.dtype}, which has no "
                    "derivative. Call backward on graph.subgraph(...) with the other outputs"
                )
                raise FuncconvError(msg)
    if cotangent is None:
        if any(leaf.shape != batch for leaf in jax.tree.leaves(outputs)):
            msg = (
                f"backward: the outputs have shapes {shapes(outputs)}, more than one number for each example; "
                "give cotangent=, the derivative of the loss by them"
            )
            raise FuncconvError(msg)
        return [jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), output) for output in outputs]
    try:
        cotangents = graph._tree.flatten_up_to(cotangent)
        return [
            jax.tree.map(partial(_like, op="backward"), output, array)
            for output, array in zip(outputs, cotangents, strict=True)
        ]
    except ValueError as error:
        # JAX reports a tree of another structure as a ValueError that speaks of its internals.
        if isinstance(error, FuncconvError):
            raise
        expected = jax.tree.unflatten(graph._tree, [shapes(output) for output in outputs])
        msg = (
            f"backward: the cotangent must be like the outputs, {expected}; got {shapes(cotangent)}. Pass an array for "
            "each output, in the same structure"
        )
        raise FuncconvError(msg) from None


def _like(output: Any, cotangent: Any, *, op: str) -> Array:
    array = as_array(op, "the cotangent", cotangent)
    if (array.shape, array.dtype) != (output.shape, output.dtype):
        msg = (
            f"{op}: the cotangent of an output {output.dtype}{list(output.shape)} must be like it; "
            f"got {array.dtype}{list(array.shape)}. Cast, reshape or broadcast it"
        )
        raise FuncconvError(msg)
    return array

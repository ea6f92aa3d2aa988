"""Functions that merge branches: `concat` and `add`, of arrays or of nodes."""

from typing import Any

import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import ArrayLike
from ..._windows.layout import as_array
from ..declare.function import as_layer
from ..declare.node import Node


def concat(*xs: ArrayLike | Node) -> Any:
    """Concatenate arrays, or nodes of a graph, along their last axis, the channels.

    Args:
        *xs: arrays `(*axes, channels)` of one dtype. All axes except the last must have equal sizes. Or nodes.

    Returns:
        An array `(*axes, sum of channels)`; a node if an input is a node.

    Raises:
        FuncconvError: if there are no inputs, or if dtypes, numbers of axes or sizes of other axes differ.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.concat(jnp.ones((4, 4, 2)), jnp.ones((4, 4, 3))).shape
        (4, 4, 5)
    """
    if any(isinstance(x, Node) for x in xs):
        return as_layer(concat)(*xs)
    values: tuple[Any, ...] = xs
    arrays = [as_array("concat", "every input", x) for x in values]
    # A number and a vector have the same `shape[:-1]`, so ranks are compared too.
    if len({(x.shape[:-1], x.ndim, x.dtype) for x in arrays}) != 1 or arrays[0].ndim == 0:
        types = ", ".join(f"{x.dtype}{list(x.shape)}" for x in arrays)
        msg = (
            f"concat: all inputs must have one dtype and the same axes but for the channels; got {types or 'none'}. "
            "Cast with x.astype(dtype), and pad or crop the other axes to one size"
        )
        raise FuncconvError(msg)
    return jnp.concatenate(arrays, axis=-1)


def add(x: ArrayLike | Node, *others: ArrayLike | Node) -> Any:
    """Add arrays, or nodes of a graph, of one shape. It does not broadcast.

    Args:
        x: any array, or a node.
        *others: arrays of the same shape and dtype, or nodes.

    Returns:
        An array of that shape and dtype; a node if an input is a node.

    Raises:
        FuncconvError: if shapes or dtypes differ.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.add(jnp.ones(2), jnp.ones(2), jnp.ones(2)).tolist()
        [3.0, 3.0]
    """
    if any(isinstance(operand, Node) for operand in (x, *others)):
        return as_layer(add)(x, *others)
    values: tuple[Any, ...] = (x, *others)
    total, *terms = (as_array("add", "every input", value) for value in values)
    for term in terms:
        if (term.shape, term.dtype) != (total.shape, total.dtype):
            one, two = (f"{array.dtype}{list(array.shape)}" for array in (total, term))
            msg = (
                f"add: all inputs must have one shape and dtype; got {one} and {two}. add does not broadcast: cast "
                "with x.astype(dtype), or give all inputs one shape, for example by a convolution with a window of 1"
            )
            raise FuncconvError(msg)
        total = total + term
    return total

"""The inputs of a call: by position or by name, as arrays with the same batch axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Shape
from ..._windows.layout import as_array

_OPTIONS = ("key", "train", "state", "cotangent", "of", "wrt", "local", "at")  # of the methods that take inputs


class _KeywordError(FuncconvError, TypeError):
    """An unknown keyword argument, which Python reports as a TypeError."""


def wanted_inputs(graph: Any) -> str:
    """Return how many inputs a graph takes, and their names, as messages say it."""
    count = len(graph._signature)
    return f"{count} input{'s' * (count != 1)} ({', '.join(graph.inputs)})"


def in_order(graph: Any, xs: Sequence[Any], named: Mapping[str, Any]) -> Sequence[Any]:
    """Return the inputs, given by position or by name, in the order of declaration."""
    if not named:
        return xs
    names = [str(key) for key in (graph.inputs if graph._keys is None else graph._keys)]
    for name in named:
        if name not in names:
            msg = f"graph: {name!r} is neither an option nor an input of the graph{suggest(name, [*names, *_OPTIONS])}"
            raise _KeywordError(msg)
    if xs or len(named) < len(names):
        msg = (
            f"graph: expected {wanted_inputs(graph)}, all by position or all by name "
            f"({', '.join(f'{name}=...' for name in names)}); got {len(xs)} by position and {sorted(named)} by "
            "name. Pass an input by position if it has the name of an option of the method"
        )
        raise FuncconvError(msg)
    return [named[name] for name in names]


def input_arrays(graph: Any, xs: Sequence[Any], named: Mapping[str, Any]) -> list[Array]:
    """Return the inputs in the order of declaration, as arrays."""
    xs = in_order(graph, xs, named)
    if graph._keys is not None and len(xs) == 1 and isinstance(xs[0], Mapping):
        if set(xs[0]) != set(graph._keys):
            msg = (
                f"graph: expected a dict of inputs with the keys {list(graph._keys)}; got {list(xs[0])}. Pass an array "
                "under each of these keys, and no others"
            )
            raise FuncconvError(msg)
        xs = [xs[0][name] for name in graph._keys]
    if len(xs) != len(graph._signature):
        msg = (
            f"graph: expected {wanted_inputs(graph)} after the parameters; got {len(xs)}. Pass one array for each input"
        )
        raise FuncconvError(msg)
    return [as_array("graph", f"input {row.name!r}", x) for row, x in zip(graph._signature, xs, strict=True)]


def batch_axes(graph: Any, xs: Sequence[Array]) -> Shape:
    """Return the batch axes, which all inputs have in common."""
    batches = {}
    for (name, shape, _), x in zip(graph._signature, xs, strict=True):
        k = x.ndim - len(shape)
        if k < 0 or x.shape[k:] != shape:
            actual_shape, hint = x.shape[max(k, 0) :], "; batch axes come first, and then exactly these axes"
            if len(shape) > 1 and actual_shape == (shape[-1], *shape[:-1]):
                hint = f"; the channels look first: pass jnp.moveaxis(x, {-len(shape)}, -1)"
            elif len(shape) > 1 and actual_shape == (*shape[1:], shape[0]):
                hint = f"; the channels look last, but are declared first: pass jnp.moveaxis(x, -1, {-len(shape)})"
            msg = f"graph: input {name!r} must have shape (*batch, {', '.join(map(str, shape))}); got {x.shape}{hint}"
            raise FuncconvError(msg)
        batches[name] = x.shape[:k]
    if len(set(batches.values())) > 1:
        msg = (
            f"graph: all inputs must have the same batch axes; got {batches}. Repeat an input with jnp.broadcast_to, "
            "or map the graph over the others with jax.vmap"
        )
        raise FuncconvError(msg)
    return next(iter(batches.values()), ())

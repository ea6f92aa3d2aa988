"""The inputs of a call: by position or by name, as arrays with the same batch axes."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..._common.errors import FuncconvError, suggest
from ..._common.types import Shape
from ..._ops.masks import Masked
from ..._windows.layout import as_array
from ..masked.values import hidden, unmasked
from ..name.flatten import InputRow

_OPTIONS = (
    "key",
    "train",
    "evaluating",
    "state",
    "cotangent",
    "of",
    "wrt",
    "local",
    "at",
    "masked",
)  # of the methods that take inputs


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


def input_arrays(graph: Any, xs: Sequence[Any], named: Mapping[str, Any]) -> list[Any]:
    """Return the inputs in the order of declaration, as arrays, or as `Masked` with zeros at the masked positions."""
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
    return [_as_input(row, x) for row, x in zip(graph._signature, xs, strict=True)]


def _as_input(row: InputRow, x: Any) -> Any:
    name = f"input {row.name!r}"
    if not isinstance(x, Masked):
        return as_array("graph", name, x)
    array, mask = as_array("graph", name, x.x), as_array("graph", f"the mask of {name}", x.mask)
    least = array.ndim - len(row.shape) + 1
    if mask.dtype != bool or mask.ndim < least or mask.shape != array.shape[: mask.ndim]:
        msg = (
            f"graph: the mask of {name} must be boolean, with the batch axes and the spatial axes of the array "
            f"{array.shape}, usually {array.shape[:-1]}; got {mask.dtype}{list(mask.shape)}"
        )
        raise FuncconvError(msg)
    return hidden(Masked(array, mask))


def batch_axes(graph: Any, xs: Sequence[Any]) -> Shape:
    """Return the batch axes, which all inputs have in common."""
    batches = {}
    for (name, shape, _), x in zip(graph._signature, map(unmasked, xs), strict=True):
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

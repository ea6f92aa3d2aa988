"""The operations of a PyTorch program, translated one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.flatten import InputRow
from .arrays import as_numpy
from .handlers import (
    activations,
    constants,
    elementwise,
    indices,
    layers,
    norms,
    parts,
    pools,
    products,
    reductions,
    reshapes,
)
from .in_place import InPlace
from .tensors import BATCH, Tensor, Weight, whole
from .translation import Translation

_MODULES = (
    *(activations, constants, elementwise, indices, layers, norms, parts, pools, products, reductions, reshapes),
)
_HANDLERS: Mapping[str, Callable[..., Any]] = {
    name: handler for module in _MODULES for name, handler in module.HANDLERS.items()
}
_LARGEST_LITERAL = 256  # numbers of a constant that is written into the graph; a larger one is kept in the state


def translate(
    translation: Translation,
    graph_module: Any,
    arguments: Any,
    signature: list[InputRow],
    *,
    channels_first: bool,
) -> Any:
    """Translate the operations of a program one after the other; return its outputs.

    Args:
        translation: the translation.
        graph_module: the program, or a part of it that is called like a function.
        arguments: what the part is called with; None for the whole program.
        signature: the inputs of the graph, which are added.
        channels_first: whether inputs have their channels first.

    Returns:
        The values that it returns.
    """
    given = None if arguments is None else iter(arguments)
    in_place = InPlace(translation, list(graph_module.graph.nodes))
    for operation in graph_module.graph.nodes:
        translation.operation = operation
        if operation.op == "placeholder":
            value = (
                _placeholder(translation, signature, channels_first=channels_first) if given is None else next(given)
            )
        elif operation.op == "get_attr":
            value = _attribute(translation, getattr(graph_module, operation.target))
        elif operation.op == "output":
            return translation.read(operation.args[0])
        elif str(operation.target).startswith("wrap_with_"):
            value = _wrapped(translation, operation, signature, channels_first=channels_first)
        else:
            value = _call(translation, in_place)
        translation.values[operation] = value
    return ()


def _wrapped(translation: Translation, operation: Any, signature: list[InputRow], *, channels_first: bool) -> Any:
    """Translate a part of the program that runs in another mode: without gradients, or without autocast."""
    args = list(operation.args)
    position = next(i for i, arg in enumerate(args) if hasattr(translation.values.get(arg), "graph"))
    part = translation.values[args[position]]
    if "autocast" in str(operation.target) and args[2] is not False and args[2] is not None:
        translation.refuse("autocast, which computes in another precision")
    values = translate(
        translation,
        part,
        [translation.read(arg) for arg in args[position + 1 :]],
        signature,
        channels_first=channels_first,
    )
    if "set_grad" in str(operation.target) and args[0] is False:
        translation.operation = operation
        return tuple(translation.like(jax.lax.stop_gradient, value) for value in values)
    return values


def _placeholder(translation: Translation, signature: list[InputRow], *, channels_first: bool) -> Tensor | None:
    operation, program = translation.operation, translation.program
    if operation.name in program.targets:
        name = program.targets[operation.name]
        return replace(whole(Weight(tensor=name), tuple(program.tensors[name].shape), None), dtype=translation.dtype())
    shape = translation.shape()
    sizes = tuple(dim.size for dim in shape[1:])
    dtype = translation.dtype()
    kept = None if dtype == np.float32 else dtype
    moved = channels_first and len(sizes) > 1
    number = len(signature)
    signature.append(InputRow(operation.name, sizes if moved or len(sizes) < 2 else (*sizes[1:], sizes[0]), kept))
    if not moved:
        axes = ((BATCH,), *((i,) for i in range(len(sizes))))
        if len(sizes) > 1:  # given with the channels last
            axes = ((BATCH,), (len(sizes) - 1,), *((i,) for i in range(len(sizes) - 1)))
            sizes = (*sizes[1:], sizes[0])
        return Tensor(number, sizes, axes, dtype)
    return replace(whole(number, sizes, 0), dtype=dtype)


def _attribute(translation: Translation, value: Any) -> Any:
    """Return a constant of the program, or a part that is called like a function."""
    if not hasattr(value, "detach"):
        return value
    array = as_numpy(value)
    if array.size <= _LARGEST_LITERAL:
        return constants.listed(translation, array)
    name = f"constant_{len(translation.program.tensors)}"
    translation.program.tensors[name], translation.program.kinds[name] = value, "constant"
    return whole(Weight(tensor=name), array.shape, None)


def _call(translation: Translation, in_place: InPlace) -> Any:
    """Translate a call of a function."""
    operation = translation.operation
    target = operation.target
    packet = getattr(target, "overloadpacket", target)
    name = str(getattr(packet, "__name__", packet))
    handler = _HANDLERS.get(name) or _HANDLERS.get(name.removesuffix("_"))
    args, options = translation.read(operation.args), translation.read(dict(operation.kwargs))
    if handler is None:
        translation.refuse("it has no counterpart in funcconv; replace it in the module, or trace the parts around it")
    try:
        value = handler(translation, *args, **options)
    except (TypeError, AttributeError, ValueError, IndexError, KeyError) as error:  # arguments of another kind
        if isinstance(error, FuncconvError):
            raise
        translation.refuse(f"with these arguments: {type(error).__name__}: {error}")
    return in_place.after(operation, _with_dtypes(translation, value, operation.meta.get("val")))


def _with_dtypes(translation: Translation, value: Any, described: Any) -> Any:
    """Return a result, or several, with the dtypes that the exported program says."""
    if isinstance(value, Tensor):
        return replace(value, dtype=translation.dtype(described))
    if isinstance(value, list | tuple) and isinstance(described, list | tuple):
        return type(value)(_with_dtypes(translation, *pair) for pair in zip(value, described, strict=True))
    return value

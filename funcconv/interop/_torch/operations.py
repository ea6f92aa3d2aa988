"""The operations of a PyTorch program, translated one after the other."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._graph.name.flatten import InputRow
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
from .translation import Static, Translation

_MODULES = (
    *(activations, constants, elementwise, indices, layers, norms, parts, pools, products, reductions, reshapes),
)
_HANDLERS: Mapping[str, Callable[..., Any]] = {
    name: handler for module in _MODULES for name, handler in module.HANDLERS.items()
}
# Constants of the shape and dtype of another tensor, and their value; None if it is an argument.
_FILLED = {"new_zeros": 0, "zeros_like": 0, "new_ones": 1, "ones_like": 1, "new_full": None, "full_like": None}


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
        arguments: the arguments of a part; None for the whole program.
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
            value = getattr(graph_module, operation.target)
            value = Static(value) if hasattr(value, "detach") else value  # or a part that is called like a function
        elif operation.op == "output":
            return translation.read(operation.args[0])
        elif str(operation.target).startswith("wrap_with_"):
            value = _wrapped(translation, operation, signature, channels_first=channels_first)
        else:
            value = _computed(translation, operation)
            if value is None:
                value = _call(translation, in_place)
            else:
                in_place.note(operation)
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


def _placeholder(translation: Translation, signature: list[InputRow], *, channels_first: bool) -> Any:
    operation, program = translation.operation, translation.program
    if operation.name in program.targets:
        name = program.targets[operation.name]
        if program.kinds[name] == "literal":
            return Static(program.tensors[name])
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


def _computed(translation: Translation, operation: Any) -> Static | None:
    """Return the result of an operation on constants, which PyTorch computes; None if it has other operands."""
    described = operation.meta.get("val")
    results = described if isinstance(described, list | tuple) else [described]
    if not all(hasattr(result, "shape") and all(isinstance(size, int) for size in result.shape) for result in results):
        return None
    name = _name_of(operation)
    if name in _FILLED:  # the program has the shape and dtype; the numbers of the operand are not used
        value = _FILLED[name]
        value = operation.kwargs.get("fill_value", operation.args[-1]) if value is None else value
        return Static(_filled(described, value)) if isinstance(value, bool | int | float) else None
    operands = [translation.values[node] for node in operation.all_input_nodes]
    if not all(isinstance(operand, Static) for operand in operands) or not hasattr(operation.target, "_schema"):
        return None
    if any(tag.name == "nondeterministic_seeded" for tag in operation.target.tags):
        return None  # random numbers
    args, options = _static(translation, operation.args), _static(translation, dict(operation.kwargs))
    return Static(operation.target(*args, **options))


def _filled(described: Any, value: Any) -> Any:
    import torch

    return torch.full(tuple(described.shape), value, dtype=described.dtype)


def _static(translation: Translation, argument: Any) -> Any:
    """Return an argument of an operation on constants, as a value for PyTorch."""
    if isinstance(argument, list | tuple):
        return type(argument)(_static(translation, item) for item in argument)
    if isinstance(argument, dict):
        return {key: _static(translation, item) for key, item in argument.items()}
    return translation.values[argument].value if type(argument).__name__ == "Node" else argument


def _name_of(operation: Any) -> str:
    packet = getattr(operation.target, "overloadpacket", operation.target)
    return str(getattr(packet, "__name__", packet))


def _call(translation: Translation, in_place: InPlace) -> Any:
    """Translate a call of a function."""
    operation = translation.operation
    name = _name_of(operation)
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
    """Convert a result, or several, to the dtypes in the exported program."""
    if isinstance(value, Tensor):
        return replace(value, dtype=translation.dtype(described))
    if isinstance(value, list | tuple) and isinstance(described, list | tuple):
        return type(value)(_with_dtypes(translation, *pair) for pair in zip(value, described, strict=True))
    return value

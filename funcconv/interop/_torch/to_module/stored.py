"""The arrays of a graph as parameters and buffers of a PyTorch module, with its names and its order of axes."""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from ...._common.errors import FuncconvError
from ..names.array import COUNTER, Convert, TorchArray
from .lazy_torch import torch


class Stored(NamedTuple):
    """An array of a graph that is a parameter or a buffer of a module.

    Attributes:
        entry: the path of the entry.
        path: where it is in the entry, `""` for the entry itself.
        in_state: whether it is in the state.
        name: its name in the module, such as `"layer1.conv.weight"`.
        axes: how the axes are permuted from PyTorch's order to that of the graph.
        shape: its shape in the graph.
        positions: the name of a buffer that says where each number is in PyTorch, if the order differs in more than a
            permutation of axes: the features of a flattened image, or a vector that is an image here.
    """

    entry: str
    path: str
    in_state: bool
    name: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]
    positions: str | None

    def get(self, module: Any) -> Any:
        """Return the array in the order of axes of the graph, as a view if possible."""
        tensor = reduce(getattr, self.name.split("."), module)
        if self.positions is not None:
            return tensor.flatten()[getattr(module, self.positions)].reshape(self.shape)
        return tensor if self.axes == tuple(range(len(self.axes))) else tensor.permute(self.axes)

    def set(self, module: Any, value: Any) -> None:
        """Copy an array in the order of axes of the graph into the module."""
        tensor = reduce(getattr, self.name.split("."), module)
        with torch.no_grad():
            if self.positions is not None:
                tensor.flatten()[getattr(module, self.positions)] = value.flatten()
            else:
                tensor.copy_(value.permute(np.argsort(self.axes).tolist()))


def stored(array: TorchArray, name: str, shape: tuple[int, ...], positions: str) -> tuple[Stored, Any]:
    """Return how an array is stored.

    Args:
        array: the array.
        name: its name in the module.
        shape: its shape there.
        positions: the name of a buffer for the positions of its numbers, if it needs one.

    Returns:
        The description, and the content of that buffer or None.
    """
    axes = _axes(array.to_own, shape)
    if axes is not None:
        own_shape = tuple(shape[axis] for axis in axes)
        return Stored(array.entry, array.path, array.in_state, name, axes, own_shape, None), None
    order = array.to_own(np.arange(math.prod(shape)).reshape(shape))
    description = Stored(array.entry, array.path, array.in_state, name, (), order.shape, positions)
    return description, torch.from_numpy(np.ascontiguousarray(order.ravel()))


def _axes(to_own: Convert, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return how a conversion permutes the axes; None if it does more."""
    probe = np.empty(shape, np.int8)
    converted = to_own(probe)
    if converted.ndim != probe.ndim or (converted.size and not np.may_share_memory(converted, probe)):
        return None
    # A view has the strides of the axes that it permutes. Axes of equal size and stride have size 1, in any order.
    left = list(range(len(shape)))
    axes = []
    for size, stride in zip(converted.shape, converted.strides, strict=True):
        axis = next(i for i in left if (shape[i], probe.strides[i]) == (size, stride))
        left.remove(axis)
        axes.append(axis)
    return tuple(axes)


def tensor_of(array: np.ndarray) -> Any:
    """Return a tensor with the numbers and the dtype of an array."""
    if array.dtype.isbuiltin == 1:
        return torch.from_numpy(array)
    return torch.from_numpy(array.astype(np.float32)).to(getattr(torch, array.dtype.name))  # bfloat16 and float8


def register(module: Any, name: str, tensor: Any, array: TorchArray) -> None:
    """Make a tensor a parameter or a buffer, under its name."""
    owner, _, own_name = name.rpartition(".")
    part = _part(module, owner)
    try:
        if array.in_state:
            part.register_buffer(own_name, tensor, persistent=array.stored)
        else:
            is_trained = tensor.is_floating_point() or tensor.is_complex()
            part.register_parameter(own_name, torch.nn.Parameter(tensor, requires_grad=is_trained))
    except KeyError as error:
        raise FuncconvError(_taken(name, error)) from error


def _part(module: Any, path: str) -> Any:
    """Return the part of a module at a path, which is made if it is missing."""
    for name in path.split(".") if path else ():
        if not isinstance(getattr(module, name, None), torch.nn.Module):
            try:
                module.add_module(name, torch.nn.Module())
            except KeyError as error:
                raise FuncconvError(_taken(path, error)) from error
        module = getattr(module, name)
    return module


def _taken(name: str, error: KeyError) -> str:
    return (
        f"to_torch_module: a module of PyTorch cannot have the name {name!r} ({error.args[0]}); rename the entry of "
        "the graph"
    )


def add_counters(module: Any, arrays: Iterable[Stored]) -> None:
    """Add the counters that PyTorch's batch norms have and the graph's need not have."""
    for array in arrays:
        owner, _, name = array.name.rpartition(".")
        part = module.get_submodule(owner)
        if name == "running_var" and array.in_state and not hasattr(part, COUNTER):
            part.register_buffer(COUNTER, torch.zeros((), dtype=torch.int64))


def add_aliases(module: Any, aliases: Sequence[tuple[str, str]]) -> None:
    """Register tensors under further names. A part that is the same as another is registered as the same object."""
    by_parts: dict[str, dict[str, str]] = {}
    for alias, name in aliases:
        by_parts.setdefault(alias.rpartition(".")[0], {})[alias] = name
    for path, names in by_parts.items():
        sources = {name.rpartition(".")[0] for name in names.values()}
        same_names = all(alias.rpartition(".")[2] == name.rpartition(".")[2] for alias, name in names.items())
        parent, _, own_name = path.rpartition(".")
        source = module.get_submodule(sources.pop()) if len(sources) == 1 else None
        is_new = path and not hasattr(_part(module, parent), own_name)
        if source is not None and same_names and is_new and len(names) == len(source.state_dict()):
            _part(module, parent).add_module(own_name, source)
            continue
        for alias, name in names.items():
            owner, _, own_alias = name.rpartition(".")
            tensor = getattr(module.get_submodule(owner), own_alias)
            part, last = _part(module, path), alias.rpartition(".")[2]
            if isinstance(tensor, torch.nn.Parameter):
                part.register_parameter(last, tensor)
            else:
                part.register_buffer(last, tensor)

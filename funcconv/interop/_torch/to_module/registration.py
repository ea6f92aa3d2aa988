"""Tensors registered in a module of PyTorch, under names such as `"layer1.conv.weight"`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ...._common.errors import FuncconvError
from ..names import COUNTER, TorchArray
from .lazy_torch import torch
from .stored import Stored


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
        if name not in dict(module.named_children()):
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
        is_new = path and own_name not in dict(_part(module, parent).named_children())
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

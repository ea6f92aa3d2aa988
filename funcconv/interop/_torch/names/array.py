"""An array of a graph in PyTorch's state dict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

COUNTER = "num_batches_tracked"  # of batch norms
TORCH_NAMES = {  # of the arrays of layers
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "count": COUNTER,
}

Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class TorchArray:
    """An array of a graph, with its name and order of axes in PyTorch.

    Attributes:
        entry: the path of the entry, such as `"layer1/conv"`.
        path: where it is in the entry, such as `"kernel"`; `""` is the entry itself.
        in_state: whether it is in the state, and not in the parameters.
        name: its name in the module of the entry, such as `"weight"`; if `is_whole_name`, in the outermost module.
        is_whole_name: whether the name is that in the outermost module, which no other name can replace.
        to_own: converts PyTorch's array.
        to_torch: converts the graph's array.
        stored: whether PyTorch's state dict has it.
    """

    entry: str
    path: str
    in_state: bool
    name: str
    is_whole_name: bool
    to_own: Convert
    to_torch: Convert
    stored: bool = True


def same(array: np.ndarray) -> np.ndarray:
    """Return the array."""
    return array


def split_name(name: str) -> tuple[str, str]:
    """Return the path of the module that an array belongs to, as the user wrote it, and its name there.

    An array of a parametrization, such as `"conv.parametrizations.weight.original0"`, belongs to the module whose
    weight it makes.
    """
    module, found, own = f".{name}".partition(".parametrizations.")
    if found:
        return module[1:], found[1:] + own
    module, _, own = name.rpartition(".")
    return module, own


def names_of(array: TorchArray, modules: Sequence[str]) -> list[str]:
    """Return the names of an array in the state dict of PyTorch, for the modules that its entry stands for."""
    if array.is_whole_name:
        return [array.name]
    return [f"{module}.{array.name}" if module else array.name for module in modules]


def whole_path(array: TorchArray) -> str:
    """Return the path of an array in the parameters or in the state."""
    return f"{array.entry}/{array.path}" if array.path else array.entry

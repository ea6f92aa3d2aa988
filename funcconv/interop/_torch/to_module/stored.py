"""Where a module of PyTorch has the arrays of a graph, and in which order of axes."""

import math
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from ..names import Convert, TorchArray
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
        positions: the name of a buffer that says where each number is in PyTorch, if the order differs in more than
            axes: the features of a flattened image.
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
    if converted.size and not np.may_share_memory(converted, probe):
        return None
    # A view has the strides of the axes that it permutes. Axes of equal size and stride have size 1, in any order.
    left = list(range(len(shape)))
    axes = []
    for size, stride in zip(converted.shape, converted.strides, strict=True):
        axis = next(i for i in left if (shape[i], probe.strides[i]) == (size, stride))
        left.remove(axis)
        axes.append(axis)
    return tuple(axes)

"""Tensors of a traced PyTorch program: where their entries are stored, and in which order.

A graph stores arrays without their batch axis, images with their channels last. PyTorch programs move, merge and split
axes all the time. These operations compute nothing. So a `Tensor` only records which stored axes each axis of PyTorch
consists of. Entries are moved only if an operation needs them in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from ..._common.types import Shape

BATCH = -1  # stands for the batch axis among the stored axes

Axes = tuple[tuple[int, ...], ...]


# Compared by identity: a hash of the whole expression would visit operands that it shares again and again.
@dataclass(frozen=True, eq=False)
class Weight:
    """A value that is computed from weights alone, so that it is the same for all examples.

    Attributes:
        op: a function of the values of `operands`; None for a weight itself.
        operands: the values it is computed from.
        tensor: the name of the weight in PyTorch, where `op` is None.
    """

    op: Callable[..., Any] | None = None
    operands: tuple["Weight", ...] = ()
    tensor: str = ""

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The names of all weights that it is computed from."""
        names = dict.fromkeys(name for operand in self.operands for name in operand.tensors)
        return tuple(names) if self.op else (self.tensor,)


@dataclass(frozen=True)
class Tensor:
    """A tensor of the PyTorch program.

    Attributes:
        source: the number of the row that computes it, or a `Weight`.
        sizes: the sizes of the stored axes, without the batch axis.
        axes: for each of PyTorch's axes, the stored axes whose product it is, the slowest first. `BATCH` is the batch
            axis. An axis of size 1 may consist of none, and a stored axis of size 1 may be in none.
        dtype: the dtype of its numbers; None for a value that is not the result of an operation.
    """

    source: "int | Weight"
    sizes: Shape
    axes: Axes
    dtype: Any = None

    @property
    def rank(self) -> int:
        """The number of axes in PyTorch."""
        return len(self.axes)

    @property
    def is_weight(self) -> bool:
        """Whether it depends on no input."""
        return isinstance(self.source, Weight)

    @property
    def batch_axis(self) -> int | None:
        """The axis of PyTorch that the batch is a part of; None if there is none."""
        return next((i for i, axis in enumerate(self.axes) if BATCH in axis), None)

    def size(self, axis: int) -> int:
        """Return the size of one of PyTorch's axes, without the batch in it."""
        return prod(self.sizes[i] for i in self.axes[axis] if i != BATCH)

    def factors(self, axis: int) -> tuple[int, ...]:
        """Return the stored axes of one of PyTorch's axes, without the batch and those of size 1."""
        return tuple(i for i in self.axes[axis] if i != BATCH and self.sizes[i] != 1)

    def is_unit(self, axis: int) -> bool:
        """Whether one of PyTorch's axes has size 1."""
        return BATCH not in self.axes[axis] and self.size(axis) == 1

    def with_axes(self, axes: Sequence[Sequence[int]]) -> "Tensor":
        """Return the same entries with other axes."""
        return replace(self, axes=tuple(map(tuple, axes)))


def whole(source: "int | Weight", sizes: Shape, batch: int | None) -> Tensor:
    """Return a tensor that is stored as PyTorch sees it.

    Args:
        source: the row or weight.
        sizes: the sizes of the stored axes.
        batch: the axis of PyTorch that is the batch; None if there is none.

    Returns:
        The tensor.
    """
    axes = [(i,) for i in range(len(sizes))]
    if batch is not None:
        axes.insert(batch, (BATCH,))
    return Tensor(source, sizes, tuple(axes))


@dataclass(frozen=True)
class Dim:
    """The size of an axis, as a part of a shape: `size`, times the batch size if `batched`."""

    size: int
    batched: bool = False


def regrouped(tensor: Tensor, shape: Sequence[Dim]) -> tuple[list[Shape], Axes] | None:
    """Return the axes of a reshaped tensor, if no entry has to move.

    Args:
        tensor: the tensor.
        shape: the new shape.

    Returns:
        For each stored axis the sizes into which it is split, and the new axes, which count the parts. None if stored
        axes would have to be merged first, or if the batch would be split.
    """
    splits: list[list[int]] = [[] for _ in tensor.sizes]
    left = [(i, 1 if i == BATCH else tensor.sizes[i]) for axis in tensor.axes for i in axis]
    left = [(i, size) for i, size in left if i == BATCH or size != 1]
    new_axes: list[list[tuple[int, int]]] = []  # pairs of a stored axis and the number of its part
    for dim in shape:
        axis: list[tuple[int, int]] = []
        size, batched = dim.size, dim.batched
        while size > 1 or batched:
            if not left:
                return None
            i, available = left.pop(0)
            if i == BATCH:
                if not batched:
                    return None
                batched = False
                axis.append((BATCH, 0))
                continue
            if size % available and available % size:
                return None
            part = min(size, available)
            if part == 1:  # only the batch is left to be found, and something else comes first
                return None
            axis.append((i, len(splits[i])))
            splits[i].append(part)
            size //= part
            if available > part:
                left.insert(0, (i, available // part))
        new_axes.append(axis)
    if left:
        return None
    parts = [tuple(split) if split else (size,) for split, size in zip(splits, tensor.sizes, strict=True)]
    starts = [sum(map(len, parts[:i])) for i in range(len(parts))]
    return parts, tuple(tuple(BATCH if i == BATCH else starts[i] + k for i, k in axis) for axis in new_axes)

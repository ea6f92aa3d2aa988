"""The state of the translation of one PyTorch program, which all handlers of operations read and extend."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

from ..._graph.declare.layers import Flatten
from ..._weight_files.arrays import as_numpy
from . import ops
from .program import Program
from .rows import PendingRow as PendingRow
from .rows import Rows
from .rows import Static as Static
from .rows import SymbolicSize as SymbolicSize
from .tensors import BATCH, Axes, Dim, Tensor, Weight, regrouped, whole

_LARGEST_LITERAL = 256  # numbers of a constant that is written into the graph; a larger one is kept in the state


class Translation(Rows):
    """The operations of one module, the rows they were translated to, and tensors that are stored in another order.

    Args:
        program: the exported program.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        # Tensors in another order, by what they were made of, so that each order is computed once.
        self._arranged: dict[Any, Tensor] = {}

    # the order of stored axes ----------------------------------------------------------------------------

    def arranged(self, x: Tensor, groups: Sequence[Sequence[int]], axes: Axes) -> Tensor:
        """Store a tensor in another order.

        Args:
            x: the tensor.
            groups: for each stored axis of the result, the stored axes of `x` whose product it is.
            axes: the axes of the result, as PyTorch sees it.

        Returns:
            The same numbers; `x` with other axes, if nothing changes.
        """
        key = (x.source, x.sizes, tuple(map(tuple, groups)))
        if key not in self._arranged:
            self._arranged[key] = self._moved(x, groups)
        return replace(self._arranged[key], axes=axes, dtype=x.dtype)

    def _moved(self, x: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
        order = [i for group in groups for i in group if x.sizes[i] != 1]
        sizes = tuple(prod(x.sizes[i] for i in group) for group in groups)
        if order != sorted(order):
            every = order + [i for i in range(len(x.sizes)) if i not in order]  # those of size 1 may stand anywhere
            moved = tuple(x.sizes[i] for i in every)
            spatial = len(x.sizes) - 1
            if sizes == (prod(moved),) and every == [spatial, *range(spatial)] and not x.is_weight:
                row = PendingRow(self.new_name("flatten"), None, (x.source,), layer=Flatten(order="channels_first"))
                return self.add(row, sizes, ())
            x = self.compute(partial(ops.transposed, axes=tuple(every)), (x,), moved, (), label="transpose")
        if x.sizes != sizes:
            return self.compute(partial(ops.reshaped, shape=sizes), (x,), sizes, (), label="reshape")
        return x

    def stored(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """Store a tensor so that each of PyTorch's axes is one stored axis, in a given order.

        Args:
            x: the tensor.
            order: PyTorch's axes in the order in which they are stored, without the one that has the batch.

        Returns:
            The tensor. If other axes are merged with the batch, they are stored in front, one by one.
        """
        batch = x.batch_axis
        beside = () if batch is None else x.factors(batch)
        groups = [(i,) for i in beside] + [x.factors(axis) for axis in order]
        axes: list[tuple[int, ...]] = [()] * x.rank
        if batch is not None:
            position = {i: k for k, i in enumerate(beside)}
            axes[batch] = tuple(BATCH if i == BATCH else position[i] for i in x.axes[batch] if i in (BATCH, *beside))
        for k, axis in enumerate(order):
            axes[axis] = (len(beside) + k,)
        return self.arranged(x, groups, tuple(axes))

    def as_pytorch(self, x: Tensor) -> Tensor:
        """Store a tensor in PyTorch's order of axes."""
        return self.stored(x, [axis for axis in range(x.rank) if axis != x.batch_axis])

    def simple(self, x: Tensor, axis: int) -> Tensor:
        """Store a tensor so that one of PyTorch's axes is one stored axis; the others keep their order, if possible."""
        if axis == x.batch_axis:
            self.refuse(f"along axis {axis}, which is the batch axis")
        if len(x.axes[axis]) == 1:
            return x
        others = [i for i in range(x.rank) if i not in (axis, x.batch_axis)]
        first = {i: min(x.factors(i), default=len(x.sizes)) for i in (*others, axis)}
        return self.stored(x, sorted((*others, axis), key=lambda i: first[i]))

    def one_factor(self, x: Tensor, axis: int) -> Tensor:
        """Store a tensor so that one of PyTorch's axes is one stored axis, beside the batch if it has it."""
        if axis != x.batch_axis:
            return self.simple(x, axis)
        factors = x.factors(axis)
        if len(factors) < 2:
            return x
        if x.axes[axis][0] != BATCH:
            self.refuse(f"the batch is merged with axes before it, in the axis {axis}")
        others = [i for i in range(len(x.sizes)) if i not in factors]
        number = {i: k + 1 for k, i in enumerate(others)}
        axes = [tuple(number[i] for i in part) if k != axis else (BATCH, 0) for k, part in enumerate(x.axes)]
        return self.arranged(x, [factors, *([i] for i in others)], tuple(axes))

    def axis(self, x: Tensor, dim: int) -> int:
        """Return an axis of PyTorch as a number from 0."""
        axis = dim + x.rank if dim < 0 else dim
        if not 0 <= axis < max(x.rank, 1):
            self.refuse(f"there is no axis {dim} in {x.rank}")
        return axis

    def extra(self, x: Tensor) -> int:
        """Return how many stored axes are merged with the batch, for a tensor that `stored` returned."""
        batch = x.batch_axis
        return 0 if batch is None else len(x.axes[batch]) - 1

    def channels_last(self, x: Tensor, spatial: int | None = None) -> Tensor:
        """Store an image with its channels last, `(batch, channels, *spatial)` in PyTorch."""
        if x.batch_axis not in (0, None) or x.rank < 2 or (spatial is not None and x.rank != spatial + 2):
            wanted = "*spatial" if spatial is None else f"and {spatial} spatial axes"
            self.refuse(
                f"its input must have the axes batch, channels, {wanted}; it has {x.rank} axes, and the batch is axis "
                f"{x.batch_axis}"
            )
        order = [*range(2, x.rank), 1]
        return self.stored(x, order if x.batch_axis == 0 else [0, *order])

    def reshaped(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """Reshape a tensor, without moving entries if possible."""
        plan = regrouped(x, shape)
        if plan is None:
            x = self.as_pytorch(x)
            flat = self.arranged(x, self._one_group(x), self._one_axis(x))
            plan = regrouped(flat, shape)
            x = flat
            if plan is None:
                self.refuse("a reshape that divides the batch, or moves it behind another axis")
        parts, axes = plan
        sizes = tuple(size for split in parts for size in split)
        if sizes == x.sizes:
            return x.with_axes(axes)
        return self.compute(partial(ops.reshaped, shape=sizes), (x,), sizes, axes, label="reshape")

    def _one_group(self, x: Tensor) -> list[list[int]]:
        if x.batch_axis not in (0, None) or self.extra(x):
            self.refuse("a reshape that divides the batch, or moves it behind another axis")
        return [list(range(len(x.sizes)))]

    def _one_axis(self, x: Tensor) -> Axes:
        return ((0,),) if x.batch_axis is None else ((BATCH,), (0,))

    def constant_of(self, value: Any) -> Any:
        """Convert a value that PyTorch has computed from constants. Small tensors are written into the graph.

        Args:
            value: a tensor, a number or a list of them.

        Returns:
            The same with tensors of the graph.
        """
        if isinstance(value, list | tuple):
            return type(value)(self.constant_of(item) for item in value)
        if not hasattr(value, "detach"):
            return value
        array = as_numpy(value)
        if array.size <= _LARGEST_LITERAL:
            numbers = tuple(array.ravel().tolist())
            op = partial(ops.listed, values=numbers, shape=array.shape, dtype=array.dtype)
            return replace(self.constant(op, [Dim(size) for size in array.shape]), dtype=array.dtype)
        name = f"constant_{len(self.program.tensors)}"
        # A copy, because a later operation may change the tensor in place.
        self.program.tensors[name], self.program.kinds[name] = value.clone(), "constant"
        return replace(whole(Weight(tensor=name), array.shape, None), dtype=array.dtype)

    def constant(self, op: Callable[[], Any], shape: Sequence[Dim]) -> Tensor:
        """Return an array that depends on nothing; an axis of the size of the batch has the same for all examples.

        Args:
            op: computes the array of the shape without the batch axis.
            shape: its shape in PyTorch.

        Returns:
            The tensor.
        """
        batch = [i for i, dim in enumerate(shape) if dim.batched]
        if len(batch) > 1 or any(shape[i].size != 1 for i in batch):
            self.refuse("a constant with an axis of a multiple of the batch size")
        sizes = tuple(dim.size for dim in shape if not dim.batched)
        return whole(Weight(op), sizes, batch[0] if batch else None)


def as_tuple(value: Any, length: int) -> tuple[Any, ...]:
    """Return one value per axis for an option that can be a single number for all axes."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * length if len(values) == 1 else values

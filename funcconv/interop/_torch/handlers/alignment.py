"""Operands of different shapes, stored so that JAX broadcasts them as PyTorch does."""

from collections.abc import Sequence

from ...._common.types import Shape
from ..tensors import BATCH, Axes, Tensor
from ..translation import Translation


def aligned(translation: Translation, operands: Sequence[Tensor]) -> tuple[list[Tensor], Shape, Axes]:
    """Store operands with as many axes each, in one order, of which those that are missing have size 1.

    PyTorch aligns the last axes of its shapes. The order is that of the largest operand, so that the others are moved.

    Args:
        translation: the translation.
        operands: the operands.

    Returns:
        The operands, and the stored sizes and the axes of the result.
    """
    rank = max(x.rank for x in operands)
    padded = [x.with_axes(((),) * (rank - x.rank) + x.axes) for x in operands]
    padded = [_with_common_factors(translation, x, padded) for x in padded]
    reference = max(
        padded, key=lambda x: (not x.is_weight, len([i for i in range(rank) if not x.is_unit(i)]), _count(x))
    )
    longest = [_longest(padded, axis) for axis in range(rank)]  # one operand that has all factors of an axis
    factors = [(axis, k) for axis in range(rank) for k in range(len(longest[axis].factors(axis)))]

    def place(factor: tuple[int, int]) -> int:
        axis, k = factor
        of_reference = reference.factors(axis)
        return of_reference[k] if of_reference else -1

    order = sorted(factors, key=place)
    sizes = tuple(longest[axis].sizes[longest[axis].factors(axis)[k]] for axis, k in order)
    axes: list[tuple[int, ...]] = []
    for axis in range(rank):
        numbers = iter(order.index((axis, k)) for k in range(len(longest[axis].factors(axis))))
        operand = longest[axis]
        axes.append(
            tuple(
                BATCH if i == BATCH else next(numbers)
                for i in operand.axes[axis]
                if i == BATCH or operand.sizes[i] != 1
            )
        )
    moved = []
    for x in padded:
        groups = [x.factors(axis)[k : k + 1] for axis, k in order]
        moved.append(translation.arranged(x, groups, tuple(axes)))
    return moved, sizes, tuple(axes)


def _count(x: Tensor) -> int:
    count = 1
    for size in x.sizes:
        count *= size
    return count


def _longest(operands: Sequence[Tensor], axis: int) -> Tensor:
    """Return an operand that is not broadcast along an axis, if there is one."""
    return max(operands, key=lambda x: (BATCH in x.axes[axis], x.size(axis)))


def _with_common_factors(translation: Translation, x: Tensor, operands: Sequence[Tensor]) -> Tensor:
    """Merge the factors of those axes of an operand that have others in another operand."""
    for axis in range(x.rank):
        if x.is_unit(axis):
            continue
        divided = {
            tuple(BATCH if i == BATCH else y.sizes[i] for i in y.axes[axis] if i == BATCH or y.sizes[i] != 1)
            for y in operands
            if not y.is_unit(axis)
        }
        if len(divided) > 1:
            x = translation.one_factor(x, axis)
    return x

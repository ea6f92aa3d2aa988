"""An axis in pieces, which a loop takes one after another."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jax import lax

from .._common.types import Array

T = TypeVar("T")


class Cut(NamedTuple):
    """Neighbouring pieces of an axis, of one size."""

    begin: int
    pieces: int
    size: int


def cuts(number: int, most: int) -> list[Cut]:
    """Cut an axis into pieces not larger than `most`, or than 1: of one size, but for what is left."""
    most = min(max(most, 1), number)
    size = next((each for each in range(most, most // 2, -1) if number % each == 0), 0)
    size = size or -(-number // -(-number // most))  # as even as can be
    whole, rest = divmod(number, size)
    return [Cut(0, whole, size), *([Cut(whole * size, 1, rest)] if rest else [])]


def each(block: Sequence[Cut], step: Callable[[list[Any], T], T], found: T) -> T:
    """Return what `step(begins, found)` makes of `found`, with where each piece of a block begins on its axes.

    A block is cut along several axes; its pieces come in row-major order.
    """
    begins: list[Any] = [cut.begin for cut in block]
    many = [axis for axis, cut in enumerate(block) if cut.pieces > 1]
    if not many:
        return step(begins, found)

    def body(left: Array, found: T) -> T:
        at = list(begins)
        for axis in reversed(many):
            nth = left if axis == many[0] else lax.rem(left, block[axis].pieces)
            at[axis] += nth * block[axis].size
            left = lax.div(left, block[axis].pieces)
        return step(at, found)

    return lax.fori_loop(0, math.prod(cut.pieces for cut in block), body, found)  # type: ignore[no-any-return]


def piece(array: Array, begin: Array | int, size: int, axis: int = 0) -> Array:
    """Return a piece of one axis."""
    return lax.dynamic_slice_in_dim(array, begin, size, axis, allow_negative_indices=False)

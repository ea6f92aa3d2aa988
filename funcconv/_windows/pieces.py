"""Axes cut into pieces, which a loop computes one after another."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from jax import lax

from .._common.types import Array

T = TypeVar("T")


class Cut(NamedTuple):
    """Neighbouring pieces of an axis, all of one size."""

    begin: int  # of the first piece
    pieces: int
    size: int  # of each piece


def cuts(length: int, most: int) -> list[Cut]:
    """Return cuts of an axis into pieces of at most `most` entries. All have one size, but for a shorter last one."""
    # If a size above `most // 2` divides the length, it is chosen, so that no separate code handles a last piece.
    most = min(max(most, 1), length)
    size = next((size for size in range(most, most // 2, -1) if length % size == 0), 0)
    size = size or -(-length // -(-length // most))  # otherwise pieces that are as equal as possible
    pieces, rest = divmod(length, size)
    return [Cut(0, pieces, size), *([Cut(pieces * size, 1, rest)] if rest else [])]


def loop_over(block: Sequence[Cut], step: Callable[[list[Any], T], T], carry: T) -> T:
    """Return the result of `carry = step(begins, carry)` for all pieces of a block, in row-major order.

    A block is cut along several axes, and `begins` are the first entries of a piece along these axes.

    Returns:
        The last carry.
    """
    begins: list[Any] = [cut.begin for cut in block]
    cut_axes = [axis for axis, cut in enumerate(block) if cut.pieces > 1]
    if not cut_axes:
        return step(begins, carry)

    def body(index: Array, carry: T) -> T:
        piece_begins = list(begins)
        for axis in reversed(cut_axes):  # the index of the piece along each axis, from the row-major index
            nth = index if axis == cut_axes[0] else lax.rem(index, block[axis].pieces)
            piece_begins[axis] += nth * block[axis].size
            index = lax.div(index, block[axis].pieces)
        return step(piece_begins, carry)

    return lax.fori_loop(0, math.prod(cut.pieces for cut in block), body, carry)  # type: ignore[no-any-return]


def piece(array: Array, begin: Array | int, size: int, axis: int = 0) -> Array:
    """Return `size` entries of one axis from `begin` on."""
    return lax.dynamic_slice_in_dim(array, begin, size, axis, allow_negative_indices=False)

"""An axis in pieces, which a loop takes one after another."""

from collections.abc import Sequence
from typing import NamedTuple

from jax import lax

from .._typing import Array


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


def begins(block: Sequence[Cut], step: Array) -> list[Array]:
    """Return where a piece of a block, cut along several axes, begins on each of them; the last axis comes first."""
    found: list[Array] = []
    for cut in reversed(block):
        found.insert(0, cut.begin + lax.rem(step, cut.pieces) * cut.size)
        step = lax.div(step, cut.pieces)
    return found

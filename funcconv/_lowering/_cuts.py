"""An axis in pieces, which a loop takes one after another."""

from typing import NamedTuple


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

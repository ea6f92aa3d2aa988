"""Sets of channels that can only be removed together.

Each channel of a layer has a number. Channels of different values get one number if they are the same channel, such as
before and after a ReLU, and are joined if one of them cannot be removed without the other, such as the terms of a sum.
The number 0 stands for what is no channel, such as a constant.
"""

from collections.abc import Iterable

import numpy as np


class Channels:
    """Numbers of channels, in sets that are joined step by step."""

    def __init__(self) -> None:
        self._parents = [0]  # a channel's path of parents ends at the one that stands for its set
        self._reasons: dict[int, str] = {}

    def new(self, count: int) -> np.ndarray:
        """Return the numbers of new channels."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return np.arange(first, first + count)

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Join the channels of two arrays of equal shape, position by position."""
        if one is other:
            return
        for a, b in np.unique(np.stack([one.ravel(), other.ravel()]), axis=1).T.tolist():
            if a and b:
                self._join(self._root(a), self._root(b))

    def keep(self, channels: np.ndarray, reason: str) -> None:
        """Note that channels cannot be removed, and why."""
        for number in np.unique(channels).tolist():
            if number:
                self._reasons.setdefault(self._root(number), reason)

    def sets(self, channels: np.ndarray) -> np.ndarray:
        """Return the number of each channel's set; sets are equal if their numbers are."""
        numbers, inverse = np.unique(channels, return_inverse=True)
        roots = np.array([self._root(number) for number in numbers.tolist()], int)
        return roots[inverse].reshape(channels.shape)

    def reasons(self, sets: Iterable[int]) -> dict[int, str]:
        """Return why sets cannot be removed, for those that cannot."""
        return {number: self._reasons[number] for number in sets if number in self._reasons}

    def _join(self, one: int, other: int) -> None:
        if one != other:
            self._parents[other] = one
            if other in self._reasons:
                self._reasons.setdefault(one, self._reasons.pop(other))

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            self._parents[number] = number = self._parents[self._parents[number]]
        return number

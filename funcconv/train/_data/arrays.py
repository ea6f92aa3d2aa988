"""Arrays in memory, or mapped into memory, as the examples of a data set."""

import mmap
from typing import Any, NamedTuple

import jax
import numpy as np


class Arrays:
    """Arrays in memory as `Examples`."""

    def __init__(self, arrays: Any, *, copy: bool) -> None:
        self._arrays = jax.tree.map(_unchanging if copy else np.asarray, arrays)
        self.count = len(jax.tree.leaves(self._arrays)[0])

    def read(self, order: np.ndarray, part: slice) -> "_Selection":
        """Return the examples `order[part]`, which are copied from the arrays when `result` is called."""
        return _Selection(self._arrays, order[part])

    def options(self) -> dict[str, Any]:
        """Return the shapes and dtypes."""
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="/"): f"{array.dtype}{list(array.shape)}"
            for path, array in jax.tree.leaves_with_path(self._arrays)
        }
        return {"arrays": arrays}


class _Selection(NamedTuple):
    arrays: Any
    examples: np.ndarray

    def is_ready(self) -> bool:
        return True

    def result(self) -> Any:
        return jax.tree.map(lambda array: array[self.examples], self.arrays)


def _unchanging(array: Any) -> np.ndarray:
    """Return the array itself if nobody can write to its memory, otherwise a copy."""
    if isinstance(array, jax.Array):
        return np.asarray(array)
    memory = array  # a read-only view may be of an array that can be written to, so follow the views to their end
    while isinstance(memory, np.ndarray):
        if memory.flags.writeable:
            return np.array(array)
        memory = memory.base
    return np.asarray(array) if memory is None or isinstance(memory, bytes | mmap.mmap) else np.array(array)

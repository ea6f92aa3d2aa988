"""A data set that is read from its beginning in each pass, and what is checked in a pass."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..trees import Tree, at, described, is_array, named

_SECONDS = 1  # after which a pass shows a progress bar
_RELOADABLE = "Pass a list, a loader that can be read again, or a function that returns a new iterator"


class DataSet:
    """The batches of a data set, which every pass reads from the beginning.

    Args:
        where: the name of the operator, for messages.
        source: an iterable, the result of `train.batches`, or a function that returns an iterator.
        progress: whether a pass of more than a second shows a progress bar.
    """

    def __init__(self, where: str, source: Any, *, progress: bool) -> None:
        is_single = isinstance(source, Mapping | str) or hasattr(source, "dtype")  # iterable, but over its own parts
        if is_single or not (isinstance(source, Iterable) or callable(source)):
            msg = (
                f"{where}: batches must be an iterable over batches, or a function that returns one; got a "
                f"{type(source).__name__}. Pass [batch] for a single batch"
            )
            raise FuncconvError(msg)
        self._where, self._source, self._progress = where, source, progress
        self._passes, self._expected = 0, (0, 0.0)  # the number of batches of a pass, and their weight
        self._structure: Any = None

    def read(self, step: Callable[[Tree, Any], tuple[Tree, Any]], total: Tree) -> tuple[Tree, float]:
        """Take one pass: `total, weight = step(total, batch)` for each batch. Return the total and the total weight."""
        weights: list[Any] = []
        bar = _Bar(f"{self._where}, pass {self._passes + 1}", self._count(), shown=self._progress)
        try:
            for batch in self._started():
                total, weight = step(total, self._arrays(batch, len(weights) + 1))
                weights.append(weight)
                # Waits for the batch before, so that the data are not read faster than they are used.
                weights[-2:-1] = [float(weight) for weight in weights[-2:-1]]
                bar.update(len(weights))
        finally:
            bar.close()
        return total, self._checked(list(map(float, weights)))

    def _started(self) -> Iterator[Any]:
        # The result of `train.batches` may have no end.
        begin = getattr(self._source, "first_epoch", None)
        if begin is None and not isinstance(self._source, Iterable):
            begin = self._source
        batches = self._source if begin is None else begin()
        if not isinstance(batches, Iterable):
            msg = f"{self._where}: the function batches() must return an iterator; got a {type(batches).__name__}"
            raise FuncconvError(msg)
        return iter(batches)

    def _count(self) -> int | None:
        return self._expected[0] or (len(self._source) if isinstance(self._source, Sized) else None)

    def _arrays(self, batch: Any, number: int) -> Tree:
        """Return the batch with JAX arrays, copied if they are not: a loader may use its memory again."""
        structure = jax.tree.structure(batch)
        if self._structure is None:
            self._structure = structure
        if structure != self._structure:
            msg = (
                f"{self._where}: batch {number} has the structure {structure}, but the first one has "
                f"{self._structure}. All batches must have the same structure"
            )
            raise FuncconvError(msg)
        for path, leaf in named(batch).items():
            if not is_array(leaf):
                msg = f"{self._where}: a batch must be a tree of arrays; batch {number} has {described(leaf)}{at(path)}"
                raise FuncconvError(msg)
        return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.array(leaf), batch)

    def _checked(self, weights: list[float]) -> float:
        """Return the total weight of a pass, which must be the same for all passes."""
        total, expected = math.fsum(weights), self._expected
        if not weights:
            what, advice = "there are no batches", "An iterator that was read before is empty. "
            if self._passes:
                what = f"pass {self._passes + 1} has no batches, but the first one had {expected[0]}"
                advice = "Each product reads the data again, and an iterator can be read only once. "
            msg = f"{self._where}: {what} in the {type(self._source).__name__}. {advice}{_RELOADABLE}"
            raise FuncconvError(msg)
        for number, weight in enumerate(weights, 1):
            if not 0 <= weight < math.inf:
                msg = (
                    f"{self._where}: the weight of batch {number} is {weight}. Weights must be finite and not negative"
                )
                raise FuncconvError(msg)
        if total == 0:
            msg = f"{self._where}: the weights of all {len(weights)} batches are 0, so there is no mean over them"
            raise FuncconvError(msg)
        if not self._passes:
            self._expected = expected = len(weights), total
        if len(weights) != expected[0] or not math.isclose(total, expected[1], rel_tol=1e-5):
            msg = (
                f"{self._where}: pass {self._passes + 1} read {len(weights)} batches of weight {total:.6g} in total, "
                f"but the first one read {expected[0]} with {expected[1]:.6g}. Every pass must read the same examples. "
                f"{_RELOADABLE}"
            )
            raise FuncconvError(msg)
        self._passes += 1
        return total


class _Bar:
    """A progress bar that appears after a second."""

    def __init__(self, name: str, count: int | None, *, shown: bool) -> None:
        self._name, self._count, self._bar, self._done = name, count, None, 0
        self._start = time.monotonic() if shown else math.inf

    def update(self, done: int) -> None:
        """Show how many batches are done."""
        if self._bar is None and time.monotonic() - self._start > _SECONDS:
            try:
                from tqdm import tqdm
            except ImportError:  # a product does not need it
                self._start = math.inf
                return
            interval = 0.5 if sys.stderr.isatty() else 30  # each update of a file is one more line
            self._bar = tqdm(total=self._count, desc=self._name, unit="batch", leave=False, mininterval=interval)
        if self._bar is not None:
            self._bar.update(done - self._done)
            self._done = done

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

"""A thread that takes batches from an iterator before they are needed."""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from ..._common.errors import FuncconvError
from .batches import Batches
from .source import has_state


@dataclass
class _Taken:
    """What a thread got from the iterator: a batch, or the error in its place."""

    batch: Any = None
    error: BaseException | None = None
    state: Any = None  # of the iterator after this batch


class Prefetched(Iterator[Any]):
    """Batches of another iterator, taken in a thread; `prefetch` makes one."""

    def __init__(self, batches: Any, count: int, sharding: Any) -> None:
        self._batches, self._count = batches, count
        self._put: Callable[[Any], Any] = jax.device_put
        if sharding is not None:
            self._put = partial(jax.make_array_from_process_local_data, sharding)
        self._iterator: Iterator[Any] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="funcconv-prefetch")
        self._ahead: deque[Future[_Taken]] = deque()
        self._over = threading.Event()  # no more batches are taken for those in `_ahead`
        self._last: _Taken | None = None  # the last that was returned, with the state of the iterator after it

    def __next__(self) -> Any:
        self._begin()
        taken = self._ahead[0].result()
        if taken.error is not None:
            self._ahead.clear()  # the thread takes none after the error; the next call begins anew
            raise taken.error
        self._place(taken)
        # The next ones are copied to the devices as soon as they are there, so that this overlaps with steps.
        for future in self._ahead:
            if future.done():
                with suppress(Exception):  # which is raised when that batch is due
                    self._place(future.result())
        self._last = _Taken(state=taken.state)
        self._ahead.popleft()
        return taken.batch

    def _begin(self) -> None:
        """Let the thread take so many batches that `_count` are ahead of the one that is returned next."""
        if not self._ahead:
            self._over = threading.Event()
            self._last = self._last or _Taken(state=self._state())  # before the thread changes it
        while len(self._ahead) <= self._count:
            self._ahead.append(self._thread.submit(self._take, self._over))

    def _take(self, over: threading.Event) -> _Taken:
        """Take the next batch; this runs in the thread."""
        if over.is_set():
            return _Taken(error=RuntimeError("an earlier batch had an error"))  # which is raised instead
        try:
            if self._iterator is None:
                self._iterator = iter(self._batches)
            batch = _map_arrays(np.array, next(self._iterator))  # copies, because the iterator may refill its arrays
            return _Taken(batch, state=self._state())
        except BaseException as error:
            over.set()
            return _Taken(error=error)

    def _place(self, taken: _Taken) -> None:
        if taken.error is None:
            taken.batch = _map_arrays(self._put, taken.batch)

    def _state(self) -> Any:
        """Return a copy of the state of the iterator, which it may go on to change; None if it has none."""
        return copy.deepcopy(self._batches.get_state()) if has_state(self._batches) else None


class PrefetchedWithState(Prefetched):
    """The same for an iterator with `get_state` and `set_state`."""

    def get_state(self) -> Any:
        """Return the state that the iterator had after the last batch that was returned."""
        return self._state() if self._last is None else copy.deepcopy(self._last.state)

    def set_state(self, state: Any) -> None:
        """Set the iterator to a state, and forget the batches that were taken ahead."""
        self._over.set()
        wait(self._ahead)
        self._ahead.clear()
        self._batches.set_state(copy.deepcopy(state))
        self._iterator, self._last = None, None


def _map_arrays(function: Callable[[np.ndarray], Any], batch: Any) -> Any:
    """Apply a function to the NumPy arrays of a batch."""
    return jax.tree.map(lambda leaf: function(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)


def prefetch(batches: Iterable[Any], count: int = 2, *, sharding: Any = None) -> Prefetched:
    """Take batches from an iterator in a thread, before they are needed, and copy them to the device.

    Use it for iterators that compute in Python, such as a generator or a loader without processes of its own. The
    thread prepares the next batches while the device computes, and during evaluations and checkpoints. `batches` and
    `images` prefetch by themselves.

    An error of the iterator is raised when its batch is due, after all batches before it. If the iterator has
    `get_state` and `set_state`, so has the result: a resumed run trains on the batches that were taken but not used. A
    result without them can be passed to a second `fit` in the same process, which uses these batches first.

    The iterator runs in another thread, so `with` blocks of JAX around your loop, such as `jax.default_device`, have
    no effect on it. Do not prefetch from an iterator whose batches depend on the training, such as a replay buffer: it
    would be asked too early.

    Args:
        batches: an iterator over batches. NumPy arrays are copied, so it may reuse its buffers; other leaves of a batch
            stay as they are.
        count: how many batches are taken before you ask for them. Default: 2.
        sharding: a `jax.sharding.Sharding` that spreads NumPy arrays over devices; each process passes its part of a
            batch. Default: the default device.

    Returns:
        An iterator over the same batches. `get_state()` returns the state that `batches` had after the batch that was
        returned last, and is called on `batches` after each batch.

    Raises:
        FuncconvError: if `batches` is not an iterator or is the result of `batches` or `images`, or if `count` is less
            than 1.

    Example:
        >>> import funcconv as fc, numpy as np
        >>> data = fc.train.prefetch(np.full(2, i) for i in range(3))
        >>> [batch.tolist() for batch in data]
        [[0, 0], [1, 1], [2, 2]]
    """
    if isinstance(batches, Batches):
        msg = f"prefetch: {type(batches).__name__} prefetches by itself. Pass prefetch={count} to the call that made it"
        raise FuncconvError(msg)
    if not (isinstance(batches, Iterator) or has_state(batches)):
        msg = f"prefetch: batches must be an iterator, such as iter(loader); got {type(batches).__name__}"
        raise FuncconvError(msg)
    if not isinstance(count, int) or count < 1:
        msg = f"prefetch: count must be an integer of at least 1; got {count!r}"
        raise FuncconvError(msg)
    return (PrefetchedWithState if has_state(batches) else Prefetched)(batches, count, sharding)

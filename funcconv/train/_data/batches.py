"""Batches of arrays in memory, in an order that depends only on a key and the epoch."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol, Self

import jax
import numpy as np

from ..._common.errors import FuncconvError
from ..._common.types import Array
from .arrays import Arrays


class Reading(Protocol):
    """Examples that are being read."""

    def is_ready(self) -> bool:
        """Whether `result` returns at once; False if it raises an error."""

    def result(self) -> Any:
        """Return a tree of NumPy arrays, `(examples, ...)`. Raises the error of the first example that has one."""


class Examples(Protocol):
    """The examples of a data set."""

    count: int

    def read(self, order: np.ndarray, part: slice) -> Reading:
        """Begin to read the examples with the numbers `order[part]`, where `order` is that of a whole epoch."""

    def options(self) -> dict[str, Any]:
        """Return the settings that the examples depend on, by names and in a form that JSON has."""


class Batches(Iterator[Any]):
    """An iterator over batches that can be set to any position; `batches` and `images` make one."""

    _op = "batches"  # for messages

    def __init__(
        self,
        examples: Examples,
        size: int,
        key: Array | None,
        *,
        epochs: int | None,
        drop_last: bool,
        shard: tuple[int, int] | None,
        sharding: Any,
        prefetch: int,
    ) -> None:
        count = examples.count
        if shard is None:
            shard = (0, 1) if sharding is None else (jax.process_index(), jax.process_count())
        index, parts = shard
        for name, value, is_valid, expected in (
            ("batch_size", size, size >= 1, "at least 1"),
            ("batch_size", size, size <= count or not drop_last, f"at most the {count} examples there are"),
            ("epochs", epochs, epochs is None or epochs >= 1, "at least 1"),
            ("shard", shard, 0 <= index < parts and size % parts == 0, "(i, n) with i below n, which cuts a batch"),
            ("prefetch", prefetch, prefetch >= 0, "at least 0"),
        ):
            if not is_valid:
                msg = f"{self._op}: {name} must be {expected}; got {value}"
                raise FuncconvError(msg)
        self._examples, self._count = examples, count
        self._size, self._epochs, self._shard = size, epochs, shard
        self._sharding, self._prefetch = sharding, prefetch
        full_batches, remaining = divmod(self._count, size)
        self.per_epoch = full_batches + bool(remaining and not drop_last)
        self._seed = None if key is None else np.asarray(jax.random.key_data(key)).ravel().tolist()
        # By number, so that an interrupt between two lines skips no batch.
        self._readings: dict[int, Reading] = {}
        self._ahead: dict[int, Any] = {}  # on the devices
        self._orders: dict[int, np.ndarray] = {}  # of the current epoch alone, to save memory
        self.position = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._count} examples, batches of {self._size}, next batch {self.position})"

    def __next__(self) -> Any:
        if not self._known(self.position):
            raise StopIteration
        self._read_ahead()
        batch = self._ahead.pop(self.position, None)
        if batch is None:
            batch = self._placed(self.position)
        self.position += 1
        return batch

    def seek(self, position: int) -> Self:
        """Go to a batch by its number from the beginning, and return self."""
        if position < 0:
            msg = f"{self._op}: a position must not be negative; got {position}. Pass the number of a batch, from 0"
            raise FuncconvError(msg)
        self.position = position
        self._readings.clear()
        self._ahead.clear()
        return self

    def common(self) -> dict[str, Any]:
        """Return the settings that must be equal in all processes that train together."""
        settings: dict[str, Any] = {
            "batch_size": self._size,
            "batches per epoch": self.per_epoch,
            "epochs": self._epochs,
        }
        if self._shard[1] > 1:  # each process takes its part of the same examples in the same order
            settings |= {"examples": self._count, "key": self._seed, "parts of a batch": self._shard[1]}
            settings |= self._examples.options()
        return settings

    def options(self) -> dict[str, Any]:
        """Return the settings of the batches, except for those that may differ between processes."""
        drops_last = self.per_epoch * self._size <= self._count
        # Checkpoints record these names and compare the values, so they must not change.
        return {
            "batch_size": self._size,
            "key": self._seed,
            "drop_last": drops_last,
            "parts of a batch": self._shard[1],
            **self._examples.options(),
        }

    def first_epoch(self) -> Iterator[Any]:
        """Return an iterator over the batches of the first epoch, in the memory of the host; no position changes.

        With a sharding these are whole batches, also in several processes, so that a last batch of any size is one.

        Raises:
            FuncconvError: if the last examples are left out.
        """
        left_out = self._count - self.per_epoch * self._size
        if left_out > 0:
            msg = (
                f"{self._op}: {left_out} of {self._count} examples would be left out, because they do not fill a batch "
                f"of {self._size}. Pass drop_last=False"
            )
            raise FuncconvError(msg)
        shard = self._shard if self._sharding is None else (0, 1)
        return (self._reading(number, shard).result() for number in range(self.per_epoch))

    def __getitem__(self, number: int) -> Any:
        """Return a batch by its number, in the memory of the host."""
        if not self._known(number):
            msg = (
                f"{self._op}: there is no batch {number}; there are {self.per_epoch} an epoch and {self._epochs} epochs"
            )
            raise IndexError(msg)
        return self._reading(number, self._shard).result()

    def _known(self, number: int) -> bool:
        return number >= 0 and (self._epochs is None or number < self._epochs * self.per_epoch)

    def _order(self, epoch: int) -> np.ndarray:
        if self._seed is None:
            return np.arange(self._count)
        if epoch not in self._orders:
            # A generator for each epoch, so that an order does not depend on those before it.
            self._orders = {epoch: np.random.default_rng([*self._seed, epoch]).permutation(self._count)}
        return self._orders[epoch]

    def _reading(self, number: int, shard: tuple[int, int]) -> Reading:
        """Begin to read one of several equal parts of a batch."""
        epoch, number_in_epoch = divmod(number, self.per_epoch)
        first = number_in_epoch * self._size
        last = min(first + self._size, self._count)
        index, parts = shard
        part = slice(first + index * (last - first) // parts, first + (index + 1) * (last - first) // parts)
        return self._examples.read(self._order(epoch), part)

    def _read_ahead(self) -> None:
        """Begin to read the next batches, and copy those that are ready to the devices."""
        self._readings = {number: reading for number, reading in self._readings.items() if number >= self.position}
        # One more than is placed, so that it is read while a step uses the batch that is returned now.
        for number in range(self.position, self.position + self._prefetch + 1):
            if self._known(number) and number not in self._readings and number not in self._ahead:
                self._readings[number] = self._reading(number, self._shard)
        for number in range(self.position, self.position + self._prefetch):
            if number in self._readings and self._readings[number].is_ready():
                self._ahead[number] = self._placed(number)

    def _placed(self, number: int) -> Any:
        """Return a batch on the devices. After an error it is read again."""
        reading = self._readings.pop(number, None)
        batch = (reading or self._reading(number, self._shard)).result()
        if self._sharding is None:
            return jax.tree.map(jax.device_put, batch)
        put = partial(jax.make_array_from_process_local_data, self._sharding)
        return jax.tree.map(put, batch)


def batches(
    arrays: Any,
    batch_size: int,
    key: Array | None = None,
    *,
    epochs: int | None = None,
    drop_last: bool = True,
    shard: tuple[int, int] | None = None,
    sharding: Any = None,
    prefetch: int = 2,
    copy: bool = True,
) -> Batches:
    """Make an iterator over batches of arrays, which are shuffled anew in every epoch.

    The order of an epoch depends only on the key and the number of the epoch. So any batch can be found again:
    `batches(...).seek(n)` continues as if `n` batches had been taken.

    Args:
        arrays: a tree of arrays of the same length, `(examples, ...)`. JAX arrays and read-only NumPy arrays, such as
            `numpy.load(path, mmap_mode="r")`, are used without a copy; others are copied unless `copy` is False.
        batch_size: the number of examples in a batch.
        key: the random key of the order. Default: the order of the arrays.
        epochs: how many times to go through all examples. Default: without end.
        drop_last: whether to leave out the last examples of an epoch if they do not fill a batch. False returns them as
            a smaller batch. Default: True.
        shard: `(i, n)` returns only the i-th of n equal parts of each batch, which is what the i-th of n processes
            needs. Default: `(jax.process_index(), jax.process_count())` with a `sharding`; otherwise the whole batch.
        sharding: a `jax.sharding.Sharding` that spreads the whole batch over devices. Default: the default device.
        prefetch: how many batches are copied to the device before you ask for them. Default: 2.
        copy: whether to copy NumPy arrays that can be written to, so that later changes have no effect on the batches.
            False saves memory; then do not change the arrays while you use the iterator. Default: True.

    Returns:
        An iterator with these attributes: `position` (the number of batches taken), `seek(position)`, `per_epoch` (the
        number of batches in an epoch), `[number]`, which returns a batch in the memory of the host, and
        `first_epoch()`, which iterates over the batches of an epoch as `evaluate` does.

    Raises:
        FuncconvError: if the arrays differ in length or have fewer examples than a batch, or an option is out of range.

    Example:
        >>> import funcconv as fc, jax, numpy as np
        >>> data = fc.train.batches({"x": np.arange(10)}, 4, jax.random.key(0))
        >>> first, second = next(data), next(data)
        >>> data.per_epoch, len({*first["x"].tolist(), *second["x"].tolist()})
        (2, 8)
        >>> bool((next(data.seek(1))["x"] == second["x"]).all())
        True
    """
    lengths = {np.shape(array)[:1] for array in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or not min(lengths):
        shapes = ", ".join(str(np.shape(array)) for array in jax.tree.leaves(arrays))
        msg = (
            f"batches: the arrays must have one length, (examples, ...); their shapes are {shapes or 'none'}. "
            "Cut the longer ones"
        )
        raise FuncconvError(msg)
    return Batches(
        Arrays(arrays, copy=copy),
        batch_size,
        key,
        epochs=epochs,
        drop_last=drop_last,
        shard=shard,
        sharding=sharding,
        prefetch=prefetch,
    )

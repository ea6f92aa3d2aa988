"""A log in the format of TensorBoard."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..._common.optional_packages import needs
from ..._common.types import Number
from .values import Value


class TensorBoard:
    """A log for `fit` that writes TensorBoard's event files: one curve for each metric, over the steps.

    An array gets one curve for each of its numbers, under names such as `"loss/0"` or `"confusion/0/1"`.

    A resumed run writes another event file. TensorBoard shows its records in place of those that the first file has
    for the same steps.

    Args:
        folder: the folder for the event files; it is created if it is missing.

    Raises:
        FuncconvError: if tensorboardX is not installed.

    Example:
        >>> import funcconv as fc, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = fc.train.TensorBoard(folder)  # fit(..., log=log), or log=["run.jsonl", log]
        ...     log({"step": 1, "loss": 0.5})
        ...     log.close()
        ...     os.listdir(folder)[0][:19]
        'events.out.tfevents'
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        with needs("tensorboard", "a log for TensorBoard"):
            from tensorboardX import SummaryWriter
        self._open, self._folder = SummaryWriter, folder
        self._writer: Any = None

    def __call__(self, record: Mapping[str, Value]) -> None:
        """Write a record."""
        step: Any = record["step"]
        if self._writer is None:
            # Opened at the first record, because a resumed run replaces what earlier files have from its step on.
            self._writer = self._open(os.fspath(self._folder), purge_step=step)
        for name, value in record.items():
            if name != "step":
                for path, number in _numbers(name, value):
                    self._writer.add_scalar(path, number, step)

    def close(self) -> None:
        """Write all records to the disk. A later record opens another file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _numbers(name: str, value: Value) -> Iterator[tuple[str, Number]]:
    """Return the numbers of an array with a name for each, or a number with its own name."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from _numbers(f"{name}/{i}", item)
    else:
        yield name, value

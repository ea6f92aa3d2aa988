"""The logs of a run: files and functions that get each record."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from ..._common.errors import FuncconvError
from ..._common.paths import checked_path
from .log_file import Beginning, LogFile
from .values import Value

Log: TypeAlias = str | os.PathLike[str] | Callable[[dict[str, Value]], object]
Logs: TypeAlias = Log | Sequence[Log]


def listed(log: Any) -> list[Any]:
    """Return the logs that a user passed to `fit`, as a list.

    Args:
        log: a path, a function of a record, a list of these, or None.

    Raises:
        FuncconvError: if a log has another type, or two are the same file.
    """
    logs = [] if log is None else [*log] if isinstance(log, list | tuple) else [log]
    paths = set()
    for item in logs:
        if isinstance(item, str | os.PathLike):
            # Two names of one file would write each record twice.
            path = os.path.realpath(checked_path("train: log", item, wants="file"))
            if path in paths:
                msg = f"train: log names one file twice: {item}. Name it once"
                raise FuncconvError(msg)
            paths.add(path)
        elif not callable(item):
            msg = f"train: log must be the path of a file, a function of a record, or a list of those; got {item!r}"
            raise FuncconvError(msg)
    return logs


class Reports:
    """Passes the records of a run to its logs, each record once to each log.

    Args:
        logs: paths and functions.
        records: the records of the run, in order, a list that grows. Earlier records in the first file are added to it.
        beginning: the point at which the run begins or is resumed.

    Raises:
        FuncconvError: if a file cannot be written or is not a regular file.
    """

    def __init__(self, logs: list[Any], records: list[dict[str, Value]], beginning: Beginning) -> None:
        self._logs: list[Any] = []
        self._records = records
        try:
            for log in logs:
                self._logs.append(LogFile(log, beginning) if isinstance(log, str | os.PathLike) else log)
        except BaseException:
            self.close()
            raise
        records += next((log.kept for log in self._logs if isinstance(log, LogFile)), [])
        self._passed = [len(records)] * len(self._logs)  # how many records each log has

    def report(self, *, after_error: bool = False) -> None:
        """Pass the new records to the logs.

        Args:
            after_error: whether the run ends with an error. Then a function that failed is called once more with the
                same record, and an error that it raises is ignored. An error of a file is raised.
        """
        for i, log in enumerate(self._logs):
            while self._passed[i] < len(self._records):
                try:
                    log(dict(self._records[self._passed[i]]))  # a copy, because a function may change it
                except (Exception, SystemExit, GeneratorExit):  # but a KeyboardInterrupt ends the run at once
                    if not after_error or isinstance(log, LogFile):
                        raise
                self._passed[i] += 1

    def flush(self) -> None:
        """Wait until the records are on the disk."""
        for log in self._logs:
            if isinstance(log, LogFile):
                log.flush()

    def close(self) -> None:
        """Close all logs that have a method `close`, even if one of them fails."""
        with ExitStack() as closing:
            for log in reversed(self._logs):  # ExitStack calls the last one first
                if hasattr(log, "close"):
                    closing.callback(log.close)

"""Where a run reports its records to: files and functions."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeAlias

from ..._common.errors import FuncconvError
from ..._common.paths import checked_path
from ..._common.types import Number
from .log_file import Beginning, LogFile

Log: TypeAlias = str | os.PathLike[str] | Callable[[dict[str, Number]], object]
Logs: TypeAlias = Log | Sequence[Log]


def listed(log: Any) -> list[Any]:
    """Return the logs that a user gave to `fit`.

    Args:
        log: a path, a function of a record, a list of those, or None.

    Raises:
        FuncconvError: if one is something else, or two are one file.
    """
    logs = [] if log is None else [*log] if isinstance(log, list | tuple) else [log]
    places = set()
    for each in logs:
        if isinstance(each, str | os.PathLike):
            place = os.path.realpath(checked_path("train: log", each, wants="file"))
            if place in places:
                msg = f"train: log names one file twice: {each}"
                raise FuncconvError(msg)
            places.add(place)
        elif not callable(each):
            msg = f"train: log must be the path of a file, a function of a record, or a list of those; got {each!r}"
            raise FuncconvError(msg)
    return logs


class Reports:
    """Passes the records of a run on to its logs, each record once to each log.

    Args:
        logs: paths and functions.
        records: those of the run, in order; it grows. The records that the first file has from before are put into it.
        beginning: where the run begins or goes on.

    Raises:
        FuncconvError: if a file cannot be written or is something else.
    """

    def __init__(self, logs: list[Any], records: list[dict[str, Number]], beginning: Beginning) -> None:
        self._logs: list[Any] = []
        self._records = records
        try:
            for each in logs:
                self._logs.append(LogFile(each, beginning) if isinstance(each, str | os.PathLike) else each)
        except BaseException:
            self.close()
            raise
        records += next((each.kept for each in self._logs if isinstance(each, LogFile)), [])
        self._passed = [len(records)] * len(self._logs)  # how many records each has

    def report(self, *, after_error: bool = False) -> None:
        """Pass on the records that are new.

        Args:
            after_error: whether the run ends with an error. Then each record is passed on once more to a function that
                failed, and what it raises is ignored. An error of a file is raised.
        """
        for i, log in enumerate(self._logs):
            while self._passed[i] < len(self._records):
                try:
                    log(dict(self._records[self._passed[i]]))
                except (Exception, SystemExit, GeneratorExit):
                    if not after_error or isinstance(log, LogFile):
                        raise
                self._passed[i] += 1

    def flush(self) -> None:
        """Wait until the records are on the disk."""
        for log in self._logs:
            if isinstance(log, LogFile):
                log.flush()

    def close(self) -> None:
        """Close all logs that can be closed, also if one of them fails."""
        with ExitStack() as closing:
            for log in reversed(self._logs):
                if hasattr(log, "close"):
                    closing.callback(log.close)

"""A log file with one line of JSON for each record of a run. Nothing is lost or written twice."""

import io
import json
import os
import re
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ..._common.errors import FuncconvError
from ..._common.files import sync, write_file
from .values import Value, from_json, to_json

_RECORD_START = b'{"step": '  # of every line that this file writes
_MAX_LINE_NUMBERS = 5  # in a warning


@dataclass(frozen=True)
class Beginning:
    """The point at which a run begins or is resumed. Earlier records stay in a log; later ones are reported again.

    Args:
        step: the number of steps that were taken.
        evaluated: whether the evaluation after this step was made.
        folder: the folder of checkpoints, or None. A file in it stores at which byte of each log this run begins, so
            that records of other runs in the same file are not changed.
    """

    step: int
    evaluated: bool
    folder: Path | None

    def keeps(self, record: dict[str, Any]) -> bool:
        """Whether a record stays in the log."""
        if record["step"] == self.step and not self.evaluated:
            return not any(name.startswith("eval/") for name in record)
        return bool(record["step"] <= self.step)

    def byte(self, log: Path) -> int | None:
        """Return the byte of a log at which this run begins; None if this run has not written to it."""
        byte = self._bytes().get(self._name(log))
        return byte if isinstance(byte, int) and byte >= 0 else None

    def set_byte(self, log: Path, byte: int) -> None:
        """Store the byte of a log at which this run begins."""
        if self.folder is not None:
            write_file("train", self._file(self.folder), json.dumps(self._bytes() | {self._name(log): byte}).encode())

    def _bytes(self) -> dict[str, Any]:
        if self.folder is not None:
            with suppress(OSError, ValueError):  # it is missing or damaged
                content = json.loads(self._file(self.folder).read_bytes())
                return content if isinstance(content, dict) else {}
        return {}

    def _file(self, folder: Path) -> Path:
        return folder / f"logs-{jax.process_index()}.json"

    def _name(self, log: Path) -> str:
        """Return the path as seen from the folder, since both may be moved together."""
        path = os.path.realpath(log)
        with suppress(ValueError):  # they are on two drives of Windows
            path = os.path.relpath(path, os.path.realpath(self.folder or ""))
        return path


class LogFile:
    """A file that gets one line of JSON for each record.

    An existing file is appended to, with a warning if it has no records. Only records of this run after `beginning`
    are cut from it.

    Args:
        path: the path of the file; missing folders are created.
        beginning: the point at which the run begins or is resumed.

    Raises:
        FuncconvError: if the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], beginning: Beginning) -> None:
        self.path = Path(path)
        self.kept: list[dict[str, Value]] = []
        self._last = (0, b"")  # the byte at which the last line begins, and the line
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._regular = not self.path.exists() or self.path.is_file()
            if self._regular:
                self._prepare(beginning)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def __call__(self, record: dict[str, Value]) -> None:
        """Add a record. It is added once, even if an interrupt or an error ended an earlier call with it."""
        line = _line(record)
        try:
            begin, last_line = self._last
            if line != last_line:
                self._last = os.fstat(self._file.fileno()).st_size, line
            elif self._regular:
                with self.path.open("rb") as file:
                    file.seek(begin)
                    written = file.read()
                if written == line:
                    return
                if written and line.startswith(written):
                    self._file.truncate(begin)
            _write(self._file, line)
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Wait until all records are on the disk."""
        if self._regular:
            sync(self.path)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _prepare(self, beginning: Beginning) -> None:
        data = self.path.read_bytes() if self.path.exists() else b""
        byte = beginning.byte(self.path)
        if byte is not None:
            self._cut(data, min(byte, len(data)), beginning)
            return
        if data.strip() and not any(_record(line) for line in io.BytesIO(data)):
            msg = (
                f"the log {self.path} exists and none of its lines is a record of a run. They stay in the file, and "
                "records are added after them. Pass the path of a new file if you did not mean this one."
            )
            warnings.warn(msg, stacklevel=6)
        if data and not data.endswith(b"\n"):
            data += b"\n"
            self._append(b"\n")
        beginning.set_byte(self.path, len(data))

    def _cut(self, data: bytes, byte: int, beginning: Beginning) -> None:
        """Read the records of this run, which begin at a byte, and cut those that will be reported again."""
        lines_left, unreadable = [], []
        for number, line in enumerate(io.BytesIO(data[byte:]), data.count(b"\n", 0, byte) + 1):
            record = _record(line)
            if record is not None and beginning.keeps(record):
                self.kept.append(record)
            elif record is not None or _is_torn(line, beginning):
                continue
            else:
                unreadable.append(number)
            lines_left.append(line)
        rest_of_run = b"".join(lines_left)
        if rest_of_run and not rest_of_run.endswith(b"\n"):
            rest_of_run += b"\n"
        new_data = data[:byte] + rest_of_run
        if data != new_data and data.startswith(new_data):
            os.truncate(self.path, len(new_data))
        elif data + b"\n" == new_data:
            self._append(b"\n")
        elif data != new_data:
            write_file("train: log", self.path, new_data)
        if unreadable:
            numbers = ", ".join(map(str, unreadable[:_MAX_LINE_NUMBERS])) + (
                ", ..." if len(unreadable) > _MAX_LINE_NUMBERS else ""
            )
            msg = (
                f"the log {self.path} has lines that are no records, {len(unreadable)} in all: line {numbers}. They "
                "stay in the file and are left out of the history."
            )
            warnings.warn(msg, stacklevel=7)

    def _append(self, data: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            _write(file, data)

    def _failure(self, error: OSError) -> FuncconvError:
        return FuncconvError(
            f"train: the log {self.path} cannot be read or written: {error}. Pass the path of another file"
        )


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # a disk that is almost full may write only a part
        data = data[file.write(data) :]


def _line(record: dict[str, Value]) -> bytes:
    written = {name: to_json(value) for name, value in record.items()}
    return (json.dumps(written) + "\n").encode()


def _record(line: bytes) -> dict[str, Value] | None:
    """Return the record of a line; None if the line is not a record."""
    try:
        content = json.loads(line.decode())
        if not isinstance(content, dict) or type(content.get("step")) is not int or content["step"] < 0:
            return None
        return {name: from_json(value) for name, value in content.items()}
    except (ValueError, RecursionError):
        return None


def _is_torn(line: bytes, beginning: Beginning) -> bool:
    """Whether a line is the first part of a record that will be reported again: the process ended in between."""
    if line.endswith(b"\n") or not (line.startswith(_RECORD_START) or _RECORD_START.startswith(line)):
        return False
    number = re.match(rb"(\d{1,18}),", line[len(_RECORD_START) :])
    return number is None or int(number[1]) >= beginning.step + beginning.evaluated

"""A file of JSON lines, one for each record of a run, in which nothing is lost."""

import io
import json
import math
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
from ..._common.types import Number

_NOT_FINITE = ("nan", "inf", "-inf")  # as strings, since JSON has no numbers for them
_FIRST = b'{"step": '  # how each line begins that is written here
_SHOWN = 5  # numbers of lines in a warning


@dataclass(frozen=True)
class Beginning:
    """Where a run begins or goes on, and so which of its records stay in a log. Later ones are reported again.

    Args:
        step: after which step.
        evaluated: whether the evaluation after this step was made.
        folder: of the checkpoints, or None. A file in it says at which byte of each log this run begins, so that the
            records of other runs are left alone.
    """

    step: int
    evaluated: bool
    folder: Path | None

    def keeps(self, record: dict[str, Number]) -> bool:
        """Whether a record stays."""
        if record["step"] == self.step and not self.evaluated:
            return not any(name.startswith("eval/") for name in record)
        return record["step"] <= self.step

    def byte(self, log: Path) -> int | None:
        """Return at which byte of a log this run begins; None if it was not written to by this run."""
        found = self._bytes().get(self._name(log))
        return found if isinstance(found, int) and found >= 0 else None

    def set_byte(self, log: Path, byte: int) -> None:
        """Write down at which byte of a log this run begins."""
        if self.folder is not None:
            write_file("train", self._file(self.folder), json.dumps(self._bytes() | {self._name(log): byte}).encode())

    def _bytes(self) -> dict[str, Any]:
        if self.folder is not None:
            with suppress(OSError, ValueError):  # it is missing or damaged
                found = json.loads(self._file(self.folder).read_bytes())
                return found if isinstance(found, dict) else {}
        return {}

    def _file(self, folder: Path) -> Path:
        return folder / f"logs-{jax.process_index()}.json"

    def _name(self, log: Path) -> str:
        """Return the path as seen from the folder, since both may be moved together."""
        place = os.path.realpath(log)
        with suppress(ValueError):  # they are on two drives of Windows
            place = os.path.relpath(place, os.path.realpath(self.folder or ""))
        return place


class LogFile:
    """A file that gets one JSON line for each record.

    A file that exists is appended to, with a warning if it is no log. Of what it has, only records of this run that
    come after `beginning` are cut.

    Args:
        path: of the file; its folders are made if they are missing.
        beginning: where the run begins or goes on.

    Raises:
        FuncconvError: if the file cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike[str], beginning: Beginning) -> None:
        self.path = Path(path)
        self.kept: list[dict[str, Number]] = []
        self._last = (0, b"")  # at which byte the last line begins, and the line
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._regular = not self.path.exists() or self.path.is_file()
            if self._regular:
                self._prepare(beginning)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def __call__(self, record: dict[str, Number]) -> None:
        """Add a record. It is added once, also if an interrupt or an error ended an earlier call with it."""
        line = _line(record)
        try:
            begun, last = self._last
            if line != last:
                self._last = os.fstat(self._file.fileno()).st_size, line
            elif self._regular:
                with self.path.open("rb") as file:
                    file.seek(begun)
                    written = file.read()
                if written == line:
                    return
                if written and line.startswith(written):
                    self._file.truncate(begun)
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
            warnings.warn(
                f"the log {self.path} exists and none of its lines is a record of a run. They stay in the file, and "
                "records are added after them. Pass the path of a new file if you did not mean this one.", stacklevel=6,
            )  # fmt: skip
        if data and not data.endswith(b"\n"):
            data += b"\n"
            self._append(b"\n")
        beginning.set_byte(self.path, len(data))

    def _cut(self, data: bytes, byte: int, beginning: Beginning) -> None:
        """Read the records of this run, which begin at a byte, and cut those that are reported again."""
        left, unreadable = [], []
        for number, line in enumerate(io.BytesIO(data[byte:]), data.count(b"\n", 0, byte) + 1):
            record = _record(line)
            if record is not None and beginning.keeps(record):
                self.kept.append(record)
            elif record is not None or _is_torn(line, beginning):
                continue
            else:
                unreadable.append(number)
            left.append(line)
        rest = b"".join(left)
        if rest and not rest.endswith(b"\n"):
            rest += b"\n"
        kept = data[:byte] + rest
        if data != kept and data.startswith(kept):
            os.truncate(self.path, len(kept))
        elif data + b"\n" == kept:
            self._append(b"\n")
        elif data != kept:
            write_file("train: log", self.path, kept)
        if unreadable:
            numbers = ", ".join(map(str, unreadable[:_SHOWN])) + (", ..." if len(unreadable) > _SHOWN else "")
            warnings.warn(
                f"the log {self.path} has lines that are no records, {len(unreadable)} in all: line {numbers}. They "
                "stay in the file and are left out of the history.", stacklevel=6,
            )  # fmt: skip

    def _append(self, data: bytes) -> None:
        with self.path.open("ab", buffering=0) as file:
            _write(file, data)

    def _failure(self, error: OSError) -> FuncconvError:
        return FuncconvError(f"train: the log {self.path} cannot be read or written: {error}")


def _write(file: io.FileIO, data: bytes) -> None:
    while data:  # a disk that is almost full takes a part
        data = data[file.write(data) :]


def _line(record: dict[str, Number]) -> bytes:
    written = {name: value if math.isfinite(value) else str(value) for name, value in record.items()}
    return (json.dumps(written) + "\n").encode()


def _record(line: bytes) -> dict[str, Number] | None:
    """Return the record of a line; None if it has none."""
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 0:
        return None
    record = {name: float(value) if value in _NOT_FINITE else value for name, value in found.items()}
    return record if all(type(value) in (int, float) for value in record.values()) else None


def _is_torn(line: bytes, beginning: Beginning) -> bool:
    """Whether a line is the first part of a record that is reported again: the process ended while it was written."""
    if line.endswith(b"\n") or not (line.startswith(_FIRST) or _FIRST.startswith(line)):
        return False
    number = re.match(rb"(\d{1,18}),", line[len(_FIRST) :])
    return number is None or int(number[1]) >= beginning.step + beginning.evaluated

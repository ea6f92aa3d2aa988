"""What a run reported, step by step, in memory and as JSON lines."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._errors import FuncconvError
from .._typing import Number


@dataclass
class History:
    """The metrics of a run, one record for each step and each evaluation, in order.

    A record is a dict of numbers with `"step"`; those of evaluations have names that begin with `"eval/"`.

    Example:
        >>> import funcconv as fc
        >>> history = fc.train.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        >>> history["loss"], history.steps("loss")
        ([0.5, 0.25], [1, 2])
    """

    records: list[dict[str, Number]] = field(default_factory=list)
    stopped: str = ""  # why the run ended before the last of its steps, if it did
    compilations: int = 0

    def __getitem__(self, name: str) -> list[Number]:
        return [record[name] for record in self.records if name in record]

    def __iter__(self) -> Iterator[dict[str, Number]]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in order of first report."""
        return tuple(dict.fromkeys(name for record in self.records for name in record if name != "step"))

    def steps(self, name: str) -> list[int]:
        """Return the steps at which a metric was reported."""
        return [int(record["step"]) for record in self.records if name in record]


class Lines:
    """A file of JSON lines, one for each record; what a killed run left after its last checkpoint is cut off."""

    def __init__(self, path: str | os.PathLike[str], last: int) -> None:
        self.path = Path(path)
        kept = [record for record in read(self.path) if record["step"] <= last] if self.path.is_file() and last else []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_name(self.path.name + ".part")
            part.write_text("".join(_line(record) for record in kept))
            part.replace(self.path)
            self._file = self.path.open("a", buffering=1)
        except OSError as error:
            msg = f"train: the log {self.path} cannot be written: {error}"
            raise FuncconvError(msg) from error
        self.kept = kept

    def __call__(self, record: dict[str, Number]) -> None:
        """Add a record."""
        try:
            self._file.write(_line(record))
        except OSError as error:
            msg = f"train: the log {self.path} cannot be written: {error}"
            raise FuncconvError(msg) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: str | os.PathLike[str]) -> list[dict[str, Number]]:
    """Return the records of a file of JSON lines, up to the first that is not whole."""
    found = []
    for line in Path(path).read_text().splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or "step" not in record:
            break
        found.append({name: _number(value) for name, value in record.items()})
    return found


def _line(record: dict[str, Number]) -> str:
    return json.dumps({name: value if math.isfinite(value) else str(value) for name, value in record.items()}) + "\n"


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value  # "nan" and "inf", which JSON lacks

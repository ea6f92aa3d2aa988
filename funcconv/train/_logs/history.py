"""The metrics that a run reported."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ..._common.errors import suggest
from .values import Value, short

_MAX_LETTERS = 200  # of the metrics, and of `stopped`, in a printed history


class Best(NamedTuple):
    """The best evaluation of a run: the step after which it was made, and the value of the monitored metric."""

    step: int
    value: float


@dataclass(repr=False)
class History(Mapping[str, list[Value]]):
    """The metrics of a run: a mapping from the name of each metric to its values, in order.

    A value is a number. The value of a metric that is an array is a list of numbers, or a list of lists.

    Metrics of evaluations have names that begin with `"eval/"`. A name that was never reported raises `KeyError`.

    Attributes:
        records: a dict of numbers and lists of numbers with `"step"` for each step and each evaluation.
        stopped: why the run ended before its last step; an empty text if it did not.
        compilations: how often the step was compiled.
        best: the best evaluation if `fit` had a `monitor`, a named tuple `(step, value)`; of the whole run, including
            earlier calls. None if there was no evaluation, or all values were NaN.

    Example:
        >>> import funcconv as fc
        >>> history = fc.train.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        >>> history
        History(2 records, steps 1 to 2: loss=0.25)
        >>> history["loss"], history.steps("loss")
        ([0.5, 0.25], [1, 2])
        >>> dict(history), "los" in history
        ({'loss': [0.5, 0.25]}, False)
    """

    records: list[dict[str, Value]] = field(default_factory=list)
    stopped: str = ""
    compilations: int = 0
    best: Best | None = None

    def __getitem__(self, name: str) -> list[Value]:
        return [record[name] for record in self._with(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        count, steps = len(self.records), ""
        if count and all("step" in self.records[i] for i in (0, -1)):
            steps = f", steps {self.records[0]['step']} to {self.records[-1]['step']}"
        latest = {name: value for record in self.records for name, value in record.items() if name != "step"}
        metrics = _shortened(", ".join(f"{name}={_number(value)}" for name, value in latest.items())) or "no metrics"
        best = f", best={_number(self.best.value)} at step {self.best.step}" if self.best else ""
        stopped = f", stopped={_shortened(repr(self.stopped))}" if self.stopped else ""
        return f"History({count} records{steps}: {metrics}{best}{stopped})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in order of first report."""
        return tuple(dict.fromkeys(name for record in self.records for name in record if name != "step"))

    def steps(self, name: str) -> list[int]:
        """Return the steps at which a metric was reported.

        Args:
            name: the name of the metric, one of `names`.

        Returns:
            A list of integers, one for each value of `history[name]`.

        Raises:
            KeyError: if the metric was never reported.
        """
        return [int(record["step"]) for record in self._with(name)]  # type: ignore[arg-type]  # never a list

    def _with(self, name: str) -> list[dict[str, Value]]:
        """Return the records that have a metric."""
        records = [record for record in self.records if name in record] if name != "step" else []
        if not records:
            hint = "; history.steps(name) has the steps of a metric" if name == "step" else suggest(name, self.names)
            msg = f"the run reported no {name!r}{hint}"
            raise KeyError(msg)
        return records


def _number(value: Value) -> str:
    try:
        return short(value)
    except (TypeError, ValueError, OverflowError):  # a record of the user's own, or an integer beyond float64
        return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]}..."

"""What a run reported, step by step."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..._common.errors import suggest
from ..._common.types import Number

_LONGEST = 200  # letters of the names, and of `stopped`, that a printed history shows


@dataclass(repr=False)
class History(Mapping[str, list[Number]]):
    """The metrics of a run: a mapping from the name of each to its values, in order.

    It is made of `records`: a dict of numbers with `"step"` for each step and each evaluation. Metrics of evaluations
    have names that begin with `"eval/"`. A name that was never reported raises `KeyError`.

    Example:
        >>> import funcconv as fc
        >>> history = fc.train.History([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
        >>> history["loss"], history.steps("loss")
        ([0.5, 0.25], [1, 2])
        >>> dict(history), "los" in history
        ({'loss': [0.5, 0.25]}, False)
    """

    records: list[dict[str, Number]] = field(default_factory=list)
    stopped: str = ""  # why the run ended before the last of its steps, if it did
    compilations: int = 0

    def __getitem__(self, name: str) -> list[Number]:
        return [record[name] for record in self._with(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        count, at = len(self.records), ""
        if count and all("step" in self.records[i] for i in (0, -1)):
            at = f", steps {self.records[0]['step']} to {self.records[-1]['step']}"
        stopped = f", stopped={_shortened(repr(self.stopped))}" if self.stopped else ""
        return f"History({count} records{at}: {_shortened(', '.join(self.names)) or 'no metrics'}{stopped})"

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, in order of first report."""
        return tuple(dict.fromkeys(name for record in self.records for name in record if name != "step"))

    def steps(self, name: str) -> list[int]:
        """Return the steps at which a metric was reported."""
        return [int(record["step"]) for record in self._with(name)]

    def _with(self, name: str) -> list[dict[str, Number]]:
        """Return the records that have a metric."""
        found = [record for record in self.records if name in record] if name != "step" else []
        if not found:
            hint = "; history.steps(name) has the steps of a metric" if name == "step" else suggest(name, self.names)
            msg = f"the run reported no {name!r}{hint}"
            raise KeyError(msg)
        return found


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."

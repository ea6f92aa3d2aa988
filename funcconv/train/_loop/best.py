"""The best evaluation of a run, and the state that it evaluated."""

import math
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from ..._checkpoints.folder import Checkpoints
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Number
from .._logs.history import Best
from .._logs.values import Value
from .._state import State
from .._step.memory import copied

Mode: TypeAlias = Literal["min", "max"]
LAST_WITH_BEST = 3  # how many of the last checkpoints `keep="best"` keeps
_PREFIX = "eval/"  # of metrics of evaluations, in records


@dataclass(frozen=True)
class Monitor:
    """The metric of `evaluate` that says which evaluation is the best.

    Args:
        given: the name as the user wrote it, with or without `"eval/"`.
        mode: whether the smallest or the largest value is the best. NaN never is.
    """

    given: str
    mode: Mode

    @property
    def name(self) -> str:
        """The name without `"eval/"`."""
        return self.given.removeprefix(_PREFIX)

    @property
    def text(self) -> str:
        """A text that differs if the best values of two monitors cannot be compared."""
        return self.name if self.mode == "min" else f"{self.name} ({self.mode})"

    def value(self, evaluated: Mapping[str, Value]) -> float:
        """Return the value of the metric.

        Raises:
            FuncconvError: if `evaluate` did not return it, or returned two metrics that the name may mean.
        """
        found = self._found(evaluated)
        if len(found) == 1:
            value = evaluated[found[0]]
            if isinstance(value, list):
                msg = (
                    f"train: monitor must be the name of one number; {found[0]!r} has shape {np.shape(value)}. Let "
                    "evaluate also return its mean, and monitor that"
                )
                raise FuncconvError(msg)
            return float(value)
        if found:
            msg = f"train: monitor is {self.given!r}, but evaluate gave {' and '.join(map(repr, found))}. Rename one"
            raise FuncconvError(msg)
        msg = f"train: monitor is {self.given!r}, but evaluate gave {', '.join(evaluated) or 'nothing'}"
        raise FuncconvError(msg + (suggest(self.name, evaluated) if evaluated else ""))

    def score(self, metrics: Mapping[str, Number]) -> float | None:
        """Return a number for the metrics of a checkpoint. The smallest is the best; None if they lack this metric."""
        found = self._found(metrics)
        if not found:
            return None
        value = float(metrics[found[0]])
        return value if self.mode == "min" else -value

    def is_better(self, value: float, best: Best | None) -> bool:
        """Whether a value is better than the best one before. Of two equal values, the earlier is better."""
        if best is None:
            return not math.isnan(value)
        return value < best.value if self.mode == "min" else value > best.value

    def check_step(self, names: Collection[str]) -> None:
        """Raise an error if the name may mean a metric of training steps.

        Args:
            names: the metrics of a training step.
        """
        if self.given in names:
            msg = (
                f"train: monitor is {self.given!r}, which each training step reports for its own batch. Only a metric "
                f"of evaluate can be monitored: pass monitor={_PREFIX + self.given!r}, and return {self.given!r} from "
                "evaluate"
            )
            raise FuncconvError(msg)

    def _found(self, metrics: Mapping[str, Value]) -> list[str]:
        return [name for name in dict.fromkeys((self.given, self.name)) if name in metrics]


@dataclass(frozen=True)
class Standing:
    """What the evaluations of a run have shown so far.

    Attributes:
        best: the best evaluation, or None.
        waited: how many evaluations since then were not better.
        state: a copy of the state of the best evaluation, if no folder has it.
    """

    best: Best | None = None
    waited: int = 0
    state: State | None = None

    def after(self, evaluation: Best, monitor: Monitor, state: State, *, copy: bool) -> "Standing":
        """Return the standing after one more evaluation.

        Args:
            evaluation: its step and value.
            monitor: decides whether it is better.
            state: the state that was evaluated.
            copy: whether to copy the state if it is the best one.
        """
        if not monitor.is_better(evaluation.value, self.best):
            return Standing(self.best, self.waited + 1, self.state)
        return Standing(evaluation, 0, copied(state) if copy else None)

    def record(self) -> dict[str, Any]:
        """Return the entries of a checkpoint, from which `recorded` returns this standing without the state."""
        if self.best is None:
            return {"best": None, "best_at": None, "waited": self.waited}
        # The value is a text, because JSON has no infinity.
        return {"best": repr(self.best.value), "best_at": self.best.step, "waited": self.waited}


def recorded(saved: Mapping[str, Any], monitor: Monitor | None) -> Standing:
    """Return the standing that a checkpoint recorded.

    It is empty if the run had another monitor, or if the checkpoint does not have the step of the best evaluation.
    """
    if monitor is None or saved.get("monitor") != monitor.text or "best_at" not in saved:
        return Standing()
    best = None if saved["best_at"] is None else Best(int(saved["best_at"]), float(saved["best"]))
    return Standing(best, int(saved["waited"]))


def best_state(standing: Standing, done: int, state: State, folder: Checkpoints | None) -> State:
    """Return the state of the best evaluation.

    Args:
        standing: of the run.
        done: how many steps were taken.
        state: the state after them, which is returned if there is no best one.
        folder: the folder of checkpoints, or None.

    Raises:
        FuncconvError: if its checkpoint is damaged or missing.
    """
    best = standing.best
    if best is None:
        msg = (
            'train: keep="best" found no best state, because no evaluation of this run has returned a number for '
            "monitor so far. The last state is returned."
        )
        warnings.warn(msg, stacklevel=4)
        return state
    if standing.state is not None:
        return standing.state
    if folder is None or best.step == done:
        return state
    try:
        restored = folder.restore(state, best.step)
    except FuncconvError as error:
        raise _unreadable(best, str(error).removeprefix("train: ")) from error
    if restored is None:
        raise _unreadable(best, f"{folder.folder} has no checkpoint of this step")
    best_of_folder: State = restored[1]
    return best_of_folder


def _unreadable(best: Best, why: str) -> FuncconvError:
    msg = (
        f"train: the best state so far, of step {best.step} with the value {best.value:g}, cannot be read: {why}. Put "
        "back a copy of this checkpoint; or pass keep=3, which returns the last state; or delete the checkpoints after "
        "it, to train again from an earlier one or from the beginning"
    )
    return FuncconvError(msg)

"""A run: steps, evaluations, records and checkpoints, whole after each line, whatever interrupts it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from ..._checkpoints.folder import Checkpoints
from ..._common.errors import FuncconvError
from ..._common.types import Number
from .._data.source import END, Source
from .._distributed.processes import Processes, of_state
from .._logs.history import History
from .._logs.logs import Reports
from .._logs.progress import Progress
from .._state import State
from .._step.compiled import CompiledStep
from .._step.memory import copied_batch, lent, taken_back
from .evaluation import monitored, numbers_of
from .interrupts import Interrupts
from .options import Options
from .settings import Changes, program_of, record_of

Evaluate = Callable[[State], Mapping[str, Any]]

_AHEAD = (2, 16)  # how many steps, at least and at most, are on their way while their metrics are not yet here,
_SECONDS = 0.1  # and for how long, as short steps would wait for each other


@dataclass(frozen=True)
class Moment:
    """A run between two of its actions.

    A run replaces it as a whole. So an exception between any two lines leaves a whole one behind, either the one before
    the action or the one after it.
    """

    done: int  # how many steps were taken
    state: State
    evaluated_at: int  # after which step the last evaluation was made
    evaluated: Mapping[str, Number] = field(default_factory=dict)  # what it returned
    best: float = float("inf")  # the best value of `monitor`
    waited: int = 0  # how many evaluations were not better
    records: int = 0  # how many records there are
    coming: tuple[tuple[int, Any], ...] = ()  # the step and the numbers of further records, which may not be here yet

    @property
    def is_evaluated(self) -> bool:
        """Whether an evaluation was made after the last step."""
        return self.evaluated_at == self.done


def begun(state: State) -> Moment:
    """Return the moment at which a run begins; no evaluation is due."""
    return Moment(int(state.step), state, int(state.step))


def resumed(state: State, saved: Mapping[str, Any], monitor: str | None) -> Moment:
    """Return the moment of a checkpoint.

    Args:
        state: of the checkpoint.
        saved: what `Run` saved with it; empty if `train.save` wrote it.
        monitor: of this call; with another one, the best value is not known.
    """
    done, same = int(state.step), saved.get("monitor", monitor) == monitor
    best, waited = (saved.get("best", "inf"), saved.get("waited", 0)) if same else ("inf", 0)
    return Moment(done, state, int(saved.get("evaluated_at", done)), best=float(best), waited=int(waited))


class Run:
    """What `fit` does, action by action.

    Args:
        moment: where it begins.
        options: of `fit`.
        source: of its batches.
        processes: those that train together.
        folder: for checkpoints, or None.
        saved: whether the folder has the checkpoint of this moment.
        step: the compiled step.
        evaluate: or None.
        history: of the run, with the records from before.
        reports: to its logs.
        progress: what is shown.
        interrupts: which end it between two steps.
        settings: recorded with each checkpoint.
        changes: of the settings since the checkpoint.
        program: of the step, as the checkpoint recorded it, or None.
    """

    def __init__(
        self, moment: Moment, options: Options, source: Source, processes: Processes, *, folder: Checkpoints | None,
        saved: bool, step: CompiledStep, evaluate: Evaluate | None, history: History, reports: Reports,
        progress: Progress, interrupts: Interrupts, settings: Mapping[str, str], changes: Changes,
        program: Mapping[str, str] | None,
    ) -> None:  # fmt: skip
        self.moment = replace(moment, records=len(history.records))
        self._options, self._source, self._processes, self._folder = options, source, processes, folder
        self._step, self._evaluate, self._history, self._reports = step, evaluate, history, reports
        self._progress, self._interrupts, self._settings, self._changes = progress, interrupts, settings, changes
        self._program = program
        self._saved = (moment.done, moment.is_evaluated) if saved else None
        self._first: tuple[int, float] | None = None  # the first step of this call, and when it was under way
        self._most = _AHEAD[0] if _crowded(moment.state) else _AHEAD[1]

    def next_batch(self) -> Any:
        """Return the batch of the next step; `END` if the run ends, and put the reason into the history."""
        done, waited, stopped, batch = self.moment.done, self.moment.waited, "", END
        if self._options.patience is not None and waited >= self._options.patience:
            monitor, at = self._options.monitor, self.moment.evaluated_at
            self._history.stopped = f"{monitor} was not better in {waited} evaluations, at step {at}"
            return END
        if done >= self._options.steps:
            return END
        if self._processes.together:
            self._source.note(done)
        if self._interrupts.came:
            stopped = f"interrupted after step {done}"
        elif (batch := self._source.take()) is END:
            stopped = f"there were no more batches after step {done}"
        try:
            self._history.stopped = self._processes.agree(stopped)
        finally:
            if batch is not END and (self._history.stopped or self._processes.over):
                self._source.put_back(done)
        return END if self._history.stopped else batch

    def take_step(self, batch: Any) -> None:
        """Train on a batch, and report the steps whose metrics are due."""
        state, done = self.moment.state, self.moment.done + 1
        if not self._step.times:
            self._check_program(batch)
        state, metrics = self._step(state, copied_batch(batch))
        self.moment = replace(self.moment, done=done, state=state, coming=(*self.moment.coming, (done, metrics)))
        self._step.tell(done)
        self._first = self._first or (done, time.monotonic())
        seconds = (time.monotonic() - self._first[1]) / max(done - self._first[0], 1)
        self._settle(int(min(max(_SECONDS / max(seconds, 1e-9), _AHEAD[0]), self._most)))

    def evaluate_if_due(self) -> None:
        """Evaluate the state, unless this was done after the same step."""
        done, monitor = self.moment.done, self._options.monitor
        due = done % self._options.every == 0 or done == self._options.steps
        if self._evaluate is None or not due or self.moment.is_evaluated:
            return
        self._settle()
        evaluated = numbers_of(self._evaluate(lent(self.moment.state)))
        best, waited = self.moment.best, self.moment.waited
        if monitor:
            value = monitored(evaluated, monitor)
            self._processes.check({f"{monitor} of evaluate": repr(value)})
            best, waited = (value, 0) if value < best else (best, waited + 1)
        record = {f"eval/{name}": value for name, value in evaluated.items()}
        self.moment = replace(
            self.moment, state=taken_back(self.moment.state), evaluated_at=done, evaluated=evaluated, best=best,
            waited=waited, coming=((done, record),) if record else (),
        )  # fmt: skip
        self._settle()
        if monitor and not waited:
            self.save()

    def save_if_due(self) -> None:
        """Write a checkpoint after every so many steps."""
        if self.moment.done % self._options.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this moment, after all its records were reported."""
        self._settle()
        self._processes.agree()
        self._write()

    def save_after_error(self) -> None:
        """Write a checkpoint if the state is whole and the files have all records, in each process."""
        try:
            self._settle(after_error=True)
            whole = not self._processes.broken and _is_whole(self.moment.state)
        except Exception:  # the error before is what is told
            whole = False
        if self._processes.everywhere(whole):
            self._write()

    def _write(self) -> None:
        moment, options = self.moment, self._options
        if self._folder is None or self._saved == (moment.done, moment.is_evaluated):
            return
        self._reports.flush()
        run = {
            "best": str(moment.best), "waited": moment.waited, "monitor": options.monitor,
            "evaluated_at": moment.evaluated_at, "place": self._source.place(moment.done),
            **record_of(self._settings, self._program),
        }  # fmt: skip
        metrics = moment.evaluated if moment.is_evaluated and moment.evaluated else None
        self._folder.save(moment.done, moment.state, run, metrics, about=options.about)
        self._saved = moment.done, moment.is_evaluated

    def _settle(self, most: int = 0, *, after_error: bool = False) -> None:
        """Report until no more than `most` steps are on their way."""
        self._reports.report(after_error=after_error)
        while len(self.moment.coming) > most:
            number, numbers = self.moment.coming[0]
            is_step = not isinstance(numbers, dict)
            named = zip(self._step.names, numbers.tolist(), strict=True) if is_step else numbers.items()
            record = {"step": number, **dict(named)}
            self._history.records[self.moment.records :] = [record]
            self.moment = replace(self.moment, records=self.moment.records + 1, coming=self.moment.coming[1:])
            self._reports.report(after_error=after_error)
            if is_step:
                self._progress.update(number, record, self.moment.evaluated)

    def _check_program(self, batch: Any) -> None:
        """Refuse a step that is another program in another process, or before; or one process's own."""
        state, jitted = self.moment.state, self._step.jitted
        if self._processes.together:
            self._processes.check({"the compiled step": jitted.lower(state, batch).as_text()})
        elif jax.process_count() > 1 and of_state(batch).together:
            msg = (
                f"train: the batch is spread over several processes, but process {jax.process_index()} has a state of "
                "its own. Give mesh= to make_step."
            )
            raise FuncconvError(msg)
        if self._folder is not None:
            self._program = program_of(jitted, state, batch)
            self._changes.check_program(self._program)


def _is_whole(state: State) -> bool:
    """Whether a state was computed, and no step has taken over its memory."""
    try:
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]
    except Exception:  # whatever went wrong in computing it
        return False
    return True


def _crowded(state: State) -> bool:
    """Whether devices share the cores of a CPU: steps that wait for each other there could take all its threads."""
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    return len(devices) > 1 and any(device.platform == "cpu" for device in devices)

"""A run of the training loop. An exception between any two lines leaves it in a state that can be saved."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax

from ..._checkpoints.folder import Checkpoints
from ..._common.errors import FuncconvError
from .._data.source import END, Source
from .._distributed.processes import Processes, of_state
from .._logs.history import Best, History
from .._logs.logs import Reports
from .._logs.progress import Progress
from .._logs.values import Value
from .._state import State, steps_of
from .._step.compiled import CompiledStep, unpacked
from .._step.memory import copied_batch, lent, taken_back
from .best import Monitor, Standing, best_state, recorded
from .evaluation import numbers_of
from .interrupts import Interrupts
from .monitored import is_monitored, with_monitored
from .options import Options
from .settings import Changes, program_of, record_of

Evaluate = Callable[[State], Mapping[str, Any]]

# JAX runs steps while Python prepares the next ones. Fetching the metrics of a step waits for it, so the loop fetches
# them later. Short steps need many pending ones to keep the device busy; long steps would only delay the reports.
_MIN_PENDING_STEPS, _MAX_PENDING_STEPS = 2, 16
_PENDING_SECONDS = 0.1  # the pending steps together take about this long, within these limits


@dataclass(frozen=True)
class Moment:
    """A run between two of its actions.

    A run replaces its moment as a whole. So an exception between any two lines leaves a complete one behind: either the
    one before the action or the one after it.
    """

    done: int  # how many steps were taken
    state: State
    evaluated_at: int  # the step after which the last evaluation was made
    evaluated: Mapping[str, Value] = field(default_factory=dict)  # the result of that evaluation
    standing: Standing = field(default_factory=Standing)  # the best evaluation so far
    records: int = 0  # how many records there are
    pending: tuple[tuple[int, Any], ...] = ()  # step and metrics of further records, which may still be computed

    @property
    def is_evaluated(self) -> bool:
        """Whether an evaluation was made after the last step."""
        return self.evaluated_at == self.done


def begun(state: State) -> Moment:
    """Return the moment at which a run begins; no evaluation is due."""
    done = steps_of(state)
    # Nothing is due, unless the optimizer waits for the value of an evaluation.
    return Moment(done, state, -1 if is_monitored(state) else done)


def resumed(state: State, saved: Mapping[str, Any], monitor: Monitor | None) -> Moment:
    """Return the moment of a checkpoint.

    Args:
        state: of the checkpoint.
        saved: what `Run` saved with it; empty if `train.save` wrote it.
        monitor: of this call. If the run had another one, its best value is forgotten.
    """
    done = steps_of(state)
    return Moment(done, state, int(saved.get("evaluated_at", done)), standing=recorded(saved, monitor))


@dataclass(frozen=True)
class Parts:
    """The objects that a run works with."""

    source: Source
    processes: Processes
    folder: Checkpoints | None
    step: CompiledStep
    evaluate: Evaluate | None
    history: History  # with the records from before this call
    reports: Reports
    progress: Progress
    interrupts: Interrupts
    changes: Changes  # of the settings since the checkpoint


class Run:
    """The actions of `fit`.

    Args:
        moment: where the run begins.
        options: of `fit`.
        parts: the objects that the run works with.
        saved: whether the folder has a checkpoint of this moment.
        settings: recorded with each checkpoint.
        program: of the step, as the checkpoint recorded it, or None.
    """

    def __init__(
        self,
        moment: Moment,
        options: Options,
        parts: Parts,
        *,
        saved: bool,
        settings: Mapping[str, str],
        program: Mapping[str, str] | None,
    ) -> None:
        self.moment = replace(moment, records=len(parts.history.records))
        self._options, self._settings, self._program = options, settings, program
        self._source, self._processes, self._folder = parts.source, parts.processes, parts.folder
        self._step, self._evaluate, self._history = parts.step, parts.evaluate, parts.history
        self._reports, self._progress, self._interrupts = parts.reports, parts.progress, parts.interrupts
        self._changes = parts.changes
        self._saved = (moment.done, moment.is_evaluated) if saved else None
        self._first: tuple[int, float] | None = None  # the first step of this call, and the time after its start
        self._max_pending = _MIN_PENDING_STEPS if _devices_share_cores(moment.state) else _MAX_PENDING_STEPS

    def next_batch(self) -> Any:
        """Return the batch of the next step; `END` if the run ends, and put the reason into the history."""
        done, waited, stopped, batch = self.moment.done, self.moment.standing.waited, "", END
        monitor, patience = self._options.monitor, self._options.patience
        if monitor and patience is not None and waited >= patience:
            step = self.moment.evaluated_at
            self._history.stopped = f"{monitor.name} was not better in {waited} evaluations, at step {step}"
            return END
        if done >= self._options.steps:
            return END
        if self._processes.together:  # if another process stops, this batch is put back
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
        compiles = not self._step.times
        if compiles:
            self._progress.begin_compiling()
            self._check_program(batch)
        state, metrics = self._step(state, copied_batch(batch), done)
        self.moment = replace(self.moment, done=done, state=state, pending=(*self.moment.pending, (done, metrics)))
        if compiles:
            self._progress.end_compiling()
            if self._options.monitor:
                scalars, arrays = metrics[0]
                self._options.monitor.check_step([*scalars, *(name for name, _ in arrays)])
        self._step.warn_if_compiled_again(done)
        # The call of the first step compiles, so the time of a step is measured from its end.
        self._first = self._first or (done, time.monotonic())
        seconds = (time.monotonic() - self._first[1]) / max(done - self._first[0], 1)
        pending = max(_PENDING_SECONDS / max(seconds, 1e-9), _MIN_PENDING_STEPS)
        self._settle(int(min(pending, self._max_pending)))

    def evaluate_if_due(self) -> None:
        """Evaluate the state, unless this was done after the same step."""
        done, monitor = self.moment.done, self._options.monitor
        due = done % self._options.every == 0 or done == self._options.steps or self.moment.evaluated_at < 0
        if self._evaluate is None or not due or self.moment.is_evaluated:
            return
        self._settle()
        evaluated = numbers_of(self._evaluate(lent(self.moment.state)))
        state, standing = taken_back(self.moment.state), self.moment.standing
        if monitor:
            value = monitor.value(evaluated)
            state = with_monitored(state, value, monitor)
            self._processes.check({f"{monitor.name} of evaluate": repr(value)})  # else they would not stop together
            copy = self._options.keep == "best" and self._folder is None
            standing = standing.after(Best(done, value), monitor, state, copy=copy)
        record = {f"eval/{name}": value for name, value in evaluated.items()}
        self.moment = replace(
            self.moment,
            state=state,
            evaluated_at=done,
            evaluated=evaluated,
            standing=standing,
            pending=((done, record),) if record else (),
        )
        self._settle()
        if monitor and not standing.waited:
            self.save()

    def save_if_due(self) -> None:
        """Write a checkpoint after every `checkpoint_every` steps."""
        if self.moment.done % self._options.checkpoint_every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of this moment, after all its records were reported."""
        self._settle()
        self._processes.agree()
        self._write()

    def save_after_error(self) -> None:
        """Write a checkpoint if the state is complete and the logs have all records, in each process."""
        try:
            self._settle(after_error=True)
            is_complete = not self._processes.broken and _is_computed(self.moment.state)
        except Exception:  # the error that ended the run is the one to raise
            is_complete = False
        if self._processes.everywhere(is_complete):
            self._write()

    def result(self) -> State:
        """Return the last state, or the best one if `keep` is `"best"`. Put the best evaluation into the history."""
        moment = self.moment
        self._history.best = moment.standing.best
        if self._options.keep != "best":
            return moment.state
        state = best_state(moment.standing, moment.done, moment.state, self._folder)
        self._processes.agree()  # if one of them could not read it, all raise an error
        return state

    def count_compilations(self) -> None:
        """Put the number of compilations into the history."""
        self._history.compilations = self._step.times

    def _write(self) -> None:
        moment, options = self.moment, self._options
        if self._folder is None or self._saved == (moment.done, moment.is_evaluated):
            return
        self._reports.flush()  # so that no checkpoint is ahead of its logs if the machine goes down
        run = {
            **moment.standing.record(),
            "monitor": options.monitor.text if options.monitor else None,
            "evaluated_at": moment.evaluated_at,
            "place": self._source.place(moment.done),
            **record_of(self._settings, self._program),
        }
        scores = {name: value for name, value in moment.evaluated.items() if not isinstance(value, list)}
        metrics = scores if moment.is_evaluated and scores else None
        self._folder.save(moment.done, moment.state, run, metrics, about=options.about)
        self._saved = moment.done, moment.is_evaluated

    def _settle(self, max_pending: int = 0, *, after_error: bool = False) -> None:
        """Report until no more than `max_pending` records are pending."""
        self._reports.report(after_error=after_error)
        while len(self.moment.pending) > max_pending:
            step, metrics = self.moment.pending[0]
            is_step = isinstance(metrics, tuple)
            record = {"step": step, **(unpacked(*metrics) if is_step else metrics)}
            # Assigned to a slice, so that nothing is added twice if an interrupt comes before the next line.
            self._history.records[self.moment.records :] = [record]
            self.moment = replace(self.moment, records=self.moment.records + 1, pending=self.moment.pending[1:])
            self._reports.report(after_error=after_error)
            if is_step:
                self._progress.update(step, record, self.moment.evaluated)

    def _check_program(self, batch: Any) -> None:
        """Refuse a step that is another program than in another process or before, or a batch without a mesh."""
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


def _is_computed(state: State) -> bool:
    """Whether a state was computed without an error, and no step has overwritten its memory."""
    try:
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]
    except Exception:  # JAX raises the error of the computation here
        return False
    return True


def _devices_share_cores(state: State) -> bool:
    """Whether the devices are parts of one CPU."""
    # Each device of a pending step takes a thread and waits for the other devices. With many pending steps, all
    # threads of the CPU could be waiting.
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    return len(devices) > 1 and any(device.platform == "cpu" for device in devices)

"""The training loop: steps, evaluations and checkpoints; a later call resumes a run that has ended anywhere."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ..._checkpoints.folder import Checkpoints
from .._data.source import END, Source
from .._distributed.processes import Processes, digests, of_state
from .._logs.history import History
from .._logs.log_file import Beginning
from .._logs.logs import Logs, Reports, listed
from .._logs.progress import Progress
from .._state import State
from .._step.compiled import CompiledStep
from .._step.memory import copied
from .._step.step import Step
from .interrupts import Interrupts
from .options import Options, checked
from .run import Evaluate, Moment, Parts, Run, begun, resumed
from .settings import Changes, OnChange, settings_of


def fit(
    step: Step,
    state: State,
    batches: Iterable[Any],
    *,
    steps: int,
    evaluate: Evaluate | None = None,
    every: int = 100,
    patience: int | None = None,
    monitor: str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    keep: int = 3,
    about: Mapping[str, Any] | None = None,
    on_change: OnChange = "warn",
    log: Logs | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train until `steps` steps were taken, and go on from the last checkpoint where there is one.

    Whatever ended a run, an error, an interrupt or a kill: called again with the same arguments, it gives the same
    state, records and evaluations as one that was not interrupted, to the bit on the same platform. A batch that no
    step was trained on comes again, and an evaluation that did not complete is made. Ctrl-C and SIGTERM end a run
    between two steps; `history.stopped` says so. A second Ctrl-C ends it at once. In both cases its state is saved.

    Several processes that train one state (after `jax.distributed.initialize`) compare their arguments, the state and
    the compiled step at the start. Before each step they agree whether to go on: if one is interrupted, has no more
    batches or raises an error, all of them end after the same step. An error says which process is gone, and how to
    resume. `evaluate` and `batches` may use all devices only if they do so in every process alike.

    Args:
        step: of `make_step`; it is compiled here.
        state: of its `init`. Its memory is not taken over: it can be used again.
        batches: of `batches`, in which a run that goes on seeks its place; or an iterator: one with `get_state()` and
            `set_state(state)`, as grain's are, is set to what it was, of any other the batches of earlier steps are
            passed over. A list or a loader is no iterator: pass `iter(loader)`. NumPy arrays are copied, so that an
            iterator may refill and return the same buffer.
        steps: how many steps the run has in all, those of earlier calls among them.
        evaluate: `evaluate(state)`, a dict of numbers, which are reported as `"eval/..."`. It may keep the state or
            parts of it; only arrays that it keeps are copied.
        every: after how many steps, and at the end, that is called.
        patience: after how many evaluations without a better value of `monitor` the run ends; None for never. Such a
            run, called again, returns the same result, also with more `steps`; with a larger `patience` it goes on.
        monitor: the name of a metric of `evaluate`, of which the smallest is the best, or `"-name"` for the largest;
            for `patience`, and the best checkpoints are kept too.
        checkpoint: a folder; None keeps nothing.
        checkpoint_every: after how many steps a checkpoint is written; and at the end, and when interrupted.
        keep: how many of the last, and of the best.
        about: what else a checkpoint says, as JSON has it, such as `{"architecture": graph.to_json()}`; a run that goes
            on must say the same. `train.about` reads it.
        on_change: what to do if a run goes on with other settings than its checkpoint recorded: `"warn"` (the default),
            `"raise"` or `"ignore"`. Each setting is named with both values. Settings are the options of `make_step`,
            the constants of the optimizer such as the learning rate, the options and the key of `batches`, the key of
            the state, `every`, `patience` and `monitor`. Of another loss or model, a digest of the traced step tells.
            Values in the arrays of the data are not compared. If `monitor` changes, the best value is forgotten.
        log: a file that gets one JSON line for each record; or a function that is called with each, such as a
            `TensorBoard`, and closed if it has `close`; or a list of those. Each process needs a file of its own. A log
            that exists is appended to. When a run goes on, only its own records after the checkpoint are cut from it.
            Lines that are no records stay, and a warning counts them. If a function raises an error, it is called once
            more with the same record before the state is saved.
        progress: whether to show a bar; in a file or a pipe, a line now and then.

    Returns:
        The state and the `History`, with that of the steps before if `log` is a file. If the checkpoint is of a later
        step than `steps`, its state is returned.

    Raises:
        FuncconvError: if an option is of the wrong kind or out of range, `batches` is no iterator, `evaluate` returns
            something else than numbers, a checkpoint is of something else or cannot be written, a log cannot be
            written, a setting changed and `on_change` is `"raise"`, or a package is
            missing; in several processes, if they differ, or another one failed or is gone. What `batches`, `step`,
            `evaluate` or a log raise is passed on, after the state was saved.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, numpy as np, optax
        >>> def loss(params, batch, *, key, state):
        ...     return jnp.square(batch["x"] @ params["w"] - batch["y"]).mean()
        >>> init, step = fc.train.make_step(loss, optax.sgd(0.3))
        >>> x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        >>> data = fc.train.batches({"x": x, "y": x @ np.float32([1, 2, 3])}, 16, jax.random.key(0))
        >>> state, history = fc.train.fit(
        ...     step, init({"w": jnp.zeros(3)}, jax.random.key(1)), data, steps=60, progress=False)
        >>> [round(float(w), 3) for w in state.params["w"]], history["loss"][-1] < 1e-5
        ([1.0, 2.0, 3.0], True)
    """
    processes = of_state(state)
    with ExitStack() as closing:  # on exit it calls all registered functions, the last one first, even if one raises
        closing.callback(processes.close)
        with processes.guard():
            options = checked(
                steps=steps,
                every=every,
                patience=patience,
                monitor=monitor,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                keep=keep,
                about=about,
                on_change=on_change,
                evaluate=evaluate,
            )
            logs, source = listed(log), Source(batches)
            processes.meet(None if options.checkpoint is None else str(options.checkpoint))
            processes.check(options.described(batches))

        with processes.guard():
            folder = _opened_folder(options, processes, closing)
            restored = folder.restore(state, about=options.about) if folder else None
        if processes.together:
            processes.check(digests(restored[1] if restored else state, "state"))

        with processes.guard():
            settings, saved = _settings(step, state, batches, options), restored[2] if restored else {}
            changes = Changes(saved, on_change, options.checkpoint)
            if processes.is_first:
                changes.check(settings)
            moment = _first_moment(state, restored, source, options)
            history, reports, bar = _opened_reports(logs, moment, options, closing, shown=progress)

        interrupts, compiled = closing.enter_context(Interrupts()), CompiledStep(step)
        parts = Parts(source, processes, folder, compiled, evaluate, history, reports, bar, interrupts, changes)
        run = Run(moment, options, parts, saved=bool(restored), settings=settings, program=saved.get("program"))
        with _saved_after_error(run, processes):
            run.evaluate_if_due()
            while (batch := run.next_batch()) is not END:
                run.take_step(batch)
                run.evaluate_if_due()
                run.save_if_due()
            run.save()
    return run.moment.state, history


def _settings(step: Step, state: State, batches: Any, options: Options) -> dict[str, str]:
    """Return the settings that are recorded, and compared when the run is resumed."""
    every = options.every if options.has_evaluate else None
    return settings_of(step, state, batches, monitor=options.monitor, patience=options.patience, every=every)


def _opened_folder(options: Options, processes: Processes, closing: ExitStack) -> Checkpoints | None:
    """Return the folder of checkpoints, which is closed at the end of the run; None if there is none."""
    if options.checkpoint is None:
        return None
    folder = Checkpoints(options.checkpoint, keep=options.keep, best=options.monitor)
    # Closing a folder waits for all processes, which is in vain if one of them is gone.
    closing.callback(lambda: None if processes.broken else folder.close())
    return folder


def _opened_reports(
    logs: list[Any], moment: Moment, options: Options, closing: ExitStack, *, shown: bool
) -> tuple[History, Reports, Progress]:
    """Return the history, the logs and the progress bar, which are closed at the end of the run."""
    history = History()
    beginning = Beginning(moment.done, moment.is_evaluated, options.checkpoint)
    reports = Reports(logs, history.records, beginning)
    closing.callback(reports.close)
    bar = Progress(options.steps, moment.done, shown=shown)
    closing.callback(lambda: bar.close(history.stopped))
    return history, reports, bar


def _first_moment(
    state: State, restored: tuple[int, State, dict[str, Any]] | None, source: Source, options: Options
) -> Moment:
    """Return where the run begins or goes on, and set the batches to that place."""
    if restored:
        _, restored_state, saved = restored
        moment = resumed(restored_state, saved, options.monitor)
        source.go_to(moment.done, saved.get("place"))
    else:
        moment = begun(copied(state))  # a copy, because the compiled step overwrites the memory of its state
        source.begin(moment.done)
    if options.checkpoint:
        source.note(moment.done)
    return moment


@contextmanager
def _saved_after_error(run: Run, processes: Processes) -> Iterator[None]:
    """Save the state if an error or an interrupt ends the run, and tell the other processes."""
    try:
        yield
    except BaseException as error:
        other = processes.fail(error)
        with suppress(BaseException):  # the first error is the one to raise
            run.save_after_error()
        if other:
            raise other from error
        raise
    finally:
        run.count_compilations()

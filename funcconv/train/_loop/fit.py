"""The training loop: steps, evaluations and checkpoints; a later call resumes a run that has ended anywhere."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Literal

from ..._checkpoints.folder import Checkpoints
from ..._primitives.tuning import Tuning
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
from .best import LAST_WITH_BEST, Mode, best_state
from .interrupts import Interrupts
from .monitored import check_monitored
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
    mode: Mode = "min",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 10,
    keep: int | Literal["best"] = 3,
    about: Mapping[str, Any] | None = None,
    on_change: OnChange = "warn",
    log: Logs | None = None,
    progress: bool = True,
    tuning: Tuning | None = None,
) -> tuple[State, History]:
    """Train until `steps` steps were taken. If the folder has a checkpoint, the run is resumed from it.

    A run can be ended by an error, by an interrupt or by `kill`. If you call `fit` again with the same arguments, it
    resumes the run, and you get the same state, records and evaluations as without the interruption, bit for bit on
    the same platform. A batch that no step was trained on is used again, and an evaluation that did not complete is
    repeated. Ctrl-C and SIGTERM end a run between two steps, and `history.stopped` says so; a second Ctrl-C ends it
    immediately. In both cases the state is saved.

    Several processes can train one state, after `jax.distributed.initialize`. They compare their arguments, the state
    and the compiled step at the start. Before each step they agree whether to continue: if one of them is interrupted,
    has no more batches or raises an error, all end after the same step. If a process is gone, the error of the others
    names it and says how to resume. `evaluate` and `batches` may use all devices only if they do so in the same way in
    every process.

    Args:
        step: the step that `make_step` returned; `fit` compiles it. `jax.vmap(step, in_axes=(0, None))` trains an
            ensemble. Each metric is recorded as a number, or a list of numbers if it is an array, with at most 10,000.
        state: the first state, from the `init` that `make_step` returned. It is copied, so you can use it again.
        batches: an iterator over batches, of one of three kinds. The results of `train.batches` and `train.images` are
            set to the right position when a run is resumed. An iterator with `get_state()` and `set_state(state)`, such
            as grain's, is set to the state that it had. Any other iterator must start from the beginning; `fit` skips
            the batches of earlier steps. A list or a loader is not an iterator: pass `iter(loader)`. NumPy arrays are
            copied, so an iterator may reuse its buffers. `train.prefetch` takes batches of a slow iterator ahead.
        steps: the number of steps of the whole run, including those of earlier calls.
        evaluate: a function `evaluate(state)` that returns a dict of numbers and arrays, such as the result of
            `train.evaluate(metrics, state, held_out)`. They are reported under names that begin with `"eval/"`. It may
            keep the state or parts of it. Default: no evaluation.
        every: the number of steps between two evaluations; the state is also evaluated after the last step.
            Default: 100.
        patience: the number of evaluations in a row without a better value of `monitor` after which the run ends. If
            you call such a run again, it returns the same result, also with more `steps`; with a larger `patience` it
            continues. The last state is returned; pass `keep="best"` for the best one. Default: no early stopping.
        monitor: the name of a number that `evaluate` returns, such as `"accuracy"` or `"eval/accuracy"`. It says which
            evaluation is the best, for `history.best`, `patience` and `keep`. If the training steps report a metric of
            the same name, write the name with `"eval/"`. Metrics of training steps cannot be monitored, because each is
            measured on one batch. NaN is never the best. Of equal values the earlier is the best. Default: none.
        mode: `"min"` if the smallest value of `monitor` is the best, `"max"` if the largest is. Default: `"min"`.
        checkpoint: the folder for checkpoints, which is created if it is missing. Default: no checkpoints.
        checkpoint_every: the number of steps between two checkpoints. One is also written at the end, and when the run
            is interrupted. Default: 10.
        keep: how many of the last checkpoints are kept, with `monitor` also how many of the best; `fit` then returns
            the last state. Or `"best"`: `fit` returns the state of the best evaluation, and `state.step` is the step of
            this evaluation. The folder keeps the last three checkpoints, from which the run is resumed, and the best
            one of each. Without `checkpoint`, a copy of the best state is kept in the memory of the devices, and one
            more while a better state replaces it. Default: 3.
        about: a dict that JSON can hold and that every checkpoint stores, such as `{"architecture": graph.to_json()}`.
            A resumed run must pass the same dict. `train.about` reads it. Default: an empty dict.
        on_change: what happens if a resumed run has other settings than its checkpoint recorded: `"warn"`, `"raise"` or
            `"ignore"`. The message names each setting with both values. Settings are the options of `make_step`, the
            constants of the optimizer such as the learning rate, the options and the key of `train.batches` or
            `train.images`, the key of the state, `every`, `patience` and `monitor`. A changed loss or model is
            recognized by a digest of the traced step. The numbers in the training data are not compared. If `monitor`
            changes, the best value is forgotten. Default: `"warn"`.
        log: where records are written: the path of a file that gets one line of JSON for each record; a function that
            is called with each record, such as a `train.TensorBoard`, and closed at the end if it has a method `close`;
            or a list of these. Each process needs its own file. An existing file is appended to. When a run is resumed,
            only its own records after the checkpoint are cut from the file. Lines that are not records stay, and a
            warning counts them. If a function raises an error, it is called once more with the same record before the
            state is saved. Default: no log.
        progress: whether to show a progress bar on the standard error. If that is a file or a pipe, a line is written
            every 30 seconds. During the first compilation the bar shows "compiling...". Default: True.
        tuning: the result of `fc.tune` or `fc.Tuning.load`: measured forms and compiler options for the step. Default:
            the tuning of `make_step`; without one, the file that the environment variable `FUNCCONV_TUNING` names;
            otherwise none.

    Returns:
        The last state, or the best one with `keep="best"`, and the `History` of the metrics. If `log` names a file, the
        history includes the steps of earlier calls. If the checkpoint is of a later step than `steps`, its state is
        returned. With `keep="best"`, an interrupted run returns the best state so far; if no evaluation has returned a
        number yet, a warning says so, and the last state is returned. A call with more `steps` continues from the last
        checkpoint, also if the call before returned the best state. Without `checkpoint`, it continues from the state
        that you pass.

    Raises:
        FuncconvError: if an option has the wrong type or is out of range; if `batches` is not an iterator; if
            `evaluate` returns anything but numbers and arrays, or not the number of `monitor`; if a metric of a step
            has more than 10,000 numbers; if the members of an ensemble have taken different numbers of steps; if the
            checkpoint is of another state or cannot be written; if the checkpoint of the best state is damaged or
            missing and `keep` is `"best"`, which is checked at the start; if a log cannot be written; if a setting
            changed and `on_change` is `"raise"`; if a package is missing. With several processes: if they differ, or if
            one of them failed or is gone. Errors that `batches`, `step`, `evaluate` or a log raise are passed on after
            the state was saved. A note names the step if `batches` raised the error, or if the batch has other
            entries, shapes or dtypes than earlier ones.

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
                mode=mode,
                checkpoint=checkpoint,
                checkpoint_every=checkpoint_every,
                keep=keep,
                about=about,
                on_change=on_change,
                evaluate=evaluate,
            )
            logs, source, compiled = listed(log), Source(batches), CompiledStep(step, tuning)
            _meet(processes, options, batches)

        folder, restored = _restored(state, options, processes, closing)
        with processes.guard():
            settings, saved = _settings(step, state, batches, options), restored[2] if restored else {}
            changes = Changes(saved, on_change, options.checkpoint)
            if processes.is_first:
                changes.check(settings)
            moment = _first_moment(state, restored, source, options, folder)
            history, reports, bar = _opened_reports(logs, moment, options, closing, shown=progress)

        interrupts = closing.enter_context(Interrupts())
        parts = Parts(source, processes, folder, compiled, evaluate, history, reports, bar, interrupts, changes)
        run = Run(moment, options, parts, saved=bool(restored), settings=settings, program=saved.get("program"))
        with _saved_after_error(run, processes):
            run.evaluate_if_due()
            while (batch := run.next_batch()) is not END:
                run.take_step(batch)
                run.evaluate_if_due()
                run.save_if_due()
            run.save()
            result = run.result()
    return result, history


def _meet(processes: Processes, options: Options, batches: Iterable[Any]) -> None:
    """Wait for the other processes, and compare the options with theirs."""
    processes.meet(None if options.checkpoint is None else str(options.checkpoint))
    processes.check(options.described(batches))


def _settings(step: Step, state: State, batches: Any, options: Options) -> dict[str, str]:
    """Return the settings that are recorded, and compared when the run is resumed."""
    every = options.every if options.has_evaluate else None
    monitor = options.monitor.text if options.monitor else None
    return settings_of(step, state, batches, monitor=monitor, patience=options.patience, every=every)


def _restored(
    state: State, options: Options, processes: Processes, closing: ExitStack
) -> tuple[Checkpoints | None, tuple[int, State, dict[str, Any]] | None]:
    """Return the folder of checkpoints and the last one, None if there is none. Compare the state between processes."""
    with processes.guard():
        folder = _opened_folder(options, processes, closing)
        restored = folder.restore(state, about=options.about) if folder else None
    if processes.together:
        processes.check(digests(restored[1] if restored else state, "state"))
    return folder, restored


def _opened_folder(options: Options, processes: Processes, closing: ExitStack) -> Checkpoints | None:
    """Return the folder of checkpoints, which is closed at the end of the run; None if there is none."""
    if options.checkpoint is None:
        return None
    if options.keep == "best":
        folder = Checkpoints(options.checkpoint, keep=LAST_WITH_BEST)
    else:
        score = options.monitor.score if options.monitor else None
        folder = Checkpoints(options.checkpoint, keep=options.keep, score=score)
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
    state: State,
    restored: tuple[int, State, dict[str, Any]] | None,
    source: Source,
    options: Options,
    folder: Checkpoints | None,
) -> Moment:
    """Return where the run begins or goes on, and set the batches to that place."""
    check_monitored(state, options.monitor)
    if restored:
        _, restored_state, saved = restored
        moment = resumed(restored_state, saved, options.monitor)
        if options.keep == "best" and moment.standing.best:  # if it cannot be read, say so before training goes on
            best_state(moment.standing, moment.done, restored_state, folder)
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

"""The loop: steps, evaluations and checkpoints, and going on where a run ended."""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from ..._checkpoints.folder import Checkpoints
from .._data.source import END, Source
from .._distributed.processes import digests, of_state
from .._logs.history import History
from .._logs.log_file import Beginning
from .._logs.logs import Logs, Reports, listed
from .._logs.progress import Progress
from .._state import State
from .._step.compiled import CompiledStep
from .._step.memory import copied
from .._step.step import Step
from .interrupts import Interrupts
from .options import checked
from .run import Evaluate, Run, begun, resumed
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
    with ExitStack() as closing:  # calls all that are registered, also if one of them fails; the last one first
        closing.callback(processes.close)
        with processes.guard():
            options = checked(
                steps=steps, every=every, patience=patience, monitor=monitor, checkpoint=checkpoint,
                checkpoint_every=checkpoint_every, keep=keep, about=about, on_change=on_change, evaluate=evaluate,
            )  # fmt: skip
            logs, source = listed(log), Source(batches)
            processes.meet(None if options.checkpoint is None else str(options.checkpoint))
            processes.check(options.described(batches))

        folder, found = None, None
        with processes.guard():
            if options.checkpoint:
                folder = Checkpoints(options.checkpoint, keep=options.keep, best=monitor)
                closing.callback(lambda: None if processes.broken else folder.close())  # it waits for all processes
                found = folder.restore(state, about=options.about)
        if processes.together:
            processes.check(digests(found[1] if found else state, "state"))

        with processes.guard():
            saved = found[2] if found else {}
            settings = settings_of(
                step, state, batches, monitor=monitor, patience=options.patience,
                every=options.every if evaluate else None,
            )  # fmt: skip
            changes = Changes(saved, on_change, options.checkpoint)
            if processes.is_first:
                changes.check(settings)
            if found:
                moment = resumed(found[1], saved, monitor)
                source.go_to(moment.done, saved.get("place"))
            else:
                moment = begun(copied(state))  # the compiled step takes over its memory
                source.begin(moment.done)
            if folder:
                source.note(moment.done)
            history = History()
            beginning = Beginning(moment.done, moment.is_evaluated, options.checkpoint)
            reports = Reports(logs, history.records, beginning)
            closing.callback(reports.close)
            shown = Progress(options.steps, moment.done, shown=progress)
            closing.callback(lambda: shown.close(history.stopped))

        interrupts, compiled = Interrupts(), CompiledStep(step)
        closing.callback(interrupts.close)
        run = Run(
            moment, options, source, processes, folder=folder, saved=bool(found), step=compiled, evaluate=evaluate,
            history=history, reports=reports, progress=shown, interrupts=interrupts, settings=settings,
            changes=changes, program=saved.get("program"),
        )  # fmt: skip
        try:
            run.evaluate_if_due()
            while (batch := run.next_batch()) is not END:
                run.take_step(batch)
                run.evaluate_if_due()
                run.save_if_due()
            run.save()
        except BaseException as error:
            other = processes.fail(error)
            with suppress(BaseException):  # what went wrong first is what is told
                run.save_after_error()
            if other:
                raise other from error
            raise
        finally:
            history.compilations = compiled.times
    return run.moment.state, history

"""The loop: steps, progress, evaluations, checkpoints, and going on where a run ended."""

import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from .._errors import FuncconvError
from .._extras import needs
from .._typing import Number
from ._batches import Batches
from ._checkpoints import Checkpoints
from ._history import History, Lines
from ._memory import copied, copied_batch, lent, taken_back
from ._processes import Processes, digests, of_state
from ._state import State
from ._step import Step, compile, metrics_of

Evaluate = Callable[[State], Mapping[str, Any]]
Log = str | os.PathLike[str] | Callable[[dict[str, Number]], object]
Logs = Log | Sequence[Log]

_AHEAD = (2, 16)  # how many steps, at least and at most, are on their way while their metrics are not yet here,
_SECONDS = 0.1  # and for how long, as short steps would wait for each other


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
    log: Logs | None = None,
    progress: bool = True,
) -> tuple[State, History]:
    """Train until `steps` steps were taken, and go on from the last checkpoint where there is one.

    A run that was killed and is called again with the same arguments takes the same steps as one that was not, to the
    bit on the same platform: the state has the key, and the batches are sought by their number. Ctrl-C and SIGTERM end
    it between two steps, when its state is saved; `history.stopped` says so.

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
        patience: after how many evaluations without a better value of `monitor` the run ends; None for never.
        monitor: the name of a metric of `evaluate`, of which the smallest is the best, or `"-name"` for the largest;
            for `patience`, and the best checkpoints are kept too.
        checkpoint: a folder; None keeps nothing.
        checkpoint_every: after how many steps a checkpoint is written; and at the end, and when interrupted.
        keep: how many of the last, and of the best.
        about: what else a checkpoint says, as JSON has it, such as `{"architecture": graph.to_json()}`; a run that goes
            on must say the same. `train.about` reads it.
        log: a file that gets one JSON line for each record; or a function that is called with each, such as a
            `TensorBoard`, and closed if it has `close`; or a list of those. Each process needs a file of its own.
        progress: whether to show a bar; in a file or a pipe, a line now and then.

    Returns:
        The state and the `History`, with that of the steps before if `log` is a file.

    Raises:
        FuncconvError: if an option is out of range, `batches` is no iterator, a checkpoint is of something else or
            cannot be written, or a package is missing; in several processes, if they differ, or another one failed or
            is gone. What `batches`, `step` or `evaluate` raise is passed on, after the state was saved.

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
    with processes.guard():
        for name, number, least in (
            ("steps", steps, 0), ("every", every, 1), ("patience", patience, 1),
            ("checkpoint_every", checkpoint_every, 1), ("keep", keep, 1),
        ):  # fmt: skip
            if number is not None and number < least:
                msg = f"train: {name} must be at least {least}; got {number}"
                raise FuncconvError(msg)
        if patience is not None and (evaluate is None or monitor is None):
            msg = "train: patience needs evaluate=, and the name of one of its metrics as monitor="
            raise FuncconvError(msg)
        if not (isinstance(batches, Iterator) or (hasattr(batches, "get_state") and hasattr(batches, "set_state"))):
            raise _no_iterator(batches)
        where = None if checkpoint is None else str(Path(checkpoint).absolute())
        processes.meet(where)
        arguments = _described(
            batches, steps=steps, every=every, patience=patience, monitor=monitor, checkpoint=where,
            checkpoint_every=checkpoint_every, keep=keep, about=dict(about or {}), evaluate=evaluate is not None,
        )  # fmt: skip
        processes.check(arguments)
    folder, found = None, None
    with processes.guard():
        if checkpoint is not None:
            folder = Checkpoints(checkpoint, keep=keep, best=monitor)
            try:
                found = folder.restore(state, about=dict(about or {}))
            except FuncconvError:
                folder.close()
                raise
        if processes.together:
            processes.check(digests(found[1] if found else state, "state"))
    best, waited = float("inf"), 0
    with processes.guard():
        if found:
            _, state, run = found
            best, waited = float(run["best"]), int(run["waited"])
            _go_on(batches, int(state.step), run.get("iterator"))
        else:
            state = copied(state)  # the compiled step takes over its memory
        history, logs = History(), _logs(log, int(state.step))
    history.records += next((each.kept for each in logs if isinstance(each, Lines)), [])

    done = int(state.step)
    counted = _Counted(step)
    compiled = compile(counted)
    shown = _Shown(steps, done, progress=progress)
    pending: list[tuple[int, Any]] = []
    evaluated: dict[str, Number] = {}
    evaluated_at, saved_at = -1, done if found else -1
    begun: tuple[int, float] | None = None
    most = _AHEAD[0] if _crowded(state) else _AHEAD[1]

    def report(record: dict[str, Number]) -> None:
        history.records.append(record)
        for each in logs:
            each(dict(record))

    def settle(most: int) -> None:
        """Report steps until no more than `most` are on their way."""
        while len(pending) > most:
            number, metrics = pending.pop(0)
            record: dict[str, Number] = {"step": number, **dict(zip(counted.names, metrics.tolist(), strict=True))}
            report(record)
            shown.update(number, record, evaluated)

    def keep_state() -> None:
        nonlocal saved_at
        if processes.over:  # a report could fail again in one of the processes, while the others wait for it
            pending.clear()
            if not processes.everywhere(_usable(state)):
                return
        settle(0)
        processes.agree()
        if folder and saved_at != done:
            run = {"best": str(best), "waited": waited, "iterator": _position(batches)}
            folder.save(done, state, run, evaluated if evaluated_at == done else None, about=about)
            saved_at = done

    source, nothing = iter(batches), object()
    interrupts = _Interrupts()
    try:
        while done < steps:
            position = _position(batches) if processes.together else None
            batch = nothing
            if interrupts.came:
                history.stopped = f"interrupted after step {done}"
            elif (batch := next(source, nothing)) is nothing:
                history.stopped = f"there were no more batches after step {done}"
            try:
                history.stopped = processes.agree(history.stopped)
            finally:
                if batch is not nothing and (history.stopped or processes.over):
                    _go_on(batches, done, position, pass_over=False)  # no step took this batch
            if history.stopped:
                break
            if not counted.times:
                _check_program(processes, compiled, state, batch)
            state, metrics = compiled(state, copied_batch(batch))
            done += 1
            counted.tell(done)
            pending.append((done, metrics))
            begun = begun or (done, time.monotonic())
            seconds = (time.monotonic() - begun[1]) / max(done - begun[0], 1)
            settle(int(min(max(_SECONDS / max(seconds, 1e-9), _AHEAD[0]), most)))
            if evaluate and (done % every == 0 or done == steps):
                settle(0)
                evaluated, evaluated_at = metrics_of(evaluate(lent(state))), done
                state = taken_back(state)
                report({"step": done, **{f"eval/{name}": value for name, value in evaluated.items()}})
                if monitor:
                    value = _monitored(evaluated, monitor)
                    processes.check({f"{monitor} of evaluate": repr(value)})
                    best, waited = (value, 0) if value < best else (best, waited + 1)
                    if not waited:
                        keep_state()
                if patience is not None and waited >= patience:
                    history.stopped = f"{monitor} was not better in {waited} evaluations, at step {done}"
                    break
            if done % checkpoint_every == 0:
                keep_state()
        keep_state()
    except BaseException as error:
        other = processes.fail(error)
        with suppress(Exception):  # what went wrong first is what is told
            keep_state()
        if other:
            raise other from error
        raise
    finally:
        history.compilations = counted.times
        with ExitStack() as closing:  # calls all of these, also if one of them fails; the last one first
            closing.callback(processes.close)
            for each in (None if processes.broken else folder, *logs):  # closing the folder waits for all processes
                if hasattr(each, "close"):
                    closing.callback(each.close)
            closing.callback(shown.close, history.stopped)
            closing.callback(interrupts.close)
    return state, history


def _check_program(processes: Processes, compiled: Any, state: State, batch: Any) -> None:
    """Refuse a step that is another program in another process, or that is shared while its state is not."""
    if processes.together:
        processes.check({"the compiled step": compiled.lower(state, batch).as_text()})
    elif jax.process_count() > 1 and of_state(batch).together:
        msg = (
            f"train: the batch is spread over several processes, but process {jax.process_index()} has a state of its "
            "own. Give mesh= to make_step."
        )
        raise FuncconvError(msg)


def _usable(state: State) -> bool:
    """Whether a state was computed, and no step has taken over its memory."""
    try:
        jax.block_until_ready(state)  # type: ignore[no-untyped-call]
    except Exception:  # whatever went wrong in computing it
        return False
    return True


def _described(batches: Any, **arguments: Any) -> dict[str, str]:
    """Return what processes that train together must have in common, but for the state and the program of the step."""
    if isinstance(batches, Batches):
        arguments |= {f"batches: {name}": value for name, value in batches.common().items()}
    return {name: json.dumps(value, sort_keys=True, default=repr) for name, value in arguments.items()}


def _crowded(state: State) -> bool:
    """Whether devices share the cores of a CPU: steps that wait for each other there could take all its threads."""
    devices = {device for leaf in jax.tree.leaves(state) for device in leaf.devices()}
    return len(devices) > 1 and any(device.platform == "cpu" for device in devices)


def _logs(log: Logs | None, step: int) -> list[Any]:
    """Return what is called with each record; files as they were after a step."""
    several = log if isinstance(log, Sequence) and not isinstance(log, str) else [] if log is None else [log]
    return [Lines(each, step) if isinstance(each, str | os.PathLike) else each for each in several]


class _Counted:
    """A step that counts how often it is traced, and warns when that is more than once.

    Its metrics, those that are numbers, come as one array, which is fetched at once; `names` says which they are.
    """

    def __init__(self, step: Step) -> None:
        self._step, self.times, self._told = step, 0, 1
        self._shapes: list[Any] = []
        self.names: tuple[str, ...] = ()

    def __call__(self, state: State, batch: Any) -> Any:
        self.times += 1
        self._shapes = [*self._shapes[-1:], jax.tree.map(lambda each: f"{each.dtype}{list(each.shape)}", batch)]
        state, metrics = self._step(state, batch)
        numbers = {name: jnp.asarray(value) for name, value in metrics.items() if jnp.ndim(value) == 0}
        self.names = tuple(numbers)
        wide = any(value.dtype.itemsize > 4 for value in numbers.values())
        dtype = jnp.float64 if wide else jnp.float32
        return state, jnp.array([value.astype(dtype) for value in numbers.values()], dtype)

    def tell(self, number: int) -> None:
        """Warn if the step was traced again."""
        if self.times > self._told:
            self._told = self.times
            was, now = self._shapes
            msg = f"the step was compiled anew, for the {self.times}. time, at step {number}: {was} came to be {now}"
            warnings.warn(msg, stacklevel=3)


class _Interrupts:
    """Ctrl-C and SIGTERM are noted, for the loop to end between two steps; a second one is as ever."""

    def __init__(self) -> None:
        self.came, self._before = False, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.came = True
        self.close()

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class _Shown:
    """A progress bar, or lines where there is no terminal."""

    def __init__(self, steps: int, done: int, *, progress: bool) -> None:
        self._done, self._bar, self._due = done, None, 0.0
        if not progress:
            return
        self._pause = 0.5 if sys.stderr.isatty() else 30
        with needs("train", "a progress bar"):
            from tqdm import tqdm
        self._bar = tqdm(
            total=steps, initial=done, unit="step", desc="training", dynamic_ncols=True,
            mininterval=self._pause,
        )  # fmt: skip

    def update(self, number: int, record: Mapping[str, Number], evaluated: Mapping[str, Number]) -> None:
        """Show a step and the last evaluation."""
        if self._bar is None or (time.monotonic() < self._due and number < self._bar.total):
            return
        self._due = time.monotonic() + self._pause
        told = {name: value for name, value in record.items() if name not in ("step", "grad_norm", "skipped")}
        if record.get("skipped"):
            told["skipped"] = record["skipped"]
        self._bar.set_postfix({name: f"{value:.4g}" for name, value in (told | dict(evaluated)).items()}, refresh=False)
        self._bar.update(number - self._done)
        self._done = number

    def close(self, stopped: str) -> None:
        """End the bar, and say why the run ended early."""
        if self._bar is not None:
            self._bar.close()
            if stopped:
                self._bar.write(f"training ended: {stopped}", file=sys.stderr)


def _monitored(evaluated: Mapping[str, Number], monitor: str) -> float:
    name = monitor.removeprefix("-")
    if name not in evaluated:
        msg = f"train: monitor is {monitor!r}, but evaluate gave {', '.join(evaluated) or 'nothing'}"
        raise FuncconvError(msg)
    return -evaluated[name] if monitor.startswith("-") else evaluated[name]


def _position(batches: Any) -> Any:
    """Return what an iterator needs to go on from here, as JSON has it."""
    if isinstance(batches, Batches):
        return batches.position
    if hasattr(batches, "get_state"):
        found = batches.get_state()
        return {"bytes": found.decode("latin-1")} if isinstance(found, bytes) else {"value": found}
    return None


def _go_on(batches: Any, done: int, position: Any, *, pass_over: bool = True) -> None:
    """Bring an iterator to where a run ended; one that cannot be set passes over batches, if it is at its beginning."""
    if isinstance(batches, Batches):
        batches.seek(done if position is None else position)
    elif isinstance(position, dict) and hasattr(batches, "set_state"):
        found = position["bytes"].encode("latin-1") if "bytes" in position else position["value"]
        batches.set_state(found)
    elif not pass_over:
        return
    elif isinstance(batches, Iterator):
        for _ in range(done):
            next(batches, None)
    else:
        raise _no_iterator(batches)


def _no_iterator(batches: Any) -> FuncconvError:
    return FuncconvError(
        "train: batches must be an iterator, so that a run that goes on can pass over those of earlier steps: "
        f"train.batches(...), or iter(...) of a list or a loader; got {type(batches).__name__}"
    )

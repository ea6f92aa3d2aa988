"""A short training run that something can end at any of its places; see `tests/faults/test_runs.py`."""

import json
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcconv as fc
from funcconv.train._loop import fit as _fit
from funcconv.train._loop import run as _run

STEPS, EVERY = 6, 2


class Places:
    """Counts the places that a run passes, and ends it at one of them.

    Args:
        end: called with the name of the place; it may raise anything, or end the process.
        at: the number of the place, from 0; None for none.
        name: of the places that are counted; None for all.
    """

    def __init__(self, end=None, at=None, name=None):
        self.end, self.at, self.name, self.passed = end, at, name, []

    def __call__(self, name):
        if name == (self.name or name):
            self.passed.append(name)
            if len(self.passed) - 1 == self.at:
                self.end(name)


class Loader:
    """An iterator that can say where it is; its state is an object that it goes on to change."""

    def __init__(self, passed):
        self.place, self.passed = {"taken": 0}, passed

    def __iter__(self):
        return self

    def __next__(self):
        self.passed("before a batch")
        self.place["taken"] += 1
        batch = batch_of(self.place["taken"])
        self.passed("after a batch")
        return batch

    def get_state(self):
        return self.place

    def set_state(self, place):
        self.place = dict(place)


class Noted(type(fc.train.batches(np.ones(2), 1))):
    """As `batches` returns them, with places."""

    def __next__(self):
        self.passed("before a batch")
        batch = super().__next__()
        self.passed("after a batch")
        return batch


def batch_of(number):
    return np.random.default_rng(number).normal(size=(4, 3)).astype(np.float32)


def data_of(kind, passed):
    if kind in ("loader", "prefetched"):
        return Loader(passed) if kind == "loader" else fc.train.prefetch(Loader(passed))
    if kind == "iterator":
        loader = Loader(passed)
        return (next(loader) for _ in range(100))
    data = fc.train.batches(np.concatenate([batch_of(0)] * 4), 4, jax.random.key(2))
    data.__class__, data.passed = Noted, passed
    return data


def loss(params, batch, *, key, state):
    del state
    return jnp.square(params["w"] - batch + 0.1 * jax.random.normal(key, batch.shape, batch.dtype)).mean()


class InMemory:
    """Checkpoints of a process, for tests of many interrupts. Nothing else is saved than JSON and arrays."""

    stored: dict = {}  # noqa: RUF012

    def __init__(self, folder, **_):
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._folder = self.stored.setdefault(str(folder), {})

    def save(self, step, state, run, metrics, about):
        del metrics, about
        leaves = [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(state)]
        self._folder[step] = [each.copy() for each in leaves], json.dumps(run)

    def restore(self, like, step=None, about=None):
        del about
        if not self._folder:
            return None
        number = max(self._folder) if step is None else step
        leaves, run = self._folder[number]
        old, structure = jax.tree.flatten(like)
        new = [jax.random.wrap_key_data(x) if is_key(y) else jnp.array(x) for x, y in zip(leaves, old, strict=True)]
        return number, structure.unflatten(new), json.loads(run)

    def close(self):
        pass


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def fit(folder, passed=None, kind="batches", log=None, steps=STEPS, values=None, on_disk=False, **options):
    """Run, or go on with a run; return all that an interrupt must not change.

    If `on_disk`, the places include each renaming of a checkpoint and each reading of one.
    """
    passed = passed or Places()
    folder = Path(folder)
    folder.mkdir(exist_ok=True)

    def evaluate(state):
        passed("before an evaluation")
        error = float(state.params["w"].sum()) if values is None else values[int(state.step) // EVERY - 1]
        passed("after an evaluation")
        return {"error": error}

    def report(record):
        passed("before a report")
        del record
        passed("after a report")

    init, step = fc.train.make_step(loss, optax.adam(0.1), ema=0.9)
    options = {"monitor": "error", "checkpoint": folder / "run", "checkpoint_every": 3, "keep": 2, **options}

    def placed(owner, name, place, *, also_after=True, only=lambda *_: True):
        """Let a function pass places before and after its work; return its owner, its name and itself."""
        function = getattr(owner, name)

        def passing(*arguments, **named):
            counted = only(*arguments)
            if counted:
                passed(f"before {place}")
            result = function(*arguments, **named)
            if counted and also_after:
                passed(f"after {place}")
            return result

        setattr(owner, name, passing)
        return owner, name, function

    functions = [
        placed(_run, "copied_batch", "a step", also_after=False),
        placed(_fit.Checkpoints, "save", "saving"),
    ]
    if on_disk:
        run = folder.absolute() / "run"  # orbax renames files too, in folders of its own
        functions.append(placed(Path, "rename", "a renaming", only=lambda path, _: path.parent == run))
        functions.append(placed(_fit.Checkpoints, "restore", "reading"))
    try:
        state, history = fc.train.fit(
            step,
            init({"w": jnp.zeros(3)}, jax.random.key(0)),
            data_of(kind, passed),
            steps=steps,
            evaluate=evaluate,
            every=EVERY,
            log=log or [folder / "log.jsonl", report],
            progress=False,
            **options,
        )
    finally:
        for owner, name, function in reversed(functions):
            setattr(owner, name, function)
    return {
        "digest": fc.train.digest(state),
        "best": history.best and [*history.best],
        "records": [*map(repr, history.records)],
        "stopped": history.stopped,
        "log": (folder / "log.jsonl").read_text() if log is None else "",
    }


def kill_each(cases, options):
    """Run once for each place in a process that kills itself there; print the results of the next runs.

    Args:
        cases: the name of a place, and its number among the places of this name.
        options: of `fit`.
    """
    for number, (name, at) in enumerate(cases):
        process = os.fork()
        if not process:
            fit(f"run{number}", Places(lambda _: os.kill(os.getpid(), signal.SIGKILL), at, name), **options)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status == signal.SIGKILL, (name, at, status)
    print(json.dumps([fit(f"run{number}", **options) for number in range(len(cases))]))


def main(places):
    """Run in processes that kill themselves at these places; print the result of the next run, and the expected one.

    The processes are forked, so that the packages are imported once.
    """
    for number, at in enumerate(places):
        process = os.fork()
        if not process:
            fit("run", Places(lambda _: os.kill(os.getpid(), signal.SIGKILL), at))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        assert status == signal.SIGKILL or (number and not status), status  # later runs may have fewer places
    print(json.dumps([fit("run"), fit("whole")]))

"""Training: what `fit` and its checkpoints cost, whether the device waits for data, and steps spread over devices."""

import contextlib
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funcconv as fc

from .tables import Table

WARM = 50  # steps that are not timed, compilation among them
DEVICE_SECONDS = 0.05  # of a step on a device that is not the host


def problem(batch: int, channels: int, mesh: Any = None) -> tuple[Any, Any, Any]:
    """Return a step, a state and batches."""
    x = fc.Input("x", (16, 16, 3))
    layers = fc.serial(
        fc.Conv(channels, 3, padding="SAME"),
        jax.nn.relu,
        fc.Pool(2),
        fc.Conv(channels, 3),
        jax.nn.relu,
        fc.Flatten(),
        fc.Dense(10),
    )
    graph = fc.Graph(x, layers(x))

    def loss(params: Any, batch: Any, *, key: Any, state: Any) -> Any:
        del key, state
        logits = graph(params, batch["image"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    init, step = fc.train.make_step(loss, optax.adam(1e-3), mesh=mesh)
    rng = np.random.default_rng(0)
    arrays = {
        "image": rng.normal(size=(4 * batch, 16, 16, 3)).astype(np.float32),
        "label": rng.integers(0, 10, 4 * batch),
    }
    spread = None if mesh is None else jax.NamedSharding(mesh, jax.P("data"))
    data = fc.train.batches(arrays, batch, jax.random.key(0), sharding=spread)
    return step, init(graph.init(jax.random.key(1)), jax.random.key(2)), data


def bare(step: Any, state: Any, data: Any, steps: int) -> float:
    """Return the milliseconds of a step in a loop that does nothing else."""
    compiled, begun = fc.train.compile(step), 0.0
    state = jax.tree.map(jnp.copy, state)
    for i in range(steps):
        if i == WARM:
            jax.block_until_ready(state)
            begun = time.perf_counter()
        state, _ = compiled(state, next(data))
        if jax.device_count() > 1:  # steps that wait for each other could take all threads of the CPU
            jax.block_until_ready(state)
    jax.block_until_ready(state)
    return 1e3 * (time.perf_counter() - begun) / (steps - WARM)


def fitted(step: Any, state: Any, data: Any, steps: int, *, log: Any = None, **options: Any) -> float:
    """Return the milliseconds of a step in `fit`, by default with its progress bar."""
    at = {}

    def note(record: dict[str, Any]) -> None:
        at[record["step"]] = time.perf_counter()

    with contextlib.redirect_stderr(io.StringIO()):
        fc.train.fit(step, state, data, steps=steps, log=[note, *([log] if log else [])], **options)
    return 1e3 * (at[steps] - at[WARM]) / (steps - WARM)


def overhead(*, quick: bool) -> Table:
    """Return what a step takes in both loops, for steps of several lengths."""
    table = {}
    for batch, channels in ((16, 4), (32, 8)) if quick else ((16, 4), (32, 8), (64, 8)):
        step, state, data = problem(batch, channels)
        steps, timings = (150 if quick else 250), {"bare": [], "fit": []}
        for _ in range(2 if quick else 5):
            timings["bare"].append(bare(step, state, data, steps))
            timings["fit"].append(fitted(step, state, data, steps))
        ms = {name: statistics.median(values) for name, values in timings.items()}
        table[f"batch {batch}, {channels} channels"] = {"bare, ms": ms["bare"], "fit over bare": ms["fit"] / ms["bare"]}
    return table


def slow(batch: Any, seconds: float, *, every: int = 1) -> Iterator[Any]:
    """Return a batch again and again; each one whose number is a multiple of `every` takes that many seconds."""
    for number in itertools.count():
        if number % every == 0:
            time.sleep(seconds)
        yield batch


def traced(step: Any, state: Any, data: Any, steps: int) -> dict[str, float]:
    """Return the milliseconds of a step in `fit`, and for which share of them the CPU device computes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            fc.train.fit(step, state, data, steps=steps, progress=False)
        (path,) = Path(folder).glob("**/*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    runs = sorted(
        (event.start_ns, event.start_ns + event.duration_ns)
        for plane in profile.planes
        for line in plane.lines
        for event in line.events
        if event.name.startswith("ThunkExecutor::Execute")  # XLA's name for running a program on the CPU
    )
    # The program runs in several threads, so the times are joined to those at which any of them runs.
    busy: list[list[float]] = []
    for begun, ended in runs[len(runs) // 4 :]:  # without compilation and first steps
        if busy and begun <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], ended)
        else:
            busy.append([begun, ended])
    total = busy[-1][1] - busy[0][0]
    idle = total - sum(ended - begun for begun, ended in busy)
    return {"fit, ms": 1e-6 * total / (0.75 * steps), "idle, %": 100 * idle / total}


def waiting(*, quick: bool) -> Table:
    """Return how long the device waits in `fit` for iterators that take some time, and do not compute themselves."""
    step, state, data = problem(512, 16)
    batch, steps = data[0], 60 if quick else 120
    table = {"on the device": traced(step, state, itertools.repeat(jax.device_put(batch)), steps)}
    seconds = 1e-3 * table["on the device"]["fit, ms"]
    table["train.batches"] = traced(step, state, data, steps)
    for name, options in {
        "each takes 0.5 steps": {"seconds": 0.5 * seconds},
        "each takes 0.9 steps": {"seconds": 0.9 * seconds},
        "every 20th takes 4 steps": {"seconds": 4 * seconds, "every": 20},
        "every 20th takes 10 steps": {"seconds": 10 * seconds, "every": 20},
    }.items():
        table[name] = traced(step, state, slow(batch, **options), steps)
        table[f"{name}, prefetched"] = traced(step, state, fc.train.prefetch(slow(batch, **options), 12), steps)
    return table


def empty(*, quick: bool) -> Table:
    """Return the microseconds of the host for a step that computes next to nothing, in both loops."""

    def loss(params: Any, batch: Any, *, key: Any, state: Any) -> Any:
        del key, state
        return (params["w"] * batch).mean()

    init, step = fc.train.make_step(loss, optax.sgd(0.1))
    state, steps, rounds = init({"w": jnp.ones(())}, jax.random.key(0)), 1000 if quick else 4000, 3 if quick else 9
    us: dict[str, list[float]] = {name: [] for name in ("a bare loop", "fit", "with a progress bar", "with a log file")}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(rounds):
            log = Path(folder) / f"{i}.jsonl"
            us["a bare loop"].append(bare(step, state, endless(), steps))
            us["fit"].append(fitted(step, state, endless(), steps, progress=False))
            us["with a progress bar"].append(fitted(step, state, endless(), steps))
            us["with a log file"].append(fitted(step, state, endless(), steps, progress=False, log=log))
    return {name: {"host, us": 1e3 * statistics.median(values)} for name, values in us.items()}


def endless() -> Iterator[Any]:
    """Return the same batch again and again."""
    return itertools.repeat(jnp.ones(4))


def saved(*, quick: bool) -> Table:
    """Return what a checkpoint every ten steps costs, where a step takes 50 ms on a device that is not the host.

    The device is a thread that sleeps, so that nothing but the checkpoints keeps the host busy.
    """
    table: Table = {}
    for megabytes in (1, 10) if quick else (1, 10, 100):
        params = {f"w{i}": jnp.ones((megabytes * 250_000 // 50,)) for i in range(50)}

        def loss(params: Any, batch: Any, *, key: Any, state: Any) -> Any:
            del key, state
            slept = jax.pure_callback(lambda x: (time.sleep(DEVICE_SECONDS), x)[1], jax.typeof(batch), batch)
            return jax.lax.stop_gradient(slept).mean() + sum(leaf.sum() for leaf in jax.tree.leaves(params))

        init, step = fc.train.make_step(loss, optax.sgd(0.1))
        state, steps = init(params, jax.random.key(0)), WARM + (20 if quick else 100)
        ms: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(1 if quick else 3):
            ms["without"].append(fitted(step, state, endless(), steps, progress=False))
            with tempfile.TemporaryDirectory() as folder:
                ms["with"].append(fitted(step, state, endless(), steps, progress=False, checkpoint=folder))
        medians = {name: statistics.median(values) for name, values in ms.items()}
        table[f"{megabytes} MB"] = {
            "without, ms": medians["without"],
            "with, ms": medians["with"],
            "more, %": 100 * (medians["with"] / medians["without"] - 1),
        }
    return table


def spread(*, quick: bool) -> Table:
    """Return what a step takes over so many devices of the CPU, which share its cores, and how long it compiles."""
    table = {}
    for devices in (1, 2) if quick else (1, 2, 4, 8):
        command = [sys.executable, "-m", "benchmarks.training", str(devices)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        table[f"{devices} devices"] = json.loads(done.stdout.splitlines()[-1])
    return table


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return all tables."""
    return {
        "a step in fit and in a bare loop": overhead(quick=quick),
        "a step in fit, by what its batches take": waiting(quick=quick),
        "an empty step": empty(quick=quick),
        "a checkpoint every 10 steps of 50 ms": saved(quick=quick),
        "a step over devices": spread(quick=quick),
    }


def main(devices: int) -> None:
    """Print the figures of one number of devices."""
    jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_platforms", "cpu")
    step, state, data = problem(128, 16, jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
    begun = time.perf_counter()
    options = fc.compiler_options()
    jax.jit(step, compiler_options=options).lower(state, data[0]).compile()
    seconds = time.perf_counter() - begun
    print(json.dumps({"step, ms": bare(step, state, data, 250), "compiling, s": seconds}))


if __name__ == "__main__":
    main(int(sys.argv[1]))

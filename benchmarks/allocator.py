"""What `funcconv run` gains: training steps with all its settings, and without each in turn.

XLA for the CPU asks for its memory again at each call. The allocator gives large pieces back to the system, and each
page is mapped and cleared anew. A process reads the settings when it starts, so each is timed in processes of its own,
in turns.
"""

import json
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .libraries import on_jax
from .networks import NETWORKS
from .peers import STEP, programs
from .tables import Table, with_mean
from .timing import medians

RUN = ["-m", "funcconv", "run", "--quiet"]
WAYS = {
    "python": [],
    "all settings": RUN,
    "no huge pages": [*RUN, "--no-huge-pages"],
    "no kept memory": [*RUN, "--no-kept-memory"],
    "no threads": [*RUN, "--no-threads"],
}


def steps(*, quick: bool) -> dict[str, float]:
    """Return the milliseconds of a training step of each network."""
    step_ms = {}
    for name, (net, usual, small) in NETWORKS.items():
        x = np.random.default_rng(0).normal(size=small if quick else usual).astype(np.float32)
        params, predict, images = on_jax()["funcconv"](net, jnp.asarray(x))
        step = jax.jit(programs(predict)[STEP])
        step_ms[name] = 1e3 * medians({STEP: partial(step, params, images)}, 3 if quick else 9)[STEP]
    return step_ms


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return how many times faster each network trains."""
    runs_by_way: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    script = ["-m", "benchmarks.allocator", *(["--quick"] if quick else [])]
    for _ in range(1 if quick else 3):
        for way, start in WAYS.items():
            command = ["env", "-u", "GLIBC_TUNABLES", "JAX_PLATFORMS=cpu", sys.executable, *start, *script]
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
            runs_by_way[way].append(json.loads(done.stdout.splitlines()[-1]))
    table = {}
    for name in NETWORKS:
        ms = {way: statistics.median(run[name] for run in runs) for way, runs in runs_by_way.items()}
        usual = ms.pop("python")
        table[name] = {"python, ms": usual} | {f"{way}, times faster": usual / value for way, value in ms.items()}
    return {"training steps in funcconv run": with_mean(table)}


if __name__ == "__main__":
    print(json.dumps(steps(quick="--quick" in sys.argv)))

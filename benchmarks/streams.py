"""Signals that arrive in chunks: what a chunk takes, beside the evaluation of the whole signal at once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

from .tables import Table
from .timing import medians

RATE = 16_000  # samples of the signal in a second
SAMPLES = 8192  # of the whole signal
CHUNKS = (1, 16, 256, 4096)
STEPS = 512  # that are timed together; fewer for long chunks
NETWORKS: dict[str, Callable[..., Any]] = {
    "16 layers": lambda: fc.zoo.wavenet(1, layers=8, stacks=2, skip_channels=32, input_shape=(SAMPLES, 1)),
    "zoo.wavenet": lambda: fc.zoo.wavenet(input_shape=(SAMPLES, 256)),
}


def chunk_by_chunk(graph: Any, params: Any, signal: Any, chunk: int, steps: int) -> Callable[[], Any]:
    """Return a function that computes so many chunks, each with one call of the same program."""
    stream = fc.stream(graph)
    step = jax.jit(partial(stream.step, params), donate_argnums=0)
    carry, samples = stream.init(params, 1), signal[:, :chunk]

    def run() -> Any:
        nonlocal carry
        for _ in range(steps):
            carry, y = step(carry, samples)
        return y

    return run


def in_one_loop(graph: Any, params: Any, signal: Any, steps: int) -> Callable[[], Any]:
    """Return a function that computes so many samples, one after another, in one program."""
    stream = fc.stream(graph)
    carry, samples = stream.init(params, 1), jnp.swapaxes(signal[:, :steps, None], 0, 1)
    run = jax.jit(lambda carry, samples: jax.lax.scan(partial(stream.step, params), carry, samples))
    return lambda: run(carry, samples)


def of_network(graph: Any, rounds: int, *, quick: bool) -> Table:
    """Return what a sample takes, for chunks of several lengths and for the whole signal."""
    (samples, channels), chunks, most = graph.shapes()["signal"].shape, CHUNKS, STEPS
    if quick:
        samples, chunks, most = samples // 8, CHUNKS[:2], STEPS // 8
    params = graph.init(jax.random.key(0))
    signal = jnp.asarray(np.random.default_rng(0).normal(size=(1, samples, channels)), jnp.float32)
    steps = {chunk: max(1, min(most, samples // chunk)) for chunk in chunks}
    ways = {f"chunks of {n:,}": chunk_by_chunk(graph, params, signal, n, steps[n]) for n in chunks}
    counts = {f"chunks of {n:,}": n * steps[n] for n in chunks}
    loop, whole = "samples in one lax.scan", f"{samples:,} samples at once"
    own = fc.Input("signal", signal.shape[1:])
    evaluate = jax.jit(partial(fc.Graph(own, graph(own)), params))
    ways |= {loop: in_one_loop(graph, params, signal, most), whole: partial(evaluate, signal)}
    counts |= {loop: most, whole: samples}
    seconds = {name: taken / counts[name] for name, taken in medians(ways, rounds).items()}
    return {
        name: {
            "us a sample": 1e6 * each,
            "times real time": 1 / RATE / each,
            "times as long as the whole": each / seconds[whole],
        }
        for name, each in seconds.items()
    }


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table."""
    rounds = 3 if quick else 9
    table: Table = {}
    for name, network in NETWORKS.items():
        found = of_network(network(), rounds, quick=quick)
        table |= {f"{name}, {row}": figures for row, figures in found.items()}
    return {"a sample of a stream": table}

"""Timing that a noisy machine spoils least: compiled and warm, in turns, by the median."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

FEWEST = 3  # rounds, however long they take
PATIENCE = 60.0  # seconds after which no further round begins


def medians(ways: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Return the median seconds of each way; one round runs each of them once, and slow ones have fewer rounds."""
    for way in ways.values():
        for _ in range(2):
            jax.block_until_ready(way())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    start = time.perf_counter()
    for i in range(rounds):
        if i >= FEWEST and time.perf_counter() - start > PATIENCE:
            break
        for name, way in ways.items():
            begin = time.perf_counter()
            jax.block_until_ready(way())
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}

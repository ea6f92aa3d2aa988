"""Timing that a noisy machine spoils least: compiled and warm, in turns, by the median."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

PATIENCE = 10.0  # seconds that a way may take in all by default; one that has is not run again


def medians(ways: Mapping[str, Callable[[], object]], rounds: int = 15, patience: float = PATIENCE) -> dict[str, float]:
    """Return the median seconds of each way; one round runs each of them once, after one that compiles."""
    seconds: dict[str, list[float]] = {}
    for name, way in ways.items():
        first = _seconds(way)
        seconds[name] = [first] if first > 3 * patience else []  # beside which compiling is nothing
    for _ in range(rounds):
        for name, way in ways.items():
            if sum(seconds[name]) < patience:
                seconds[name].append(_seconds(way))
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(way: Callable[[], object]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(way())
    return time.perf_counter() - begin

"""Timing that a noisy machine spoils least: compiled and warm, in turns, by the median."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

PATIENCE = 10.0  # seconds that a way may take in all by default; one that has is not run again


def medians(ways: Mapping[str, Callable[[], object]], rounds: int = 15, patience: float = PATIENCE) -> dict[str, float]:
    """Return the median seconds of each way; one round runs each of them once."""
    for way in ways.values():
        jax.block_until_ready(way())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if sum(seconds[name]) < patience:
                begin = time.perf_counter()
                jax.block_until_ready(way())
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}

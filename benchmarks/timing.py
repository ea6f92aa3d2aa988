"""Timing that a noisy machine spoils least: compiled and warm, in turns, by the median."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax

PATIENCE = 10.0  # seconds that a way may take in all by default; one that has is not run again
ENDLESS = 30.0  # seconds, beside which compiling is nothing
LONG = 1.0  # seconds, beside which what a library before leaves behind is nothing
QUEUED, MOST_CALLS = 3e-3, 50  # seconds of work that an accelerator gets at once, and in how many calls


def medians(ways: Mapping[str, Callable[[], object]], rounds: int = 15, patience: float = PATIENCE) -> dict[str, float]:
    """Return the median seconds of each way, all of which are run in each round, after one that compiles."""
    return {name: statistics.median(values) for name, values in timed(ways, rounds, patience).items()}


def timed(
    ways: Mapping[str, Callable[[], object]], rounds: int = 15, patience: float = PATIENCE
) -> dict[str, list[float]]:
    """Return the seconds of each way in each round, after one that compiles."""
    seconds: dict[str, list[float]] = {}
    for name, way in ways.items():
        first = _seconds(way)
        seconds[name] = [first] if first > ENDLESS else []
    for _ in range(rounds):
        for name, way in ways.items():
            if sum(seconds[name]) < patience:
                seconds[name].append(_settled(way))
    return seconds


def quartiles(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Return the lower and the upper quartile of the ratio of two ways over the rounds."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=False)]
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"lower quartile": lower, "upper quartile": upper}


def _settled(way: Callable[[], object]) -> float:
    """Return the seconds of a second run, if the first is short: threads of a library before may still spin in it.

    An accelerator gets as many calls as take a few milliseconds, so that waiting for the last one counts little.
    """
    first = _seconds(way)
    if first > LONG:
        return first
    return _seconds(way, 1 if jax.default_backend() == "cpu" else max(1, min(MOST_CALLS, int(QUEUED / first))))


def _seconds(way: Callable[[], object], calls: int = 1) -> float:
    begin = time.perf_counter()
    jax.block_until_ready([way() for _ in range(calls)])
    return (time.perf_counter() - begin) / calls

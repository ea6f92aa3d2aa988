"""How good the choice of forms is, by the times of all forms that were measured on random shapes.

`benchmarks/results/choice-*.json` has these times for two versions of JAX, with and without AVX-512. Most rules were
made from the shapes drawn with seed 21 and from grouped kernels (seed "g"); the last ones, for kernel gradients and for
uneven channels, from all rows. So these rows do not tell how good the choice is on others. The times of input gradients
are with the convolutions inside that the rules of that time chose.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import numpy as np

from funcconv._primitives.forms import CHOICES, Form, Problem, Where, choose
from funcconv._windows.geometry import Axis

from .forms import ALL_TAPS
from .tables import Table

RESULTS = Path(__file__).parent / "results"
SLOW, SLOWER = 0.95, 0.9  # of the speed of lax
FASTER, BEHIND = "times faster than lax", "times slower than the fastest form"


class Measured(NamedTuple):
    """One of the maps of a convolution, with the time of every form."""

    map: str
    name: str
    problem: Problem
    milliseconds: dict[str, float]

    @property
    def lax(self) -> float:
        """The milliseconds of XLA's own convolution, with all taps."""
        return self.milliseconds.get(ALL_TAPS, self.milliseconds["lax"])

    @property
    def chosen(self) -> float:
        """The milliseconds of the form that funcconv chooses."""
        return self.milliseconds[choose(CHOICES[self.map], self.problem).form]

    @property
    def fastest(self) -> float:
        """The milliseconds of the fastest form."""
        return min(value for form, value in self.milliseconds.items() if form != ALL_TAPS)


def recorded(path: Path) -> Iterator[Measured]:
    """Return what one file has."""
    record = json.loads(path.read_text())
    for row in record["rows"]:
        yield measured(row, old=record["old"])


def measured(row: dict[str, Any], *, old: bool) -> Measured:
    """Return a row of a file; `old` says whether XLA was of jax 0.10."""
    form = Form(tuple(Axis(*axis) for axis in row["axes"]), row["groups"])
    kernel = (*form.window, row["image"][-1] // form.groups, row["outputs"])
    where = Where("cpu", old=old)
    problem = Problem.of(form, tuple(row["image"]), kernel, np.dtype(np.float32), 0, where)
    return Measured(row["map"], row["case"], problem, row["ms"])


def summary(rows: list[Measured]) -> dict[str, float]:
    """Return how fast the chosen forms are."""
    ratios = [row.lax / row.chosen for row in rows]
    return {
        "rows": len(rows),
        FASTER: geometric_mean(ratios),
        BEHIND: geometric_mean([row.chosen / row.fastest for row in rows]),
        f"below {SLOW} of lax": sum(ratio < SLOW for ratio in ratios),
        f"below {SLOWER} of lax": sum(ratio < SLOWER for ratio in ratios),
        "slowest": min(ratios, default=math.nan),
    }


def results() -> dict[str, Table]:
    """Return a table for each file, with a row for each map."""
    tables: dict[str, Table] = {}
    for path in sorted(RESULTS.glob("choice-*.json")):
        rows = list(recorded(path))
        tables[path.stem] = {name: summary([row for row in rows if row.map == name]) for name in CHOICES}
    return tables

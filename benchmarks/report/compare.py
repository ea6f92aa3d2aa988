"""The rows that compare funcconv with `jax.lax`: how often it is slower, and where it loses most time."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .markdown import NOTHING, cell, number, table
from .records import MEAN, NOT_RECORDED, Place, Values

SLOWER, MUCH_SLOWER = 0.95, 0.9  # times as fast as lax
MOST_ROWS = 15


class Kind(NamedTuple):
    """One table of a suite that has a comparison with lax in each row."""

    name: str
    suite: str
    title: str
    ratio: str
    own_ms: str = "ms"


KINDS = (
    Kind("convolution", "convolutions", "conv, against lax", "times faster"),
    Kind("input gradient", "convolutions", "input_grad, against lax", "times faster"),
    Kind("kernel gradient", "convolutions", "kernel_grad, against lax", "times faster"),
    Kind("HVP of a convolution", "convolutions", "HVP, against lax", "times faster"),
    Kind("convolution, random shape", "forms", "the choice for conv", "times faster than lax"),
    Kind("kernel gradient, random shape", "forms", "the choice for kernel_grad", "times faster than lax"),
    Kind("pool", "pools", "value of a pool, against lax", "times faster"),
    Kind("gradient of a pool", "pools", "gradient of a pool, against lax", "times faster"),
    Kind("HVP of a pool", "pools", "HVP of a pool, against lax", "times faster"),
    Kind("training step", "networks", "training step", "lax", "funcconv, ms"),
    Kind("inference", "networks", "inference", "lax", "funcconv, ms"),
    Kind("HVP of a network", "networks", "HVP", "lax", "funcconv, ms"),
)


class Comparison(NamedTuple):
    """One row: how many times as fast as lax, and the milliseconds of funcconv."""

    name: str
    ratios: Values
    own_ms: Values
    quartiles: tuple[Values, Values]  # of the ratios over the rounds


def plain(row: str) -> str:
    """Return the name of a row of random shapes without the names of the forms, which depend on the version."""
    return row.partition(": ")[0]


def compared(place: Place, kind: Kind) -> list[Comparison]:
    """Return the rows of one kind."""
    nothing: Values = (None,) * len(place.versions)
    return [
        Comparison(
            name,
            row.get(kind.ratio, nothing),
            row.get(kind.own_ms, nothing),
            (row.get("lower quartile", nothing), row.get("upper quartile", nothing)),
        )
        for name, row in place.table(kind.suite, kind.title, plain).items()
        if name != MEAN
    ]


def overview(place: Place) -> str:
    """Return the table of all kinds: the mean, the number of slower rows, the slowest row and the spread."""
    rows = []
    for kind in KINDS:
        if found := compared(place, kind):
            ratios = [_present(values) for values in zip(*(row.ratios for row in found), strict=True)]
            rows.append(
                [
                    kind.name,
                    str(len(found)),
                    cell(statistics.geometric_mean(each) if each else None for each in ratios),
                    _counts(ratios, SLOWER),
                    _counts(ratios, MUCH_SLOWER),
                    cell(min(each, default=None) for each in ratios),
                    _spread(found),
                ]
            )
    head = ["", "rows", "geometric mean", "rows below 0.95", "rows below 0.9", "smallest", "half of the rounds within"]
    return table(head, rows)


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _counts(ratios: list[list[float]], limit: float) -> str:
    return " / ".join(str(sum(ratio < limit for ratio in each)) if each else NOTHING for each in ratios)


def _spread(rows: list[Comparison]) -> str:
    """Return the median over the rows of half the distance between the quartiles, in percent of the ratio."""
    lower, upper = (zip(*(row.quartiles[i] for row in rows), strict=True) for i in (0, 1))
    middle = zip(*(row.ratios for row in rows), strict=True)
    shown = []
    for lows, highs, ratios in zip(lower, upper, middle, strict=True):
        triples = [t for t in zip(lows, highs, ratios, strict=True) if None not in t]
        halves = [50 * (high - low) / ratio for low, high, ratio in triples]
        shown.append(f"±{statistics.median(halves):.0f} %" if halves else NOTHING)
    return NOT_RECORDED if set(shown) == {NOTHING} else " / ".join(shown)


class Slower(NamedTuple):
    """A row that is much slower than lax."""

    name: str
    kind: str
    lax_ms: Values
    own_ms: Values
    ratios: Values

    @property
    def lost_ms(self) -> float:
        """Return the most milliseconds that are lost in a version of JAX."""
        pairs = zip(self.own_ms, self.lax_ms, strict=True)
        return max(own - lax for own, lax in pairs if own is not None and lax is not None)


def slower_rows(place: Place) -> Iterator[Slower]:
    """Return the rows of the suites that are much slower than lax in a version of JAX."""
    for kind in KINDS:
        for row in compared(place, kind):
            if any(ratio < MUCH_SLOWER for ratio in _present(row.ratios)):
                lax_ms = _each(lambda ms, ratio: ms * ratio, row.own_ms, row.ratios)
                yield Slower(row.name, kind.name, lax_ms, row.own_ms, row.ratios)


def slower_rows_on_gpu(record: dict[str, Any]) -> Iterator[Slower]:
    """Return the rows of a GPU record that are much slower than lax, or than Flax, which uses lax."""
    for name, row in record["parts"].get("rows", {}).items():
        ratio = row.get("times faster than lax")
        if ratio is not None and ratio < MUCH_SLOWER:
            kind, _, shape = name.partition(": ")
            yield Slower(shape, kind, (row["lax, ms"],), (row["lax, ms"] / ratio,), (ratio,))
    for name, row in record["parts"].get("networks", {}).items():
        ratio = row.get("flax / funcconv")
        if ratio is not None and ratio < MUCH_SLOWER:
            network, _, task = name.partition(", ")
            own = row["funcconv, ms"]
            yield Slower(network, f"{task}, against Flax", (own * ratio,), (own,), (ratio,))


def _each(f: Callable[[float, float], float], left: Values, right: Values) -> Values:
    pairs = zip(left, right, strict=True)
    return tuple(None if x is None or y is None else f(x, y) for x, y in pairs)


def slower_table(rows: Iterable[Slower]) -> str:
    """Return the rows that lose most time, and how many there are."""
    rows = [row for row in rows if row.lost_ms > 0] if rows else []
    rows.sort(key=lambda row: -row.lost_ms)
    body = [[row.name, row.kind, cell(row.lax_ms), cell(row.own_ms), cell(row.ratios)] for row in rows[:MOST_ROWS]]
    if not body:
        return ""
    shown = table(["row", "what", "lax, ms", "funcconv, ms", "times as fast as lax"], body)
    if len(rows) <= MOST_ROWS:
        return shown
    most = number(rows[MOST_ROWS].lost_ms)
    return f"{shown}\n\n{len(rows) - MOST_ROWS} more rows lose {most} ms or less each."

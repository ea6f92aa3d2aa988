"""The section of one record of `python -m benchmarks --gpu`."""

import statistics
from collections.abc import Callable
from typing import Any

from .compare import MUCH_SLOWER, SLOWER
from .markdown import NOTHING, cell, number, section, table

SHORT_MS = 0.15  # the time to start a program is much of shorter ones
OWN, TUNED = "times faster than lax", "tuned, times faster than lax"

Record = dict[str, Any]


def heading(record: Record) -> str:
    """Return the name of the device."""
    return str(record.get("device", "GPU"))


def sections(record: Record) -> list[str]:
    """Return the sections, each of which is empty if the record lacks its part."""
    parts = record["parts"]
    seconds = f" It took {record['seconds']:.0f} seconds." if "seconds" in record else ""
    intro = (
        f'`python -m benchmarks --gpu` measured this with jax {record["jax"]}.{seconds} The column "funcconv" has the '
        'forms that funcconv chooses by itself. The column "tuned" has the forms that `fc.tune` measured to be the '
        "fastest for the row."
    )
    notes = [f"**Note.** {record['note']}"] if "note" in record else []
    stopped = [
        f"The part `{name}` stopped early: {part['stopped']['error']}"
        for name, part in parts.items()
        if "stopped" in part
    ]
    rows = {name: row for name, row in parts.get("rows", {}).items() if "lax, ms" in row}
    return [
        "\n\n".join([intro, *notes, *stopped]),
        section("Single operations", _selected(rows), _short_rows(rows)),
        section(
            "Random shapes",
            "The shapes are drawn at random, without groups. The figures are times as fast as `jax.lax`.",
            _random(rows),
        ),
        section(
            "Whole networks",
            "The time of each library, divided by the time of funcconv: above 1, funcconv is faster. PyTorch runs "
            "eagerly. A network is tuned by measuring the convolutions of its training step.",
            _networks(parts.get("networks", {})),
        ),
        _other(parts),
    ]


def _selected(rows: Record) -> str:
    """Return the table of all rows but those of random shapes."""
    body = []
    for name, row in rows.items():
        kind, _, shape = name.partition(": ")
        if not kind.startswith("random"):
            label = shape if kind == "reported" else f"{kind}: {shape}"
            body.append([label, number(row["lax, ms"]), cell([row.get(OWN)]), cell([row.get(TUNED)])])
    return table(["operation", "lax, ms", "funcconv, times as fast", "tuned, times as fast"], body)


def _short_rows(rows: Record) -> str:
    short = sum(row["lax, ms"] < SHORT_MS for row in rows.values())
    if not short:
        return ""
    return (
        f"{short} of all {len(rows)} rows, with random shapes, take less than {SHORT_MS} ms with lax. Most of that is "
        "the time to start a program, so their ratios say little about the algorithms."
    )


def _random(rows: Record) -> str:
    body = []
    for kind, name in (("random", "convolution"), ("random, gradients", "both gradients")):
        found = [row for row_name, row in rows.items() if row_name.partition(": ")[0] == kind]
        for way, column in (("funcconv", OWN), ("tuned", TUNED)):
            ratios = [row[column] for row in found if column in row]
            if ratios:
                below = [str(sum(ratio < limit for ratio in ratios)) for limit in (SLOWER, MUCH_SLOWER)]
                ends = [number(end(ratios)) for end in (min, max)]
                mean = number(statistics.geometric_mean(ratios))
                body.append([f"{name}, {way}", str(len(ratios)), mean, *below, *ends])
    return table(["", "rows", "geometric mean", "rows below 0.95", "rows below 0.9", "smallest", "largest"], body)


def _networks(networks: Record) -> str:
    networks = {name: row for name, row in networks.items() if "funcconv, ms" in row}
    columns = dict.fromkeys(column for row in networks.values() for column in row if column.endswith(" / funcconv"))
    peers = [column for column in columns if not column.startswith("tuned")]
    body = []
    for name, row in networks.items():
        tuned = row.get("tuned / funcconv")
        gain = number(1 / tuned) if tuned else NOTHING
        body.append([name, number(row["funcconv, ms"], 3), gain, *(cell([row.get(column)]) for column in peers)])
    names = [{"flax": "Flax", "torch": "PyTorch"}.get(peer := column.partition(" ")[0], peer) for column in peers]
    return table(["network", "funcconv, ms", "times as fast with tuning", *names], body)


def _other(parts: Record) -> str:
    found = [
        *_sentence(parts.get("determinism", {}), _deterministic),
        *_sentence(parts.get("laws", {}), _errors),
    ]
    return "\n\n".join(["### Determinism and errors", *found]) if found else ""


def _sentence(part: Record, write: Callable[[Record], str]) -> list[str]:
    sentence = write(part)
    return [sentence] if sentence else []


def _deterministic(part: Record) -> str:
    times = {name: row for name, row in part.items() if "ms" in row}
    if not {"funcconv", "lax"} <= set(times):
        return ""
    own, through_lax = (number(times[name]["ms"]) for name in ("funcconv", "lax"))
    return (
        f"With `--xla_gpu_deterministic_ops=true`, the gradient of two overlapping max pools takes {own} ms with "
        f"funcconv and {through_lax} ms with `jax.lax`. Two runs of funcconv "
        f"{'are equal bit by bit' if times['funcconv'].get('equal') else 'differ'}."
    )


def _errors(part: Record) -> str:
    largest = [
        f"{number(max(found))} in {dtype} ({len(found)} cases)"
        for dtype in ("float32", "bfloat16")
        if (found := [row[dtype] for row in part.values() if dtype in row])
    ]
    if not largest:
        return ""
    return (
        "Values and gradients were compared with those of the CPU in float64. The largest error, in units in the last "
        f"place of the largest number, is {' and '.join(largest)}."
    )

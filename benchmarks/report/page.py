"""Put the page and the parts of the README and of the page on networks together, and write them."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import choice
from ..choice import BEHIND, FASTER, SLOW, SLOWER
from ..tables import Table
from . import gpu, networks, suites
from .compare import overview, slower_rows, slower_rows_on_gpu, slower_table
from .markdown import number, section, table, wrapped
from .records import MEAN, NOT_RECORDED, Place, facts, load

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE, README, PICTURE = ROOT / "docs" / "speed.md", ROOT / "README.md", ROOT / "docs" / "pictures" / "speed.png"
ZOO = ROOT / "docs" / "zoo.md"
COMMAND = "python -m benchmarks --report"

INTRO = f"""# Speed

funcconv chooses an algorithm for each convolution and each pool ([How convolutions are computed](lowerings.md)). This
page shows what that gains, and where it costs time. `{COMMAND}` writes it from the files in
`benchmarks/results/`, which have all figures. Do not edit it by hand.

**How to read the tables.** Unless a table says otherwise, a figure is the time of the other library, divided by the
time of funcconv, for the same program in the same run. Above 1, funcconv is faster. Times are medians of several
rounds, after compilation. Arrays are float32, unless the row names another dtype. Where a cell has several figures,
they are for the versions of JAX that the section names; `-` stands for what was not measured. HVP is a Hessian-vector
product. Two runs of the same program can differ by a third on a busy machine, so a difference of a tenth means little.

![Bars for six networks: how many times as long as funcconv other libraries take](pictures/speed.png)"""

OVERVIEW = (
    "Times as fast as `jax.lax`, over the rows of each table of results. The last column is the spread of one row: "
    "half of its rounds are within this distance of its median (the median over the rows)."
)

CHOICES = (
    "Every form was timed on random shapes, a fifth of them depthwise and a fifth with groups. Most of the rules that "
    "choose a form were made from these shapes. A row is below 0.9 if the chosen form has less than 0.9 of the speed "
    "of lax; many of these rows take less than two milliseconds."
)

LAX_INSTEAD = """## When to use lax instead

These programs took at least a tenth longer with funcconv than with `jax.lax`. The tables have those that lose most
time. For a convolution in this list, pass `implementation="lax"`. For a network, use `fc.tune` ([Measuring on your
machine](lowerings.md#measuring-on-your-machine)): it measures the convolutions and pools of your program, and uses the
form of lax where that is faster.

Two more cases: programs with lax often compile faster, which counts if a program runs a few times only. And outside of
`jax.jit`, a call of funcconv takes longer than the same call of lax.

In the names of rows, `k5` is a kernel of size 5. In `8x42x42x48 to 32`, the image has batch size, spatial axes and
channels, and the last number is that of the output channels. Most differences below 0.1 ms are noise."""

AGAIN = """## Measure on your machine

```sh
python -m benchmarks                # all suites; `--quick` takes a few minutes and keeps nothing
python -m benchmarks networks pools # some of them
python -m benchmarks --gpu          # eight minutes on a GPU
python -m benchmarks --report       # write this page again
```

The names of the files in `benchmarks/results/` have the suite, the platform and the version of JAX. A new file replaces
an old one with the same name."""


def page(places: list[Place], records: list[dict[str, Any]], choices: Mapping[str, Table] | None = None) -> str:
    """Return the text of `docs/speed.md`. `choices` are what `choice.results` returns."""
    parts = [INTRO, _devices(places, records)]
    for place in places:
        parts += [f"## {place.heading}", _versions(place), *_sections(place)]
    for record in records:
        parts += [f"## {gpu.heading(record)}", *gpu.sections(record)]
    parts += [_choices(choices or {})]
    slower = [(place.heading, slower_table(slower_rows(place))) for place in places]
    for record in records:
        note = " (see the note in its section)" if "note" in record else ""
        slower.append((gpu.heading(record) + note, slower_table(slower_rows_on_gpu(record))))
    lists = [f"**{heading}**\n\n{shown}" for heading, shown in slower if shown]
    parts += [LAX_INSTEAD, *lists] if lists else []
    return wrapped("\n\n".join(part for part in [*parts, AGAIN] if part)) + "\n"


def _choices(tables: Mapping[str, Table]) -> str:
    """Return how good the chosen forms are, with two versions of JAX and two sets of instructions."""
    rows = []
    for record, maps in tables.items():
        _, _, instructions, jax = record.split("-")
        for name, found in maps.items():
            slow = [str(round(found[f"below {limit} of lax"])) for limit in (SLOW, SLOWER)]
            ratios = [number(found[column], 3) for column in (FASTER, BEHIND, "slowest")]
            what = f"`{name}`, {instructions.upper()}, jax {jax.removeprefix('jax')}"
            rows.append([what, str(round(found["rows"])), *ratios[:2], *slow, ratios[2]])
    head = ["map", "rows", "times faster than lax", "times slower than the fastest form", f"below {SLOW}"]
    shown = table([*head, f"below {SLOWER}", "slowest row"], rows)
    return f"## The choice of forms on the CPU\n\n{CHOICES}\n\n{shown}" if shown else ""


def _sections(place: Place) -> list[str]:
    return [
        section("Overview", OVERVIEW, overview(place)),
        networks.networks(place),
        networks.gains(place),
        section("Convolutions", suites.ABOUT_CONVOLUTIONS, suites.convolutions(place)),
        suites.random_shapes(place),
        suites.pools(place),
        networks.compiling(place),
        suites.depth(place),
        suites.derivatives(place),
        suites.streams(place),
        suites.allocator(place),
        suites.calls(place),
    ]


def _versions(place: Place) -> str:
    if len(place.versions) == 1:
        return f"The figures are for jax {place.versions[0]}."
    return f"Figures with a stroke between them are for jax {' / '.join(place.versions)}."


def _devices(places: list[Place], records: list[dict[str, Any]]) -> str:
    """Return the table of what was measured."""
    runs = [
        (place.heading, [result.content for result in place.results if result.jax == version])
        for place in places
        for version in place.versions
    ]
    runs += [(gpu.heading(record), [record]) for record in records]
    names = {"processor": "processor", "cores": "cores", "instructions": "vector instructions"}
    names |= {"XLA_FLAGS": "`XLA_FLAGS`", "date": "date"}
    rows = [[heading, facts(contents, "jax"), *(facts(contents, name) for name in names)] for heading, contents in runs]
    return "\n\n".join(["## What was measured", table(["device", "jax", *names.values()], rows)]) if rows else ""


def readme_blocks(places: list[Place]) -> dict[str, str]:
    """Return the parts of the README that have figures, by the names of their markers."""
    place = next((place for place in places if place.of_suite("convolutions")), None)
    if place is None:
        return {"headline": "", "table": "The speed was not measured."}
    steps = place.table("networks", "training step").get(MEAN, {}).get("flax", ())
    ratios = sorted(ratio for ratio in steps if ratio is not None)
    headline = ""
    if ratios:
        cores = facts([result.content for result in place.of_suite("networks").values()], "cores")
        device = f"{cores} CPU cores" if cores.isdigit() and place.name.startswith("cpu") else f"the {place.heading}"
        few, many = number(ratios[0]), number(ratios[-1])
        headline = (
            f"On {device}, a training step is {few if few == many else f'{few} to {many}'} times as fast as in Flax "
            "(geometric mean of [six networks](docs/speed.md))."
        )
    dates = facts([result.content for result in place.of_suite("convolutions").values()], "date")
    measured = "" if NOT_RECORDED in dates else f" ({dates})"
    text = (
        f"The table says how many times as fast as `jax.lax` funcconv is on the {place.heading} in float32, with jax "
        f"{' / '.join(place.versions)}{measured}."
    )
    table_of_ten = suites.convolutions(place, suites.IN_README)
    return {"headline": wrapped(headline), "table": wrapped(f"{text}\n\n{table_of_ten}")}


def zoo_blocks(places: list[Place]) -> dict[str, str]:
    """Return the parts of the page on ready-made networks that have figures, by the names of their markers."""
    place = next((place for place in places if place.of_suite("zoo")), None)
    return {"training steps": wrapped(networks.ready_made(place))}


def rewritten(text: str, blocks: Mapping[str, str]) -> str:
    """Return a text with new blocks between its markers `<!-- speed: NAME -->` and `<!-- end of speed: NAME -->`."""
    for name, block in blocks.items():
        start, end = f"<!-- speed: {name} -->", f"<!-- end of speed: {name} -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            message = f"the text must have the markers {start} and {end} once"
            raise ValueError(message)
        text = pattern.sub(lambda _, new=f"{start}\n{block}\n{end}": new, text)
    return text


def pictured(places: list[Place]) -> dict[str, Any] | None:
    """Return the result that the picture shows: of the first place, with most of the libraries, the newest."""
    from ..picture import libraries

    for place in places:
        if found := list(place.of_suite("networks").values()):
            return max(reversed(found), key=lambda result: len(libraries(result.content))).content
    return None


def write() -> None:
    """Write the page, the parts of the README and the picture."""
    places, records = load(RESULTS)
    PAGE.write_text(page(places, records, choice.results()))
    README.write_text(rewritten(README.read_text(), readme_blocks(places)))
    ZOO.write_text(rewritten(ZOO.read_text(), zoo_blocks(places)))
    if result := pictured(places):
        from ..picture import draw

        draw(result, PICTURE)

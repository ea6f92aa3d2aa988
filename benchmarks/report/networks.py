"""The sections of whole networks: times, gains, compile time and memory."""

from .markdown import NOTHING, Column, cell, figures, section, table
from .records import MEAN, Place
from .suites import CONVOLUTION_MAPS

NETWORK_TASKS = {"training step": "Training step", "inference": "Inference", "HVP": "Hessian-vector product (HVP)"}
LIBRARIES = {"lax": "`jax.lax`", "flax": "Flax", "equinox": "Equinox", "haiku": "Haiku", "torch": "PyTorch"}


def networks(place: Place) -> str:
    """Return the times of whole networks."""
    parts = [
        "`benchmarks/networks.py` defines six small networks once for all libraries. The columns have the time of each "
        'library, divided by the time of funcconv. The column `jax.lax` is funcconv with `implementation="lax"` and '
        "the pools of lax. PyTorch runs eagerly, in the faster of two memory layouts.",
    ]
    columns = [Column(name, library) for library, name in LIBRARIES.items()]
    faster = []
    for task, name in NETWORK_TASKS.items():
        merged = place.table("networks", task)
        torch = [x for x in merged.get(MEAN, {}).get("torch", ()) if x is not None]
        if torch and max(torch) < 1:
            faster.append(f"{task} ({cell(torch)})")
        shown = figures("network", merged, [Column("funcconv, ms", "funcconv, ms"), *columns])
        parts += [f"**{name}**", shown] if shown else []
    if faster:
        parts.insert(1, f"PyTorch is faster than funcconv here in these geometric means: {', '.join(faster)}.")
    return section("Whole networks", *parts)


def gains(place: Place) -> str:
    """Return what tuning and compiler options add."""
    parts = []
    for column, text in (
        ("tuned", "How many times as fast a network becomes with the forms and options that `fc.tune` measured:"),
        ("funcconv +", "How many times as fast a network becomes with `fc.compiler_options()`:"),
    ):
        tables = {task: place.table("networks", task) for task in NETWORK_TASKS}
        rows = dict.fromkeys(row for table_of_task in tables.values() for row in table_of_task)
        body = [
            [row, *(cell(tables[task].get(row, {}).get(column, ()), inverted=True) for task in NETWORK_TASKS)]
            for row in rows
        ]
        body = [row for row in body if set(row[1:]) != {NOTHING}]
        if body:
            parts += [text, table(["network", *NETWORK_TASKS], body)]
        elif column == "tuned" and rows:
            parts += ["The gain from `fc.tune` was not recorded."]
    return "\n\n".join(["### Tuning and compiler options", *parts]) if parts else ""


def compiling(place: Place) -> str:
    """Return compile time and memory."""
    columns = [Column(name, library) for library, name in LIBRARIES.items()]
    parts = []
    for title, unit, text in (
        ("compiling a training step", "ms", "**Time to compile a training step**"),
        ("memory of a training step", "MB", "**Memory of a training step**, beside its arguments and results"),
    ):
        first = Column(f"funcconv, {unit}", f"funcconv, {unit}", 3)
        if shown := figures("network", place.table("networks", title), [first, *columns]):
            parts += [text, shown]
    body = []
    for title, name in CONVOLUTION_MAPS.items():
        mean = place.table("convolutions", title).get(MEAN, {})
        ratios = [cell(mean.get(column, ()), inverted=True) for column in ("compiling / lax", "memory / lax")]
        if set(ratios) != {NOTHING}:
            body.append([name, *ratios])
    if body:
        parts += ["**Single convolutions, against lax** (geometric means; the memory includes arguments and results)"]
        parts += [table(["", "time to compile", "memory"], body)]
    return section(
        "Compile time and memory",
        "The figure of the other library, divided by the figure of funcconv: below 1, funcconv needs more. Loops take "
        "longer to compile than one call of a library.",
        *parts,
    )


def ready_made(place: Place | None) -> str:
    """Return the table of ready-made networks, for the page about them."""
    merged = place.table("zoo", "training step of a ready-made network") if place else {}
    if place is None or not merged:
        return "The time of training steps was not measured."
    columns = [Column("training step, ms", "funcconv, ms"), Column("time of Flax / time of funcconv", "flax")]
    shown = figures("network and images", merged, columns)
    return f"Measured on the {place.heading} in float32, with jax {' / '.join(place.versions)}.\n\n{shown}"

"""The sections of the suites of `python -m benchmarks`."""

from .compare import KINDS, compared, plain
from .markdown import Column, cell, figures, section, table
from .records import MEAN, Place, Values

CONVOLUTION_MAPS = {
    "conv, against lax": "convolution",
    "input_grad, against lax": "input gradient",
    "kernel_grad, against lax": "kernel gradient",
    "HVP, against lax": "HVP",
}
# The rows of the suite `convolutions` that tell most, and their names on the page.
TELLING_CONVOLUTIONS = {
    "dense 56x56x64": "dense 3x3, 8x56x56x64",
    "one 224x224x64": "dense 3x3, 1x224x224x64",
    "1x1": "1x1, 8x56x56x64 to 256",
    "strided": "3x3, stride 2, 8x56x56x64",
    "k5 without padding": "5x5, no padding, 8x28x28x128",
    "stem": "stem 7x7, stride 2, 4x224x224x3",
    "depthwise": "depthwise 3x3, 8x28x28x128",
    "depthwise k7": "depthwise 7x7, 8x56x56x96",
    "k31 depthwise": "depthwise 31x31, 2x64x64x32",
    "4 groups": "4 groups, 8x28x28x256",
    "32 groups": "32 groups, 8x28x28x256",
    "1-d dilated": "1-d, dilation 4, 16x4096x32",
    "3-d": "3-d, 2x16x16x16x32",
    "transposed k4 stride 2": "transposed 4x4, stride 2, 8x28x28x64",
}
ABOUT_CONVOLUTIONS = (
    "Times as fast as `jax.lax`. The gain is largest for depthwise kernels and for gradients of grouped kernels. Many "
    "dense convolutions take as long as in XLA, because they are XLA's own."
)
IN_README = (
    "dense 56x56x64",
    "1x1",
    "k5 without padding",
    "stem",
    "depthwise k7",
    "k31 depthwise",
    "32 groups",
    "3-d",
    "transposed k4 stride 2",
)


def convolutions(place: Place, rows: tuple[str, ...] = tuple(TELLING_CONVOLUTIONS)) -> str:
    """Return the table of the most telling convolutions."""
    tables = {title: place.table("convolutions", title) for title in CONVOLUTION_MAPS}
    counted = max((len(set(each) - {MEAN}) for each in tables.values()), default=0)
    labels = {row: TELLING_CONVOLUTIONS[row] for row in rows} | {MEAN: f"geometric mean of {counted} shapes"}
    body = []
    for row, label in labels.items():
        found: list[Values] = [tables[title].get(row, {}).get("times faster", ()) for title in CONVOLUTION_MAPS]
        if any(found):
            body.append([label, *map(cell, found)])
    return table(["images and kernel", *CONVOLUTION_MAPS.values()], body)


def pools(place: Place) -> str:
    """Return the pools."""
    titles = {f"{kind} of a pool, against lax": kind for kind in ("value", "gradient", "HVP")}
    tables = {title: place.table("pools", title) for title in titles}
    rows = dict.fromkeys(row for each in tables.values() for row in each)
    body = [[row, *(cell(tables[title].get(row, {}).get("times faster", ())) for title in titles)] for row in rows]
    return section(
        "Pools",
        "Times as fast as a window reduction of `jax.lax`. Max pools of funcconv keep NaNs, which can cost time. XLA "
        "computes a small network of convolutions, ReLUs and max pools of lax with one library call, which ignores "
        "NaNs. So inference of a LeNet can be faster with lax. "
        'With `nan="ignore"` the pools of funcconv allow that too.',
        table(["window and images", *titles.values()], body),
    )


def random_shapes(place: Place) -> str:
    """Return how good the choices are for shapes drawn at random."""
    body = []
    for kind in KINDS:
        rows = compared(place, kind)
        if kind.suite != "forms" or not rows:
            continue
        merged = place.table(kind.suite, kind.title, plain)
        mean = merged.get(MEAN, {})
        body.append(
            [
                kind.name.partition(",")[0],
                str(len(rows)),
                cell(mean.get(kind.ratio, ())),
                cell(mean.get("times slower than the fastest", ()), 3),
            ]
        )
    return section(
        "Random shapes",
        "The shapes above were known when the rules were written. `python -m benchmarks forms` draws other shapes at "
        "random, with one to three axes and without groups, and times every possible form. The last column is the time "
        "of the chosen form, divided by the time of the fastest form.",
        table(["", "shapes", "times as fast as lax", "time / time of the fastest form"], body),
    )


def derivatives(place: Place) -> str:
    """Return the cost of derivatives in gradients."""
    products = "a product with the Hessian, in gradients"
    examples = "gradients of 64 examples, in gradients of their mean"
    modes = ("forward-over-reverse", "reverse-over-forward", "reverse-over-reverse")
    ways = {"per_example_grad": "`per_example_grad`", "per_example_grad_norm": "`per_example_grad_norm`"}
    ways |= {"vmap(grad) through lax": "`vmap(grad)` with lax"}
    return section(
        "Derivatives",
        "The time of a Hessian-vector product in each mode, divided by the time of one gradient:",
        figures("network", place.table("derivatives", products), [Column(mode, mode) for mode in modes]),
        "The time of the gradients of 64 examples, divided by the time of the gradient of their mean:",
        figures("network", place.table("derivatives", examples), [Column(name, way) for way, name in ways.items()]),
    )


def calls(place: Place) -> str:
    """Return what surrounds the arithmetic: calls without `jit`, imports, the training loop, growth."""
    eager = "a call outside of jit"
    loop, spread = "a step in fit and in a bare loop", "a step over devices"
    parts = (
        (
            "**A call outside of `jax.jit`** on small arrays. Use `jax.jit` where this matters.",
            figures(
                "op",
                place.table("eager", eager),
                [Column("lax, ms", "lax, ms"), Column("times as long as lax", "funcconv / lax")],
            ),
        ),
        (
            "**Import**, in a new process",
            figures(
                "imported",
                place.table("importing", "import"),
                [Column("seconds", "seconds"), Column("times as long as JAX, Flax and Optax", "over jax, flax, optax")],
            ),
        ),
        (
            "**`fc.train.fit`** with its progress bar, and a loop over the same compiled step",
            figures(
                "step",
                place.table("training", loop),
                [Column("step in the loop, ms", "bare, ms"), Column("`fit`, times as long", "fit over bare")],
            ),
        ),
        (
            "**Several devices** that share the cores of one CPU. Data parallelism cannot gain time here; the table "
            "shows its cost",
            figures(
                "mesh",
                place.table("training", spread),
                [Column("step, ms", "step, ms"), Column("compiling, seconds", "compiling, s")],
            ),
        ),
        (
            "**A graph of many nodes**, compared with the same plain function",
            figures(
                "graph",
                place.table("scaling", "a graph over a plain function"),
                [
                    Column("tracing, times as long", "tracing, over plain"),
                    Column("tracing and compiling", "tracing and compiling, over plain"),
                ],
            ),
        ),
        (
            "**Growth**: the value and both gradients of a 3x3 convolution, from the smallest to the largest size",
            growth(place),
        ),
    )
    return section("Around the arithmetic", *(text for part in parts if part[1] for text in part))


def growth(place: Place) -> str:
    """Return, for each size that grows, the times at both ends and the largest growth from one size to the next."""
    merged = place.table("scaling", "value and gradients of a 3x3 convolution")
    series: dict[str, list[str]] = {}
    for row in merged:
        series.setdefault(row.rpartition(" ")[0], []).append(row)
    body = []
    for name, rows in series.items():
        first, last = merged[rows[0]], merged[rows[-1]]
        steps = [
            [x for x in values if x is not None]
            for values in zip(*(merged[row].get("times the one before", ()) for row in rows), strict=True)
        ]
        body.append(
            [
                name,
                f"{rows[0].rpartition(' ')[2]} to {rows[-1].rpartition(' ')[2]}",
                cell(first.get("ms", ())),
                cell(last.get("ms", ()), 3),
                cell(max(each, default=None) for each in steps),
            ]
        )
    return table(["size", "from, to", "smallest, ms", "largest, ms", "most from one size to the next"], body)


def depth(place: Place) -> str:
    """Return what deep networks cost in one loop and in series."""
    columns = {
        "tracing and compiling, s": "tracing and compiling, seconds",
        "program, kB": "program, kB",
        "temporary memory, MB": "temporary memory, MB",
        "first init, s": "first `graph.init`, seconds",
    }
    return section(
        "Deep networks",
        "The gradient of residual blocks with two 3x3 convolutions of 16 channels, on images of 8x32x32x16. "
        "`fc.repeat` computes the blocks in one loop, `fc.serial` one after another. `remat` computes values again "
        "instead of keeping them.",
        figures(
            "network",
            place.table("scaling", "the gradient of a deep network"),
            [Column(heading, column, 3) for column, heading in columns.items()],
        ),
    )


def streams(place: Place) -> str:
    """Return what a sample takes in chunks."""
    columns = {
        "us a sample": "microseconds for a sample",
        "times real time": "times as fast as real time",
        "times as long as the whole": "time / time of all at once",
    }
    return section(
        "Streams",
        "`fc.stream` on one signal of 16,000 samples in a second, which arrives in chunks: each chunk is one call of a "
        "compiled step, which has the parameters as constants and whose carry is donated. In one `jax.lax.scan`, "
        "samples are computed one after another, as for drawing them from the network. `16 layers` is a WaveNet of 32 "
        "channels, `zoo.wavenet` that of `fc.zoo.wavenet()`, with 30 layers and 256 channels in the last ones.",
        figures(
            "network and chunks",
            place.table("streams", "a sample of a stream"),
            [Column(heading, column, 3) for column, heading in columns.items()],
        ),
    )


ALLOCATOR_COLUMNS = {
    "all settings": "`funcconv run`",
    "no huge pages": "with `--no-huge-pages`",
    "no kept memory": "with `--no-kept-memory`",
    "no threads": "with `--no-threads`",
}


def allocator(place: Place) -> str:
    """Return what `funcconv run` gains."""
    parts = []
    for title in place.titles("allocator"):
        merged = place.table("allocator", title)
        columns = dict.fromkeys(column for row in merged.values() for column in row)
        suffix = ", times faster"
        shown = [
            Column(ALLOCATOR_COLUMNS.get(name := column.removesuffix(suffix), name), column)
            for column in columns
            if column.endswith(suffix)
        ]
        parts += [figures("network", merged, shown)]
    return section(
        "funcconv run",
        "How many times as fast a training step becomes when the script starts with `funcconv run`, which changes how "
        "glibc allocates memory ([Memory allocation on the CPU](lowerings.md#memory-allocation-on-the-cpu)).",
        *parts,
    )

"""What the devices of a mesh exchange in each training step, read from the compiled program, and what follows.

`python -m benchmarks.exchange` compiles the steps, keeps the figures in `benchmarks/results/exchange.json`, and writes
the tables of docs/training.md. Nothing is run, so the figures do not depend on the machine.
"""

import json
import math
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import funcconv as fc
from funcconv.train._distributed.partition import shardings

from .report.markdown import number, table
from .tables import Table

DEVICES = 8  # of the compiled mesh
RESULT = Path(__file__).parent / "results" / "exchange.json"
PAGE = Path(__file__).parents[1] / "docs" / "training.md"
BEGIN, END = "<!-- python -m benchmarks.exchange -->\n", "<!-- end -->\n"
SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Assumed of the machine: a link between two devices, and arithmetic.
BYTES_PER_SECOND = 50e9  # InfiniBand NDR, 400 Gb/s for each device
HOP_SECONDS = 5e-6  # one message
FLOPS_PER_SECOND = 0.4 * 989e12  # 40 % of the dense bfloat16 peak of an NVIDIA H100 SXM
COUNTS = (8, 256, 4096)  # of devices


def collectives(text: str) -> list[tuple[str, int, int]]:
    """Return the kind, the bytes of the result, and the executions in one step of each collective operation.

    Args:
        text: a program that was compiled for CPUs, as `compiled.as_text()` returns it. XLA writes how often a loop with
            a fixed number of passes runs; any other loop counts as one pass.
    """
    programs = {
        name: (bool(entry), body)
        for entry, name, body in re.findall(
            r"^(ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL
        )
    }
    found: list[tuple[str, int, int]] = []

    def visit(name: str, times: int) -> None:
        for line in programs[name][1].splitlines():
            operation = re.match(rf"\s*(?:ROOT )?\S+ = (.*?) ({'|'.join(KINDS)})\(", line)
            if operation:
                found.append((operation[2], _bytes(operation[1]), times))
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            passes = times * (int(trips[1]) if trips else 1)
            for inner in re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", line):
                visit(inner, passes)
            for branches in re.findall(r"branch_computations=\{([^}]*)\}", line):
                for inner in re.findall(r"[\w.\-]+", branches):
                    visit(inner, times)

    visit(next(name for name, (is_entry, _) in programs.items() if is_entry), 1)
    return found


def _bytes(types: str) -> int:
    """Return the bytes of a type, or of all types of a tuple."""
    return sum(
        SIZES[dtype] * math.prod(int(size) for size in sizes.split(",") if size)
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", types)
    )


def _classifier(graph: Any, shape: tuple[int, ...]) -> tuple[Any, Any, dict[str, Any]]:
    """Return the network, a loss, and the types of one example."""

    def loss(params: Any, batch: Any, *, key: Any, state: Any) -> Any:
        logits, state = graph.apply(params, state, batch["image"], key=key, train=True)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return value, {"state": state}

    return graph, loss, {"image": (shape, jnp.float32), "label": ((), jnp.int32)}


def _segmenter(graph: Any, shape: tuple[int, ...]) -> tuple[Any, Any, dict[str, Any]]:
    _, loss, example = _classifier(graph, shape)
    return graph, loss, {**example, "label": (shape[:-1], jnp.int32)}


# The network, the examples of each device, the shape of the mesh, and the options of the step.
STEPS: dict[str, tuple[Callable[[], Any], int, tuple[int, ...], dict[str, Any]]] = {
    "ResNet-18": (lambda: _classifier(fc.zoo.resnet(18), (224, 224, 3)), 32, (DEVICES,), {}),
    "ResNet-18, `accumulate=4`": (
        lambda: _classifier(fc.zoo.resnet(18), (224, 224, 3)),
        32,
        (DEVICES,),
        {"accumulate": 4},
    ),
    "VGG-11": (lambda: _classifier(fc.zoo.vgg(11), (224, 224, 3)), 32, (DEVICES,), {}),
    "VGG-11, dense layers over 4 devices": (
        lambda: _classifier(fc.zoo.vgg(11), (224, 224, 3)),
        32,
        (DEVICES // 4, 4),
        {"partition": {"classifier/*/kernel": jax.P(None, "model")}},
    ),
    "U-Net": (lambda: _segmenter(fc.zoo.unet(batch_norm=True), (256, 256, 1)), 8, (DEVICES,), {}),
}


def measured(name: str) -> dict[str, float]:
    """Return the figures of a step."""
    make, examples, shape, options = STEPS[name]
    graph, loss, example = make()
    axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], axis_types=axis_types)
    optimizer = optax.sgd(0.1, momentum=0.9)
    init, _ = fc.train.make_step(loss, optimizer, has_aux=True)
    _, step = fc.train.make_step(loss, optimizer, has_aux=True, mesh=mesh, **options)
    # Types alone, because nothing is run.
    params = jax.eval_shape(graph.init, jax.random.key(0))
    state = jax.eval_shape(lambda: init(graph.init(jax.random.key(0)), jax.random.key(1), graph.init_state()))
    places = shardings(state, mesh, options.get("partition", {}))
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, places
    )
    count = examples * shape[0]
    spread = jax.NamedSharding(mesh, jax.P("data"))
    batch = {
        entry: jax.ShapeDtypeStruct((count, *sizes), dtype, sharding=spread)
        for entry, (sizes, dtype) in example.items()
    }
    compiled = jax.jit(step).lower(state, batch).compile()
    exchanged = collectives(compiled.as_text())
    values = [leaf for node, leaf in graph.shapes().items() if node not in graph.inputs]
    return {
        "examples": examples,
        "parameters, MB": sum(_size(leaf) for leaf in jax.tree.leaves(params)) / 1e6,
        "activations, MB": examples * sum(_size(leaf) for leaf in jax.tree.leaves(values)) / 1e6,
        "operations": sum(times for _, _, times in exchanged),
        # XLA counts the arithmetic of one pass of a loop.
        "flops": float(compiled.cost_analysis()["flops"]) * options.get("accumulate", 1),
        **{f"{kind}, MB": sum(size * times for name, size, times in exchanged if name == kind) / 1e6 for kind in KINDS},
    }


def _size(leaf: Any) -> int:
    return int(leaf.size * leaf.dtype.itemsize)


def ring(megabytes: float, operations: float, devices: int) -> float:
    """Return the milliseconds of all-reductions in rings, in which each device sends 2 (n - 1) / n of the bytes.

    A ring of n devices takes 2 (n - 1) messages one after another; a tree takes 2 log2(n). The smaller number is used,
    as in libraries that choose between both.
    """
    messages = min(2 * (devices - 1), 2 * math.ceil(math.log2(devices)))
    seconds = 2 * (devices - 1) / devices * megabytes * 1e6 / BYTES_PER_SECOND + operations * messages * HOP_SECONDS
    return 1e3 * seconds


def text_of(figures: Table) -> str:
    """Return the part of the page between the marks."""
    shown = [kind for kind in KINDS if any(row[f"{kind}, MB"] for row in figures.values())]
    exchanged = table(
        [
            "step",
            "examples of a device",
            "parameters, MB",
            "activations, MB",
            "operations",
            *(f"{kind}, MB" for kind in shown),
        ],
        [
            [
                name,
                f"{row['examples']:.0f}",
                *(number(row[column], 3) for column in ("parameters, MB", "activations, MB")),
                f"{row['operations']:.0f}",
                *(number(row[f"{kind}, MB"], 3) for kind in shown),
            ]
            for name, row in figures.items()
        ],
    )
    times = table(
        ["step", "arithmetic, ms", *(f"exchange on {count:,} devices, ms" for count in COUNTS)],
        [
            [
                name,
                number(1e3 * row["flops"] / FLOPS_PER_SECOND),
                *(number(ring(row["all-reduce, MB"], row["operations"], count)) for count in COUNTS),
            ]
            for name, row in figures.items()
            if not any(row[f"{kind}, MB"] for kind in KINDS[1:])
        ],
    )
    text = ASSUMED.format(link=BYTES_PER_SECOND / 1e9, hop=1e6 * HOP_SECONDS, rate=FLOPS_PER_SECOND / 1e12)
    assumed = textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
    return f"{exchanged}\n\n{assumed}\n\n{times}\n"


ASSUMED = """In a ring of n devices, each one sends `2 (n - 1) / n` times the bytes of a sum (Patarasuk and Yuan, 2009).
So the bytes are almost the same for 8 and for 4,096 devices, and only the number of messages grows. The next table is
an estimate, not a measurement. It assumes that each device sends {link:.0f} GB/s (InfiniBand NDR, 400 Gb/s), that a
message takes {hop:.0f} microseconds, that an operation takes the smaller of `2 (n - 1)` and `2 log2(n)` messages one
after another, and that a device computes {rate:.0f} TFLOP/s (40 % of the dense bfloat16 peak of an NVIDIA H100 SXM).
XLA may compute during the exchange, so a step takes between the longer of the two times and their sum. The operations
are those of the program for CPUs; XLA can join some of them for GPUs and TPUs."""


def written(page: str, figures: Table) -> str:
    """Return the page with the tables between the marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{text_of(figures)}{END}{rest.partition(END)[2]}"


def main() -> None:
    """Compile the steps, and write the result and the page."""
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_platforms", "cpu")
    figures = {name: measured(name) for name in STEPS}
    RESULT.write_text(json.dumps({"jax": jax.__version__, "tables": {"exchange": figures}}, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), figures))


if __name__ == "__main__":
    main()

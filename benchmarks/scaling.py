"""How cost grows: as the work does, without jumps; and what a graph of many nodes and a deep network cost."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

from .tables import Table
from .timing import medians

# The image, the outputs and the groups at each size; the work doubles from one size to the next, or nearly.
GROWTH: dict[str, tuple[tuple[int, ...], Callable[[int], tuple[tuple[int, ...], int, int]]]] = {
    "batch": ((4, 8, 16, 32, 64, 128, 256), lambda n: ((n, 28, 28, 32), 32, 1)),
    "outputs": ((16, 32, 64, 128, 256, 512), lambda n: ((8, 28, 28, 64), n, 1)),
    "inputs": ((16, 32, 64, 128, 256, 512), lambda n: ((8, 28, 28, n), 64, 1)),
    "side": ((32, 45, 64, 91, 128, 181, 256), lambda n: ((2, n, n, 32), 32, 1)),
    "channels, a group each": ((32, 64, 128, 256, 512), lambda n: ((8, 28, 28, n), n, n)),
    "channels, 8 to a group": ((32, 64, 128, 256, 512), lambda n: ((8, 28, 28, n), n, n // 8)),
}


def growth(name: str, rounds: int, *, quick: bool) -> Table:
    """Return the milliseconds of a value and its gradients at each size, and how many times those of the one before."""
    sizes, shapes = GROWTH[name]
    ways: dict[str, Callable[[], Any]] = {}
    for n in sizes[:3] if quick else sizes:
        image, outputs, groups = shapes(n)
        rng = np.random.default_rng(n)
        kernel = jnp.asarray(rng.normal(size=(3, 3, image[-1] // groups, outputs)), jnp.float32)
        x = jnp.asarray(rng.normal(size=image), jnp.float32)

        def square(kernel: Any, x: Any, groups: int = groups) -> Any:
            return jnp.square(fc.conv({"kernel": kernel}, x, padding=1, groups=groups)).sum()

        step = jax.jit(jax.value_and_grad(square, argnums=(0, 1)))
        ways[str(n)] = partial(step, kernel, x)
    seconds = medians(ways, rounds)
    before = [None, *seconds.values()]
    return {
        f"{name} {n}": {"ms": 1e3 * taken, "times the one before": taken / (last or taken)}
        for (n, taken), last in zip(seconds.items(), before, strict=False)
    }


def nodes(*, quick: bool) -> Table:
    """Return what it costs to trace and to compile a chain of sums, as a graph and as a plain function."""
    table = {}
    for n in (125, 250) if quick else (125, 250, 500, 1000):
        begun = time.perf_counter()
        node = x = fc.Input("x", (8,))
        for _ in range(n):
            node = fc.node(jnp.add, node, node)
        graph = fc.Graph(x, node)
        declared = time.perf_counter() - begun

        def plain(x: Any, n: int = n) -> Any:
            for _ in range(n):
                x = jnp.add(x, x)
            return x

        seconds: dict[str, list[float]] = {"tracing": [], "both": []}
        for f in (partial(graph, {}), plain):
            jax.clear_caches()
            begun = time.perf_counter()
            traced = jax.jit(f).trace(jnp.ones((2, 8)))
            seconds["tracing"].append(time.perf_counter() - begun)
            traced.lower().compile()
            seconds["both"].append(time.perf_counter() - begun)
        table[f"{n} nodes"] = {"declaring, ms": 1e3 * declared} | {
            "tracing, over plain": seconds["tracing"][0] / seconds["tracing"][1],
            "tracing and compiling, over plain": seconds["both"][0] / seconds["both"][1],
        }
    return table


def depth(*, quick: bool) -> Table:
    """Return what a deep network costs: blocks in series, one repeated block, and with `remat`.

    The first `init` draws the parameters outside of `jit`, where nothing is compiled yet. All other figures are of the
    gradient.
    """
    x = fc.Input("x", (32, 32, 16))
    images = jax.ShapeDtypeStruct((8, 32, 32, 16), jnp.float32)  # type: ignore[no-untyped-call]

    def block() -> Any:
        convs = [fc.Conv(16, 3, padding=1) for _ in range(2)]
        return fc.residual(fc.serial(convs[0], fc.GroupNorm(4), jax.nn.relu, convs[1]))

    table = {}
    for n in (2, 8) if quick else (2, 8, 32, 128):
        ways = {
            "serial": lambda n=n: fc.serial(*(block() for _ in range(n))),
            "repeat": lambda n=n: fc.repeat(block(), n),
            'repeat, remat="block"': lambda n=n: fc.repeat(block(), n, "block"),
            "repeat, remat=fc.checkpoint_policy": lambda n=n: fc.repeat(block(), n, fc.checkpoint_policy),
        }
        for name, layers in ways.items():
            graph = fc.Graph(x, layers()(x))
            jax.clear_caches()
            begun = time.perf_counter()
            params = jax.block_until_ready(graph.init(jax.random.key(0)))
            drawing = time.perf_counter() - begun
            step = jax.jit(jax.grad(lambda params, x, graph=graph: jnp.square(graph(params, x)).sum()))
            begun = time.perf_counter()
            lowered = step.lower(params, images)
            compiled = lowered.compile()
            taken = time.perf_counter() - begun
            memory: Any = compiled.memory_analysis()
            table[f"{n} blocks, {name}"] = {
                "tracing and compiling, s": taken,
                "program, kB": len(lowered.as_text()) / 1e3,
                "temporary memory, MB": memory.temp_size_in_bytes / 1e6,
                "first init, s": drawing,
            }
    return table


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return all tables."""
    rounds = 3 if quick else 9
    grown: Table = {}
    for name in GROWTH:
        grown |= growth(name, rounds, quick=quick)
    return {"value and gradients of a 3x3 convolution": grown, "a graph over a plain function": nodes(quick=quick)} | {
        "the gradient of a deep network": depth(quick=quick)
    }

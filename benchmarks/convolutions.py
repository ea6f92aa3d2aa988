"""The maps of a convolution, against those of `jax.lax`: how many times faster, and at what rate.

Beside the three maps stand both gradients together, and the derivative of both along both: a product with the Hessian.
"""

import statistics
import time
from functools import partial
from typing import Any

import jax
import numpy as np

import funcconv as fc

from .tables import Table, with_mean
from .timing import quartiles, timed

# The image, the outputs, the window, and options.
ROWS: dict[str, tuple[tuple[int, ...], int, int, dict[str, Any]]] = {
    "dense 56x56x64": ((8, 56, 56, 64), 64, 3, {"padding": 1}),
    "dense 28x28x128": ((8, 28, 28, 128), 128, 3, {"padding": 1}),
    "dense 7x7x256": ((32, 7, 7, 256), 256, 3, {"padding": 1}),
    "dense 32x32x17": ((8, 32, 32, 17), 17, 3, {"padding": 1}),
    "dense 16x16x100": ((8, 16, 16, 100), 100, 3, {"padding": 1}),
    "dense 33x33x100": ((2, 33, 33, 100), 3, 3, {"padding": 1}),
    "dense 14x14x512": ((4, 14, 14, 512), 512, 3, {"padding": 1}),
    "dense 1x1000x1000x3": ((1, 1000, 1000, 3), 8, 3, {"padding": 1}),
    "to one channel": ((8, 64, 64, 32), 1, 3, {"padding": 1}),
    "k5": ((8, 56, 56, 32), 64, 5, {"padding": 2}),
    "k3 valid 7x7x17": ((64, 7, 7, 17), 100, 3, {}),
    "narrow 32x32x16": ((8, 32, 32, 16), 16, 3, {"padding": 1}),
    "one 224x224x64": ((1, 224, 224, 64), 64, 3, {"padding": 1}),
    "one 513x513x17": ((1, 513, 513, 17), 17, 3, {"padding": 1}),
    "dilated": ((8, 28, 28, 64), 64, 3, {"padding": 2, "dilation": 2}),
    "dilated and strided": ((8, 57, 57, 32), 32, 3, {"stride": 2, "dilation": 3}),
    "stride 3": ((8, 56, 56, 32), 64, 3, {"stride": 3}),
    "strided": ((8, 56, 56, 64), 64, 3, {"padding": 1, "stride": 2}),
    "k4 stride 2": ((8, 56, 56, 32), 64, 4, {"padding": 1, "stride": 2}),
    "k2 stride 2": ((8, 32, 32, 32), 64, 2, {"stride": 2}),
    "k5 without padding": ((8, 28, 28, 128), 128, 5, {}),
    "k7": ((8, 28, 28, 64), 64, 7, {"padding": 3}),
    "k31 depthwise": ((2, 64, 64, 32), 32, 31, {"padding": 15, "groups": 32}),
    "k11": ((8, 28, 28, 32), 32, 11, {"padding": 5}),
    "stem": ((4, 224, 224, 3), 64, 7, {"padding": 3, "stride": 2}),
    "patches of 16": ((8, 224, 224, 3), 192, 16, {"stride": 16}),
    "digits": ((64, 28, 28, 1), 32, 5, {}),
    "digits, deeper": ((64, 12, 12, 32), 64, 5, {}),
    "1x1 to 3": ((8, 128, 128, 32), 3, 1, {}),
    "1x1, one image of 7x7": ((1, 7, 7, 1024), 1024, 1, {}),
    "1x1": ((8, 56, 56, 64), 256, 1, {}),
    "1x1 stride 2": ((8, 56, 56, 256), 512, 1, {"stride": 2}),
    "depthwise": ((8, 28, 28, 128), 128, 3, {"padding": 1, "groups": 128}),
    "depthwise stride 2": ((8, 28, 28, 128), 128, 3, {"padding": 1, "stride": 2, "groups": 128}),
    "depthwise, 7x7x512": ((1, 7, 7, 512), 512, 3, {"padding": 1, "groups": 512}),
    "depthwise k5 stride 2": ((4, 113, 113, 24), 24, 5, {"padding": 2, "stride": 2, "groups": 24}),
    "depthwise k7": ((8, 56, 56, 96), 96, 7, {"padding": 3, "groups": 96}),
    "depthwise k9": ((8, 28, 28, 96), 96, 9, {"padding": 4, "groups": 96}),
    "depthwise doubled": ((8, 28, 28, 64), 128, 3, {"padding": 1, "groups": 64}),
    "depthwise 1-d": ((16, 1024, 64), 64, 3, {"padding": 1, "groups": 64}),
    "depthwise 3-d": ((2, 16, 16, 16, 32), 32, 3, {"padding": 1, "groups": 32}),
    "2 groups": ((8, 28, 28, 64), 64, 3, {"padding": 1, "groups": 2}),
    "2 groups of 3": ((8, 100, 100, 6), 10, 3, {"padding": 1, "groups": 2}),
    "16 groups, stride 2": ((8, 56, 56, 128), 128, 3, {"padding": 1, "stride": 2, "groups": 16}),
    "3 groups": ((8, 28, 28, 48), 96, 3, {"padding": 1, "groups": 3}),
    "4 groups": ((8, 28, 28, 256), 256, 3, {"padding": 1, "groups": 4}),
    "8 groups": ((8, 16, 16, 64), 64, 3, {"padding": 1, "groups": 8}),
    "32 groups": ((8, 28, 28, 256), 256, 3, {"padding": 1, "groups": 32}),
    "64 groups": ((8, 28, 28, 128), 128, 3, {"padding": 1, "groups": 64}),
    "8 groups, 1x1": ((8, 28, 28, 64), 64, 1, {"groups": 8}),
    "1-d dilated": ((16, 4096, 32), 64, 3, {"padding": "CAUSAL", "dilation": 4}),
    "1-d k9": ((16, 1000, 32), 32, 9, {"padding": 4}),
    "1-d stride 2": ((16, 4096, 16), 32, 5, {"padding": 2, "stride": 2}),
    "1-d, one long signal": ((1, 65536, 4), 16, 9, {"padding": 4, "stride": 4}),
    "3-d k2 stride 2": ((2, 32, 32, 32, 16), 32, 2, {"stride": 2}),
    "3-d": ((2, 16, 16, 16, 32), 32, 3, {"padding": 1}),
    "3-d stride 2": ((2, 16, 16, 16, 32), 64, 3, {"padding": 1, "stride": 2}),
    "transposed k4 stride 2": ((8, 28, 28, 64), 32, 4, {"padding": 1, "stride": 2, "transposed": True}),
    "transposed k2 stride 2": ((16, 32, 32, 32), 16, 2, {"stride": 2, "transposed": True}),
    "transposed k3 stride 2": ((4, 50, 50, 17), 17, 3, {"stride": 2, "transposed": True}),
    "transposed 3-d": ((2, 12, 12, 12, 32), 16, 2, {"stride": 2, "transposed": True}),
    "3-d stem": ((1, 24, 24, 24, 4), 16, 7, {"padding": 3, "stride": 2}),
}


def maps(image: tuple[int, ...], outputs: int, window: int, options: dict[str, Any], implementation: str | None) -> Any:
    """Return what is timed as functions of the kernel, the image and the cotangents, and these."""
    rng = np.random.default_rng(0)
    options = dict(options)
    op = fc.conv_transpose if options.pop("transposed", False) else fc.conv
    channels = (image[-1] // options.get("groups", 1), outputs)
    kernel = rng.normal(size=((window,) * (len(image) - 2)) + channels[:: -1 if op is fc.conv_transpose else 1])
    kernel, x = kernel.astype(np.float32), rng.normal(size=image).astype(np.float32)

    def conv(kernel: Any, x: Any) -> Any:
        return op({"kernel": kernel}, x, implementation=implementation, **options)

    def gradients(kernel: Any, x: Any, g: Any) -> Any:
        return jax.vjp(conv, kernel, x)[1](g)

    g = rng.normal(size=jax.eval_shape(conv, kernel, x).shape).astype(np.float32)
    return {
        "conv": lambda kernel, x, g: conv(kernel, x),  # noqa: ARG005
        "input_grad": lambda kernel, x, g: jax.vjp(partial(conv, kernel), x)[1](g)[0],
        "kernel_grad": lambda kernel, x, g: jax.vjp(lambda kernel: conv(kernel, x), kernel)[1](g)[0],
        "both gradients": gradients,
        "HVP": lambda kernel, x, g: jax.jvp(lambda *at: gradients(*at, g), (kernel, x), (kernel, x))[1],
    }, tuple(map(jax.device_put, (kernel, x, g)))


def built(f: Any, arrays: tuple[Any, ...]) -> tuple[Any, float, float]:
    """Return the program, the milliseconds that compiling it took, and the MB that its operands and it hold at most."""
    began = time.perf_counter()
    program = jax.jit(f).lower(*arrays).compile()
    taken = 1e3 * (time.perf_counter() - began)
    analysis = program.memory_analysis()
    memory = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
    return program, taken, memory / 2**20


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table for each map: milliseconds, times faster than lax, operations a second, compiling, memory."""
    tables: dict[str, Table] = {}
    for name in list(ROWS)[:: 5 if quick else 1]:
        row = ROWS[name]
        ours, arrays = maps(*row, None)
        through_lax, _ = maps(*row, "lax")
        for which in ours:
            compiled = {"funcconv": built(ours[which], arrays), "lax": built(through_lax[which], arrays)}
            operations = fc.explain(ours[which], *arrays).flops
            ways = {way: partial(program, *arrays) for way, (program, *_) in compiled.items()}
            times = timed(ways, rounds=3 if quick else 9)
            seconds = {way: statistics.median(each) for way, each in times.items()}
            (_, compiling, memory), (_, lax_compiling, lax_memory) = compiled.values()
            tables.setdefault(f"{which}, against lax", {})[name] = {
                "ms": 1e3 * seconds["funcconv"],
                "lax, ms": 1e3 * seconds["lax"],
                "times faster": seconds["lax"] / seconds["funcconv"],
                "GFLOP/s": 1e-9 * operations / seconds["funcconv"],
                "compiling, ms": compiling,
                "compiling / lax": compiling / lax_compiling,
                "memory, MB": memory,
                "memory / lax": memory / lax_memory,
                **quartiles(times["lax"], times["funcconv"]),
            }
    return {title: with_mean(table) for title, table in tables.items()}

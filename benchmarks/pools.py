"""Pools and their derivatives, against windows of `jax.lax`: how many times faster."""

import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import funcconv as fc

from .tables import Table, with_mean
from .timing import quartiles, timed

# The image, the window, the stride and what the window is reduced by.
ROWS: dict[str, tuple[tuple[int, ...], int, int, str]] = {
    "max 2, 32x28x28x64": ((32, 28, 28, 64), 2, 2, "max"),
    "max 3 stride 2, 8x112x112x64": ((8, 112, 112, 64), 3, 2, "max"),
    "max 3 stride 1, 8x28x28x128": ((8, 28, 28, 128), 3, 1, "max"),
    "max 2, 1x513x513x3": ((1, 513, 513, 3), 2, 2, "max"),
    "max 3 stride 2, 16x7x7x17": ((16, 7, 7, 17), 3, 2, "max"),
    "max 4, 8x64x64x32": ((8, 64, 64, 32), 4, 4, "max"),
    "max 5 stride 1, 4x32x32x32": ((4, 32, 32, 32), 5, 1, "max"),
    "max 2, 32x4096x32": ((32, 4096, 32), 2, 2, "max"),
    "max 2, 4x24x24x24x16": ((4, 24, 24, 24, 16), 2, 2, "max"),
    "mean 2, 32x28x28x64": ((32, 28, 28, 64), 2, 2, "mean"),
    "mean 3 stride 1, 8x56x56x64": ((8, 56, 56, 64), 3, 1, "mean"),
}


def through_lax(x: Any, window: int, stride: int, reduce: str) -> Any:
    """Reduce windows as `flax.linen` does."""
    n = x.ndim - 2
    shape = ((1, *(window,) * n, 1), (1, *(stride,) * n, 1), "VALID")
    if reduce == "max":
        return lax.reduce_window(x, -jnp.inf, lax.max, *shape)
    return lax.reduce_window(x, 0.0, lax.add, *shape) / window**n


def programs(pool: Any) -> dict[str, Any]:
    """Return what is timed, as functions of the image."""

    def total(x: Any) -> Any:
        return jnp.square(pool(x)).sum()

    return {
        "value": pool,
        "gradient": jax.grad(total),
        "HVP": lambda x: jax.jvp(jax.grad(total), (x,), (x,))[1],
    }


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table for the value, the gradient and the product with the Hessian."""
    tables: dict[str, Table] = {}
    for name in list(ROWS)[:: 4 if quick else 1]:
        image, window, stride, reduce = ROWS[name]
        x = jnp.asarray(np.random.default_rng(0).normal(size=image), jnp.float32)
        ours = programs(partial(fc.pool, window=window, stride=stride, reduce=reduce))
        theirs = programs(partial(through_lax, window=window, stride=stride, reduce=reduce))
        for which in ours:
            ways = {"funcconv": partial(jax.jit(ours[which]), x), "lax": partial(jax.jit(theirs[which]), x)}
            times = timed(ways, rounds=3 if quick else 9)
            seconds = {way: statistics.median(each) for way, each in times.items()}
            tables.setdefault(f"{which} of a pool, against lax", {})[name] = {
                "ms": 1e3 * seconds["funcconv"],
                "lax, ms": 1e3 * seconds["lax"],
                "times faster": seconds["lax"] / seconds["funcconv"],
                **quartiles(times["lax"], times["funcconv"]),
            }
    return {title: with_mean(table) for title, table in tables.items()}

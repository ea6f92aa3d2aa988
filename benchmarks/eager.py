"""What a call costs outside of `jax.jit`, over the same call of `jax.lax`: nothing should be compiled on the way."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

import funcconv as fc

from .tables import Table
from .timing import medians

NHWC = ("NHWC", "HWIO", "NHWC")


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return the table: small arrays, so that what is not arithmetic shows."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 4, 4))
    lax_conv = partial(lax.conv_general_dilated, dimension_numbers=NHWC, window_strides=(1, 1), padding="SAME")
    grouped = kernel[:, :, :2]
    pairs = {
        "conv": (lambda: fc.conv({"kernel": kernel}, x, padding="SAME"), lambda: lax_conv(x, kernel)),
        "conv, 2 groups": (
            lambda: fc.conv({"kernel": grouped}, x, padding="SAME", groups=2),
            lambda: lax_conv(x, grouped, feature_group_count=2),
        ),
        "max pool": (
            lambda: fc.max_pool(x, 2),
            lambda: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
        ),
        "mean pool": (
            lambda: fc.avg_pool(x, 2),
            lambda: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4,
        ),
    }
    table = {}
    for name, (ours, through_lax) in pairs.items():
        seconds = medians({"funcconv": ours, "lax": through_lax}, rounds=30 if quick else 300)
        table[name] = {"lax, ms": 1e3 * seconds["lax"], "funcconv / lax": seconds["funcconv"] / seconds["lax"]}
    return {"a call outside of jit": table}

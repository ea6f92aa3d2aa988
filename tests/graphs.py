"""Graphs that together have every kind of layer, option, arithmetic and nesting."""

import math
from functools import partial

import jax
import jax.numpy as jnp

import funcconv as fc


def over(layers, shape=(8, 8, 4), **options):
    x = fc.Input("x", shape)
    return fc.Graph(x, layers(x), **options)


def everything():
    """Return a graph of all layers, with each kind of option."""
    same = fc.Conv(4, 3, padding="SAME")
    return over(
        fc.serial(
            fc.Conv(4, (3, 1), stride=(2, 1), padding=((1, 2), (0, 0)), dilation=1, groups=2, name="first", bias=False),
            fc.ConvTranspose(4, 2, stride=2, output_padding=1, pad_mode="zeros", init="torch"),
            fc.LocalConv(4, 2, dtype=jnp.float64, precision=jax.lax.Precision.HIGHEST),
            fc.residual(fc.serial(same, jax.nn.relu, same), fc.WeightStandardize(fc.Conv(4, 1))),
            fc.Pool((2, 2), reduce="lp", p=math.inf, stride=1),
            fc.Pool(2, reduce=jnp.ptp, stride=1),
            fc.SpectralNorm(fc.Conv(4, (1, 2)), norm="conv", iterations=2),
            fc.BatchNorm(momentum=0.5),
            fc.GroupNorm(2),
            fc.InstanceNorm(scale=False),
            fc.RMSNorm(2, epsilon=1e-3),
            fc.LayerNorm(3, bias=False),
            fc.residual(fc.serial(fc.WeightNorm(fc.Conv(4, 1)), fc.DropPath(0.5))),
            partial(fc.local_response_norm, size=3),
            fc.Dropout(0.25, whole_channels=True),
            partial(fc.global_pool, reduce="max", spatial=2),
            fc.Dense(3, params="shared"),
        )
    )


def arithmetic():
    a, b = fc.Input("a", (3,), "float32"), fc.Input("b", (3,), jnp.float32)
    two = fc.node(fc.add, a, fc.node(jnp.dot, b, params="w", name="dotted"))
    return fc.Graph({"a": a, "b": b}, {"sum": (2 - two**2, -(a @ b)), "rest": [abs(b) * 1.5]})


def nested():
    trunk = over(fc.serial(fc.Conv(4, 3), jnp.tanh, fc.Flatten(), fc.Dense(2)), name="trunk")
    a, b = fc.Input("a", (8, 8, 4)), fc.Input("b", (8, 8, 4))
    return fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b), name="twins")

"""Four small networks that between them use every kind of convolution, each with a batch of its usual images."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import funcconv as fc

relu = jax.nn.relu


def lenet(conv: Any = fc.Conv) -> Any:
    """5x5 convolutions, pools and dense layers, on digits."""
    return fc.serial(
        conv(32, 5), relu, fc.Pool(2), conv(64, 5), relu, fc.Pool(2), fc.Flatten(), fc.Dense(128), relu, fc.Dense(10)
    )  # fmt: skip


def mobile(conv: Any = fc.Conv) -> Any:
    """Depthwise 3x3 and pointwise 1x1 convolutions."""

    def block(inputs: int, outputs: int, stride: int) -> Any:
        return fc.serial(
            conv(inputs, 3, stride=stride, padding=1, groups=inputs), relu, conv(outputs, 1), relu
        )  # fmt: skip

    stem = conv(32, 3, stride=2, padding=1)
    return fc.serial(stem, relu, block(32, 64, 1), block(64, 128, 2), block(128, 128, 1), fc.global_pool, fc.Dense(10))


def resnext(conv: Any = fc.Conv) -> Any:
    """Residual bottlenecks with 8 groups."""

    def block() -> Any:
        return fc.residual(fc.serial(conv(64, 1), relu, conv(64, 3, padding=1, groups=8), relu, conv(64, 1)))

    stem = conv(64, 3, padding=1)
    return fc.serial(stem, relu, block(), relu, block(), relu, fc.Pool(2), block(), fc.global_pool, fc.Dense(10))


def unet(conv: Any = fc.Conv, conv_transpose: Any = fc.ConvTranspose) -> Any:
    """Down and up again with transposed convolutions, and shortcuts between."""
    same = partial(conv, window=3, padding=1)
    inner = fc.serial(fc.Pool(2), same(64), relu, same(64), relu, conv_transpose(32, 2, stride=2))
    middle = fc.serial(
        fc.Pool(2), same(32), relu, fc.parallel(_same, inner, merge=fc.concat), same(32), relu,
        conv_transpose(16, 2, stride=2),
    )  # fmt: skip
    return fc.serial(same(16), relu, fc.parallel(_same, middle, merge=fc.concat), same(16), relu, conv(1, 1))


def _same(x: Any) -> Any:
    return x


NETWORKS = {
    "LeNet": (lenet, (64, 28, 28, 1)),
    "MobileNet-like": (mobile, (16, 32, 32, 3)),
    "ResNeXt-like": (resnext, (8, 16, 16, 3)),
    "U-Net": (unet, (8, 32, 32, 1)),
}


def problem(name: str, implementation: str | None = None) -> tuple[Any, Any, Any]:
    """Return the loss `f(params, x)`, parameters and a batch; the loss of an example does not depend on the others."""
    build, shape = NETWORKS[name]
    x = fc.Input("x", shape[1:])
    options = {"implementation": implementation}
    convs = [partial(fc.Conv, **options)] + ([partial(fc.ConvTranspose, **options)] if build is unet else [])
    graph = fc.Graph(x, build(*convs)(x))
    params = graph.init(jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), shape)

    def loss(params: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(graph(params, x) - 1))

    return loss, params, images

"""Training steps of ready-made networks, and of the same networks in Flax."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import funcconv as fc

from .tables import Table, with_mean
from .timing import quartiles, timed

TITLE = "training step of a ready-made network"
# The network, and small images: as many as take less than a second. Nothing is dropped, so no random numbers are drawn.
NETWORKS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "lenet()": (fc.zoo.lenet, (64, 28, 28, 1)),
    "resnet(18)": (partial(fc.zoo.resnet, 18), (4, 64, 64, 3)),
    "resnet(50)": (partial(fc.zoo.resnet, 50), (4, 64, 64, 3)),
    "mobilenet_v2()": (partial(fc.zoo.mobilenet_v2, dropout=0), (4, 64, 64, 3)),
    'convnext("tiny")': (partial(fc.zoo.convnext, "tiny", drop_path=0), (2, 64, 64, 3)),
    "unet()": (fc.zoo.unet, (1, 64, 64, 1)),
    "wavenet()": (fc.zoo.wavenet, (1, 1024, 256)),
}

# A network in training: of parameters, a state and images, the result and the next state.
Apply = Callable[[Any, Any, Any], tuple[Any, Any]]


def in_funcconv(network: Callable[..., Any], shape: tuple[int, ...]) -> tuple[Any, Any, Apply]:
    """Return the parameters, the state and the network in training."""
    graph = network(input_shape=shape[1:])
    params = jax.jit(graph.init)(jax.random.key(0))
    return params, graph.init_state(), lambda params, state, x: graph.apply(params, state, x, train=True)


def in_flax(name: str, shape: tuple[int, ...]) -> tuple[Any, Any, Apply]:
    """Return the parameters, the state and the network in training."""
    from .zoo_in_flax import MODELS

    variables = jax.jit(MODELS[name].init)(jax.random.key(0), jnp.zeros(shape))
    params = variables.pop("params")

    def apply(params: Any, state: Any, x: Any) -> tuple[Any, Any]:
        return MODELS[name].apply({"params": params, **state}, x, mutable=["batch_stats"])

    return params, variables, apply


def compiled_step(params: Any, state: Any, apply: Apply, x: Any) -> Callable[[], Any]:
    """Return a compiled training step as a function of nothing."""

    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> tuple[Any, Any]:
            y, new = apply(params, state, x)
            return jnp.square(y - 1).mean(), new

        (value, new), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, jax.tree.map(lambda p, g: p - 1e-6 * g, params, gradient), new

    return partial(jax.jit(step).lower(params, state, x).compile(), params, state, x)


def numbers(params: Any) -> int:
    """Return how many numbers a tree has."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def results(*, quick: bool = False) -> dict[str, Table]:
    """Return a table: the milliseconds of a step, and the time of Flax divided by that of funcconv."""
    table: Table = {}
    for name, (network, shape) in list(NETWORKS.items())[: 1 if quick else None]:
        x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
        builds = {"funcconv": in_funcconv(network, shape)}
        if importlib.util.find_spec("flax"):
            builds["flax"] = in_flax(name, shape)
            ours, theirs = (numbers(params) for params, *_ in builds.values())
            if ours != theirs:
                msg = f"{name}: {ours:,} parameters, but {theirs:,} in Flax"
                raise ValueError(msg)
        seconds = timed({library: compiled_step(*built, x) for library, built in builds.items()}, 3 if quick else 7)
        found = {library: float(np.median(values)) for library, values in seconds.items()}
        row = {"funcconv, ms": 1e3 * found["funcconv"]}
        if "flax" in found:
            row |= {"flax": found["flax"] / found["funcconv"]} | quartiles(seconds["flax"], seconds["funcconv"])
        table[f"{name}, {'x'.join(map(str, shape))}"] = row
    return {TITLE: with_mean(table)}

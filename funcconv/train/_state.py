"""What a training run is at one moment: all that its future depends on, but for the data."""

from dataclasses import dataclass
from typing import Any

import jax

from .._common.types import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scale:
    """The factor by which a loss is multiplied, so that gradients in float16 do not vanish.

    It is halved when a gradient is not finite, and doubled after many that are.
    """

    factor: Array
    good: Array  # steps since it changed


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """A training run at one moment: a tree of arrays, made by `init` and taken and returned by `step`.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> def loss(params, batch, *, key, state):
        ...     return jnp.square(params["w"] * batch["x"] - batch["y"]).mean()
        >>> init, step = fc.train.make_step(loss, optax.sgd(0.1))
        >>> state = init({"w": jnp.zeros(())}, jax.random.key(0))
        >>> int(state.step), sorted(state.params)
        (0, ['w'])
    """

    step: Array  # how many were taken, those without an update among them
    params: Any
    optimizer: Any  # what the optimizer keeps
    key: Array  # of the run; that of a step is folded from it
    model: Any  # what the loss hands on from step to step, such as running statistics
    ema: Any  # the moving average of the parameters, in their dtypes, or None
    scale: Scale | None
    skipped: Array  # how many steps had a loss or a gradient that was not finite
    ema_float32: Any = None  # the moving average before it is rounded to 16 bits; None if no parameter has 16 bits

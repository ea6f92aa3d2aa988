"""The state of a training run: everything that its future depends on, except the data."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.errors import FuncconvError
from .._common.types import Array

_MAX_MEMBERS = 4  # of an ensemble, in a printed state


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scale:
    """The factor by which the loss is multiplied, so that small gradients do not become 0 in float16.

    It is halved when a gradient is not finite, and doubled after many steps with finite gradients.
    """

    factor: Array
    good: Array  # steps since it changed


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class State:
    """A training run at one moment, as a tree of arrays. `init` makes the first one; `step` takes and returns one.

    An ensemble is a state in which each array has a first axis for the members, `jax.vmap(init)(params, keys)`. Its
    step is `jax.vmap(step, in_axes=(0, None))`, which `fit` accepts.

    Attributes:
        step: how many steps were taken, including those without an update.
        params: the parameters.
        optimizer: the state of the optimizer.
        key: the random key of the run. The key of a step is folded from it and the number of the step.
        model: the state of the model, such as running statistics.
        ema: the average of the parameters, in their dtypes: the exponential moving average, or the mean if `average`
            is `"mean"`. None if none is kept.
        scale: the dynamic scale of the loss, or None.
        skipped: how many steps were not finite, or had a total weight of 0, and so were without an update.
        ema_float32: the average before it is rounded to 16 bits; None if no parameter has 16 bits.
        average_count: how many steps the mean of the parameters is over; None if no mean is kept.
        monitored: the last monitored value, for the optimizer, infinity before the first; None if it gets the loss.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> def loss(params, batch, *, key, state):
        ...     return jnp.square(params["w"] * batch["x"] - batch["y"]).mean()
        >>> init, step = fc.train.make_step(loss, optax.sgd(0.1))
        >>> state = init({"w": jnp.zeros(3)}, jax.random.key(0))
        >>> state
        State(step=0, skipped=0,
          params: 3 numbers in 1 array (float32))
        >>> int(state.step), sorted(state.params)
        (0, ['w'])
    """

    step: Array
    params: Any
    optimizer: Any
    key: Array
    model: Any
    ema: Any
    scale: Scale | None
    skipped: Array
    ema_float32: Any = None
    average_count: Any = None
    monitored: Any = None

    def __repr__(self) -> str:
        lines = [f"step={_number(self.step)}, skipped={_number(self.skipped)}"]
        for name in ("params", "optimizer", "model", "ema"):
            leaves = jax.tree.leaves(getattr(self, name))
            if leaves:
                lines.append(f"{name}: {_counted(leaves)}")
        if self.scale is not None:
            lines.append(f"scale: {_number(self.scale.factor)}")
        return "State(" + ",\n  ".join(lines) + ")"


def steps_of(state: State) -> int:
    """Return how many steps were taken. All members of an ensemble must have taken as many.

    Raises:
        FuncconvError: if they have not.
    """
    steps = np.unique(np.asarray(state.step))
    if steps.size != 1:
        msg = (
            f"train: the members of an ensemble must have taken the same number of steps; got {steps.tolist()}. "
            "Train them to the same step first"
        )
        raise FuncconvError(msg)
    return int(steps[0])


def _number(value: Any) -> str:
    """Return the value of a scalar, or its type if the value is not known, as while JAX traces a function."""
    try:
        if value.ndim:  # one for each member of an ensemble
            members = list(map(_number, value[:_MAX_MEMBERS]))
            return f"[{', '.join(members)}{', ...' if len(value) > _MAX_MEMBERS else ''}]"
        return f"{value.item():g}" if jnp.issubdtype(value.dtype, jnp.floating) else str(int(value))
    except Exception:  # a printed state must not raise, whatever is in its place
        return f"<{type(value).__name__}>"


def _counted(leaves: list[Any]) -> str:
    """Return how many numbers arrays have, and their dtypes."""
    # A state may also hold shardings or axes, as arguments of `jax.jit` and `jax.vmap`.
    arrays = [leaf for leaf in leaves if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]
    if len(arrays) < len(leaves):  # such as a state of shardings
        return f"{len(leaves)} leaves ({', '.join(sorted({type(leaf).__name__ for leaf in leaves}))})"
    count = sum(leaf.size for leaf in arrays)
    numbers = f"{count:,} number{'s' * (count != 1)} in {len(arrays)} array{'s' * (len(arrays) != 1)}"
    return f"{numbers} ({', '.join(sorted({str(leaf.dtype) for leaf in arrays}))})"

"""Batch normalization as a layer, whose running statistics are a state."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import lax

from ...._common.dtypes import wide
from ...._common.errors import FuncconvError
from ...._common.types import Array, Number, Shape
from ...._ops.norms.batch import batch_norm
from ...._ops.norms.init import init_batch_stats
from ...._windows.reach import IDENTITY, Reach
from .norms import _NormWithBias


@dataclass(frozen=True, repr=False)
class BatchNorm(_NormWithBias):
    """Batch normalization as a layer: `fc.batch_norm`, with running statistics in the state of the graph.

    It computes `(x - mean) / sqrt(var + epsilon) * scale + bias` for each channel, the last axis. With
    `graph.apply(..., train=True)`, mean and variance are those of the batch, over all other axes, and the running ones
    are updated; otherwise the running ones are used. Its parameters are `{"scale": (channels,), "bias": (channels,)}`,
    and its state is `{"mean": (channels,), "var": (channels,)}`, which `graph.init_state` makes.

    If you call one layer object several times, as in a siamese network, its uses share the parameters and the state. In
    training each use is normalized by its own batch and updates the running statistics, one use after another.

    Args:
        momentum: share of the old running mean and variance that is kept, from 0 to 1. PyTorch calls `1 - momentum`
            momentum. None: the running statistics are the means over all training steps; this needs `count=True`.
            Default: 0.9.
        unbiased: whether the running variance follows the batch variance with the divisor n - 1, as in PyTorch, instead
            of n, as in Flax and Keras. Default: True.
        axis_name: name of a mapped axis (`jax.vmap`, `jax.shard_map`) over which the batch is also distributed, or a
            tuple of names. Arrays that are sharded under `jax.jit` need none. Default: None.
        count: whether the state has an entry `"count"`, the number of updates of the running statistics, like PyTorch's
            `num_batches_tracked`. Default: False.
        epsilon: positive number added to the variance. Default: 1e-5.
        scale: whether to multiply by a learned scale. Default: True.
        bias: whether to add a learned bias. Default: True.
        dtype: dtype of the parameters; the state is at least float32. Default: None, JAX's default float.
        name: name of its nodes and of its entries in the parameters and in the state. Default: None, which gives
            `batch_norm1`, `batch_norm2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if `momentum` is None and `count` is False. Other options are checked at the latest by
            `graph.init`; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (3,))
        >>> graph = fc.Graph(x, fc.BatchNorm(momentum=0.5)(x))
        >>> params, state = graph.init(jax.random.key(0)), graph.init_state()
        >>> y, state = graph.apply(params, state, jnp.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]]), train=True)
        >>> state["batch_norm1"]["mean"].tolist()
        [0.5, 1.0, 1.5]
    """

    momentum: Number | None = field(default=0.9, kw_only=True)
    unbiased: bool = field(default=True, kw_only=True)
    axis_name: str | tuple[str, ...] | None = field(default=None, kw_only=True)
    count: bool = field(default=False, kw_only=True)

    stateful: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.momentum is None and not self.count:
            msg = "BatchNorm: momentum=None, the mean over all steps, needs count=True, so that the state counts them"
            raise FuncconvError(msg)

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return that every number sees itself: of training, where it sees its whole batch, it is not asked."""
        (shape,) = shapes
        return (IDENTITY,) * len(shape)

    def first_state(self, *shapes: Shape) -> Any:
        """Return mean 0 and variance 1."""
        (channels,) = self.normalized(*shapes)
        # In 16 bits the part that a step adds, a tenth by default, can be smaller than half a unit in the last place.
        statistics = init_batch_stats(channels, dtype=None if self.dtype is None else wide(self.dtype))
        return statistics | ({"count": jnp.zeros((), jnp.int32)} if self.count else {})

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Normalize by the figures of the first state."""
        first = self.first_state(*(x.shape[len(batch) :] for x in xs))
        return self.run(params, first, *xs, batch=batch, key=None, train=False)[0]

    def run(
        self,
        params: Any,
        state: Any,
        *xs: Any,
        batch: Shape,
        key: Array | None,
        train: bool,
        mask: Array | None = None,
    ) -> tuple[Any, Any]:
        """Normalize, in training by the figures of the batch; with a mask, of its real positions."""
        del batch, key
        (x,) = xs
        running = {name: state[name] for name in ("mean", "var")}
        y, new = batch_norm(
            params,
            running,
            x,
            train=train,
            momentum=0 if self.momentum is None else self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            axis_name=self.axis_name,
            mask=mask,
        )
        if not self.count:
            return y, new
        if not train:
            return y, state
        # A batch of fewer than two real positions changes no statistics, so it does not count.
        counts = 1 if mask is None else (self._positions(mask) > 1).astype(jnp.int32)
        steps = state["count"] + counts
        if self.momentum is None:  # the mean over all steps
            new = {
                name: old + (new[name] - old) / jnp.maximum(steps, 1).astype(old.dtype) for name, old in running.items()
            }
        return y, new | {"count": steps}

    def _positions(self, mask: Array) -> Array:
        """Return how many positions of the batch are real, on all devices."""
        count = jnp.sum(mask, dtype=jnp.int32)
        return count if self.axis_name is None else lax.psum(count, self.axis_name)  # type: ignore[no-untyped-call]

"""Layers that draw random zeros in training."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...._common.errors import FuncconvError
from ...._common.types import Array, Number, Shape
from ...._ops.dropout import drop_path, dropout
from ...._windows.reach import IDENTITY, Reach
from ..layer import Layer


@dataclass(frozen=True, repr=False)
class _RandomZeros(Layer):
    """A layer that sets numbers to zero in training, and otherwise does nothing."""

    random: ClassVar[bool] = True

    rate: Number

    def drop(self, key: Array, x: Array, batch: Shape) -> Array:
        """Return an array with these batch axes in which some numbers are zero."""
        raise NotImplementedError

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return that every number sees itself."""
        (shape,) = shapes
        return (IDENTITY,) * len(shape)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Return what came."""
        del params, batch
        (x,) = xs
        return x

    def run(self, params: Any, state: Any, *xs: Any, batch: Shape, key: Array | None, train: bool) -> tuple[Any, Any]:
        """Drop, in training."""
        # With a rate of 0 nothing is drawn, so no key is needed.
        if not train or self.rate == 0:
            return self.apply(params, *xs, batch=batch), state
        if key is None:
            msg = f"{self!r} needs a random key in training; got None. Pass graph.apply(..., key=key, train=True)"
            raise FuncconvError(msg)
        (x,) = xs
        return self.drop(key, x, batch), state


@dataclass(frozen=True, repr=False)
class Dropout(_RandomZeros):
    """Dropout as a layer: `fc.dropout` in training; otherwise it returns its input.

    In training, which means `graph.apply(..., key=key, train=True)`, random entries become zero and the others are
    divided by `1 - rate`. Each node has its own random key, so two uses of a layer have different zeros.

    Args:
        rate: probability of a zero, from 0 to 1. Default: 0.5.
        whole_channels: whether all positions of a channel of an example become zero together, as in PyTorch's
            `Dropout2d`. Default: False, every number is drawn separately.
        name: name of its nodes. The random key of a node is derived from its name. Default: None, which gives
            `dropout1`, `dropout2`, ... in order of first use.

    Raises:
        FuncconvError: in training, if the rate is not from 0 to 1 or there is no key; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (1000,))
        >>> graph = fc.Graph(x, fc.Dropout(0.5)(x))
        >>> y, _ = graph.apply({}, {}, jnp.ones(1000), key=jax.random.key(0), train=True)
        >>> set(y.tolist()) == {0.0, 2.0}, set(graph({}, jnp.ones(1000)).tolist())
        (True, {1.0})
    """

    rate: Number = 0.5
    whole_channels: bool = field(default=False, kw_only=True)

    def drop(self, key: Array, x: Array, batch: Shape) -> Array:
        """Draw each number, or each channel."""
        return dropout(key, x, self.rate, spatial=max(x.ndim - len(batch) - 1, 0) if self.whole_channels else 0)


@dataclass(frozen=True, repr=False)
class DropPath(_RandomZeros):
    """Stochastic depth as a layer: `fc.drop_path` in training; otherwise it returns its input.

    In training, random examples become zero as a whole, and the others are divided by `1 - rate`. Put the layer at the
    end of a branch, as in `fc.residual(fc.serial(fc.Conv(8, 3, padding=1), fc.DropPath(0.1)))`. The branch is then
    skipped for some of the examples.

    Args:
        rate: probability that an example becomes zero, from 0 to 1.
        name: name of its nodes. The random key of a node is derived from its name. Default: None, which gives
            `drop_path1`, `drop_path2`, ... in order of first use.

    Raises:
        FuncconvError: in training, if the rate is not from 0 to 1 or there is no key; the message names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (2,))
        >>> graph = fc.Graph(x, fc.DropPath(0.5)(x))
        >>> y, _ = graph.apply({}, {}, jnp.ones((100, 2)), key=jax.random.key(0), train=True)
        >>> sorted(set(map(tuple, y.tolist()))), set(graph({}, jnp.ones((100, 2))).ravel().tolist())
        ([(0.0, 0.0), (2.0, 2.0)], {1.0})
    """

    def drop(self, key: Array, x: Array, batch: Shape) -> Array:
        """Draw each example."""
        if x.ndim == len(batch):  # one number for each example
            return dropout(key, x, self.rate)
        return drop_path(key, x, self.rate, spatial=x.ndim - len(batch) - 1)

"""Layers that normalize activations."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...._common.errors import FuncconvError
from ...._common.types import Array, DTypeLike, Number, Shape
from ...._ops.norms.group import group_norm, instance_norm
from ...._ops.norms.init import init_norm
from ...._ops.norms.layer import layer_norm, rms_norm
from ..layer import Layer


@dataclass(frozen=True, repr=False)
class _Norm(Layer):
    """What the normalizing layers have in common."""

    epsilon: Number = field(default=1e-5, kw_only=True)
    scale: bool = field(default=True, kw_only=True)
    dtype: DTypeLike | None = field(default=None, kw_only=True)

    parametric: ClassVar[bool] = True

    def normalized(self, *shapes: Shape) -> Shape:
        """Return the sizes of the axes that have a scale."""
        (shape,) = shapes
        if not shape:
            msg = (
                f"{self!r} needs an axis of channels; its input is one number for each example. Declare the input with "
                "the shape (1,), or add the axis with fc.node(lambda x: x[..., None], node)"
            )
            raise FuncconvError(msg)
        return shape[-1:]

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Return ones."""
        del key
        return init_norm(self.normalized(*shapes), scale=self.scale, bias=False, dtype=self.dtype)


@dataclass(frozen=True, repr=False)
class _NormWithBias(_Norm):
    """What the normalizing layers with a bias have in common."""

    bias: bool = field(default=True, kw_only=True)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Return ones and zeros."""
        del key
        return init_norm(self.normalized(*shapes), scale=self.scale, bias=self.bias, dtype=self.dtype)


@dataclass(frozen=True, repr=False)
class LayerNorm(_NormWithBias):
    """Layer normalization as a layer: `fc.layer_norm`, which normalizes over the last axes.

    It computes `(x - mean) / sqrt(var + epsilon) * scale + bias`, with mean and variance (divisor n) over the last
    `axes` axes. Its parameters are `{"scale": shape, "bias": shape}`, where `shape` is the sizes of these axes. If you
    call one layer object several times, its uses share these parameters.

    Args:
        axes: number of last axes to normalize over; scale and bias have these axes. Default: 1, the channels at each
            position.
        epsilon: positive number added to the variance. Default: 1e-5.
        scale: whether to multiply by a learned scale. Default: True.
        bias: whether to add a learned bias. Default: True.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `layer_norm1`,
            `layer_norm2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if an option does not fit the input. This is checked at the latest by `graph.init`; the message
            names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.LayerNorm()(x)).init(jax.random.key(0))["layer_norm1"]["scale"].shape
        (3,)
    """

    axes: int = 1

    def normalized(self, *shapes: Shape) -> Shape:
        """Return the sizes of the last axes."""
        return _last_axes(self, *shapes)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Normalize."""
        del batch
        (x,) = xs
        return layer_norm(params, x, axes=self.axes, epsilon=self.epsilon)


@dataclass(frozen=True, repr=False)
class RMSNorm(_Norm):
    """Root mean square normalization as a layer: `fc.rms_norm`, which divides by the root of the mean of the squares.

    It computes `x / sqrt(mean(x**2) + epsilon) * scale`, with the mean over the last `axes` axes. Its parameters are
    `{"scale": shape}`, where `shape` is the sizes of these axes. If you call one layer object several times, its uses
    share these parameters.

    Args:
        axes: number of last axes to normalize over; the scale has these axes. Default: 1, the channels at each
            position.
        epsilon: positive number added to the mean of the squares. Default: 1e-5.
        scale: whether to multiply by a learned scale. Default: True.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `rms_norm1`,
            `rms_norm2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if an option does not fit the input. This is checked at the latest by `graph.init`; the message
            names the node.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.RMSNorm()(x)).init(jax.random.key(0))["rms_norm1"]["scale"].shape
        (3,)
    """

    axes: int = 1

    def normalized(self, *shapes: Shape) -> Shape:
        """Return the sizes of the last axes."""
        return _last_axes(self, *shapes)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Normalize."""
        del batch
        (x,) = xs
        return rms_norm(params, x, axes=self.axes, epsilon=self.epsilon)


@dataclass(frozen=True, repr=False)
class GroupNorm(_NormWithBias):
    """Group normalization as a layer: `fc.group_norm`, which normalizes each example by groups of channels.

    It computes `(x - mean) / sqrt(var + epsilon) * scale + bias`, with mean and variance (divisor n) over all positions
    and the channels of a group. Its input is `(*spatial, channels)`, and its parameters are
    `{"scale": (channels,), "bias": (channels,)}`. If you call one layer object several times, its uses share these
    parameters.

    Args:
        groups: number of groups, which must divide the number of channels. Each group consists of neighbouring
            channels.
        epsilon: positive number added to the variance. Default: 1e-5.
        scale: whether to multiply by a learned scale. Default: True.
        bias: whether to add a learned bias. Default: True.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `group_norm1`,
            `group_norm2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if an option does not fit the input. This is checked at the latest by `graph.init`; the message
            names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 6))
        >>> graph = fc.Graph(x, fc.GroupNorm(3)(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((2, 8, 8, 6))).shape
        (2, 8, 8, 6)
    """

    groups: int

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Normalize."""
        (x,) = xs
        return group_norm(params, x, self.groups, epsilon=self.epsilon, spatial=x.ndim - len(batch) - 1)


@dataclass(frozen=True, repr=False)
class InstanceNorm(_NormWithBias):
    """Instance normalization as a layer: `fc.instance_norm`, which normalizes each channel of each example.

    It computes `(x - mean) / sqrt(var + epsilon) * scale + bias`, with mean and variance (divisor n) over the
    positions. Its input is `(*spatial, channels)`, and its parameters are
    `{"scale": (channels,), "bias": (channels,)}`. If you call one layer object several times, its uses share these
    parameters.

    Args:
        epsilon: positive number added to the variance. Default: 1e-5.
        scale: whether to multiply by a learned scale. Default: True.
        bias: whether to add a learned bias. Default: True.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `instance_norm1`,
            `instance_norm2`, ... in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if the input has a single position. This is checked at the latest by `graph.init`; the message
            names the node.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.InstanceNorm()(x))
        >>> graph(graph.init(jax.random.key(0)), jnp.ones((2, 8, 8, 3))).shape
        (2, 8, 8, 3)
    """

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Normalize."""
        (x,) = xs
        return instance_norm(params, x, epsilon=self.epsilon, spatial=x.ndim - len(batch) - 1)


def _last_axes(layer: LayerNorm | RMSNorm, *shapes: Shape) -> Shape:
    """Return the sizes of the last axes of the input, as many as the layer normalizes over."""
    (shape,) = shapes
    if not 1 <= layer.axes <= len(shape):
        msg = (
            f"{layer!r}: axes must be from 1 to {len(shape)}, the axes of the input {shape} without batch axes; "
            f"got {layer.axes}. Pass a number in this range"
        )
        raise FuncconvError(msg)
    return shape[len(shape) - layer.axes :]

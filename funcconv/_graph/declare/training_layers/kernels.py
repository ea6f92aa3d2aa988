"""Layers whose kernel is normalized whenever it is used."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...._common.errors import FuncconvError
from ...._common.types import Array, Number, Shape
from ...._ops.norms.kernel import init_weight_norm, weight_norm, weight_standardize
from ...._windows.reach import Reach
from ..conv_layers import Conv, ConvTranspose, LocalConv
from ..layer import Layer
from ..layers import Dense


@dataclass(frozen=True, repr=False)
class _WithKernel(Layer):
    """A layer that computes the kernel of another one from its parameters."""

    layer: Conv | ConvTranspose | LocalConv | Dense

    parametric: ClassVar[bool] = True
    kinds: ClassVar[tuple[type[Layer], ...]] = (Conv, ConvTranspose, LocalConv, Dense)  # that it can normalize

    def __post_init__(self) -> None:
        """Take over the names."""
        kind = type(self).__name__
        if not isinstance(self.layer, self.kinds):
            *first, last = (kind.__name__ for kind in self.kinds)
            msg = (
                f"{kind}: expected a {', '.join(first)} or {last}; got {self.layer!r}. Write for example "
                f"fc.{kind}(fc.Conv(8, 3))"
            )
            raise FuncconvError(msg)
        for name in ("name", "params"):
            object.__setattr__(self, name, getattr(self, name) or getattr(self.layer, name))
        super().__post_init__()

    @property
    def label(self) -> str:
        """That of the layer."""
        return self.layer.label

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...] | None:
        """Return what the layer sees."""
        return self.layer.reaches(*shapes)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw the layer's parameters."""
        return self.layer.draw(key, *shapes)

    def normalized(self, params: Any) -> dict[str, Any]:
        """Return the parameters of the layer."""
        raise NotImplementedError

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Apply the layer."""
        return self.layer.apply(self.normalized(params), *xs, batch=batch)

    def positions(self, params: Any) -> int:
        """Return how many axes of the kernel are positions, which only a LocalConv has."""
        return (params["kernel"].ndim - 2) // 2 if isinstance(self.layer, LocalConv) else 0


@dataclass(frozen=True, repr=False)
class WeightStandardize(_WithKernel):
    """A `Conv`, `LocalConv` or `Dense` layer whose kernel is standardized at each use: `fc.weight_standardize`.

    Each use computes `(kernel - mean) / sqrt(var + epsilon)` for each output channel, with mean and variance (divisor
    n) over the window and the input channels. The stored kernel does not change.

    Args:
        layer: the `Conv`, `LocalConv` or `Dense`. Its `name` and `params` are used unless you pass others.
        epsilon: positive number added to the variance. Default: 1e-5.

    Raises:
        FuncconvError: if `layer` is another kind of layer.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.serial(fc.WeightStandardize(fc.Conv(4, 3)), fc.GroupNorm(2))(x))
        >>> list(graph.init(jax.random.key(0)))
        ['conv1', 'group_norm1']
    """

    epsilon: Number = field(default=1e-5, kw_only=True)

    # The output channels of a ConvTranspose are not the last axis of its kernel.
    kinds: ClassVar[tuple[type[Layer], ...]] = (Conv, LocalConv, Dense)

    def normalized(self, params: Any) -> dict[str, Any]:
        """Standardize the kernel."""
        spatial = self.positions(params) or None
        return weight_standardize(params, spatial=spatial, epsilon=self.epsilon)


@dataclass(frozen=True, repr=False)
class WeightNorm(_WithKernel):
    """A `Conv`, `ConvTranspose`, `LocalConv` or `Dense` layer with separate norms for its kernel: `fc.weight_norm`.

    Each use computes `scale * kernel / |kernel|` for each slice along the last axis of the kernel, which is the output
    channels, but the input channels of a `ConvTranspose`, as in PyTorch. A `LocalConv` has these norms at each
    position. The parameters of the layer have one more entry, `"scale": (out_channels,)`, `(in,)` for a
    `ConvTranspose`, and `(*positions, out_channels)` for a `LocalConv`. At first it is the norm of the kernel that the
    layer draws.

    Args:
        layer: the `Conv`, `ConvTranspose`, `LocalConv` or `Dense`. Its `name` and `params` are used unless you pass
            others.

    Raises:
        FuncconvError: if `layer` is another kind of layer.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (8, 8, 3))
        >>> graph = fc.Graph(x, fc.WeightNorm(fc.Conv(4, 3))(x))
        >>> {name: array.shape for name, array in graph.init(jax.random.key(0))["conv1"].items()}
        {'kernel': (3, 3, 3, 4), 'bias': (4,), 'scale': (4,)}
    """

    def axis(self, params: Any) -> tuple[int, ...]:
        """Return the axes of the kernel along which each slice has a scale."""
        return (*range(self.positions(params)), -1)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw the layer's parameters, and add the norms of the kernel."""
        params = super().draw(key, *shapes)
        return init_weight_norm(params, axis=self.axis(params))

    def normalized(self, params: Any) -> dict[str, Any]:
        """Compute the kernel."""
        return weight_norm(params, axis=self.axis(params))

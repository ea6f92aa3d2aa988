"""Dense layers, pooling and flattening as layers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Initializer, Number, Padding, PadMode, Precision, Reduce, Shape, Sizes
from ..._ops.dense import dense, flatten
from ..._ops.init import init_dense
from ..._ops.pool import pool
from ..._windows.geometry import resolve
from ..._windows.layout import channels_last_order
from ..._windows.reach import IDENTITY, Reach, of_window
from .by_value import by_value, check_hash
from .layer import Layer
from .windowed import along_axes, check_count, wrapping


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """`dense` as a layer, on the last axis of what comes.

    Args:
        features: of the result.
        precision: see `dense`.
        accumulate_dtype: see `dense`.
        bias: whether there is one.
        init: see `init_conv`.
        dtype: see `Conv`.
        name: see `Conv`.
        params: see `Conv`.

    Example:
        >>> import funcconv as fc, jax
        >>> x = fc.Input("x", (10,))
        >>> fc.Graph(x, fc.Dense(2)(x)).init(jax.random.key(0))["dense1"]["kernel"].shape
        (10, 2)
    """

    features: int
    precision: Precision = field(default=None, kw_only=True)
    accumulate_dtype: DTypeLike | None = field(default=None, kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    init: Initializer = field(default="lecun_normal", kw_only=True)
    dtype: DTypeLike | None = field(default=None, kw_only=True)

    parametric: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self, "features", self.features)

    def draw(self, key: Array, *shapes: Shape) -> Any:
        """Draw kernel and bias."""
        (shape,) = shapes
        if not shape:
            msg = f"{self!r} needs an axis of features; its input is one number for each example"
            raise FuncconvError(msg)
        return init_dense(key, shape[-1], self.features, bias=self.bias, init=self.init, dtype=self.dtype)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Multiply by the kernel."""
        del batch
        (x,) = xs
        return dense(params, x, precision=self.precision, accumulate_dtype=self.accumulate_dtype)


@dataclass(frozen=True, repr=False)
class Pool(Layer):
    """`pool` as a layer.

    Args:
        window: taps on each spatial axis, or on all.
        reduce: see `pool`, like those that follow.
        stride: see `pool`.
        padding: see `pool`.
        dilation: see `pool`.
        pad_mode: see `pool`.
        ties: see `pool`.
        p: see `pool`.
        temperature: see `pool`, here a plain number.
        count_include_pad: see `pool`.
        ceil_mode: see `pool`.
        return_indices: see `pool`; the node's value is then a pair, of which `node[0]` and `node[1]` are the entries.
        layout: see `pool`.
        name: of its nodes; by default `pool1` and so on.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.Pool(2, reduce="mean")(x))({}, jnp.ones((5, 8, 8, 3))).shape
        (5, 4, 4, 3)
    """

    window: Sizes = 2
    reduce: Reduce = field(default="max", kw_only=True, compare=False)
    stride: Sizes | None = field(default=None, kw_only=True)
    padding: Padding = field(default=0, kw_only=True)
    dilation: Sizes = field(default=1, kw_only=True)
    pad_mode: PadMode | None = field(default=None, kw_only=True)
    ties: str = field(default="first", kw_only=True)
    p: Number = field(default=2, kw_only=True)
    temperature: Number = field(default=1.0, kw_only=True)
    count_include_pad: bool = field(default=False, kw_only=True)
    ceil_mode: bool = field(default=False, kw_only=True)
    return_indices: bool = field(default=False, kw_only=True)
    layout: str | None = field(default=None, kw_only=True)
    value: Hashable = field(init=False, kw_only=True)  # what `reduce` is compared by

    def __post_init__(self) -> None:
        """Freeze the options."""
        super().__post_init__()
        object.__setattr__(self, "value", by_value(self.reduce))
        check_hash(self, "the options of a layer must be hashable, numbers rather than arrays")

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return what the windows see."""
        (shape,) = shapes
        order = channels_last_order(self.label, self.layout, len(shape)) if self.layout else range(len(shape))
        sizes = [shape[i] for i in order][:-1]
        n = len(self.window) if isinstance(self.window, Sequence) else len(sizes)
        stride = self.window if self.stride is None else self.stride
        axes = resolve(
            self.label, tuple(sizes[-n:]), self.window, stride=stride, padding=self.padding, dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )  # fmt: skip
        found = [of_window(axis, wraps=wraps) for axis, wraps in wrapping(self, axes)]
        return along_axes(self, len(shape), found, IDENTITY)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Reduce the windows."""
        del params
        (x,) = xs
        spatial = len(self.window) if isinstance(self.window, Sequence) else x.ndim - len(batch) - 1
        return pool(
            x, self.window, reduce=self.reduce, stride=self.stride, padding=self.padding, dilation=self.dilation,
            pad_mode=self.pad_mode, ties=self.ties, p=self.p, temperature=self.temperature,
            count_include_pad=self.count_include_pad, ceil_mode=self.ceil_mode,
            return_indices=self.return_indices, spatial=spatial, layout=self.layout,
        )  # fmt: skip


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """`flatten` as a layer: everything but the batch axes becomes one axis of features.

    Args:
        order: see `flatten`.
        layout: see `flatten`.
        name: of its nodes; by default `flatten1` and so on.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 3))
        >>> fc.Graph(x, fc.Flatten()(x))({}, jnp.ones((5, 8, 8, 3))).shape
        (5, 192)
    """

    order: str = field(default="channels_last", kw_only=True)
    layout: str | None = field(default=None, kw_only=True)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Flatten."""
        del params
        (x,) = xs
        return flatten(x, spatial=x.ndim - len(batch) - 1, order=self.order, layout=self.layout)

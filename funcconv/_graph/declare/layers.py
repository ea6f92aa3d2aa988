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
    """A dense layer on the last axis of its input: `dense`, with a kernel that is drawn.

    Args:
        features: the number of features of the result.
        precision: of the products: None, `"high"`, `"highest"` or a `jax.lax.Precision`. Default: None, the platform's.
        accumulate_dtype: the dtype in which products are summed and the bias is added; the result has the dtype of the
            input. Default: None, the platform's.
        bias: whether a bias is added. Default: True.
        init: how the kernel is drawn: `"lecun_normal"`, `"he_normal"`, `"glorot_uniform"`, `"torch"` (kernel and bias
            uniform, as PyTorch's layers), or a function of `(key, shape, dtype)`. Default: `"lecun_normal"`.
        dtype: the dtype of the parameters. Default: None, JAX's default float.
        name: of its nodes and of its entry in the parameters. Default: None, `dense1`, `dense2`, ... in order of first
            use.
        params: the name of its entry, where it is another one; layers with the same `params` share the entry. Default:
            None.

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
            msg = (
                f"{self!r} needs an axis of features; its input is one number for each example. Declare the input with "
                "the shape (1,), or add the axis with fc.node(lambda x: x[..., None], node)"
            )
            raise FuncconvError(msg)
        return init_dense(key, shape[-1], self.features, bias=self.bias, init=self.init, dtype=self.dtype)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Multiply by the kernel."""
        del batch
        (x,) = xs
        return dense(params, x, precision=self.precision, accumulate_dtype=self.accumulate_dtype)


@dataclass(frozen=True, repr=False)
class Pool(Layer):
    """Pooling as a layer: `pool`, which reduces the windows of each channel.

    Args:
        window: taps of a window: an integer for all spatial axes, or one for each. Default: 2.
        reduce: what a window is reduced to: `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"`, `"median"`, `"lse"`
            (`temperature * log(sum of exp(x / temperature))`), `"lp"` (`(sum of |x|^p)^(1 / p)`), or a function such as
            `jnp.std`, called with an array `(..., taps)` and `axis=-1`. Default: `"max"`.
        stride: places from one window to the next: an integer, or one for each spatial axis. Default: None, the window.
        padding: places added before and after each spatial axis: an integer, one for each axis, one pair
            `(before, after)` for each axis, or a name: `"VALID"` (none), `"SAME"` (`ceil(size / stride)` windows, the
            odd place after), `"SAME_LOWER"` (the odd place before), `"HALF"`, `"FULL"` or `"CAUSAL"` (before only).
            Negative numbers crop. Default: 0.
        dilation: places from one tap of a window to the next: an integer, or one for each spatial axis. Default: 1.
        pad_mode: None lets the padding take no part in the reduction. `"zeros"`, `"reflect"`, `"symmetric"`,
            `"replicate"` or `"circular"` extend the image first; one for all spatial axes, or one for each. Default:
            None.
        ties: where the derivative of `"max"` and `"min"` goes if several taps are equal: to the `"first"` in row-major
            order, or `"split"` evenly. Default: `"first"`.
        p: the exponent of `"lp"`, from 1 to `math.inf`. Default: 2.
        temperature: of `"lse"`, a positive Python number. Default: 1.0.
        count_include_pad: True lets `"mean"` divide by the taps on the padding too. Default: False.
        ceil_mode: True lets a last window hang over the padded image, as PyTorch does. Default: False.
        return_indices: True also returns where each maximum or minimum was, for `max_unpool`. The node's value is then
            a pair, with the entries `node[0]` and `node[1]`. Default: False.
        layout: the order of the axes of input and result, such as `"NCHW"`; `N` stands for all batch axes. Default:
            None, channels last.
        name: of its nodes. Default: None, `pool1`, `pool2`, ... in order of first use.

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
        check_hash(self, "the options of a layer must be hashable; pass Python numbers, not arrays")

    def reaches(self, *shapes: Shape) -> tuple[Reach | None, ...]:
        """Return what the windows see."""
        (shape,) = shapes
        order = channels_last_order(self.label, self.layout, len(shape)) if self.layout else range(len(shape))
        sizes = [shape[i] for i in order][:-1]
        n = len(self.window) if isinstance(self.window, Sequence) else len(sizes)
        stride = self.window if self.stride is None else self.stride
        axes = resolve(
            self.label,
            tuple(sizes[-n:]),
            self.window,
            stride=stride,
            padding=self.padding,
            dilation=self.dilation,
            ceil_mode=self.ceil_mode,
        )
        reaches = [of_window(axis, wraps=wraps) for axis, wraps in wrapping(self, axes)]
        return along_axes(self, len(shape), reaches, IDENTITY)

    def apply(self, params: Any, *xs: Any, batch: Shape) -> Any:
        """Reduce the windows."""
        del params
        (x,) = xs
        # A window that is one number does not say how many axes are spatial; the shape of one example does.
        spatial = len(self.window) if isinstance(self.window, Sequence) else x.ndim - len(batch) - 1
        return pool(
            x,
            self.window,
            reduce=self.reduce,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            pad_mode=self.pad_mode,
            ties=self.ties,
            p=self.p,
            temperature=self.temperature,
            count_include_pad=self.count_include_pad,
            ceil_mode=self.ceil_mode,
            return_indices=self.return_indices,
            spatial=spatial,
            layout=self.layout,
        )


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """Flattening as a layer, `flatten`: everything but the batch axes becomes one axis of features.

    Args:
        order: `"channels_last"` lets the channels vary fastest, as Keras and Flax do; `"channels_first"` slowest, as
            PyTorch does. Default: `"channels_last"`.
        layout: the order of the axes of the input, such as `"NCHW"`; `N` stands for all batch axes. Default: None,
            channels last.
        name: of its nodes. Default: None, `flatten1`, `flatten2`, ... in order of first use.

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

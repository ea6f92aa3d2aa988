"""Dense layers, standardized kernels, pooling and flattening as layers."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..._common.errors import FuncconvError
from ..._common.types import Array, DTypeLike, Initializer, Number, Padding, PadMode, Precision, Reduce, Shape, Sizes
from ..._ops.dense import dense, flatten
from ..._ops.init import init_dense
from ..._ops.pooling.pool import pool
from ..._windows.geometry import resolve
from ..._windows.layout import channels_last_order
from ..._windows.reach import IDENTITY, Reach, of_window
from .by_value import by_value, check_hash
from .layer import Layer
from .windowed import along_axes, check_count, wrapping


@dataclass(frozen=True, repr=False)
class Dense(Layer):
    """Dense (fully connected) layer: `fc.dense` with a kernel that is drawn for the last axis of its input.

    Call it on a node `(*axes, in)`; it returns a node `(*axes, features)`. Its parameters are
    `{"kernel": (in, features), "bias": (features,)}`. If you call one layer object several times, its uses share these
    parameters.

    Args:
        features: number of features of the result.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold the dtype of
            the input. The result always has the dtype of the input. Default: None, the platform's choice.
        bias: whether to add a bias. Default: True.
        init: how to draw the kernel: `"lecun_normal"` (variance `1 / fan_in`), `"he_normal"` (variance `2 / fan_in`),
            `"glorot_uniform"` (variance `2 / (fan_in + fan_out)`), `"torch"` (kernel and bias uniform within
            `±1 / sqrt(fan_in)`, as in PyTorch), or a function of `(key, shape, dtype)` such as those of
            `jax.nn.initializers`. Here `fan_in = in` and `fan_out = features`. Except for `"torch"` the bias is zero.
            Default: `"lecun_normal"`.
        dtype: dtype of the parameters. Default: None, JAX's default float.
        name: name of its nodes and of its entry in the parameters. Default: None, which gives `dense1`, `dense2`, ...
            in order of first use.
        params: name of its entry in the parameters, if it differs from `name`. Layers with the same `params` share one
            entry. Default: None, the same as `name`.

    Raises:
        FuncconvError: if `features` is not a positive integer. Other options are checked at the latest by `graph.init`;
            the message names the node.

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
    """Pooling as a layer: `fc.pool`, which reduces each window of each channel to one number.

    Call it on a node `(*spatial, channels)`; it returns a node `(*positions, channels)`. It has no parameters. If
    `window` is one integer, all axes of the input except the channels are spatial axes.

    Args:
        window: taps of a window (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
            Default: 2.
        reduce: how to reduce each window: `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"` (product), `"median"` (the
            lower one of an even number), `"lse"` (`temperature * log(sum of exp(x / temperature))`, a smooth maximum),
            `"lp"` (`(sum of |x|^p)^(1 / p)`), or a function such as `jnp.std`. The function is called with an array
            `(..., taps)`, the taps in row-major order, and `axis=-1`; it removes that axis and keeps the dtype.
            Default: `"max"`.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: None, the window.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the result has
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        pad_mode: what the padding contains. None: nothing, so padding takes no part in the result. A mode fills the
            padding with values that take part like the inputs: `"zeros"`, `"reflect"` (mirrored, without repeating the
            edge), `"symmetric"` (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or
            `"circular"` (periodic). One mode for all spatial axes, or one per axis. Padding wider than the axis
            continues as in `numpy.pad`. Default: None.
        ties: where the derivative of `"max"` and `"min"` goes if several taps are equally extreme: to the `"first"` in
            row-major order, or `"split"` evenly among them. The same in forward and reverse mode. Default: `"first"`.
        p: exponent of `"lp"`, a number from 1 to `math.inf`. Default: 2.
        temperature: temperature of `"lse"`, a positive Python number. Default: 1.0.
        count_include_pad: whether `"mean"` divides by the number of all taps on the image and its padding, instead of
            the taps on the image. Taps beyond the padding, which `ceil_mode` can cause, never count. Default: False.
        ceil_mode: whether a last window may extend beyond the padded image, unless it would start in the padding on
            that side; as in PyTorch. Default: False.
        return_indices: whether to return also where each maximum or minimum was found, as `max_unpool` expects it.
            Needs `reduce="max"` or `"min"` and `ties="first"`. The value of the node is then a pair; its entries are
            the nodes `node[0]` and `node[1]`. Default: False.
        nan: what a NaN does to a `"max"` or `"min"` with `ties="first"`. `"propagate"`: a window with a NaN gives NaN.
            `"ignore"`: it gives NaN or the result of its other taps, which can depend on the platform, and XLA can
            compute the pool together with the layers before it. Default: `"propagate"`.
        layout: order of the axes of the input and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for
            all batch axes, and each other letter is a spatial axis. Default: None, channels last.
        name: name of its nodes. Default: None, which gives `pool1`, `pool2`, ... in order of first use.

    Raises:
        FuncconvError: if an option is not hashable, such as an array. Other options are checked at the latest by
            `graph.init`; the message names the node.

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
    nan: str = field(default="propagate", kw_only=True)
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

    def apply(self, params: Any, *xs: Any, batch: Shape, mask: Array | None = None) -> Any:
        """Reduce the windows; with a mask, the real positions in them."""
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
            nan=self.nan if mask is None else "propagate",
            mask=mask,
            spatial=spatial,
            layout=self.layout,
        )


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """Flattening as a layer: `fc.flatten`, which merges all axes except the batch axes into one axis of features.

    Args:
        order: which axis varies fastest in the result. `"channels_last"`: the channels, as in Keras and Flax.
            `"channels_first"`: the last spatial axis, as in PyTorch. A dense kernel fits only the order that it was
            trained with. Default: `"channels_last"`.
        layout: order of the axes of the input, such as `"NCHW"`: `C` is the channels, `N` stands for all batch axes,
            and each other letter is a spatial axis. It does not change the order of the features. Default: None,
            channels last.
        name: name of its nodes. Default: None, which gives `flatten1`, `flatten2`, ... in order of first use.

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

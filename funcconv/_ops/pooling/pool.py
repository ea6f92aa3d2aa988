"""Pooling: reduce each window to one number."""

from typing import Any

import jax.numpy as jnp

from ..._common.dtypes import wide
from ..._common.eager import one_program
from ..._common.errors import FuncconvError
from ..._common.types import ArrayLike, Number, Padding, PadMode, Reduce, Scalar, Sizes
from ..._primitives.folds import NO_INPUT, NO_PART
from ..._primitives.select import select
from ..._primitives.whole_windows import Joint
from ..._windows.geometry import pad_modes, resolve
from ..._windows.layout import as_array, image, spatial_axes
from ..._windows.masks import image_mask
from ..._windows.padding import pad
from ..._windows.taps import fold, taps
from .masked import MaskedWindows, masked_pool
from .reducers import ReduceOptions, reduction, restored
from .tap_counts import check_counts, taking_part, tap_counts


@one_program
def pool(
    x: ArrayLike,
    window: Sizes = 2,
    *,
    reduce: Reduce = "max",
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    pad_mode: PadMode | None = None,
    ties: str = "first",
    p: Number = 2,
    temperature: Scalar = 1.0,
    count_include_pad: bool = False,
    ceil_mode: bool = False,
    return_indices: bool = False,
    nan: str = "propagate",
    mask: ArrayLike | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    r"""Reduce each window of each channel to one number (max pooling, average pooling and others).

    $$y_{i,c} = \mathrm{reduce}_{t}\; x_{i \cdot stride - lo + t \cdot dilation,\, c}$$

    Args:
        x: `(*batch, *spatial, channels)`. Pass `layout` for another order. `"max"`, `"min"`, `"median"`, `"sum"` and
            `"prod"` accept integers too.
        window: taps of a window (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis; a tuple
            also sets the number of spatial axes. Default: 2.
        reduce: how to reduce a window. Default: `"max"`. One of

            - `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"` (the product);
            - `"lse"`: `temperature * log(sum of exp(x / temperature))`, a smooth maximum;
            - `"lp"`: `(sum of |x|^p)^(1 / p)`, which overflows or underflows only if its result does;
            - `"median"`: the lower one of an even number of inputs, and the first of equal inputs;
            - a function such as `jnp.std`. It is called with an array `(..., taps)`, the taps in row-major order, and
              `axis=-1`; it removes that axis and keeps the dtype. No padding value is neutral for every function, so
              all taps of every window must be on the image or on padding that `pad_mode` fills.
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
        temperature: temperature of `"lse"`, a positive number. It may be traced, and differentiated as long as its
            square is neither zero nor infinite in the dtype. Default: 1.0.
        count_include_pad: whether `"mean"` divides by the number of all taps on the image and its padding, instead of
            the taps on the image. Taps beyond the padding, which `ceil_mode` can cause, never count. Default: False.
        ceil_mode: whether a last window may extend beyond the padded image, unless it would start in the padding on
            that side; as in PyTorch. Default: False.
        return_indices: whether to return also where each maximum or minimum was found, as `max_unpool` expects it.
            Needs `reduce="max"` or `"min"` and `ties="first"`. Default: False.
        nan: what a NaN does to a `"max"` or `"min"` with `ties="first"`. `"propagate"`: a window with a NaN gives NaN.
            `"ignore"`: it gives NaN or the result of its other taps, which can depend on the platform. Then XLA can
            compute the pool together with the operations before it, which makes inference of small networks faster.
            In derivatives NaNs are always kept. Default: `"propagate"`.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others count as padding, and may contain anything. The result is zero, and an index -1, at
            positions that are not real in it, which `conv_mask` tells. Default: None, all.
        spatial: number of spatial axes. Give it if `window` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. The letters also set the number of spatial axes.
            Default: None, channels last.

    Returns:
        `(*batch, *positions, channels)`, with the dtype of `x`. `"mean"` divides by the number of taps on the image.
        Floats of 16 bits and fewer are summed and multiplied in float32 and rounded once, in the result and in the
        gradients. A window that contains a NaN gives NaN.

        With `return_indices=True` it is a pair `(y, indices)`. The indices are int32 and have the shape of `y`. Each is
        the place of the selected input in the row-major order of the unpadded spatial axes. If the input was selected
        in padding that `pad_mode` fills, it is the place of the original input, or -1 for a zero of `"zeros"`.

        Derivatives of any order exist. At a kink they have these values. `"lp"`: zero for a window of zeros, and zero
        at single zeros unless `p` is even. `"median"`: the derivative of the tap that is selected. An infinite input
        has derivative zero in `"lse"`, and so has its whole window in `"lp"`, unless `p` is 1 or infinite. If `"lse"`,
        `"lp"` or `"median"` is NaN, its derivative is NaN. The gradient never goes to padding, not even if a window
        contains only infinities.

    Raises:
        FuncconvError: if an option has another value than listed above, if a window does not fit or has no tap that
            takes part, if the result would have to be rounded to an integer, if a function given as `reduce` would
            receive padding or returns a wrong shape or dtype, or if `return_indices` does not fit the other options.

    Source: Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 9.3; for `"lp"` Gulcehre and others,
    "Learned-norm pooling", 2014, arXiv:1311.1780; for `ceil_mode` and the indices PyTorch's `MaxPool2d`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([1.0, 4.0, -1.0, 0.0, 2.0, -2.0]).reshape(1, 6, 1)
        >>> fc.pool(x).ravel().tolist(), fc.pool(x, 2, reduce="mean").ravel().tolist()
        ([4.0, 0.0, 2.0], [2.5, -0.5, 0.0])
        >>> fc.pool(x, return_indices=True)[1].ravel().tolist()
        [1, 3, 4]
        >>> fc.pool(x, 3, reduce=jnp.ptp).ravel().tolist()
        [5.0, 4.0]
    """
    x = as_array("pool", "the input", x)
    options = ReduceOptions(x.dtype, reduce, ties, p, temperature, return_indices, mask is not None)
    _check_nan(options, nan)
    reducer, x = reduction("pool", options, x)
    inside = image("pool", x, *spatial_axes("pool", "window", window, spatial), layout).whole()
    stride = window if stride is None else stride
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    axes = resolve("pool", inside.spatial, window, **geometry)
    modes = pad_modes("pool", pad_mode, len(axes), optional=True)
    parts = [taking_part(axis, padded=mode is not None) for axis, mode in zip(axes, modes, strict=True)]
    counts = [tap_counts(axis, part) for axis, part in zip(axes, parts, strict=True)]
    full = check_counts(axes, counts, needs_all=isinstance(reducer, Joint) and not reducer.allows_missing)
    if mask is not None:
        shown = image_mask("pool", mask, x.shape, len(axes), layout)
        windows = MaskedWindows(shown, axes, modes, padding, ceil_mode)
        return masked_pool(inside, reducer, options, windows, count_include_pad=count_include_pad)
    if count_include_pad:
        counts = [tap_counts(axis, taking_part(axis, padded=True)) for axis in axes]

    if isinstance(reducer, Joint):
        padded = pad(inside.array.astype(wide(x.dtype)), axes, modes)
        missing = None
        if not full:
            is_missing = pad(jnp.zeros((1, *inside.spatial, 1), bool), axes, modes, value=1)
            missing = taps(is_missing, axes, reducer.unrolled)
        return restored(inside, reducer.apply(taps(padded, axes, reducer.unrolled), missing), options, counts)
    padded = pad(inside.array, axes, modes, value=reducer.identity)
    if options.selects and jnp.issubdtype(x.dtype, jnp.inexact):
        real = [range(axis.lo + part.start, axis.lo + part.stop) for axis, part in zip(axes, parts, strict=True)]
        y = select(padded, axes, str(reduce), None if full else real, keeps_nans=nan == "propagate")
        return restored(inside, y, options, counts)
    number = None
    if reducer.numbers:
        # `pad` fills the mode "zeros" with 0, which would be the index of an input, so indices are shifted meanwhile.
        number = pad(reducer.numbers(inside.spatial) - NO_INPUT, axes, modes, value=NO_PART - NO_INPUT) + NO_INPUT
    tree = reducer.lift(padded, number)
    # The last axis first: then the first of equal taps is the first in row-major order.
    for i, axis in reversed(tuple(enumerate(axes, start=1))):
        tree = fold(reducer.combine, tree, i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return restored(inside, reducer.lower(tree), options, counts)


def _check_nan(options: ReduceOptions, nan: str) -> None:
    if nan not in ("propagate", "ignore"):
        msg = f"pool: nan must be 'propagate' or 'ignore'; got {nan!r}"
        raise FuncconvError(msg)
    if nan == "ignore" and not options.selects:
        msg = (
            "pool: nan='ignore' is for reduce='max' or 'min' with ties='first', without return_indices and mask; got "
            f"reduce={options.reduce!r}, ties={options.ties!r}, return_indices={options.indices}, "
            f"mask={'given' if options.masked else None}. Leave it out"
        )
        raise FuncconvError(msg)

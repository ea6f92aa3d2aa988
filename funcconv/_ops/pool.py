"""Pooling: windows reduced to one number each."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import ArrayLike, Number, Padding, PadMode, Reduce, Scalar, Sizes
from .._primitives.folds import NO_INPUT, NO_PART
from .._primitives.select import select
from .._windows.geometry import Axis, pad_modes, resolve
from .._windows.layout import as_array, image, spatial_axes
from .._windows.padding import pad
from .._windows.taps import fold, taps
from .reducers import How, reduction, restored
from .whole_windows import Joint


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
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    r"""Reduce each window of each channel to one number.

    $$y_{i,c} = \mathrm{reduce}_{t}\; x_{i \cdot stride - lo + t \cdot dilation,\, c}$$

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says. Maxima, minima, medians, sums and products take integers
            too.
        window: taps of a window, for all spatial axes or for each. A tuple also says how many spatial axes there are.
        reduce: one of

            - `"max"`, `"min"`; `"sum"`, `"mean"`; `"prod"`, the product;
            - `"lse"`, `temperature * log(sum of exp(x / temperature))`, a smooth maximum;
            - `"lp"`, `(sum of |x|^p)^(1 / p)`, which neither overflows nor underflows before its result does;
            - `"median"`, the lower one of an even number of inputs, and of equals the first;
            - a function such as `jnp.std`, called with an array `(..., taps)`, the taps in row-major order, and
              `axis=-1`. It removes that axis and keeps the dtype; its derivatives are its own. As padding could show
              it nothing neutral, every window must lie on the image or on what `pad_mode` shows.
        stride: places from one window to the next; None means the window.
        padding: see `conv`.
        dilation: places from one tap to the next.
        pad_mode: None lets the padding take no part. A mode of `conv`, `"zeros"` included, extends the image first,
            and what it shows takes part like the inputs; one for all spatial axes or one for each.
        ties: where the derivative of `"max"` and `"min"` goes when several taps of a window are extreme: to the
            `"first"` in row-major order, or `"split"` evenly. The same in forward and in reverse mode.
        p: of `"lp"`, a number from 1 to `math.inf`.
        temperature: of `"lse"`, a positive number, which may be traced, and differentiated by as long as its square is
            neither zero nor infinite in the dtype.
        count_include_pad: let `"mean"` divide by the taps on the padding too, though never by those beyond it.
        ceil_mode: let a last window hang over the padded image, as PyTorch does, if it does not start in the padding
            on that side.
        return_indices: also return where each maximum or minimum was found, as `max_unpool` takes it. Needs
            `ties="first"`.
        spatial: the number of spatial axes, where an integer window leaves it open.
        layout: see `conv`; its letters also say how many spatial axes there are.

    Returns:
        `(*batch, *positions, channels)` of the dtype of `x`. `"mean"` divides by the number of real inputs in the
        window. Sums, means, products, `"lse"` and `"lp"` of floats of 16 bits and fewer are formed in float32 and
        rounded once, and so are sums of their cotangents. A NaN in a window gives NaN.

        With `return_indices=True` a pair of that and of int32 indices of its shape: the place of the selected input in
        the row-major order of the unpadded spatial axes, those of its own channel. Where a `pad_mode` shows an input,
        it is the place of that input, and -1 is a zero that `"zeros"` shows.

        Derivatives exist to any order, and where the function has a kink they are these. `"lp"` has zero at a window
        of zeros, and at single zeros unless `p` is even, so for `p` of 1 at any zero. `"median"` has them at the one
        tap it selects. An infinite input has none in `"lse"`, and the window it is in none in `"lp"`, unless `p` is
        1 or infinite. Where `"lse"`, `"lp"` or `"median"` is a NaN, so is its derivative. Padding that takes no part
        is never selected, even by a window that has nothing but infinities like it.

        Where an integer window is all that is given, there is exactly one batch axis.

    Raises:
        FuncconvError: if an option is not one of the above or out of range, if a window does not fit or lies wholly in
            padding that takes no part, if a result would have to be rounded to an integer, if a function given as
            `reduce` would see padding or gives a wrong shape or dtype, or if there can be no indices.

    Source: Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 9.3; Gulcehre and others, "Learned-norm
    pooling", 2014, arXiv:1311.1780, for `"lp"`; PyTorch's documentation of `MaxPool2d` and `AvgPool2d` for
    `ceil_mode`, `count_include_pad` and the indices.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([1.0, 4.0, -1.0, 0.0, 2.0, -2.0]).reshape(1, 6, 1)
        >>> fc.pool(x).ravel().tolist(), fc.pool(x, 2, reduce="mean").ravel().tolist()
        ([4.0, 0.0, 2.0], [2.5, -0.5, 0.0])
        >>> y, indices = fc.pool(x, return_indices=True)
        >>> indices.ravel().tolist()
        [1, 3, 4]
        >>> fc.pool(x, 3, reduce=jnp.ptp).ravel().tolist()
        [5.0, 4.0]
    """
    x = as_array("pool", "the input", x)
    how = How(x.dtype, reduce, ties, p, temperature, return_indices)
    reducer, x = reduction("pool", how, x)
    inside = image("pool", x, *spatial_axes("pool", "window", window, spatial), layout).whole()
    axes = resolve(
        "pool", inside.spatial, window, stride=window if stride is None else stride,
        padding=padding, dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip
    modes = pad_modes("pool", pad_mode, len(axes), optional=True)
    parts = [_taking_part(axis, padded=mode is not None) for axis, mode in zip(axes, modes, strict=True)]
    counts = [_tap_counts(*pair) for pair in zip(axes, parts, strict=True)]
    whole = _check_counts(axes, counts, needs_all=isinstance(reducer, Joint) and not reducer.partly)
    if count_include_pad:
        counts = [_tap_counts(axis, _taking_part(axis, padded=True)) for axis in axes]

    if isinstance(reducer, Joint):
        padded = pad(inside.array.astype(wide(x.dtype)), axes, modes)
        missing = None
        if not whole:
            absent = pad(jnp.zeros((1, *inside.spatial, 1), bool), axes, modes, value=1)
            missing = taps(absent, axes, reducer.unrolled)
        return restored(inside, reducer.apply(taps(padded, axes, reducer.unrolled), missing), how, counts)
    padded = pad(inside.array, axes, modes, value=reducer.identity)
    if how.selects and jnp.issubdtype(x.dtype, jnp.inexact):
        real = [range(axis.lo + part.start, axis.lo + part.stop) for axis, part in zip(axes, parts, strict=True)]
        return restored(inside, select(padded, axes, str(reduce), None if whole else real), how, counts)
    number = None
    if reducer.numbers:
        number = pad(reducer.numbers(inside.spatial) - NO_INPUT, axes, modes, value=NO_PART - NO_INPUT) + NO_INPUT
    tree = reducer.lift(padded, number)
    for i, axis in reversed(tuple(enumerate(axes, start=1))):
        tree = fold(reducer.combine, tree, i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return restored(inside, reducer.lower(tree), how, counts)


def _named(name: str, reduce: str) -> partial[Any]:
    op = partial(pool, reduce=reduce)
    op.__name__ = name  # type: ignore[attr-defined]
    op.__doc__ = f"""Reduce each window to its {reduce}: `pool` with `reduce="{reduce}"`, where the options are.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> bool((fc.{name}(jnp.ones((1, 4, 4, 3)), 3, stride=1) == {9 if reduce == "sum" else 1}).all())
        True
    """
    return op


max_pool = _named("max_pool", "max")
min_pool = _named("min_pool", "min")
sum_pool = _named("sum_pool", "sum")
avg_pool = _named("avg_pool", "mean")


def global_pool(
    x: ArrayLike,
    reduce: Reduce = "mean",
    *,
    ties: str = "first",
    p: Number = 2,
    temperature: Scalar = 1.0,
    return_indices: bool = False,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Reduce all spatial axes of each channel to one number.

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says.
        reduce: see `pool`.
        ties: see `pool`.
        p: see `pool`.
        temperature: see `pool`.
        return_indices: see `pool`.
        spatial: the number of spatial axes. By default there is exactly one batch axis.
        layout: see `conv`.

    Returns:
        `(*batch, channels)`, in the order of `layout`; with `return_indices=True` a pair of such.

    Raises:
        FuncconvError: as `pool`.

    Source: Lin, Chen and Yan, "Network in network", 2013, arXiv:1312.4400.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.global_pool(jnp.arange(8.0).reshape(2, 2, 2, 1)).tolist()
        [[1.5], [5.5]]
    """
    op = "global_pool"
    x = as_array(op, "the input", x)
    how = How(x.dtype, reduce, ties, p, temperature, return_indices)
    reducer, x = reduction(op, how, x)
    inside = image(op, x, spatial, "spatial=", layout).whole()
    sizes = inside.spatial
    resolve(op, sizes, 1)  # refuses empty axes
    batch, channels = inside.array.shape[0], inside.array.shape[-1]
    if isinstance(reducer, Joint):
        whole = inside.array.reshape(batch, math.prod(sizes), channels)
        y = reducer.apply([whole.astype(wide(x.dtype))], None)
    else:
        tree = reducer.lift(inside.array, reducer.numbers and reducer.numbers(sizes))
        for i, size in reversed(tuple(enumerate(sizes, start=1))):
            tree = fold(reducer.combine, tree, i, size, 1, 1, 1)
        y = jax.tree.map(lambda x: x.reshape(batch, channels), reducer.lower(tree))
    return restored(inside, y, how, [np.array([size]) for size in sizes])


def _check_counts(axes: Sequence[Axis], counts: Sequence[np.ndarray], *, needs_all: bool) -> bool:
    """Return whether all taps take part; refuse windows without any, and where all are needed those without some."""
    for i, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        at = int(np.argmin(count))
        if count[at] and not (needs_all and count[at] < axis.window):
            continue
        first = at * axis.stride - axis.lo
        reads = [first + tap * axis.dilation for tap in range(axis.window)]
        which = f"window {at} on spatial axis {i}"
        where = f"it reads the places {reads}, and the inputs are at 0 to {axis.size - 1}"
        if not count[at]:
            msg = f"pool: {which} lies wholly in the padding, which takes no part: {where}"
            raise FuncconvError(msg)
        msg = (
            f"pool: a function given as reduce needs all taps of a window, as padding has no neutral value for it, "
            f"but {which} has only {count[at]} of {axis.window}: {where}; pad_mode= says what padding shows"
        )
        raise FuncconvError(msg)
    return all((count == axis.window).all() for axis, count in zip(axes, counts, strict=True))


def _taking_part(axis: Axis, *, padded: bool) -> range:
    """Return the places that take part: those of the image, or of the image and its padding."""
    if padded:
        return range(-axis.lo, axis.size + axis.hi)
    return range(max(-axis.lo, 0), axis.size + min(axis.hi, 0))


def _tap_counts(axis: Axis, part: range) -> np.ndarray:
    """Count the taps of each window that lie on places that take part."""
    start = np.arange(axis.outputs) * axis.stride - axis.lo
    below = -((start - part.start) // axis.dilation)  # the first tap at or after the first place
    above = -((start - part.stop) // axis.dilation)
    return np.clip(above, 0, axis.window) - np.clip(below, 0, axis.window)

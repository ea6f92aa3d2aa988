"""Pooling: windows reduced by an associative operation."""

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._errors import FuncconvError, suggest
from ._geometry import Axis, adaptive_bins, pad_modes, per_axis, resolve
from ._layout import as_array, image
from ._padding import pad
from ._taps import fold
from ._typing import Array, ArrayLike, Padding, PadMode, Sizes

REDUCES = ("max", "min", "sum", "mean")
TIES = ("first", "split")


def pool(
    x: ArrayLike,
    window: Sizes = 2,
    *,
    reduce: str = "max",
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    pad_mode: PadMode | None = None,
    ties: str = "first",
    count_include_pad: bool = False,
    ceil_mode: bool = False,
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    r"""Reduce each window of each channel to one number.

    $$y_{i,c} = \mathrm{reduce}_{t}\; x_{i \cdot stride - lo + t \cdot dilation,\, c}$$

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says. Maxima, minima and sums take integers too.
        window: taps of a window, for all spatial axes or for each. A tuple also says how many spatial axes there are.
        reduce: `"max"`, `"min"`, `"sum"` or `"mean"`.
        stride: places from one window to the next; None means the window.
        padding: see `conv`.
        dilation: places from one tap to the next.
        pad_mode: None lets the padding take no part. A mode of `conv`, `"zeros"` included, extends the image first,
            and what it shows takes part like the inputs; one for all spatial axes or one for each.
        ties: where the derivative of `"max"` and `"min"` goes when several taps of a window are extreme: to the
            `"first"` in row-major order, or `"split"` evenly. The same in forward and in reverse mode.
        count_include_pad: let `"mean"` divide by the taps on the padding too, though never by those beyond it.
        ceil_mode: let a last window hang over the padded image, as PyTorch does, if it does not start in the padding
            on that side.
        spatial: the number of spatial axes, where an integer window leaves it open.
        layout: see `conv`; its letters also say how many spatial axes there are.

    Returns:
        `(*batch, *positions, channels)` of the dtype of `x`. `"mean"` divides by the number of real inputs in the
        window. Sums and means of 16-bit numbers are formed in float32. A NaN in a window gives NaN.

        Where an integer window is all that is given, there is exactly one batch axis.

    Raises:
        FuncconvError: if an option is not one of the above, if a window does not fit or lies wholly in padding that
            takes no part, or if a result would have to be rounded to an integer.

    Source: Goodfellow, Bengio and Courville, "Deep Learning", 2016, section 9.3; PyTorch's documentation of
    `MaxPool2d` and `AvgPool2d` for `ceil_mode` and `count_include_pad`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([1.0, 4.0, -1.0, 0.0, 2.0, -2.0]).reshape(1, 6, 1)
        >>> fc.pool(x).ravel().tolist(), fc.pool(x, 2, reduce="mean").ravel().tolist()
        ([4.0, 0.0, 2.0], [2.5, -0.5, 0.0])
    """
    x = as_array("pool", "the input", x)
    _check("pool", x, reduce, ties)
    inside = image("pool", x, *_spatial("pool", "window", window, spatial), layout)
    axes = resolve(
        "pool", inside.spatial, window, stride=window if stride is None else stride,
        padding=padding, dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip
    modes = pad_modes("pool", pad_mode, len(axes), optional=True)
    counts = [_tap_counts(axis, padded=mode is not None) for axis, mode in zip(axes, modes, strict=True)]
    for i, (axis, count) in enumerate(zip(axes, counts, strict=True)):
        if not count.all():
            at = int(np.argmin(count))
            first = at * axis.stride - axis.lo
            places = [first + tap * axis.dilation for tap in range(axis.window)]
            msg = (
                f"pool: window {at} on spatial axis {i} lies wholly in the padding, which takes no part: it reads "
                f"the places {places}, and the inputs are at 0 to {axis.size - 1}"
            )
            raise FuncconvError(msg)
    if count_include_pad:
        counts = [_tap_counts(axis, padded=True) for axis in axes]

    group = _semigroup(reduce, ties, x.dtype)
    taps = group.lift(pad(inside.array, axes, modes, value=_identity(reduce, x.dtype)))
    for i, axis in reversed(tuple(enumerate(axes, start=1))):
        taps = fold(group.combine, taps, i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return inside.restore(_finish(group.lower(taps), reduce, counts).astype(x.dtype))


def _named(name: str, reduce: str) -> partial[Array]:
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
    reduce: str = "mean",
    *,
    ties: str = "first",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    """Reduce all spatial axes of each channel to one number.

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says.
        reduce: see `pool`.
        ties: see `pool`.
        spatial: the number of spatial axes. By default there is exactly one batch axis.
        layout: see `conv`.

    Returns:
        `(*batch, channels)`, in the order of `layout`.

    Raises:
        FuncconvError: as `pool`.

    Source: Lin, Chen and Yan, "Network in network", 2013, arXiv:1312.4400.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.global_pool(jnp.arange(8.0).reshape(2, 2, 2, 1)).tolist()
        [[1.5], [5.5]]
    """
    x = as_array("global_pool", "the input", x)
    _check("global_pool", x, reduce, ties)
    inside = image("global_pool", x, spatial, "spatial=", layout)
    sizes = inside.spatial
    resolve("global_pool", sizes, sizes)  # refuses empty axes
    group = _semigroup(reduce, ties, x.dtype)
    taps = group.lift(inside.array)
    for i, size in reversed(tuple(enumerate(sizes, start=1))):
        taps = fold(group.combine, taps, i, size, 1, 1, 1)
    y = group.lower(taps).reshape(inside.array.shape[0], inside.array.shape[-1])
    return inside.restore(_finish(y, reduce, [np.array([math.prod(sizes)])]).astype(x.dtype))


def adaptive_pool(
    x: ArrayLike,
    output_size: int | Sequence[int | None],
    reduce: str = "mean",
    *,
    ties: str = "first",
    spatial: int | None = None,
    layout: str | None = None,
) -> Array:
    """Reduce the spatial axes to given sizes, each output from its share of the inputs.

    Output `i` of `m` takes the inputs from `floor(i n / m)` to `ceil((i + 1) n / m)` of `n`, as in PyTorch: shares
    differ in size by at most one or overlap where `m` does not divide `n`, and repeat inputs where `m > n`.

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says.
        output_size: for all spatial axes or for each; None keeps an axis. A tuple also says how many there are.
        reduce: see `pool`.
        ties: see `pool`.
        spatial: the number of spatial axes, where an integer `output_size` leaves it open.
        layout: see `conv`.

    Returns:
        `(*batch, *output_size, channels)`.

    Raises:
        FuncconvError: as `pool`.

    Source: PyTorch's `AdaptiveAvgPool2d`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.adaptive_pool(jnp.arange(5.0).reshape(1, 5, 1), 3).ravel().tolist()
        [0.5, 2.0, 3.5]
    """
    op = "adaptive_pool"
    x = as_array(op, "the input", x)
    _check(op, x, reduce, ties)
    inside = image(op, x, *_spatial(op, "output_size", output_size, spatial), layout)
    sizes = inside.spatial
    resolve(op, sizes, 1)  # refuses empty axes
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * len(sizes)
    outputs = per_axis(
        op, "output_size", [size if want is None else want for size, want in zip(sizes, wanted, strict=True)],
        len(sizes), least=1,
    )  # fmt: skip
    group = _semigroup(reduce, ties, x.dtype)
    taps = group.lift(inside.array)
    for i, (size, count) in reversed(tuple(enumerate(zip(sizes, outputs, strict=True), start=1))):
        taps = _fold_bins(group.combine, taps, i, size, count)
    counts = [
        np.array([stop - start for start, stop in adaptive_bins(*pair)]) for pair in zip(sizes, outputs, strict=True)
    ]
    return inside.restore(_finish(group.lower(taps), reduce, counts).astype(x.dtype))


class _Semigroup(NamedTuple):
    """An associative operation, on what it works and how one gets there and back."""

    lift: Callable[[Array], Any]
    combine: Callable[[Any, Any], Any]
    lower: Callable[[Any], Array]


def _semigroup(reduce: str, ties: str, dtype: np.dtype) -> _Semigroup:
    """Return the operation that folds a window.

    Each axis is folded by itself, the last one first: what is first within the rows and then among them is first of
    all in row-major order.
    """
    wide = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4 else dtype
    if reduce in ("sum", "mean"):
        return _Semigroup(lambda x: x.astype(wide), jnp.add, lambda x: x)
    beats = lax.gt if reduce == "max" else lax.lt
    if ties == "first" or not jnp.issubdtype(dtype, jnp.inexact):
        return _Semigroup(lambda x: x, partial(_first, beats), lambda x: x)
    return _Semigroup(lambda x: (x, jnp.ones(x.shape, wide)), partial(_split, beats), lambda pair: pair[0])


def _later_wins(beats: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    return beats(b, a) | ((b != b) & (a == a))  # a NaN beats all, the first NaN all NaNs


def _first(beats: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """Select the extreme of the two, `a` where they tie; its derivative goes with it."""
    return lax.select(_later_wins(beats, a, b), b, a)


def _split(beats: Callable[[Array, Array], Array], one: tuple[Array, Array], two: tuple[Array, Array]) -> Any:
    """Select the extreme of two values that stand for `m` and `n` tied ones; where they tie, both share by number."""
    (a, m), (b, n) = one, two
    later = _later_wins(beats, a, b)
    tie = a == b
    share = (n / (m + n)).astype(a.dtype)
    step = lax.select(tie & jnp.isfinite(a), b - a, jnp.zeros_like(a))  # zero, but its derivative is not
    value = lax.select(later, b, a) + share * step
    return value, lax.select(tie, m + n, lax.select(later, n, m))


def _fold_bins(op: Callable[[Any, Any], Any], taps: Any, axis: int, size: int, outputs: int) -> Any:
    """Reduce the adaptive bins of one axis; they repeat, so only one period of them is spelt out."""
    periods = math.gcd(size, outputs)
    bins = adaptive_bins(size // periods, outputs // periods)

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:axis], periods, size // periods, *x.shape[axis + 1 :])

    def join(*folded: Array) -> Array:
        x = lax.concatenate(folded, axis + 1)
        return x.reshape(*x.shape[:axis], outputs, *x.shape[axis + 2 :])

    taps = jax.tree.map(split, taps)
    folded = []
    for start, stop in bins:
        share = jax.tree.map(lambda x, start=start, stop=stop: lax.slice_in_dim(x, start, stop, axis=axis + 1), taps)
        folded.append(fold(op, share, axis + 1, stop - start, 1, 1, 1))
    return jax.tree.map(join, *folded)


def _finish(y: Array, reduce: str, counts: Sequence[np.ndarray]) -> Array:
    """Divide a mean's sums by the number of taps, the product of the counts along each axis."""
    if reduce != "mean":
        return y
    if all((count == count[0]).all() for count in counts):
        return y / math.prod(int(count[0]) for count in counts)
    total = functools.reduce(np.multiply.outer, counts)
    return y / jnp.asarray(total[None, ..., None], y.dtype)


def _tap_counts(axis: Axis, *, padded: bool) -> np.ndarray:
    """Count the taps of each window that lie on the image, or on the image and its padding."""
    first, stop = max(-axis.lo, 0), axis.size + min(axis.hi, 0)
    if padded:
        first, stop = -axis.lo, axis.size + axis.hi
    start = np.arange(axis.outputs) * axis.stride - axis.lo
    below = -((start - first) // axis.dilation)  # the first tap at or after `first`
    above = -((start - stop) // axis.dilation)
    return np.clip(above, 0, axis.window) - np.clip(below, 0, axis.window)


def _identity(reduce: str, dtype: np.dtype) -> Any:
    """Return what padding must show to take no part."""
    if reduce in ("sum", "mean"):
        return 0
    if jnp.issubdtype(dtype, jnp.inexact):
        return -np.inf if reduce == "max" else np.inf
    if dtype == np.bool_:
        return reduce == "min"
    return np.iinfo(dtype).min if reduce == "max" else np.iinfo(dtype).max


def _spatial(op: str, name: str, sizes: Any, spatial: int | None) -> tuple[int | None, str]:
    """Return the number of spatial axes that a tuple or `spatial` says, and which of them says it."""
    if not isinstance(sizes, Sequence):
        return spatial, "spatial="
    if spatial not in (None, len(sizes)):
        msg = f"{op}: the {name} {sizes!r} is for {len(sizes)} spatial axes, but spatial= says {spatial}"
        raise FuncconvError(msg)
    return len(sizes), f"the {name} {sizes!r}"


def _check(op: str, x: Array, reduce: str, ties: str) -> None:
    for name, value, known in (("reduce", reduce, REDUCES), ("ties", ties, TIES)):
        if value not in known:
            msg = f"{op}: unknown {name} {value!r}{suggest(value, known)}"
            raise FuncconvError(msg)
    if reduce in ("max", "min") and jnp.issubdtype(x.dtype, jnp.complexfloating):
        msg = f"{op}: complex numbers have no {reduce}; the input is {x.dtype}"
        raise FuncconvError(msg)
    if (reduce == "mean" and not jnp.issubdtype(x.dtype, jnp.inexact)) or (reduce == "sum" and x.dtype == np.bool_):
        msg = f"{op}: a {reduce} of {x.dtype} would have to be rounded; cast first: x.astype(jnp.float32)"
        raise FuncconvError(msg)

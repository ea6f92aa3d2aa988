"""Adaptive pooling: pooling to a given size."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .._common.dtypes import wide
from .._common.types import Array, ArrayLike, Number, Reduce, Scalar
from .._primitives.take import take
from .._windows.geometry import adaptive_bins, per_axis, resolve
from .._windows.layout import as_array, image, spatial_axes
from .._windows.taps import fold, merge, split
from .reducers import How, reduction, restored
from .whole_windows import Joint

Bins: TypeAlias = Sequence[tuple[int, int]]  # the first place of each, and the one after its last

_SPELT_OUT = 8  # bins that differ, at most; of more, those of one length are computed together


def adaptive_pool(
    x: ArrayLike,
    output_size: int | Sequence[int | None],
    reduce: Reduce = "mean",
    *,
    ties: str = "first",
    p: Number = 2,
    temperature: Scalar = 1.0,
    return_indices: bool = False,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Pool the spatial axes to given sizes.

    Output `i` of `m` reduces a bin of the `n` inputs, from `floor(i n / m)` to `ceil((i + 1) n / m)`, as in PyTorch. If
    `m` does not divide `n`, bins differ in size by at most one and may overlap. If `m > n`, bins repeat inputs.

    Args:
        x: `(*batch, *spatial, channels)`. Pass `layout` for another order.
        output_size: spatial sizes of the result. One integer for all spatial axes, or one per axis, where None keeps
            the size of that axis; a tuple also sets the number of spatial axes.
        reduce: how to reduce each bin: `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"` (product), `"median"` (the lower
            one of an even number), `"lse"` (`temperature * log(sum of exp(x / temperature))`, a smooth maximum), `"lp"`
            (`(sum of |x|^p)^(1 / p)`), or a function such as `jnp.std`. The function is called with an array
            `(..., taps)`, the taps in row-major order, and `axis=-1`; it removes that axis and keeps the dtype.
            Default: `"mean"`.
        ties: where the derivative of `"max"` and `"min"` goes if several taps are equally extreme: to the `"first"` in
            row-major order, or `"split"` evenly among them. The same in forward and reverse mode. Default: `"first"`.
        p: exponent of `"lp"`, a number from 1 to `math.inf`. Default: 2.
        temperature: temperature of `"lse"`, a positive number. It may be traced, and differentiated as long as its
            square is neither zero nor infinite in the dtype. Default: 1.0.
        return_indices: whether to return also where each maximum or minimum was found, as `max_unpool` expects it.
            Needs `reduce="max"` or `"min"` and `ties="first"`. Default: False.
        spatial: number of spatial axes. Give it if `output_size` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. Default: None, channels last.

    Returns:
        `(*batch, *output_size, channels)`, with the dtype of `x`. With `return_indices=True` a pair `(y, indices)`: the
        indices are int32 and have the shape of `y`, and each is the place of the selected input in the row-major order
        of the spatial axes.

    Raises:
        FuncconvError: if an option has another value than listed above, if a size is below 1, if the result would have
            to be rounded to an integer, or if a function given as `reduce` returns a wrong shape or dtype.

    Source: PyTorch's `AdaptiveAvgPool2d`.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.adaptive_pool(jnp.arange(5.0).reshape(1, 5, 1), 3).ravel().tolist()
        [0.5, 2.0, 3.5]
    """
    op = "adaptive_pool"
    x = as_array(op, "the input", x)
    how = How(x.dtype, reduce, ties, p, temperature, return_indices)
    reducer, x = reduction(op, how, x)
    inside = image(op, x, *spatial_axes(op, "output_size", output_size, spatial), layout).whole()
    sizes = inside.spatial
    resolve(op, sizes, 1)  # refuses empty axes
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * len(sizes)
    outputs = per_axis(
        op, "output_size", [size if want is None else want for size, want in zip(sizes, wanted, strict=True)],
        len(sizes), least=1,
    )  # fmt: skip
    bins = [adaptive_bins(*pair) for pair in zip(sizes, outputs, strict=True)]
    if isinstance(reducer, Joint):
        y = _joint_bins(reducer, inside.array.astype(wide(x.dtype)), bins)
    else:
        tree = reducer.lift(inside.array, reducer.numbers and reducer.numbers(sizes))
        for i, ranges in reversed(tuple(enumerate(bins, start=1))):
            tree = _fold_bins(reducer.combine, tree, i, ranges)
        y = reducer.lower(tree)
    return restored(inside, y, how, [np.array([stop - start for start, stop in each]) for each in bins])


class _Kind(NamedTuple):
    """Bins of one axis that have one length."""

    places: list[int]  # that they cover, one bin after another
    length: int

    def of(self, x: Array, axis: int) -> Array:
        """Return the bins as a new axis, with their inputs as the next one."""
        return split(take(x, axis, self.places), axis, (len(self.places) // self.length, self.length))


def _kinds(bins: Bins) -> tuple[list[_Kind], list[int]]:
    """Return the bins by their lengths, of which there are at most two, and where among those each bin then is."""
    lengths = sorted({stop - start for start, stop in bins})
    numbers = [[i for i, (start, stop) in enumerate(bins) if stop - start == length] for length in lengths]
    kinds = [
        _Kind([place for i in each for place in range(*bins[i])], length)
        for each, length in zip(numbers, lengths, strict=True)
    ]
    order = list(itertools.chain(*numbers))
    return kinds, [order.index(i) for i in range(len(bins))]


def _in_order(parts: Sequence[Array], axis: int, order: Sequence[int]) -> Array:
    """Put together the results of all kinds of bins along one axis."""
    return take(lax.concatenate(parts, axis), axis, order) if len(parts) > 1 else parts[0]


def _fold_bins(op: Callable[[Any, Any], Any], taps: Any, axis: int, bins: Bins) -> Any:
    """Reduce the adaptive bins of one axis; they repeat, so a few in one period are spelt out."""
    size, outputs = bins[-1][1], len(bins)
    periods = math.gcd(size, outputs)
    if outputs // periods > _SPELT_OUT:
        kinds, order = _kinds(bins)
        results = [
            fold(op, jax.tree.map(lambda x, kind=kind: kind.of(x, axis), taps), axis + 1, kind.length, 1, 1, 1)
            for kind in kinds
        ]
        return jax.tree.map(
            lambda *parts: _in_order([lax.squeeze(x, (axis + 1,)) for x in parts], axis, order), *results
        )
    taps = jax.tree.map(lambda x: split(x, axis, (periods, size // periods)), taps)
    folded = []
    for start, stop in bins[: outputs // periods]:
        share = jax.tree.map(lambda x, start=start, stop=stop: lax.slice_in_dim(x, start, stop, axis=axis + 1), taps)
        folded.append(fold(op, share, axis + 1, stop - start, 1, 1, 1))
    return jax.tree.map(lambda *parts: merge(lax.concatenate(parts, axis + 1), axis, 2), *folded)


def _joint_bins(reducer: Joint, x: Array, bins: Sequence[Bins]) -> Array:
    """Reduce adaptive bins by a function of all their taps."""
    n = len(bins)
    periods = [math.gcd(each[-1][1], len(each)) for each in bins]
    counts = [len(each) // k for each, k in zip(bins, periods, strict=True)]
    if math.prod(counts) > _SPELT_OUT:
        return _joint_kinds(reducer, x, bins)
    for i, k in enumerate(periods):
        x = split(x, 1 + 2 * i, (k, x.shape[1 + 2 * i] // k))
    periods_first = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    x = x.transpose(periods_first)  # (batch, *periods, *places in a period, channels)
    results = []
    for index in np.ndindex(*counts):
        share = x
        for axis, i in enumerate(index):
            start, stop = bins[axis][i]
            share = lax.slice_in_dim(share, start, stop, axis=1 + n + axis)
        results.append(reducer.apply([merge(share, 1 + n, n)], None))
    y = split(jnp.stack(results, 1 + n), 1 + n, counts)
    y = y.transpose(0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), 2 * n + 1)
    for i in range(n):
        y = merge(y, 1 + i, 2)
    return y


def _joint_kinds(reducer: Joint, x: Array, bins: Sequence[Bins]) -> Array:
    """Reduce adaptive bins by one call for all that have the same lengths."""
    n = len(bins)
    kinds, orders = zip(*map(_kinds, bins), strict=True)

    def reduced(share: Array, axis: int) -> Array:
        if axis == n:  # (batch, bins, inputs, bins, inputs, ..., channels)
            share = share.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
            return reducer.apply([merge(share, 1 + n, n)], None)
        parts = [reduced(kind.of(share, 1 + 2 * axis), axis + 1) for kind in kinds[axis]]
        return _in_order(parts, 1 + axis, orders[axis])

    return reduced(x, 0)

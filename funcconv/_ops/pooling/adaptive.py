"""Adaptive pooling: pooling to a given size."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._common.dtypes import wide
from ..._common.eager import one_program
from ..._common.types import Array, ArrayLike, Number, Reduce, Scalar
from ..._primitives.take import take
from ..._primitives.whole_windows import Joint
from ..._windows.geometry import per_axis, resolve
from ..._windows.layout import as_array, image, spatial_axes
from ..._windows.masks import image_mask
from ..._windows.taps import fold, merge, split
from .masked import masked_adaptive_pool
from .reducers import ReduceOptions, reduction, restored

Bins: TypeAlias = Sequence[tuple[int, int]]  # the start and the stop of each bin of one axis

# Bins repeat with a period. Up to so many bins of one period are reduced by a slice each; of more, bins of equal length
# are reduced together, so that the program does not grow with the output size.
_MOST_SLICED_BINS = 8


@one_program
def adaptive_pool(
    x: ArrayLike,
    output_size: int | Sequence[int | None],
    reduce: Reduce = "mean",
    *,
    ties: str = "first",
    p: Number = 2,
    temperature: Scalar = 1.0,
    return_indices: bool = False,
    mask: ArrayLike | None = None,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Pool the spatial axes to given sizes.

    Output `i` of `m` reduces a bin of the `n` inputs, from `floor(i n / m)` to `ceil((i + 1) n / m)`, as in PyTorch. If
    `m` does not divide `n`, bins differ in size by at most one and may overlap. If `m > n`, bins repeat inputs.

    Args:
        x: `(*batch, *spatial, channels)`. Pass `layout` for another order. `"max"`, `"min"`, `"median"`, `"sum"` and
            `"prod"` accept integers too.
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
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The bins of each example divide its real positions: on each axis those from the first to the
            last. The others take no part, and may contain anything. The result is zero, and an index -1, for a bin
            without real positions. Default: None, all.
        spatial: number of spatial axes. Give it if `output_size` is an integer and there is not exactly one batch axis.
            Default: None.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. The letters also set the number of spatial axes.
            Default: None, channels last.

    Returns:
        `(*batch, *output_size, channels)`, with the dtype of `x`. With `return_indices=True` it is a pair
        `(y, indices)`: the indices are int32 and have the shape of `y`, and each is the place of the selected input in
        the row-major order of the spatial axes. If a bin
        contains a NaN, its result is NaN. At kinks, `"lp"` has derivative zero if all inputs are zero, and at single
        zeros unless `p` is even; `"median"` has the derivative of the selected input.

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
    options = ReduceOptions(x.dtype, reduce, ties, p, temperature, return_indices, mask is not None)
    reducer, x = reduction(op, options, x)
    inside = image(op, x, *spatial_axes(op, "output_size", output_size, spatial), layout).whole()
    sizes = inside.spatial
    resolve(op, sizes, 1)  # raises an error for empty axes
    requested = output_size if isinstance(output_size, Sequence) else (output_size,) * len(sizes)
    output_sizes = [size if output is None else output for size, output in zip(sizes, requested, strict=True)]
    outputs = per_axis(op, "output_size", output_sizes, len(sizes), least=1)
    if mask is not None:
        return masked_adaptive_pool(
            inside, reducer, options, image_mask(op, mask, x.shape, len(sizes), layout), outputs
        )
    bins = [adaptive_bins(size, output) for size, output in zip(sizes, outputs, strict=True)]
    if isinstance(reducer, Joint):
        y = _joint_bins(reducer, inside.array.astype(wide(x.dtype)), bins)
    else:
        tree = reducer.lift(inside.array, reducer.numbers and reducer.numbers(sizes))
        # The last axis first: then the first of equal inputs is the first in row-major order.
        for i, axis_bins in reversed(tuple(enumerate(bins, start=1))):
            tree = _fold_bins(reducer.combine, tree, i, axis_bins)
        y = reducer.lower(tree)
    return restored(inside, y, options, [np.array([stop - start for start, stop in axis_bins]) for axis_bins in bins])


def adaptive_bins(size: int, outputs: int) -> list[tuple[int, int]]:
    """Return the bins of one axis, with PyTorch's rule: from `floor(i n / m)` to `ceil((i + 1) n / m)`."""
    return [(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]


class _EqualBins(NamedTuple):
    """The bins of one axis that have the same length."""

    positions: list[int]  # the inputs of the bins, one bin after another
    length: int

    def gathered(self, x: Array, axis: int) -> Array:
        """Return the bins as a new axis, and the inputs of each bin as the next axis."""
        return split(take(x, axis, self.positions), axis, (len(self.positions) // self.length, self.length))


def _by_length(bins: Bins) -> tuple[list[_EqualBins], list[int]]:
    """Return the bins grouped by their length (at most two), and for each bin its place in that order."""
    lengths = sorted({stop - start for start, stop in bins})
    numbers = [[i for i, (start, stop) in enumerate(bins) if stop - start == length] for length in lengths]
    groups = [
        _EqualBins([position for i in members for position in range(*bins[i])], length)
        for members, length in zip(numbers, lengths, strict=True)
    ]
    order = list(itertools.chain(*numbers))
    return groups, [order.index(i) for i in range(len(bins))]


def _in_order(parts: Sequence[Array], axis: int, order: Sequence[int]) -> Array:
    """Concatenate the results of all groups of bins along one axis, in the order of the bins."""
    return take(lax.concatenate(parts, axis), axis, order) if len(parts) > 1 else parts[0]


def _fold_bins(op: Callable[[Any, Any], Any], x: Any, axis: int, bins: Bins) -> Any:
    """Reduce the bins of one axis of a tree of arrays by an associative operation."""
    size, outputs = bins[-1][1], len(bins)
    periods = math.gcd(size, outputs)  # the axis consists of so many parts with the same bins
    if outputs // periods > _MOST_SLICED_BINS:
        groups, order = _by_length(bins)
        results = [
            fold(op, jax.tree.map(lambda x, group=group: group.gathered(x, axis), x), axis + 1, group.length, 1, 1, 1)
            for group in groups
        ]
        return jax.tree.map(
            lambda *parts: _in_order([lax.squeeze(part, (axis + 1,)) for part in parts], axis, order), *results
        )
    x = jax.tree.map(lambda x: split(x, axis, (periods, size // periods)), x)
    results = []
    for start, stop in bins[: outputs // periods]:
        inputs = jax.tree.map(lambda x, start=start, stop=stop: lax.slice_in_dim(x, start, stop, axis=axis + 1), x)
        results.append(fold(op, inputs, axis + 1, stop - start, 1, 1, 1))
    return jax.tree.map(lambda *parts: merge(lax.concatenate(parts, axis + 1), axis, 2), *results)


def _joint_bins(reducer: Joint, x: Array, bins: Sequence[Bins]) -> Array:
    """Reduce bins along all axes by a function of all their inputs."""
    n = len(bins)
    periods = [math.gcd(axis_bins[-1][1], len(axis_bins)) for axis_bins in bins]
    counts = [len(axis_bins) // period for axis_bins, period in zip(bins, periods, strict=True)]
    if math.prod(counts) > _MOST_SLICED_BINS:
        return _joint_bins_by_length(reducer, x, bins)
    for i, period in enumerate(periods):
        x = split(x, 1 + 2 * i, (period, x.shape[1 + 2 * i] // period))
    # (batch, period, place, period, place, ..., channels) -> (batch, *periods, *places in a period, channels)
    x = x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    results = []
    for index in np.ndindex(*counts):
        inputs = x
        for axis, i in enumerate(index):
            start, stop = bins[axis][i]
            inputs = lax.slice_in_dim(inputs, start, stop, axis=1 + n + axis)
        results.append(reducer.apply([merge(inputs, 1 + n, n)], None))
    y = split(jnp.stack(results, 1 + n), 1 + n, counts)
    # (batch, *periods, *bins of a period, channels) -> (batch, period, bin, period, bin, ..., channels)
    y = y.transpose(0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), 2 * n + 1)
    for i in range(n):
        y = merge(y, 1 + i, 2)
    return y


def _joint_bins_by_length(reducer: Joint, x: Array, bins: Sequence[Bins]) -> Array:
    """Return the same with one call of the function for all bins of the same lengths."""
    n = len(bins)
    groups, orders = zip(*map(_by_length, bins), strict=True)

    def reduced(inputs: Array, axis: int) -> Array:
        if axis == n:  # (batch, bins, inputs, bins, inputs, ..., channels) -> (batch, *bins, *inputs, channels)
            inputs = inputs.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
            return reducer.apply([merge(inputs, 1 + n, n)], None)
        parts = [reduced(group.gathered(inputs, 1 + 2 * axis), axis + 1) for group in groups[axis]]
        return _in_order(parts, 1 + axis, orders[axis])

    return reduced(x, 0)

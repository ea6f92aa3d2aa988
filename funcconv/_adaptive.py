"""Pooling to a given size."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._dtypes import wide
from ._geometry import adaptive_bins, per_axis, resolve
from ._joint import Joint
from ._layout import as_array, image, spatial_axes
from ._reduce import How, places, reduction, restored
from ._taps import fold
from ._typing import Array, ArrayLike, Number, Reduce, Scalar, Shape


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
    """Reduce the spatial axes to given sizes, each output from its share of the inputs.

    Output `i` of `m` takes the inputs from `floor(i n / m)` to `ceil((i + 1) n / m)` of `n`, as in PyTorch: shares
    differ in size by at most one or overlap where `m` does not divide `n`, and repeat inputs where `m > n`.

    Args:
        x: `(*batch, *spatial, channels)`, or as `layout` says.
        output_size: for all spatial axes or for each; None keeps an axis. A tuple also says how many there are.
        reduce: see `pool`.
        ties: see `pool`.
        p: see `pool`.
        temperature: see `pool`.
        return_indices: see `pool`.
        spatial: the number of spatial axes, where an integer `output_size` leaves it open.
        layout: see `conv`.

    Returns:
        `(*batch, *output_size, channels)`; with `return_indices=True` a pair of such.

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
    how = How(reduce, ties, p, temperature, return_indices)
    reducer = reduction(op, how, x.dtype)
    inside = image(op, x, *spatial_axes(op, "output_size", output_size, spatial), layout)
    sizes = inside.spatial
    resolve(op, sizes, 1)  # refuses empty axes
    wanted = output_size if isinstance(output_size, Sequence) else (output_size,) * len(sizes)
    outputs = per_axis(
        op, "output_size", [size if want is None else want for size, want in zip(sizes, wanted, strict=True)],
        len(sizes), least=1,
    )  # fmt: skip
    bins = [adaptive_bins(*pair) for pair in zip(sizes, outputs, strict=True)]
    if isinstance(reducer, Joint):
        y = _joint_bins(reducer, inside.array.astype(wide(x.dtype)), sizes, outputs)
    else:
        tree = reducer.lift((inside.array, places(sizes)) if return_indices else inside.array)
        for i, (size, count) in reversed(tuple(enumerate(zip(sizes, outputs, strict=True), start=1))):
            tree = _fold_bins(reducer.combine, tree, i, size, count)
        y = reducer.lower(tree)
    return restored(inside, y, how, [np.array([stop - start for start, stop in each]) for each in bins])


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


def _joint_bins(reducer: Joint, x: Array, sizes: Shape, outputs: Shape) -> Array:
    """Reduce adaptive bins by a function of all their taps; one period of each axis is spelt out."""
    n = len(sizes)
    periods = [math.gcd(*pair) for pair in zip(sizes, outputs, strict=True)]
    bins = [adaptive_bins(size // k, count // k) for size, count, k in zip(sizes, outputs, periods, strict=True)]
    split = [part for size, k in zip(sizes, periods, strict=True) for part in (k, size // k)]
    x = x.reshape(x.shape[0], *split, x.shape[-1])
    periods_first = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    x = x.transpose(periods_first)  # (batch, *periods, *places in a period, channels)
    results = []
    for index in np.ndindex(*map(len, bins)):
        share = x
        for axis, i in enumerate(index):
            start, stop = bins[axis][i]
            share = lax.slice_in_dim(share, start, stop, axis=1 + n + axis)
        number = math.prod(share.shape[1 + n : -1])
        results.append(reducer.apply([share.reshape(*share.shape[: 1 + n], number, share.shape[-1])], None))
    y = jnp.stack(results, -2).reshape(x.shape[0], *periods, *map(len, bins), x.shape[-1])
    interleaved = (0, *(axis for i in range(1, n + 1) for axis in (i, n + i)), 2 * n + 1)
    return y.transpose(interleaved).reshape(y.shape[0], *outputs, y.shape[-1])

"""Global pooling: reduce all spatial axes to one number."""

import math
from typing import Any

import jax
import numpy as np

from ..._common.dtypes import wide
from ..._common.eager import one_program
from ..._common.types import ArrayLike, Number, Reduce, Scalar
from ..._primitives.whole_windows import Joint
from ..._windows.geometry import resolve
from ..._windows.layout import as_array, image
from ..._windows.masks import image_mask
from ..._windows.taps import fold
from .masked import masked_global_pool
from .reducers import ReduceOptions, reduction, restored


@one_program
def global_pool(
    x: ArrayLike,
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
    """Reduce all spatial axes of each channel to one number.

    Args:
        x: `(*batch, *spatial, channels)`. Pass `layout` for another order. `"max"`, `"min"`, `"median"`, `"sum"` and
            `"prod"` accept integers too.
        reduce: how to reduce the spatial axes: `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"` (product), `"median"` (the
            lower one of an even number), `"lse"` (`temperature * log(sum of exp(x / temperature))`, a smooth maximum),
            `"lp"` (`(sum of |x|^p)^(1 / p)`), or a function such as `jnp.std`. The function is called with an array
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
            in one batch. The others take no part, and may contain anything. The result is zero, and an index -1, for an
            example without real positions. Default: None, all.
        spatial: number of spatial axes. Give it if there is not exactly one batch axis. Default: None, all axes but the
            first and the last.
        layout: order of the axes of `x` and of the result, such as `"NCHW"`: `C` is the channels, `N` stands for all
            batch axes, and each other letter is a spatial axis. The letters also set the number of spatial axes.
            Default: None, channels last.

    Returns:
        `(*batch, channels)`, in the order of `layout`, with the dtype of `x`. With `return_indices=True` it is a pair
        `(y, indices)`: the indices are int32 and have the shape of `y`, and each is the place of the selected input in
        the row-major order of the spatial axes. If a channel
        contains a NaN, its result is NaN. At kinks, `"lp"` has derivative zero if all inputs are zero, and at single
        zeros unless `p` is even; `"median"` has the derivative of the selected input.

    Raises:
        FuncconvError: if an option has another value than listed above, if a spatial axis is empty, if the result would
            have to be rounded to an integer, or if a function given as `reduce` returns a wrong shape or dtype.

    Source: Lin, Chen and Yan, "Network in network", 2013, arXiv:1312.4400.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.global_pool(jnp.arange(8.0).reshape(2, 2, 2, 1)).tolist()
        [[1.5], [5.5]]
    """
    op = "global_pool"
    x = as_array(op, "the input", x)
    options = ReduceOptions(x.dtype, reduce, ties, p, temperature, return_indices, mask is not None)
    reducer, x = reduction(op, options, x)
    inside = image(op, x, spatial, "spatial=", layout).whole()
    sizes = inside.spatial
    resolve(op, sizes, 1)  # raises an error for empty axes
    if mask is not None:
        return masked_global_pool(inside, reducer, options, image_mask(op, mask, x.shape, len(sizes), layout))
    batch, channels = inside.array.shape[0], inside.array.shape[-1]
    if isinstance(reducer, Joint):
        positions = inside.array.reshape(batch, math.prod(sizes), channels)
        y = reducer.apply([positions.astype(wide(x.dtype))], None)
    else:
        tree = reducer.lift(inside.array, reducer.numbers and reducer.numbers(sizes))
        for i, size in reversed(tuple(enumerate(sizes, start=1))):
            tree = fold(reducer.combine, tree, i, size, 1, 1, 1)
        y = jax.tree.map(lambda x: x.reshape(batch, channels), reducer.lower(tree))
    return restored(inside, y, options, [np.array([size]) for size in sizes])

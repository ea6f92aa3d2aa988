"""The option `reduce` of all pools, and the options that belong to it."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.dtypes import with_infinities
from ..._common.errors import FuncconvError, suggest
from ..._common.types import Array, Number, Reduce, Scalar
from ..._primitives.folds import NO_INPUT, Fold, absolute, extreme, extreme_of_real, indexed, lse, multiplied, summed
from ..._primitives.whole_windows import Joint, by_function, median, norm
from ..._windows.layout import Image
from ..._windows.masks import zero_masked

REDUCES = ("max", "min", "sum", "mean", "prod", "lse", "lp", "median")
TIES = ("first", "split")
# A mean divides by a table with one count per window. For more windows than this, it divides by the counts of one axis
# after another, so that the program does not hold a constant of the size of the result.
_COUNT_TABLE_WINDOWS = 1 << 20


class ReduceOptions(NamedTuple):
    """The options of `pool` that say how a window is reduced, and the dtype of the input and the result."""

    dtype: np.dtype
    reduce: Reduce
    ties: str = "first"
    p: Number = 2
    temperature: Scalar = 1.0
    indices: bool = False
    masked: bool = False  # whether some positions of the input take no part

    @property
    def selects(self) -> bool:
        """Whether the result is the value of one tap of each window, without its index, and no mask hides taps."""
        return self.reduce in ("max", "min") and self.ties == "first" and not (self.indices or self.masked)


def reduction(op: str, options: ReduceOptions, x: Array) -> tuple[Fold | Joint, Array]:
    """Return the reduction that the options select, and the input in the dtype in which it is computed.

    Args:
        op: name of the op, for messages.
        options: the options.
        x: the input.

    Returns:
        An operation that folds windows tap by tap, or a function of all their taps; and the input.

    Raises:
        FuncconvError: if an option is unknown or out of range, or does not fit the other options or the dtype.
    """
    _check(op, options)
    if callable(options.reduce):
        if options.masked:
            msg = (
                f"{op}: a function given as reduce needs all taps of a window, so it cannot be used with a mask; got "
                f"{getattr(options.reduce, '__name__', options.reduce)}. Pass one of {', '.join(REDUCES)}"
            )
            raise FuncconvError(msg)
        return by_function(op, options.reduce, options.dtype), x
    x = x.astype(with_infinities(options.dtype))  # most floats of 8 bits have no infinity to pad a maximum with
    return _named(op, options, x.dtype), x


def _named(op: str, options: ReduceOptions, dtype: np.dtype) -> Fold | Joint:
    """Return the reduction with the given name for inputs of this dtype."""
    reduce = str(options.reduce)
    if reduce == "median":
        return median(op)
    if reduce == "lse":
        return lse(options.temperature, dtype)
    if reduce == "prod":
        return multiplied(dtype)
    if reduce in ("sum", "mean"):
        return summed(dtype)
    if reduce == "lp" and 1 < options.p < math.inf:
        return norm(options.p)
    if reduce == "lp":  # the 1-norm is a sum and the maximum norm a maximum, both of absolute values
        return absolute(summed(dtype) if options.p == 1 else _extreme("max", options, dtype))
    return indexed(op, reduce, dtype) if options.indices else _extreme(reduce, options, dtype)


def _extreme(reduce: str, options: ReduceOptions, dtype: np.dtype) -> Fold:
    """Return the selection of a maximum or minimum; with a mask, of one that is real."""
    if options.masked and options.ties == "first":
        return extreme_of_real(reduce, dtype)
    return extreme(reduce, options.ties, dtype)


def restored(
    inside: Image, y: Any, options: ReduceOptions, counts: Sequence[np.ndarray] | Array, real: Array | None = None
) -> Any:
    """Return the results, and their indices if requested, with the axes and the dtype that the op returns.

    Args:
        inside: the input.
        y: the reduced windows, or a pair of them and their indices.
        options: the options.
        counts: what a mean divides by: for each axis the number of taps of each window, of which it takes the product;
            or, with a mask, the numbers for all windows of each example.
        real: which results are real. The others become zeros, and -1 as an index. Default: None, all.

    Returns:
        What the op returns.
    """
    if options.indices:
        value, index = y
        index = index if real is None else jnp.where(real, index, jnp.full((), NO_INPUT, index.dtype))
        return inside.restore(zero_masked(value.astype(options.dtype), real)), inside.restore(index)
    y = (_mean(y, counts) if options.reduce == "mean" else y).astype(options.dtype)
    return inside.restore(zero_masked(y, real))


def _mean(y: Array, counts: Sequence[np.ndarray] | Array) -> Array:
    """Divide sums by the number of taps of their windows."""
    if isinstance(counts, jax.Array):
        return y / jnp.maximum(counts, 1).astype(y.dtype)
    if all((count == count[0]).all() for count in counts):
        return y / float(math.prod(int(count[0]) for count in counts))
    if math.prod(count.size for count in counts) > _COUNT_TABLE_WINDOWS:
        for i, count in enumerate(counts, start=1):
            y = y / jnp.asarray(count.reshape([-1 if axis == i else 1 for axis in range(y.ndim)]), y.dtype)
        return y
    total = functools.reduce(np.multiply.outer, counts)
    return y / jnp.asarray(total[None, ..., None], y.dtype)


def _check(op: str, options: ReduceOptions) -> None:
    """Raise an error if the options do not fit each other or the dtype."""
    reduce, dtype = options.reduce, options.dtype
    for name, value, known in (("reduce", reduce, REDUCES), ("ties", options.ties, TIES)):
        if value not in known and not (name == "reduce" and callable(value)):
            msg = f"{op}: unknown {name} {value!r}{suggest(value, known)}"
            raise FuncconvError(msg)
    if reduce == "lp" and not (_is_number(options.p) and options.p >= 1):
        msg = f"{op}: p must be a number from 1 to math.inf; got {options.p!r}"
        raise FuncconvError(msg)
    if reduce == "lse":
        _check_temperature(op, options.temperature)
    if options.indices and (reduce not in ("max", "min") or options.ties != "first"):
        msg = (
            f"{op}: return_indices=True needs reduce='max' or 'min' and ties='first', where each result is one input; "
            f"got reduce={reduce!r} and ties={options.ties!r}"
        )
        raise FuncconvError(msg)
    if reduce in ("max", "min", "median", "lse", "lp") and jnp.issubdtype(dtype, jnp.complexfloating):
        msg = f"{op}: complex numbers have no {reduce}; the input is {dtype}. Pool jnp.abs(x), x.real or x.imag"
        raise FuncconvError(msg)
    if dtype == jnp.float8_e8m0fnu and not callable(reduce):
        msg = f"{op}: {dtype} has neither zero nor signs for padding and derivatives; cast first: x.astype(jnp.float32)"
        raise FuncconvError(msg)
    rounds = reduce in ("mean", "lse", "lp") and not jnp.issubdtype(dtype, jnp.inexact)
    if rounds or (reduce in ("sum", "prod") and dtype == np.bool_):
        article = "an" if str(reduce).startswith("l") else "a"
        msg = f"{op}: {article} {reduce} of {dtype} would have to be rounded; cast first: x.astype(jnp.float32)"
        raise FuncconvError(msg)


def _check_temperature(op: str, temperature: Any) -> None:
    traced = isinstance(temperature, jax.core.Tracer)
    arrays = isinstance(temperature, jax.Array | np.ndarray)
    real = _is_number(temperature) or (arrays and jnp.isdtype(temperature.dtype, ("real floating", "integral")))
    if real and np.ndim(temperature) == 0 and (traced or 0 < float(temperature) < math.inf):
        return
    shown = f"{temperature.dtype} of shape {temperature.shape}" if arrays and temperature.ndim else repr(temperature)
    msg = f"{op}: temperature must be one positive number; got {shown}"
    raise FuncconvError(msg)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)

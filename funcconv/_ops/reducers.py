"""What `reduce=` and the options beside it mean, for every pool."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import with_infinities
from .._common.errors import FuncconvError, suggest
from .._common.types import Array, Number, Reduce, Scalar
from .._primitives.folds import Fold, absolute, extreme, indexed, lse, multiplied, summed
from .._windows.layout import Image
from .whole_windows import Joint, by_function, median, norm

REDUCES = ("max", "min", "sum", "mean", "prod", "lse", "lp", "median")
TIES = ("first", "split")
_TABLE = 1 << 20  # windows of which the numbers of taps are one constant, at most


class How(NamedTuple):
    """How windows are reduced: the options of `pool` that say it, and the dtype of the input and the result."""

    dtype: np.dtype
    reduce: Reduce
    ties: str = "first"
    p: Number = 2
    temperature: Scalar = 1.0
    indices: bool = False

    @property
    def selects(self) -> bool:
        """Whether windows are reduced to one of their taps, and no more is asked for than its value."""
        return self.reduce in ("max", "min") and self.ties == "first" and not self.indices


def reduction(op: str, how: How, x: Array) -> tuple[Fold | Joint, Array]:
    """Return what `how` means, and the input in the dtype in which it is computed.

    Floats of 8 bits and fewer become float32: most have no infinity that padding could show.

    Args:
        op: who asks, for messages.
        how: the options.
        x: the input.

    Returns:
        An operation to fold windows by or a function of all their taps, and the input.

    Raises:
        FuncconvError: if an option is unknown, out of range or does not go with the others or the dtype.
    """
    _check(op, how)
    if callable(how.reduce):
        return by_function(op, how.reduce, how.dtype), x
    x = x.astype(with_infinities(how.dtype))
    return _named(how, x.dtype), x


def _named(how: How, dtype: np.dtype) -> Fold | Joint:
    """Return what a name means for inputs of this dtype."""
    reduce = str(how.reduce)
    if reduce == "median":
        return median()
    if reduce == "lse":
        return lse(how.temperature, dtype)
    if reduce == "prod":
        return multiplied(dtype)
    if reduce in ("sum", "mean"):
        return summed(dtype)
    if reduce == "lp" and 1 < how.p < math.inf:
        return norm(how.p)
    if reduce == "lp":
        return absolute(summed(dtype) if how.p == 1 else extreme("max", how.ties, dtype))
    return indexed(reduce, dtype) if how.indices else extreme(reduce, how.ties, dtype)


def restored(inside: Image, y: Any, how: How, counts: Sequence[np.ndarray]) -> Any:
    """Return results, and their indices if there are, in the form and dtype the op was given.

    Args:
        inside: the input.
        y: what the windows were reduced to, or a pair of that and indices.
        how: the options.
        counts: the taps of each window along each axis, whose product a mean divides by.

    Returns:
        As the op is to return it.
    """
    if how.indices:
        return inside.restore(y[0].astype(how.dtype)), inside.restore(y[1])
    return inside.restore((_mean(y, counts) if how.reduce == "mean" else y).astype(how.dtype))


def _mean(y: Array, counts: Sequence[np.ndarray]) -> Array:
    if all((count == count[0]).all() for count in counts):
        return y / float(math.prod(int(count[0]) for count in counts))
    if math.prod(count.size for count in counts) > _TABLE:
        for i, count in enumerate(counts, start=1):
            y = y / jnp.asarray(count.reshape([-1 if axis == i else 1 for axis in range(y.ndim)]), y.dtype)
        return y
    total = functools.reduce(np.multiply.outer, counts)
    return y / jnp.asarray(total[None, ..., None], y.dtype)


def _check(op: str, how: How) -> None:
    reduce, dtype = how.reduce, how.dtype
    for name, value, known in (("reduce", reduce, REDUCES), ("ties", how.ties, TIES)):
        if value not in known and not (name == "reduce" and callable(value)):
            msg = f"{op}: unknown {name} {value!r}{suggest(value, known)}"
            raise FuncconvError(msg)
    if reduce == "lp" and not (_is_number(how.p) and how.p >= 1):
        msg = f"{op}: p must be a number from 1 to math.inf; got {how.p!r}"
        raise FuncconvError(msg)
    if reduce == "lse":
        _check_temperature(op, how.temperature)
    if how.indices and (reduce not in ("max", "min") or how.ties != "first"):
        msg = (
            f"{op}: return_indices=True needs reduce='max' or 'min' and ties='first', where each result is one input; "
            f"got reduce={reduce!r} and ties={how.ties!r}"
        )
        raise FuncconvError(msg)
    if reduce in ("max", "min", "median", "lse", "lp") and jnp.issubdtype(dtype, jnp.complexfloating):
        msg = f"{op}: complex numbers have no {reduce}; the input is {dtype}"
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

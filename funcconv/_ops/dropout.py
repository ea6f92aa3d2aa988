"""Dropout and drop path: random zeros during training."""

import jax
import jax.numpy as jnp

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import Array, ArrayLike, Number
from .._windows.layout import as_array
from .parameters import check_inexact


def dropout(key: Array, x: ArrayLike, /, rate: Number = 0.5, *, spatial: int = 0) -> Array:
    """Set random entries of `x` to zero and divide the others by `1 - rate`, so that the expected value is `x`.

    Args:
        key: a JAX random key. The same key and shape give the same zeros.
        x: `(*batch, *spatial, channels)`, floating or complex.
        rate: probability of a zero, from 0 to 1. Default: 0.5.
        spatial: number of axes before the channels that share one random number, so that whole channels are set to
            zero: 2 for images, as in PyTorch's `Dropout2d`. Default: 0, every number is drawn separately.

    Returns:
        An array like `x`. The mask is constant for derivatives.

    Raises:
        FuncconvError: if the rate is not a Python number from 0 to 1, if the key is None, if the input is not floating
            or complex, or if it has too few axes for `spatial`.

    Source: Srivastava et al., "Dropout", 2014; whole channels: Tompson et al., 2014, arXiv:1411.4280.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> y = fc.dropout(jax.random.key(0), jnp.ones(10_000), 0.2)
        >>> sorted(set(y.tolist())), round(float((y == 0).mean()), 1)
        ([0.0, 1.25], 0.2)
    """
    x = _checked("dropout", key, x, rate)
    if not 0 <= spatial < max(x.ndim, 1):
        msg = f"dropout: spatial must be from 0 to {max(x.ndim - 1, 0)} for an input of shape {x.shape}; got {spatial}"
        raise FuncconvError(msg)
    channels = x.ndim - 1
    return _masked(key, x, rate, range(channels - spatial, channels))


def drop_path(key: Array, x: ArrayLike, /, rate: Number, *, spatial: int | None = None) -> Array:
    """Set random examples to zero as a whole and divide the others by `1 - rate`: stochastic depth.

    Apply it to the branch of a residual block, `x + drop_path(key, branch(x), rate)`. In training, the block is then
    skipped for some of the examples. The expected value is `x`.

    Args:
        key: a JAX random key. The same key and shape give the same zeros.
        x: `(*batch, *spatial, channels)`, floating or complex.
        rate: probability of a zero, from 0 to 1.
        spatial: number of spatial axes. Each entry of the axes before them is one example. Give it if there is not
            exactly one batch axis. Default: None, the first axis alone is the batch.

    Returns:
        An array like `x`. Its derivative is the one of a multiplication by the random mask.

    Raises:
        FuncconvError: if the rate is not from 0 to 1, the key is None, the input is an integer, or it has too few axes.

    Source: Huang et al., "Deep networks with stochastic depth", 2016, arXiv:1603.09382.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> y = fc.drop_path(jax.random.key(0), jnp.ones((10_000, 2, 3)), 0.2)
        >>> sorted(set(y.sum((1, 2)).tolist())), round(float((y == 0).mean()), 1)
        ([0.0, 7.5], 0.2)
    """
    x = _checked("drop_path", key, x, rate)
    if x.ndim < 1 or (spatial is not None and not 0 <= spatial < x.ndim):
        needed = "one batch axis" if spatial is None else f"{spatial} spatial axes and one of channels"
        msg = f"drop_path: the input must have {needed}; got shape {x.shape}"
        raise FuncconvError(msg)
    return _masked(key, x, rate, range(1 if spatial is None else x.ndim - spatial - 1, x.ndim))


def _checked(op: str, key: Array, x: ArrayLike, rate: Number) -> Array:
    """Return the input as an array, after checks of all arguments."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        msg = f"{op}: rate must be a number from 0 to 1; got {rate!r}"
        raise FuncconvError(msg)
    if key is None:
        msg = f"{op}: needs a key for its random numbers, such as jax.random.key(0); got None"
        raise FuncconvError(msg)
    x = as_array(op, "the input", x)
    check_inexact(op, x)
    return x


def _masked(key: Array, x: Array, rate: Number, shared: range) -> Array:
    """Set random numbers to zero and divide the others by `1 - rate`; the numbers along the shared axes go together."""
    if rate in (0, 1):  # nothing is random, and 1 / (1 - rate) would be infinite
        return x if rate == 0 else x * jnp.zeros((), x.dtype)
    mask = jax.random.bernoulli(key, 1 - rate, [1 if i in shared else size for i, size in enumerate(x.shape)])
    # Divided in float32 for 16-bit inputs, so that the result is rounded once.
    return jnp.where(mask, x.astype(wide(x.dtype)) / (1 - rate), 0).astype(x.dtype)

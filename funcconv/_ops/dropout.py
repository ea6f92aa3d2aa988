"""Dropout: random zeros during training."""

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
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        msg = f"dropout: rate must be a number from 0 to 1; got {rate!r}"
        raise FuncconvError(msg)
    if key is None:
        msg = "dropout: needs a key for its random numbers, such as jax.random.key(0); got None"
        raise FuncconvError(msg)
    x = as_array("dropout", "the input", x)
    check_inexact("dropout", x)
    if not 0 <= spatial < max(x.ndim, 1):
        msg = f"dropout: spatial must be from 0 to {max(x.ndim - 1, 0)} for an input of shape {x.shape}; got {spatial}"
        raise FuncconvError(msg)
    if rate in (0, 1):  # nothing is random, and 1 / (1 - rate) would be infinite
        return x if rate == 0 else x * jnp.zeros((), x.dtype)
    shape = list(x.shape)
    shape[x.ndim - 1 - spatial : x.ndim - 1] = [1] * spatial
    mask = jax.random.bernoulli(key, 1 - rate, shape)
    # Divided in float32 for 16-bit inputs, so that the result is rounded once.
    return jnp.where(mask, x.astype(wide(x.dtype)) / (1 - rate), 0).astype(x.dtype)

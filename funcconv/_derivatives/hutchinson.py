"""Estimates of a trace and a diagonal by random signs, with their standard errors."""

from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.types import Array
from .linear_map import LinearMap, positive, reads_data, times_vectors
from .trees import Flat, Tree, in_short

_Moments: TypeAlias = tuple[Array, Array, Array]  # the count, the mean, the sum of squared deviations from it


class Estimate(NamedTuple):
    """An estimate by random samples, which `Operator.trace` and `Operator.diag` return.

    Attributes:
        value: the mean of the samples.
        error: the standard error of the mean, `std / sqrt(samples)`, where `std` has the divisor `samples - 1`.

    Example:
        >>> import funcconv as fc, jax
        >>> h = fc.hessian(lambda x: (x**2).sum(), jax.numpy.ones(8))  # diagonal: every sample is exact
        >>> estimate = h.trace("hutchinson", key=jax.random.key(0), samples=4)
        >>> float(estimate.value), float(estimate.error)
        (16.0, 0.0)
    """

    value: Tree
    error: Tree

    def __repr__(self) -> str:
        return f"Estimate(value={in_short(self.value)}, error={in_short(self.error)})"


def hutchinson(where: str, of: str, operator: LinearMap, key: Array | None, samples: int, chunk: int) -> Estimate:
    """Return the mean of `<z, A z>`, the `"trace"`, or of `z * A z`, the `"diagonal"`, over random signs `z`.

    matfree draws the signs of one chunk; chunks are merged here, so that memory is that of one.
    """
    with needs("curvature", where):
        from matfree import stochtrace
    if key is None:
        msg = f"{where}: an estimate draws random signs, so it needs key=jax.random.key(...)"
        raise FuncconvError(msg)
    positive(f"{where}: samples", samples, least=2)  # one sample says nothing of its error
    full, rest = divmod(samples, min(positive(f"{where}: chunk", chunk), samples))
    like = Flat(operator.rows).zeros()

    def moments(key: Array, count: int) -> _Moments:
        signs = stochtrace.sampler_signs(like, num=count)(key)  # (count, size)
        values = signs * times_vectors(operator, signs)
        values = values.sum(1) if of == "trace" else values
        mean = values.mean(0)
        return jnp.asarray(count, like.dtype), mean, ((values - mean[None]) ** 2).sum(0)

    keys = jax.random.split(key, full + 1)
    chunk = (samples - rest) // full
    zero = jnp.zeros((), like.dtype) if of == "trace" else jnp.zeros_like(like)
    # A count of 0 makes the first merge take the other moments as they are.
    total = jnp.zeros((), like.dtype), zero, zero
    if reads_data(operator):
        for chunk_key in keys[:full]:
            total = _merged(total, moments(chunk_key, chunk))
    else:
        total, _ = jax.lax.scan(lambda sofar, key: (_merged(sofar, moments(key, chunk)), None), total, keys[:full])
    count, mean, squares = _merged(total, moments(keys[full], rest)) if rest else total
    return Estimate(mean, jnp.sqrt(squares / (count - 1) / count))


def _merged(one: _Moments, other: _Moments) -> _Moments:
    """Return the moments of both sets of samples (Chan, Golub and LeVeque, 1979)."""
    count, step = one[0] + other[0], other[1] - one[1]
    return count, one[1] + step * (other[0] / count), one[2] + other[2] + step**2 * (one[0] * other[0] / count)

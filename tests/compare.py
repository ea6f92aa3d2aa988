"""What it means that two results agree: they differ by no more than rounding does."""

import jax
import jax.numpy as jnp
import numpy as np


def rounding(dtype, terms=64, steps=1):
    """Return the largest relative difference that rounding makes between two ways to compute one number.

    A sum of n products, in any order, is off by at most n / 2 units in the last place of the sum of their sizes, so two
    orders differ by at most n. Each of several steps that follow one another, as in training, adds as much again.
    """
    return terms * steps * float(jnp.finfo(dtype).eps)


# The distance at which a central difference in float64 is best: its truncation, h**2, equals its rounding, eps / h.
STEP = float(np.finfo(np.float64).eps) ** (1 / 3)


def close_to_differences(derivative, differences, terms=64):
    """Assert that a derivative in float64 equals central differences at the distance `STEP`.

    Their error is `STEP**2` for each term of the function, relative to the largest value: that is 1 / STEP units in the
    last place.
    """
    close(derivative, differences, ulps=terms / STEP)


def products_of(params):
    """Return how many products are summed for one output of a network, over all of its layers."""
    return sum(leaf.size // leaf.shape[-1] for leaf in jax.tree.leaves(params) if leaf.ndim > 1)


def close(actual, expected, dtype=None, ulps=None, *, terms=64, steps=1):
    """Assert equality up to rounding, relative to the largest value.

    Args:
        actual: an array, or a number.
        expected: what it should be.
        dtype: the one in which the less exact of the two was computed. It must be given if their dtypes differ, so that
            a result that lost digits is not taken for a right one.
        ulps: how many units in the last place of the largest value may differ. Default: `terms * steps`.
        terms: how many numbers are summed.
        steps: how many times one after the other.
    """
    dtypes = {np.asarray(array).dtype for array in (actual, expected) if hasattr(array, "dtype")}
    dtypes = {array_dtype for array_dtype in dtypes if jnp.issubdtype(array_dtype, jnp.inexact)} or {
        np.dtype(np.float64)
    }
    widths = {float(jnp.finfo(array_dtype).eps) for array_dtype in dtypes}
    if dtype is None:
        assert len(widths) == 1, f"compares {dtypes}: say in which dtype this was computed"
        dtype = dtypes.pop()
    assert jnp.finfo(dtype).eps >= max(widths), f"compares {dtypes} with the tolerance of {dtype}"
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0), 1)
    atol = rounding(dtype, *((terms, steps) if ulps is None else (ulps,))) * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)

"""What it means that two results agree."""

import jax.numpy as jnp
import numpy as np


def close(actual, expected, dtype=np.float64, ulps=64):
    """Assert equality up to some units in the last place of the largest value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = max(np.abs(expected).max(initial=0), 1)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=ulps * float(jnp.finfo(dtype).eps) * scale)

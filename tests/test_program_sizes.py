"""Programs do not grow with the window, the padding or the number of bins; derivatives are counted too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

import funcconv as fc
from funcconv._geometry import Axis
from funcconv._padding import pad

MODES = ("reflect", "symmetric", "replicate", "circular")


def operations(f, x):
    """Return how many operations there are in the function, and in its derivative."""
    grad = jax.grad(lambda x: (f(x) ** 2).sum())
    return [sum(1 for _ in equations(jax.make_jaxpr(each)(x))) for each in (f, grad)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_padding_far_wider_than_the_image(mode, size):
    def padded(x, width):
        return pad(x, [Axis(size, 1, 1, 1, width, width + 1, size + 2 * width + 1)], [mode])

    x = jnp.arange(float(size)).reshape(1, size, 1)
    few, many = (operations(partial(padded, width=width), x) for width in (7, 1000))
    assert few == many
    assert max(many) < 40
    widths = ((0, 0), (23, 24), (0, 0))
    expected = np.pad(x, widths, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))
    np.testing.assert_array_equal(padded(x, 23), expected)


@pytest.mark.parametrize("ties", ["first", "split"])
@pytest.mark.parametrize("reduce", ["max", "mean", "lse", "lp", "median", jnp.std])
def test_large_windows(reduce, ties):
    x = jnp.ones((1, 1100, 1))
    small, large = (
        operations(partial(fc.pool, window=(window,), stride=1, reduce=reduce, ties=ties), x) for window in (100, 1000)
    )
    assert all(b < 2 * a for a, b in zip(small, large, strict=True)), (small, large)


def test_unpooling_of_large_windows():
    def sizes(window):
        y = jnp.ones((1, 4, 4, 1))
        nowhere = jnp.full(y.shape, -1)
        return operations(lambda y: fc.max_unpool(y, nowhere, window, stride=1), y)

    assert sizes(16) == sizes(64)
    assert max(sizes(64)) < 400


@pytest.mark.parametrize("reduce", ["mean", "max", "lse", jnp.std])
def test_adaptive_bins_of_every_length(reduce):
    def sizes(size, outputs):
        return operations(partial(fc.adaptive_pool, output_size=outputs, reduce=reduce), jnp.ones((1, *size, 1)))

    few, many = sizes((64, 64), (37, 41)), sizes((256, 256), (149, 163))
    assert few == many
    assert max(many) < 1000

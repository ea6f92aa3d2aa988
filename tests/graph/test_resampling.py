"""Unfolding, shuffles, resizing and blurs as layers of graphs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc

LAYERS = {
    "unfold": partial(fc.unfold, window=(2, 3), stride=2, padding=1, pad_mode="reflect"),
    "unfold of all axes": partial(fc.unfold, window=3),
    "fold": fc.serial(partial(fc.unfold, window=2), partial(fc.fold, size=(6, 8))),
    "pixel_shuffle": partial(fc.pixel_shuffle, factor=2),
    "pixel_unshuffle": partial(fc.pixel_unshuffle, factor=(3, 2), order="tensorflow"),
    "resize": partial(fc.resize, size=(9, 4)),
    "resize to one size": partial(fc.resize, size=5, method="cubic", antialias=True),
    "resize by a factor": partial(fc.resize, scale=2, method="linear"),
    "resize by areas": partial(fc.resize, size=(3, 5), method="area"),
    "blur_pool": fc.blur_pool,
    "blur_pool with options": partial(fc.blur_pool, window=(4, 2), stride=(2, 1), pad_mode="circular"),
}
SHAPE = (6, 8, 4)


def over(layer, shape=SHAPE):
    x = fc.Input("x", shape, dtype=np.float64)
    return fc.Graph(x, fc.serial(layer)(x))


@pytest.mark.parametrize("name", LAYERS)
def test_as_a_layer(name, rng):
    graph = over(LAYERS[name])
    assert fc.Graph.from_json(graph.to_json()) == graph == over(LAYERS[name])
    assert graph.init(jax.random.key(0)) == {}
    x = jnp.asarray(rng.normal(size=(2, 3, *SHAPE)))
    direct = partial(LAYERS[name], spatial=2)
    if name == "fold":
        direct = lambda x: fc.fold(fc.unfold(x, (2, 2)), (6, 8))  # noqa: E731
    y = jax.jit(graph)({}, x)
    close(y, direct(x))
    (output,) = graph.outputs
    assert graph.shapes()[output].shape == y.shape[2:]
    assert output in str(fc.summary(graph))
    assert output in fc.to_text(graph)
    assert output in fc.to_mermaid(graph)


@pytest.mark.parametrize(
    ("layer", "intervals"),
    [
        (partial(fc.unfold, window=(3,), stride=2), [(0, 2), (2, 4), (4, 6)]),
        (partial(fc.pixel_shuffle, factor=2), [(i // 2, i // 2) for i in range(16)]),
        (partial(fc.pixel_unshuffle, factor=4), [(0, 3), (4, 7)]),
        (partial(fc.resize, size=16), [(i // 2, i // 2) for i in range(16)]),
        (partial(fc.resize, size=4), [(2 * i, 2 * i) for i in range(4)]),
        (
            partial(fc.resize, size=16, method="linear"),
            [(max((i - 1) // 2, 0), min((i + 1) // 2, 7)) for i in range(16)],
        ),
        (partial(fc.resize, size=4, method="linear", antialias=True), [(0, 2), (1, 4), (3, 6), (5, 7)]),
        (partial(fc.resize, size=15, method="linear", align_corners=True), [(i // 2, -(-i // 2)) for i in range(15)]),
        (fc.blur_pool, [(0, 1), (1, 3), (3, 5), (5, 7)]),
    ],
)
def test_receptive_fields(layer, intervals):
    """They are exact, so that a receptive field ends where the gradient does."""
    (axis, *_) = fc.receptive_field(over(layer, (8, 4)))["x"]
    assert [axis.interval(o) for o in range(len(intervals))] == intervals
    jacobian = jax.jacfwd(lambda x: over(layer, (8, 4))({}, x).reshape(len(intervals), -1).sum(-1))(jnp.ones((8, 4)))
    for row, (first, last) in zip(np.asarray(jacobian.sum(-1)), intervals, strict=True):
        places = np.flatnonzero(row)
        assert (places[0], places[-1]) == (first, last)


def test_receptive_fields_of_long_axes():
    """Of axes that are too long for a table of their places, whose ends are left out."""
    n = 1 << 16
    (axis,) = fc.receptive_field(over(partial(fc.resize, size=(2 * n,), method="linear"), (n, 1)))["x"]
    assert (axis.size, axis.stride) == (2, 0.5)
    assert axis.interval(1001) == (500, 501)
    (axis,) = fc.receptive_field(over(partial(fc.blur_pool, window=(5,), pad_mode="zeros"), (n, 1)))["x"]
    assert (axis.size, axis.stride, axis.interval(1000)) == (5, 2, (1998, 2002))


def test_a_network_that_is_upsampled_in_four_ways(rng):
    """Each doubles an image; the network learns from all of them."""
    ups = {
        "nearest": partial(fc.resize, scale=2),
        "linear": partial(fc.resize, scale=2, method="linear"),
        "shuffle": fc.serial(fc.Conv(8, 1), partial(fc.pixel_shuffle, factor=2)),
        "transposed": fc.ConvTranspose(2, 2, stride=2),
    }
    x = fc.Input("x", (8, 8, 2))
    small = partial(fc.blur_pool, window=3)
    graph = fc.Graph(x, fc.serial(small, fc.parallel(*ups.values(), merge=fc.concat), fc.Conv(2, 3, padding=1))(x))
    params = graph.init(jax.random.key(0))
    images = jnp.asarray(rng.normal(size=(4, 8, 8, 2)))

    @jax.jit
    def losses(params):
        loss = lambda params: ((graph(params, images) - images) ** 2).mean()  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        return value, loss(jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient))

    before, after = losses(params)
    assert after < before

"""Inputs whose channels are not their last axis."""

import jax
import jax.numpy as jnp
import pytest

import funcconv as fc


def turned(x):
    return jnp.moveaxis(x, -3, -1)


def test_channels_that_are_not_last_are_refused():
    x = fc.Input("x", (3, 6, 6))
    graph = fc.Graph(x, fc.serial(turned, fc.Conv(4, 3, name="conv"), fc.global_pool, fc.Dense(2))(x))
    params, images = graph.init(jax.random.key(0)), jnp.ones((2, 3, 6, 6))
    options = {"of": lambda y: y[0]}
    for call in (
        lambda: fc.attribution.grad_cam(graph, params, images, at="conv", **options),
        lambda: fc.attribution.occlusion(graph, params, images, window=2, **options),
    ):
        with pytest.raises(fc.FuncconvError, match=r"node 'turned1' moves the last axis of 'x', \(3, 6, 6\)"):
            call()
    # The map of the node itself needs no axes of the input.
    assert fc.attribution.grad_cam(graph, params, images, at="conv", upsample=False, **options).shape == (2, 4, 4)

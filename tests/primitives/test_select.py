"""Taps picked and placed: against loops, as transposes, mapped, and in what programs show."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxprs import primitives

import funcconv as fc
from funcconv._primitives import select as _select
from funcconv._windows.geometry import Axis

AXES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))


def axis(window, stride, dilation, outputs, spare):
    """Return an axis with places to spare after its last window."""
    size = 1 + (window - 1) * dilation + (outputs - 1) * stride + spare
    return Axis(size, window, stride, dilation, 0, 0, outputs)


def drawn(axes, rng, front=(2,)):
    shape = (*front, *(axis.outputs for axis in axes), 3)
    number = rng.integers(0, np.prod([axis.window for axis in axes]), shape).astype(np.uint8)
    return rng.normal(size=(*front, *(axis.size for axis in axes), 3)), number, rng.normal(size=shape)


def places(axes, number, index):
    """Return where a window reads."""
    taps = np.unravel_index(number[index], [axis.window for axis in axes])
    at = [i * axis.stride + tap * axis.dilation for i, tap, axis in zip(index[1:-1], taps, axes, strict=True)]
    return (index[0], *at, index[-1])


@given(st.lists(AXES, min_size=1, max_size=2), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_pick_and_place_equal_loops(geometry, seed):
    axes = tuple(axis(*each) for each in geometry)
    x, number, y = drawn(axes, np.random.default_rng(seed))
    picked, placed = np.zeros(y.shape), np.zeros(x.shape)
    for index in np.ndindex(*y.shape):
        picked[index] = x[places(axes, number, index)]
        placed[places(axes, number, index)] += y[index]
    found = jax.jit(lambda: (_select.pick_p.bind(x, number, axes=axes), _select.place_p.bind(y, number, axes=axes)))()
    np.testing.assert_array_equal(found[0], picked)
    close(found[1], placed)


@pytest.mark.parametrize(("primitive", "which"), [(_select.pick_p, 0), (_select.place_p, 2)])
def test_mapped_over_either_operand(primitive, which, rng):
    axes = (axis(3, 2, 1, 3, 1), axis(2, 1, 2, 2, 0))
    arrays = drawn(axes, rng, front=(4, 2))
    values, numbers = arrays[which], arrays[1]
    op = partial(primitive.bind, axes=axes)
    both = np.stack([op(v, n) for v, n in zip(values, numbers, strict=True)])
    close(jax.vmap(op)(values, numbers), both)
    close(jax.vmap(op, (None, 0))(values[0], numbers), np.stack([op(values[0], n) for n in numbers]))
    moved = jax.vmap(op, (-1, None), -1)(jnp.moveaxis(values, 0, -1), numbers[0])
    close(moved, np.stack([op(v, numbers[0]) for v in values], -1))


def test_what_programs_show(rng):
    x = rng.normal(size=(2, 9, 7, 3))
    f = partial(fc.pool, window=3, stride=2)
    products = jax.make_jaxpr(lambda x: jax.jvp(jax.grad(lambda x: (f(x) ** 3).sum()), (x,), (x,))[1])(x)
    assert {"pick", "place"} <= primitives(products)
    alone = primitives(jax.make_jaxpr(f)(x))
    assert "extreme" in alone
    assert not {"pick", "place"} & alone
    apart = primitives(jax.make_jaxpr(jax.grad(lambda x: fc.pool(x, 2).sum()))(x))
    assert not {"pick", "place"} & apart  # windows that do not overlap are as fast without


def test_a_cotangent_that_is_no_number_stays_where_it_was_put(rng):
    x = jnp.asarray(rng.permutation(49).astype(float).reshape(1, 7, 7, 1))
    y, pullback = jax.vjp(partial(fc.pool, window=3, stride=2), x)
    (found,) = pullback(jnp.full(y.shape, jnp.nan).at[0, 1:].set(1).at[0, :, 1:].set(1))
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[0, :3, :3]).any()

"""The checks themselves are checked: a rule that is wrong by a tenth of a percent must be caught."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from jax.test_util import check_grads

import funcconv as fc

WRONG = 1.001


@pytest.fixture
def problem(rng):
    params = {"kernel": jnp.asarray(rng.normal(size=(3, 2, 2))), "bias": jnp.asarray(rng.normal(size=2))}
    return params, jnp.asarray(rng.normal(size=(2, 6, 2)))


def differences(f, *args, order):
    check_grads(jax.jit(f), args, order=order, modes=("fwd", "rev"), eps=1e-4, atol=1e-6, rtol=1e-6)


def test_a_wrong_value_is_caught(problem):
    y = fc.conv(*problem)
    close(y, y)
    with pytest.raises(AssertionError):
        close(y * WRONG, y)
    with pytest.raises(AssertionError):
        close(y.at[0, 0, 0].multiply(WRONG), y)
    with pytest.raises(AssertionError):
        close(np.asarray(y, np.float32) * np.float32(1 + 1e-4), y, np.float32)


def test_tolerances_are_those_of_the_dtype(problem):
    y = fc.conv(*problem)
    single, off = np.asarray(y, np.float32), 1 + 4 * float(np.finfo(np.float32).eps)
    close(single * np.float32(off), single)
    with pytest.raises(AssertionError):
        close(y * off, y)
    with pytest.raises(AssertionError, match="say in which dtype"):
        close(single, y)  # a result that lost digits is not right
    with pytest.raises(AssertionError, match="with the tolerance of"):
        close(single, single, np.float64)
    for terms, steps in ((256, 1), (64, 4)):
        far = np.float32(1 + 200 * float(np.finfo(np.float32).eps))
        close(single * far, single, terms=terms, steps=steps)
    with pytest.raises(AssertionError):
        close(single * far, single)


def wrong_by_first_order(x):
    """Return x, with a derivative of 1.001."""

    @jax.custom_jvp
    def identity(x):
        return x

    identity.defjvp(lambda primals, tangents: (primals[0], WRONG * tangents[0]))
    return identity(x)


def wrong_by_second_order(f):
    """Return f, whose first derivative is right and whose second is wrong by a tenth of a percent."""

    @jax.custom_jvp
    def g(*args):
        return f(*args)

    @g.defjvp
    def rule(primals, tangents):
        return f(*primals), jax.jvp(f, tuple(jax.tree.map(wrong_by_first_order, primals)), tangents)[1]

    return g


def test_a_wrong_first_derivative_is_caught(problem):
    differences(fc.conv, *problem, order=1)
    with pytest.raises(AssertionError):
        differences(lambda params, x: wrong_by_first_order(fc.conv(params, x)), *problem, order=1)
    with pytest.raises(AssertionError):
        differences(lambda params, x: fc.conv(params, wrong_by_first_order(x)), *problem, order=1)


def test_a_wrong_second_derivative_is_caught(problem):
    wrong = wrong_by_second_order(fc.conv)
    differences(wrong, *problem, order=1)
    differences(fc.conv, *problem, order=2)
    with pytest.raises(AssertionError):
        differences(wrong, *problem, order=2)

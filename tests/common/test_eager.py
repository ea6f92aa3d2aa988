"""Calls outside of `jax.jit` are one program, and otherwise as before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close

import funcconv as fc
from funcconv._common.eager import one_program

X = jnp.arange(2 * 6 * 5 * 3, dtype=jnp.float32).reshape(2, 6, 5, 3)


class Counted:
    """An op that counts how often JAX calls it, which is once for each program."""

    def __init__(self):
        self.calls = 0
        self.op = one_program(self._op)

    def _op(self, x, factor=1, *, shift=0):
        self.calls += 1
        if factor == 0:
            msg = f"op: factor must not be 0; got {factor}"
            raise fc.FuncconvError(msg)
        return x * jnp.asarray(factor, x.dtype) + jnp.asarray(shift, x.dtype)


def test_the_same_call_runs_the_same_program():
    counted = Counted()
    for shift in (0, 1, 0, 1, 0):
        np.testing.assert_array_equal(counted.op(X, 2, shift=shift), 2 * np.asarray(X) + shift)
    assert counted.calls == 2


@pytest.mark.parametrize("equal", [(1, True), (1, 1.0), ((1, 1), (1, True))], ids=str)
def test_equal_options_of_other_types_are_other_calls(equal):
    counted = Counted()
    for factor in equal:
        counted.op(X[0, 0, :2, 0], factor)
    assert counted.calls == 2


@pytest.mark.parametrize("option", [np.int64(2), np.array(2), jnp.float32(2)], ids=["NumPy", "array", "JAX"])
def test_other_options_are_not_compiled(option):
    counted = Counted()
    for _ in range(2):
        np.testing.assert_allclose(counted.op(X, option), np.asarray(X) * np.asarray(option, np.float32))
    assert counted.calls == 2


def test_nothing_changes_inside_of_jit():
    program = jax.make_jaxpr(lambda x: fc.max_pool(x, 2))(X)
    assert [eqn.primitive.name for eqn in program.eqns].count("extreme") == 1  # not within an inner program
    assert jax.vmap(lambda x: fc.max_pool(x, 2))(X[None]).shape == (1, 2, 3, 2, 3)


def test_errors_are_those_of_the_op():
    with pytest.raises(fc.FuncconvError, match="factor must not be 0; got 0") as raised:
        Counted().op(X, 0)
    assert raised.value.__context__ is None
    assert raised.value.__cause__ is None
    with pytest.raises(fc.FuncconvError, match="window must be an integer"):
        fc.max_pool(X, True)


@pytest.mark.parametrize("reduce", ["max", "mean", "median", "lse"])
def test_pools_outside_and_inside_of_jit_are_equal(reduce):
    for x in (X, np.asarray(X)):
        outside = fc.pool(x, (3, 2), reduce=reduce, padding=1, stride=(2, 1))
        inside = jax.jit(lambda x: fc.pool(x, (3, 2), reduce=reduce, padding=1, stride=(2, 1)))(x)
        close(outside, inside)
        assert outside.dtype == inside.dtype
        assert outside.weak_type == inside.weak_type

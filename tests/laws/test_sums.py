"""Sums of 16-bit numbers are formed in float32, in every derivative of every op."""

import math
import operator
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CHIEF, EVERYWHERE, each

import funcconv as fc
from funcconv.interop._torch import ops as _torch_ops

BFLOAT16 = jnp.dtype("bfloat16")
TERMS = 100_000
EXAMPLES = 8  # different ones, which are repeated: the float64 result needs no more
ROUNDS_BETWEEN = {"graph-siamese", "std_pool-modes"}  # made of several functions, each of which rounds its result

# The siamese graph uses each weight twice, and more often in second derivatives.
each_case = each(lambda case: case.name != "graph-siamese", everywhere=EVERYWHERE)
each_op = each(lambda case: case.name not in ROUNDS_BETWEEN, rows=CHIEF, everywhere=EVERYWHERE)
# A row whose sums are right in bfloat16 sums in float32, so float16 differs only where a dtype is named.
each_in_float16 = each(lambda case: case.name not in ROUNDS_BETWEEN, rows=EVERYWHERE, everywhere=set())


def gradients(op, params, x, cotangent):
    return jax.vjp(op, params, x)[1](cotangent)


def derivatives(op, params, x, cotangent, along):
    """Return the gradients, and what they change by along a direction."""
    return jax.jvp(partial(gradients, op, cotangent=cotangent), (params, x), along)


def positive(rng, shape, dtype):
    return jnp.asarray(rng.uniform(0.5, 1, shape), dtype)


def sums_in_16_bits(text, name):
    """Return the lines of a lowered program that sum 16-bit numbers; sums of two or three are fine."""
    found, terms, many = [], {}, False
    for line in text.splitlines():
        opened = re.search(r'"stablehlo\.(\w+)"', line)
        many = opened[1] in ("scatter", "reduce_window", "select_and_scatter") if opened else many
        if not re.search(rf"<(?:[0-9]+x)*{name}>\s*$", line):
            continue
        if "applies stablehlo.add" in line:
            axes = re.search(r"across dimensions = \[([0-9, ]*)\] : \(tensor<((?:[0-9]+x)+)", line)
            sizes = axes[2].split("x")
            if math.prod(int(sizes[int(axis)]) for axis in axes[1].split(", ")) > 3:
                found.append(line)
        elif many and "})" in line:
            found.append(line)
        elif "stablehlo.add " in line:
            result, *operands = re.findall(r"%\w+", line)
            terms[result] = sum(terms.get(operand, 1) for operand in operands)
            if terms[result] > 3:
                found.append(line)
    return found


@each_case
def test_no_program_sums_in_16_bits(case, rng):
    params, x = case.draw(rng, "bfloat16", batch=(2,))
    y = jax.eval_shape(case.op, params, x)
    first = partial(gradients, case.op)

    @jax.jit
    def programs(params, x, cotangent):
        arguments = (params, x, cotangent)
        by_arguments = first(*arguments)
        of_gradient = jax.vjp(first, *arguments)[1](by_arguments)
        mapped = jax.vmap(first)(*jax.tree.map(lambda array: jnp.stack([array, array]), arguments))
        return case.op(params, x), by_arguments, of_gradient, mapped

    assert not sums_in_16_bits(programs.lower(params, x, jnp.ones(y.shape, y.dtype)).as_text(), "bf16")


def test_sums_in_16_bits_are_found():
    x = jnp.ones((4, 3), jnp.bfloat16)

    def found(f, x):
        return sums_in_16_bits(jax.jit(f).lower(x).as_text(), "bf16")

    assert found(jax.grad(lambda x: jnp.broadcast_to(x, (5, 4, 3)).astype("float32").sum()), x)
    assert found(lambda x: jnp.zeros(3, x.dtype).at[jnp.zeros(4, int)].add(x[:, 0]), x)
    assert found(lambda x: x[0] + x[1] + x[2] + x[3], x)
    assert not found(lambda x: x[0] + x[1] + x[2], x)
    assert not found(lambda x: x.sum(0), x)  # jnp.sum casts to float32


@each_op
def test_sums_of_many_terms_are_as_in_float64(case, rng):
    check_sums_of_many_terms(case, "bfloat16", rng)


@each_in_float16
def test_sums_of_many_terms_in_float16(case, rng):
    check_sums_of_many_terms(case, "float16", rng)


def check_sums_of_many_terms(case, dtype, rng):
    """Sum over examples of which some are repeated, so that the exact result is a multiple of theirs."""
    params, x = jax.tree.map(jnp.abs, case.draw(rng, dtype, batch=(EXAMPLES,)))
    y = jax.eval_shape(case.op, params, x)
    times = -(-TERMS // (EXAMPLES * max(int(np.prod(y.shape[1:-1])), 1)))
    cotangent = positive(rng, y.shape, dtype) / 256  # so that float16 holds the sums
    along = jax.tree.map(lambda array: positive(rng, array.shape, dtype), (params, x))

    @jax.jit
    def of_many(params, x, cotangent, along):
        x, cotangent, x_along = (
            jnp.tile(array, (times, *[1] * (array.ndim - 1))) for array in (x, cotangent, along[1])
        )
        (by_params, by_x), (by_params_along, by_x_along) = derivatives(
            case.op, params, x, cotangent, (along[0], x_along)
        )
        return (by_params, by_x[:EXAMPLES]), (by_params_along, by_x_along[:EXAMPLES])

    @jax.jit
    def of_each(params, x, cotangent, along):
        return jax.vmap(partial(derivatives, case.op), (None, 0, 0, (None, 0)))(params, x, cotangent, along)

    arguments = (params, x, cotangent, along)
    actual = of_many(*arguments)
    exact = of_each(*jax.tree.map(lambda array: array.astype("float64"), arguments))
    ulp = float(jnp.finfo(dtype).eps)
    for (params_found, x_found), (params_exact, x_exact) in zip(actual, exact, strict=True):
        assert x_found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(x_found, "float64"), x_exact, rtol=0, atol=2 * ulp * np.abs(x_exact).max(initial=0)
        )
        for name, array in params_found.items():
            assert array.dtype == dtype
            terms = times * np.asarray(params_exact[name])
            wrong = np.abs(np.asarray(array, "float64") - terms.sum(0))
            assert (wrong <= 2 * ulp * np.abs(terms).sum(0)).all(), name


def within(actual, exact):
    assert actual.dtype == BFLOAT16
    exact = np.asarray(exact, "float64")
    wrong = np.abs(np.asarray(actual, "float64") - exact)
    assert wrong.max() <= 2 * float(jnp.finfo(BFLOAT16).eps) * np.abs(exact).max()


def compare_gradients(f, x):
    """Compare the gradient of `f` in bfloat16 with the one in float64, all cotangents being positive."""
    x = jnp.asarray(x, BFLOAT16)

    @jax.jit
    def gradient(x):
        y, pullback = jax.vjp(f, x)
        return pullback(jnp.full(y.shape, 1 / 64, y.dtype))[0]

    within(gradient(x), gradient(x.astype("float64")))


@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_an_input_that_adaptive_pools_repeat(reduce):
    compare_gradients(lambda x: fc.adaptive_pool(x, (400,), reduce=reduce), [[[1.0]]])


@pytest.mark.parametrize("op", ["conv", "local_conv", "pool"])
def test_an_input_that_padding_shows_many_times(op):
    count = 3000
    options = {"padding": ((count, count),), "pad_mode": "replicate"}
    positions = (2 + 2 * count,) if op == "local_conv" else ()

    def f(x):
        if op == "pool":
            return fc.pool(x, (1,), reduce="sum", stride=1, **options)
        return getattr(fc, op)({"kernel": jnp.ones((*positions, 1, 1, 1), x.dtype)}, x, **options)

    compare_gradients(f, [[[1.0], [2.0]]])


@pytest.mark.parametrize(
    "repeat",
    [
        lambda x: _torch_ops.repeated(x, axis=0, index=(0,) * 600),
        lambda x: _torch_ops.broadcast(x, shape=(600, 2)),
        lambda x: _torch_ops.resampled(x, axis=0, index=((0, 0),) * 600, weights=((0.5, 0.5),) * 600),
    ],
)
def test_an_input_that_a_traced_module_repeats(repeat):
    x = jnp.ones((1, 2), BFLOAT16)
    gradient = jax.grad(lambda x: repeat(x).astype("float32").sum())
    assert not sums_in_16_bits(jax.jit(gradient).lower(x).as_text(), "bf16")


def test_a_transposed_convolution_adds_up_what_padding_has_shown():
    y = jnp.full((1, 6002, 1), 1 / 64, BFLOAT16)
    params = {"kernel": jnp.ones((1, 1, 1), BFLOAT16)}
    x = fc.conv_transpose(params, y, padding=((3000, 3000),), pad_mode="replicate")
    within(x, np.full((1, 2, 1), 3001 / 64))


@pytest.mark.parametrize("sparse", [False, True])
def test_the_matrix_of_a_convolution(sparse):
    def f(kernel):
        matrix = fc.conv_matrix({"kernel": kernel}, (600,), sparse=sparse)
        return matrix.data if sparse else matrix

    compare_gradients(f, np.ones((2, 1, 1)))
    if not sparse:  # the taps that read one input are one entry
        matrix = fc.conv_matrix({"kernel": jnp.ones((600, 1, 1), BFLOAT16)}, (2,), padding=299, pad_mode="circular")
        within(matrix, np.full((1, 2), 300.0))


@pytest.mark.parametrize("order", ["channels_last", "channels_first"])
def test_the_bias_of_a_convolution_as_a_dense_layer(order):
    def f(bias):
        params = {"kernel": jnp.ones((1, 1, 2), bias.dtype), "bias": bias}
        return fc.conv_to_dense(params, (600,), order=order)["bias"]

    compare_gradients(f, np.ones(2))


@pytest.mark.parametrize("op", [fc.conv, fc.conv_transpose])
def test_the_bias_is_added_in_the_dtype_of_accumulation(op):
    """The sums of products are 257, which bfloat16 rounds to 256; with the bias they are 258, which it has."""
    shape = (1, 257, 1) if op is fc.conv else (1, 1, 257)
    params = {"kernel": jnp.ones(shape, BFLOAT16), "bias": jnp.ones(1, BFLOAT16)}
    y = op(params, jnp.ones((1, 1, 257), BFLOAT16), accumulate_dtype=jnp.float32)
    assert y.dtype == BFLOAT16
    assert float(y[0, 0, 0]) == 258


def test_gradients_of_each_example_and_in_batches(rng):
    params = {"kernel": positive(rng, (3, 3, 1, 2), BFLOAT16), "bias": positive(rng, (2,), BFLOAT16)}
    x = positive(rng, (4, 60, 60, 1), BFLOAT16)

    def loss(params, x):
        return fc.conv(params, x, padding=1).astype("float32").mean()

    def of_one(params, x):
        return loss(params, x[None])

    exact = jax.vmap(jax.grad(of_one), (None, 0))(*jax.tree.map(lambda array: array.astype("float64"), (params, x)))
    gradients = jax.jit(fc.per_example_grad(of_one))(params, x)
    _, in_batches = jax.jit(fc.value_and_grad_in_batches(loss, 1))(params, x)
    for name in params:
        within(gradients[name], exact[name])
        within(in_batches[name], exact[name].mean(0))


@pytest.mark.parametrize("op", [operator.add, operator.mul, operator.truediv, operator.pow, operator.sub])
@pytest.mark.parametrize("gate", [(1, 1, 2), (2,)])
def test_a_gate_of_a_whole_image(op, gate):
    """Arithmetic of nodes copies the smaller value, so its gradient is a sum over positions."""
    image, other = fc.Input("image", (60, 60, 2)), fc.Input("gate", gate)
    for graph in (fc.Graph((image, other), op(image, other)), fc.Graph((image, other), op(other, image))):
        compare_gradients(
            lambda x, graph=graph: graph({}, jnp.full((1, 60, 60, 2), 1.5, x.dtype), x), jnp.ones((1, *gate))
        )


@pytest.mark.parametrize("shared", ["weights", "values"])
def test_what_a_graph_uses_many_times(shared):
    count = 300  # a sum of ones in bfloat16 stops at 256
    x = fc.Input("x", (1,))
    if shared == "weights":
        layer = fc.Dense(1, bias=False)
        y = fc.node(lambda *ys: sum(y.astype("float32") for y in ys), *(layer(x) for _ in range(count)))
    else:
        y = fc.node(lambda *ys: sum(y.astype("float32") for y in ys), *(fc.node(jnp.negative, x) for _ in range(count)))
    graph = fc.Graph(x, y)
    params = jax.tree.map(lambda array: jnp.ones(array.shape, BFLOAT16), graph.init(jax.random.key(0)))
    by_params, by_x = jax.jit(jax.grad(lambda *args: graph(*args).sum(), (0, 1)))(params, jnp.ones((1, 1), BFLOAT16))
    if shared == "weights":
        within(by_params["dense1"]["kernel"], [[count]])
    within(by_x, [[count if shared == "weights" else -count]])

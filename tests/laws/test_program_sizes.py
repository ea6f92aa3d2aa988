"""Programs do not grow with the window, the padding or the number of bins; derivatives are counted too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxprs import equations

import funcconv as fc
from funcconv._windows.geometry import Axis
from funcconv._windows.padding import pad

MODES = ("reflect", "symmetric", "replicate", "circular")


LARGE = [
    (97, 101),
    (15, 17, 13),
    *(pytest.param(window, marks=pytest.mark.slow) for window in [(1031,), (12, 13), (300, 3), (31, 5, 5)]),
]
MOST = 2000  # operations of a value; of the gradients and the product with the Hessian, two and three times as many


def operations(f, x):
    """Return how many operations there are in the function, and in its derivative."""
    grad = jax.grad(lambda x: (f(x) ** 2).sum())
    return [sum(1 for _ in equations(jax.make_jaxpr(function)(x))) for function in (f, grad)]


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


def test_local_response_norm_of_many_channels():
    few, many = (operations(partial(fc.local_response_norm, size=size), jnp.ones((1, 2000))) for size in (100, 1000))
    assert all(b < 2 * a for a, b in zip(few, many, strict=True)), (few, many)


@pytest.mark.parametrize("reduce", ["mean", "max", "lse", jnp.std])
def test_adaptive_bins_of_every_length(reduce):
    def sizes(size, outputs):
        return operations(partial(fc.adaptive_pool, output_size=outputs, reduce=reduce), jnp.ones((1, *size, 1)))

    few, many = sizes((64, 64), (37, 41)), sizes((256, 256), (149, 163))
    assert few == many
    assert max(many) < 1000


def lowered(f, *args):
    """Return how many operations the programs of an op, its gradients, and a product with its Hessian have."""

    def gradient(*args):
        return jax.grad(lambda *args: (f(*args) ** 2).sum(), tuple(range(len(args))))(*args)

    programs = f, gradient, lambda *args: jax.jvp(gradient, args, args)[1]
    return [jax.jit(program).lower(*args).as_text().count(" = ") for program in programs]


CONVOLUTIONS = {
    "dense": {},
    "same": {"padding": "SAME"},
    "strided": {"stride": 3},
    "grouped": {"groups": 2},
    "reflect": {"padding": "SAME", "pad_mode": "reflect"},
    "dilated": {"dilation": 2},
    "depthwise": {"groups": 4},
    "depthwise, strided": {"groups": 4, "stride": 2},
    "depthwise, strided and dilated": {"groups": 4, "stride": 2, "dilation": 3},
    "transposed": {"stride": 2},
    "transposed, depthwise": {"stride": 3, "groups": 4},
}


@pytest.mark.parametrize("window", LARGE)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_with_large_windows(name, window):
    """As many operations are enough for a window of any size; arrays are only described, and nothing is computed."""
    options = {"groups": 1, "dilation": 1} | CONVOLUTIONS[name]
    transposed = name.startswith("transposed")
    sizes = (9 for _ in window) if transposed else (k * options["dilation"] + 7 for k in window)
    kernel = jax.ShapeDtypeStruct((*window, 4 // options["groups"], 4), jnp.float32)
    x = jax.ShapeDtypeStruct((2, *sizes, 4), jnp.float32)

    def op(kernel, x):
        return (fc.conv_transpose if transposed else fc.conv)({"kernel": kernel}, x, **options)

    counts = lowered(op, kernel, x)
    assert all(number < times * MOST for times, number in enumerate(counts, start=1)), counts


@pytest.mark.parametrize("window", LARGE)
@pytest.mark.parametrize("op", ["unfold", "fold", "blur_pool"])
def test_patches_of_large_windows(op, window):
    sizes = tuple(k + 2 for k in window)
    shape = (2, *(3 for _ in window), *window, 2) if op == "fold" else (2, *sizes, 2)
    function = partial(fc.fold, size=sizes) if op == "fold" else partial(getattr(fc, op), window=window)
    counts = lowered(function, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert all(number < times * MOST for times, number in enumerate(counts, start=1)), counts


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize(("old", "new"), [((64, 9), (37, 41)), ((1000, 8), (10, 256)), ((64, 300), (509, 17))])
def test_resizing_to_every_size(method, antialias, old, new):
    f = partial(fc.resize, size=new, method=method, antialias=antialias)
    counts = lowered(f, jax.ShapeDtypeStruct((2, *old, 2), jnp.float32))
    assert all(number < times * MOST for times, number in enumerate(counts, start=1)), counts


@pytest.mark.parametrize("window", LARGE[1:])
@pytest.mark.parametrize("reduce", ["max", "mean", "lse", "lp", "median", "local_conv"])
def test_other_ops_with_large_windows(reduce, window):
    x = jax.ShapeDtypeStruct((2, *(k + 2 for k in window), 2), jnp.float32)
    if reduce == "local_conv":
        kernel = jax.ShapeDtypeStruct((*(3 for _ in window), *window, 2, 2), jnp.float32)
        counts = lowered(lambda kernel, x: fc.local_conv({"kernel": kernel}, x), kernel, x)
    else:
        counts = lowered(partial(fc.pool, window=window, stride=1, reduce=reduce, padding=1), x)
    assert all(number < times * MOST for times, number in enumerate(counts, start=1)), counts

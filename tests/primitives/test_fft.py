"""The form by fast Fourier transforms: its values, its errors, its blocks, and when it is chosen."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv._primitives.forms import Form, circles
from funcconv._primitives.forms import fft as _fft
from funcconv._windows.geometry import resolve

# The kernel, the image and options.
CASES = {
    "one axis": ((4, 3, 5), (3, 9, 3), {"stride": 2, "padding": (3,)}),
    "groups": ((3, 2, 2, 6), (4, 7, 6, 4), {"groups": 2, "padding": ((-1, 3), (2, -2)), "stride": (2, 1)}),
    "many channels": ((2, 3, 20, 18), (2, 5, 6, 20), {"padding": 1}),
    "depthwise": ((5, 4, 1, 6), (2, 6, 5, 3), {"groups": 3, "padding": "SAME"}),
    "stride above the window": ((2, 1, 3, 2), (2, 9, 8, 3), {"stride": (3, 4)}),
    "stride and dilation": ((3, 4, 3, 2), (2, 12, 9, 3), {"stride": (2, 4), "dilation": (3, 2), "padding": (4, 1)}),
    "no tap on the image": ((2, 3, 2), (2, 1, 3), {"padding": 3, "dilation": 6}),
    "windows on padding only": ((2, 2, 1, 2), (2, 4, 3, 1), {"padding": ((5, 0), (0, 4))}),
    "longer than the image": ((9, 5, 2, 3), (2, 3, 4, 2), {"padding": (4, 6), "dilation": (1, 3)}),
    "three axes": ((3, 2, 3, 2, 4), (2, 5, 4, 6, 2), {"padding": 1, "stride": (2, 1, 1)}),
    "five axes": ((2, 1, 2, 1, 2, 1, 2), (1, 3, 2, 3, 2, 4, 1), {"padding": (0, 1, 0, 0, 1)}),
}
TERMS = 512  # an FFT and the products of these sizes


def draw(rng, kernel, image, dtype=np.float64):
    def array(shape):
        values = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * rng.normal(size=shape)
        return jnp.asarray(values, dtype)

    return array(kernel), array(image)


def maps(how, options, kernel, x):
    """Return the result, both gradients, and what the gradients change by along the operands."""

    def conv(kernel, x):
        return fc.conv({"kernel": kernel}, x, implementation=how, **options)

    def gradients(kernel, x):
        y, pullback = jax.vjp(conv, kernel, x)
        return pullback(y)

    return conv(kernel, x), jax.jvp(gradients, (kernel, x), (kernel, x))


def parts(array):
    return np.stack([np.real(array), np.imag(array)])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.complex128, np.complex64, jnp.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_all_maps_are_those_of_lax(name, dtype, rng):
    kernel, image, options = CASES[name]
    operands = draw(rng, kernel, image, dtype)
    exact = [operand.astype(np.complex128 if np.iscomplexobj(operand) else np.float64) for operand in operands]
    actual = jax.jit(partial(maps, "fft", options))(*operands)
    expected = jax.jit(partial(maps, "lax", options))(*exact)
    for ours, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == dtype
        close(parts(ours), parts(reference), dtype, terms=4 if dtype == jnp.bfloat16 else TERMS)


@pytest.mark.parametrize("name", ["one axis", "groups", "many channels", "depthwise"])
@pytest.mark.parametrize("most", [0, 3, 11])
def test_blocks_of_every_size(name, most, monkeypatch, rng):
    kernel, image, options = CASES[name]
    operands = draw(rng, kernel, image)
    expected = jax.jit(partial(maps, "fft", options))(*operands)
    cut = _fft._cuts
    pieces = []

    def few(sizes, summed, _):
        cuts = cut(sizes, summed, most)
        pieces.append(math.prod(cut.pieces for cut in cuts.values()))
        return cuts

    monkeypatch.setattr(_fft, "_cuts", few)
    program = jax.jit(lambda *operands: maps("fft", options, *operands))
    jax.tree.map(partial(close, terms=TERMS), program(*operands), expected)
    assert min(pieces) > 1


@given(
    st.tuples(*[st.integers(1, 30)] * 4), st.sampled_from(["b", "g", "i", "o"]), st.integers(0, 3000)
)  # sizes, summed label, limit
@settings(max_examples=100, deadline=None)
def test_cuts_keep_the_limit(numbers, summed, most):
    sizes = dict(zip("bgio", numbers, strict=True))
    cuts = _fft._cuts(sizes, summed, most)
    assert all(cut.pieces * cut.size == sizes[label] for label, cut in cuts.items())
    channels = sum(math.prod(cuts[label].size for label in labels) for labels in circles.LABELS.values())
    assert channels <= max(most, 3)
    assert {cut.pieces for cut in _fft._cuts(sizes, summed, None).values()} == {1}


def test_fast_lengths():
    fast = sorted(
        2**a * 3**b * 5**c * 7**d for a, b, c, d in itertools.product(range(10), range(7), range(5), range(4))
    )
    assert [circles.fast_length(n) for n in range(1, 512)] == [next(f for f in fast if f >= n) for n in range(1, 512)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("image", "window", "options"),
    [
        ((2, 40, 37, 3), (40, 37), {"padding": "SAME"}),
        ((2, 700, 2), (300,), {"stride": 3}),
        ((1, 12, 11, 10, 2), (9, 8, 7), {"padding": "SAME"}),
    ],
)
def test_errors_are_relative_to_the_norms(image, window, options, dtype, rng):
    """Each number is off by at most eps times a few log2 of the length, times the product of the norms.

    An FFT of length n has an error of at most eps * O(log2 n) relative to the norm of its operand. There are three, and
    each number of the result is at most the product of the norms of the image and of the kernel.
    """
    kernel, x = draw(rng, (*window, image[-1], 4), image, dtype)
    y = jax.jit(partial(fc.conv, implementation="fft", **options))({"kernel": kernel}, x)
    expected = fc.conv({"kernel": kernel.astype(np.float64)}, x.astype(np.float64), implementation="lax", **options)[0]
    form = Form(resolve("op", image[1:-1], window, **options))
    n = math.prod(circles.Circle.of(axis).length for axis in form.axes)
    norms = np.linalg.norm(np.ravel(x[0]).astype(np.float64)) * max(
        np.linalg.norm(np.ravel(kernel[..., i]).astype(np.float64)) for i in range(4)
    )
    assert np.abs(np.asarray(y[0], np.float64) - expected).max() <= 3 * 2 * math.log2(n) * np.finfo(dtype).eps * norms


def test_a_nan_spreads_to_its_image(rng):
    kernel, x = draw(rng, (3, 2, 2), (2, 9, 2))
    y = fc.conv({"kernel": kernel}, x.at[0, 0, 0].set(jnp.nan), implementation="fft")
    assert jnp.isnan(y[0]).all()
    close(y[1], fc.conv({"kernel": kernel}, x)[1])


def test_accumulate_dtype_and_precision(rng):
    kernel, x = draw(rng, (3, 3, 20, 4), (2, 9, 8, 20), np.float32)

    def conv(how, **options):
        return fc.conv({"kernel": kernel}, x, implementation=how, **options)

    program = jax.jit(lambda: conv("fft", accumulate_dtype=np.float64)).lower().as_text()
    assert "complex<f64>" in program
    assert "complex<f32>" not in program
    assert conv("fft", accumulate_dtype=np.float64).dtype == np.float32
    close(conv("fft", precision="highest"), conv("lax"), terms=TERMS)
    half = fc.conv(
        {"kernel": kernel.astype(jnp.bfloat16)},
        x.astype(jnp.bfloat16),
        implementation="fft",
        accumulate_dtype=jnp.bfloat16,
    )
    assert half.dtype == jnp.bfloat16
    with pytest.raises(fc.FuncconvError, match="int64"):
        fc.conv({"kernel": jnp.ones((3, 2, 2), int)}, jnp.ones((2, 9, 2), int), implementation="fft")


def test_a_kernel_for_each_image(rng):
    kernels, images = draw(rng, (3, 4, 3, 2, 2), (3, 2, 7, 6, 2))

    def all_maps(how):
        f = jax.vmap(partial(maps, how, {"stride": (2, 1), "padding": 1}))
        return jax.jit(jax.vmap(f))(jnp.stack([kernels, 2 * kernels]), jnp.stack([images, 3 * images]))

    jax.tree.map(partial(close, terms=TERMS), all_maps("fft"), all_maps("lax"))
    mapped = jax.vmap(lambda kernel, x: fc.conv({"kernel": kernel}, x, implementation="fft"))
    (row,) = fc.explain(mapped, kernels, images)
    assert (row.form, row.why) == ("fft", 'implementation="fft"')


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_it_is_exported_with_a_batch_of_any_size(platform, rng):
    kernel, x = draw(rng, (3, 2, 2, 5), (4, 9, 8, 2), np.float32)
    (batch,) = export.symbolic_shape("b")
    program = jax.jit(partial(maps, "fft", {"stride": 2, "padding": 1}))
    exported = export.export(program, platforms=[platform])(kernel, jax.ShapeDtypeStruct((batch, 9, 8, 2), x.dtype))
    assert "stablehlo.fft" in exported.mlir_module()
    assert "convolution" not in exported.mlir_module()
    if platform == jax.default_backend():
        jax.tree.map(partial(close, terms=TERMS), exported.call(kernel, x), program(kernel, x))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize(
    "spec", [("a",), (None, "a"), (None, None, "b"), ("b", "a", None, None), (None, None, "a", "b")]
)
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_on_a_mesh(spec, dtype, rng):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    kernel, x = draw(rng, (5, 3, 2, 8), (8, 16, 8, 4), dtype)
    options = {"padding": "SAME", "groups": 2}
    f = jax.jit(lambda kernel, x: maps("fft", options, kernel, x))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    for kernel_spec in ((), (None, None, None, "b"), (None, None, "b")):
        spread_kernel = jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*kernel_spec)))
        jax.tree.map(
            lambda a, b: close(parts(jax.device_get(a)), parts(b), terms=TERMS), f(spread_kernel, spread), f(kernel, x)
        )


def chosen(image, window, outputs, dtype=np.float32, platform="cpu", **options):
    """Return the forms of the three maps."""
    kernel = jax.ShapeDtypeStruct((*window, image[-1] // options.get("groups", 1), outputs), dtype)
    x = jax.ShapeDtypeStruct(image, dtype)

    def f(kernel, x):
        y, pullback = jax.vjp(lambda kernel, x: fc.conv({"kernel": kernel}, x, **options), kernel, x)
        return y, pullback(y)

    return {row.form for row in fc.explain(f, kernel, x, platform=platform)}


def test_it_is_chosen_for_large_windows():
    same = {"padding": "SAME"}
    large = [
        ((4, 530, 1430, 1), (30, 30), 1, {}),
        ((1, 600, 600, 1), (300, 300), 1, {}),
        ((1, 300, 300, 1), (300, 300), 1, same),
        ((4, 16384, 8), (256,), 8, same),
        ((2, 32, 32, 32, 1), (15, 15, 15), 1, same),
        ((2, 64, 64, 32), (31, 31), 32, same | {"groups": 32}),
    ]
    for image, window, outputs, options in large:
        assert chosen(image, window, outputs, **options) == {"fft"}, image
    image, window, outputs, options = large[0]
    assert chosen(image, window, outputs, np.float64) == {"fft"}
    assert chosen(image, window, outputs, np.complex64) == {"fft"}
    assert "fft" not in chosen(image, window, outputs, platform="gpu")
    assert "fft" not in chosen(image, window, outputs, accumulate_dtype=np.float64)
    others = [
        ((8, 56, 56, 64), (3, 3), 64, {"padding": 1}),
        ((8, 28, 28, 32), (11, 11), 32, {"padding": 5}),
        ((8, 56, 56, 96), (7, 7), 96, {"padding": 3, "groups": 96}),
        ((8, 4096, 32), (64,), 32, same),
        ((4, 65536, 1), (1024,), 512, {"stride": 256}),
        ((4, 8192, 32), (256,), 32, same | {"groups": 32}),
        ((1, 40, 40, 1), (20, 20), 1, {}),
    ]
    for image, window, outputs, options in others:
        assert "fft" not in chosen(image, window, outputs, **options), image

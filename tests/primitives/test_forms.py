"""The forms in which convolutions are computed on the CPU: each equals the reference, and the choice among them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import close, products_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import funcconv as fc
from funcconv._primitives import forms as lowering
from funcconv._primitives.compiler import library_of
from funcconv._primitives.forms import block_diagonal_groups as _groups
from funcconv._primitives.forms import choice as _choice
from funcconv._primitives.forms import lax_conv as _lax
from funcconv._primitives.forms import maps as _maps
from funcconv._primitives.forms import planes as _depth
from funcconv._primitives.forms import shifted_sum as _depthwise
from funcconv._primitives.forms import stride_phases as _phases
from funcconv._primitives.forms.products import blocked_im2col as _blocks
from funcconv._windows import pieces as _cuts
from funcconv._windows.geometry import resolve

TABLES = _choice.CONV, _choice.INPUT_GRAD, _choice.KERNEL_GRAD

# The kernel, the image, the options, and the forms of the convolution and of its gradients by image and kernel.
CASES = {
    "dense": ((3, 3, 3, 20), (2, 7, 6, 3), {"padding": 1}, ("lax", "stride_phases", "blocked_im2col")),
    "one axis": (
        (4, 3, 20),
        (2, 9, 3),
        {"stride": 2, "padding": (3,)},
        ("blocked_im2col", "stride_phases", "blocked_im2col"),
    ),
    "narrow": (
        (3, 2, 3, 4),
        (2, 7, 6, 3),
        {"stride": (1, 2), "dilation": (2, 1)},
        ("blocked_im2col", "stride_phases", "blocked_im2col"),
    ),
    "tapering": (
        (3, 3, 30, 1),
        (2, 7, 6, 30),
        {"padding": 1},
        ("lax", "stride_phases", "blocked_im2col_of_cotangents"),
    ),
    "even": (
        (3, 4, 9, 7),
        (2, 7, 6, 9),
        {"padding": (1, 2), "dilation": (2, 1)},
        ("lax", "stride_phases", "blocked_im2col_of_both"),
    ),
    "three axes": (
        (3, 2, 3, 2, 20),
        (2, 5, 4, 6, 2),
        {"padding": 1, "stride": (2, 1, 1)},
        ("planes", "stride_phases", "blocked_im2col"),
    ),
    "many planes": (
        (5, 2, 3, 4, 1),
        (2, 9, 4, 5, 4),
        {"padding": (2, 0, 1), "stride": (1, 2, 1)},
        ("planes", "stride_phases", "blocked_im2col_of_both"),
    ),
    "four axes": (
        (2, 3, 1, 2, 2, 3),
        (1, 4, 5, 2, 4, 2),
        {"padding": (0, 1, 0, 1), "dilation": (2, 1, 1, 1)},
        ("sum_of_planes", "stride_phases", "blocked_im2col"),
    ),
    "one tap": (
        (1, 1, 3, 5),
        (2, 4, 5, 3),
        {"stride": (1, 2), "padding": (0, 1)},
        ("matrix_product", "stride_phases", "matrix_product"),
    ),
    "patches": ((4, 4, 2, 20), (2, 8, 12, 2), {"stride": 4}, ("blocked_im2col", "stride_phases", "blocked_im2col")),
    "gaps": ((2, 1, 3, 20), (2, 9, 8, 3), {"stride": (3, 4)}, ("blocked_im2col", "stride_phases", "blocked_im2col")),
    "few phases": (
        (5, 5, 9, 20),
        (2, 9, 8, 9),
        {"stride": (3, 2), "padding": 2},
        ("lax", "stride_phases", "blocked_im2col"),
    ),
    "dilated phases": (
        (3, 4, 3, 20),
        (2, 12, 9, 3),
        {"stride": (2, 4), "dilation": (3, 2), "padding": ((4, 1), (0, 5))},
        ("lax", "stride_phases", "exchanged_axes"),
    ),
    "many dilated phases": (
        (6, 2, 20),
        (2, 30, 2),
        {"stride": 20, "dilation": 3, "padding": 9},
        ("blocked_im2col", "stride_phases", "blocked_im2col"),
    ),
    "depthwise": (
        (3, 2, 1, 4),
        (2, 7, 6, 4),
        {"stride": (1, 2), "padding": 1, "groups": 4},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "depthwise, one axis": (
        (3, 1, 6),
        (2, 7, 6),
        {"dilation": 2, "groups": 6},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "depthwise, three axes": (
        (2, 3, 2, 1, 3),
        (2, 4, 5, 3, 3),
        {"padding": 1, "groups": 3},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "multiplied": (
        (3, 3, 1, 8),
        (2, 5, 6, 4),
        {"stride": 2, "padding": 1, "groups": 4},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "depthwise, many taps": (
        (9, 8, 1, 4),
        (2, 11, 9, 4),
        {"groups": 4},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "depthwise, large": (
        (13, 11, 1, 6),
        (2, 9, 14, 3),
        {"padding": (16, 5), "stride": (2, 1), "dilation": (2, 1), "groups": 3},
        ("shifted_sum_by_rows", "stride_phases", "shifted_sum"),
    ),
    "depthwise, large, three axes": (
        (5, 4, 4, 1, 2),
        (1, 6, 5, 4, 2),
        {"padding": (1, 0, 2), "stride": (1, 1, 2), "groups": 2},
        ("shifted_sum_by_rows", "stride_phases", "shifted_sum"),
    ),
    "depthwise, long rows": (
        (3, 26, 1, 2),
        (2, 4, 27, 2),
        {"padding": 1, "groups": 2},
        ("shifted_sum", "stride_phases", "shifted_sum"),
    ),
    "depthwise, pieces of rows": (
        (2, 67, 1, 2),
        (1, 4, 67, 2),
        {"padding": 2, "groups": 2},
        ("shifted_sum_by_rows", "stride_phases", "shifted_sum"),
    ),
    "depthwise, phases of many taps": (
        (12, 11, 1, 4),
        (1, 36, 33, 2),
        {"stride": 2, "dilation": 3, "padding": (0, 2), "groups": 2},
        ("shifted_sum_by_rows", "stride_phases", "shifted_sum"),
    ),
    "tall": ((19, 4, 8, 8), (2, 23, 7, 8), {"padding": (3, 1)}, ("lax", "stride_phases", "blocked_im2col_of_both")),
    "depthwise, long line": ((70, 1, 3), (2, 75, 3), {"groups": 3}, ("shifted_sum", "stride_phases", "shifted_sum")),
    "groups": (
        (3, 3, 2, 12),
        (2, 9, 8, 8),
        {"stride": 2, "padding": 1, "groups": 4},
        ("block_diagonal_groups", "stride_phases", "block_diagonal_groups"),
    ),
    "uneven groups": (
        (2, 3, 3, 35),
        (2, 6, 5, 21),
        {"groups": 7},
        ("block_diagonal_groups", "stride_phases", "block_diagonal_groups"),
    ),
    "wide groups": (
        (2, 2, 17, 180),
        (2, 6, 5, 153),
        {"groups": 9},
        ("block_diagonal_groups", "stride_phases", "block_diagonal_groups"),
    ),
    "groups of one tap": (
        (1, 1, 2, 6),
        (2, 6, 5, 6),
        {"groups": 3},
        ("block_diagonal_groups", "lax", "block_diagonal_groups"),
    ),
    "cropped": (
        (3, 3, 3, 20),
        (2, 9, 8, 3),
        {"padding": ((-2, 1), (3, -1)), "stride": 2},
        ("lax", "stride_phases", "exchanged_axes"),
    ),
    "cropped and padded": (
        (3, 2, 3, 20),
        (2, 9, 8, 3),
        {"padding": ((-2, 4), (3, -1))},
        ("lax", "stride_phases", "blocked_im2col"),
    ),
    "taps on padding": (
        (9, 5, 3, 20),
        (2, 3, 4, 3),
        {"padding": (4, 6), "dilation": (1, 3)},
        ("blocked_im2col", "stride_phases", "blocked_im2col"),
    ),
    "one tap on the image": (
        (3, 3, 3, 20),
        (2, 4, 3, 3),
        {"padding": 5, "dilation": 5},
        ("matrix_product", "stride_phases", "matrix_product"),
    ),
    "no tap on the image": (
        (2, 3, 20),
        (2, 1, 3),
        {"padding": 3, "dilation": 6},
        ("blocked_im2col", "stride_phases", "blocked_im2col"),
    ),
    "mostly padding": (
        (3, 3, 20, 3),
        (2, 3, 4, 20),
        {"padding": (6, 5)},
        ("lax", "stride_phases", "blocked_im2col_of_cotangents"),
    ),
}
DEPTHWISE = [name for name in CASES if name.startswith(("depthwise", "multiplied"))]


@pytest.fixture
def chosen(monkeypatch):
    """Take forms at any size, and return which maps were lowered in which."""
    monkeypatch.setattr(_choice, "_FEW_PRODUCTS", 0)
    names = []

    def choose(table, problem):
        row = _choice.choose(table, problem)
        names.append((table, row.form))
        return row

    monkeypatch.setattr(_maps, "choose", choose)
    return names


def draw(rng, kernel, image, dtype=np.float64):
    def array(shape):
        values = rng.normal(size=shape)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            values = values + 1j * rng.normal(size=shape)
        return jnp.asarray(values, dtype)

    return {"kernel": array(kernel)}, array(image)


def everything(implementation, options, params, x):
    """Return the result, both gradients and the products with the Hessian of a nonlinear function of it."""

    def f(params, x):
        y = fc.conv(params, x, implementation=implementation, **options)
        return jnp.sin(y).sum().real

    gradient = jax.grad(f, argnums=(0, 1))
    y = fc.conv(params, x, implementation=implementation, **options)
    return y, gradient(params, x), jax.jvp(gradient, (params, x), (params, x))[1]


@pytest.mark.parametrize("name", CASES)
def test_each_form_is_the_reference(name, chosen, rng):
    kernel, image, options, forms = CASES[name]
    params, x = draw(rng, kernel, image)
    actual = jax.jit(partial(everything, None, options))(params, x)
    for table, form in zip(TABLES, forms, strict=True):
        assert next(one for other, one in chosen if other is table) == form
    expected = jax.jit(partial(everything, "lax", options))(params, x)
    jax.tree.map(partial(close, ulps=256), actual, expected)


@pytest.mark.once
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.complex64], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("name", ["dense", "narrow", "three axes", "one tap", "multiplied", "groups", "patches"])
def test_each_form_in_other_dtypes(name, dtype, chosen, rng):
    del chosen
    kernel, image, options, _ = CASES[name]
    params, x = draw(rng, kernel, image, dtype)
    g = jnp.ones_like(fc.conv(params, x, **options))

    def maps(implementation, params, x):
        y, pullback = jax.vjp(partial(fc.conv, implementation=implementation, **options), params, x)
        return y, pullback(g)

    actual, expected = (jax.jit(partial(maps, how))(params, x) for how in (None, "lax"))
    for ours, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == dtype
        close(*(np.stack([np.real(array), np.imag(array)]) for array in (ours, reference)), dtype=dtype)


@pytest.mark.parametrize(("gathered", "padded"), [(1, 1), (1, 600), (350, 2**22), (350, 600)])
@pytest.mark.parametrize(
    "name",
    [
        "dense",
        "even",
        "narrow",
        "one axis",
        "many planes",
        "cropped",
        "dilated phases",
        "cropped and padded",
        "mostly padding",
    ],
)
def test_blocks_of_every_size(name, gathered, padded, monkeypatch, rng):
    monkeypatch.setattr(_blocks, "_BLOCK_NUMBERS", gathered)
    monkeypatch.setattr(_blocks, "_PADDED_NUMBERS", padded)
    kernel, image, options, _ = CASES[name]
    form = lowering.Form(resolve("op", image[1:-1], kernel[:-2], **options))
    params, x = draw(rng, kernel, (5, *image[1:]))  # five images: blocks of two or three leave a rest
    reference = partial(_lax.reference, form=form)
    close(jax.jit(partial(_blocks.conv, form=form))(x, params["kernel"]), reference(x, params["kernel"]))
    g = jnp.asarray(rng.normal(size=(5, *form.positions, kernel[-1])))
    (expected,) = jax.linear_transpose(partial(reference, x), params["kernel"])(g)
    close(jax.jit(partial(_blocks.kernel_grad, form=form))(x, g), expected)
    if form.axes[0].stride == 1:
        close(jax.jit(partial(_blocks.kernel_grad_by_both_windows, form=form))(x, g), expected)


@pytest.mark.parametrize("held", [1, 1000, 2**20])
@pytest.mark.parametrize("name", ["three axes", "many planes", "four axes"])
def test_planes_of_every_number(name, held, monkeypatch, rng):
    monkeypatch.setattr(_depth, "_BLOCK_NUMBERS", held)
    kernel, image, options, _ = CASES[name]
    form = lowering.Form(resolve("op", image[1:-1], kernel[:-2], **options))
    params, x = draw(rng, kernel, (5, *image[1:]))
    expected = _lax.reference(x, params["kernel"], form)
    for conv in (_depth.conv, _depth.conv_by_taps):
        close(jax.jit(partial(conv, form=form, dense=_lax.reference))(x, params["kernel"]), expected)


@pytest.mark.parametrize(("positions", "read"), [(1, 1), (3, 150), (20, 2**18)])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_blocks_of_positions_of_every_size(name, positions, read, monkeypatch, rng):
    monkeypatch.setattr(_depthwise, "_READ_NUMBERS", read)
    monkeypatch.setattr(_depthwise, "_BLOCK_POSITIONS", positions)
    kernel, image, options, _ = CASES[name]
    options = dict(options)
    groups = options.pop("groups")
    form = lowering.Form(resolve("op", image[1:-1], kernel[:-2], **options), groups)
    params, x = draw(rng, kernel, (5, *image[1:]))
    g = jnp.asarray(rng.normal(size=(5, *form.positions, kernel[-1])))
    (expected,) = jax.linear_transpose(lambda w: _lax.reference(x, w, form), params["kernel"])(g)
    for blocks in (True, False):
        kernel_gradient = jax.jit(partial(_depthwise.kernel_grad, form=form, old=False, blocks=blocks))(x, g)
        close(kernel_gradient, expected)


def test_a_depthwise_convolution_is_computed_once_for_all_that_use_it(rng):
    params, x = draw(rng, (3, 3, 1, 32), (8, 28, 28, 32), np.float32)

    def conv(params, x):
        return fc.conv(params, x, padding=1, groups=32)

    def used(params, x):  # by operations that XLA does not fuse with each other
        y = jax.nn.relu(conv(params, x))
        return y.reshape(-1, 32) @ jnp.ones((32, 16), np.float32), y.reshape(4, -1, 32), jnp.pad(y, 1)

    def products(f):
        return jax.jit(f).lower(params, x).compile().as_text().count(" multiply(")

    assert products(used) == products(conv) > 0


@pytest.mark.parametrize("images", [1, 2])  # of five
@pytest.mark.parametrize("name", DEPTHWISE)
def test_padded_images_some_after_others(name, images, monkeypatch, rng):
    kernel, image, options, _ = CASES[name]
    options = dict(options)
    groups = options.pop("groups")
    form = lowering.Form(resolve("op", image[1:-1], kernel[:-2], **options), groups)
    monkeypatch.setattr(_depthwise, "_PADDED_NUMBERS", images * form.extended * kernel[-1])
    monkeypatch.setattr(_depthwise, "_MOST_PADDING_FACTOR", 0)
    params, x = draw(rng, kernel, (5, *image[1:]))
    expected = _lax.reference(x, params["kernel"], form)
    for conv in (partial(_depthwise.conv, old=False), _depthwise.conv_by_blocks):
        program = jax.jit(partial(conv, form=form, blocks=True))
        assert f"f64[{images},{','.join(map(str, x.shape[1:]))}]" in str(program.trace(x, params["kernel"]).jaxpr)
        close(program(x, params["kernel"]), expected)


@pytest.mark.parametrize("number", [1, 7, 12, 97])
@pytest.mark.parametrize("most", [0, 1, 5, 8, 100])
def test_an_axis_is_cut_once(number, most):
    found = _cuts.cuts(number, most)
    pieces = [
        range(cut.begin + i * cut.size, cut.begin + (i + 1) * cut.size) for cut in found for i in range(cut.pieces)
    ]
    assert [place for piece in pieces for place in piece] == [*range(number)]
    assert all(1 <= cut.size <= max(most, 1) for cut in found)
    assert len(found) <= 2


@pytest.mark.parametrize(
    "block",
    [
        [(3, 1, 4)],
        [(0, 3, 2)],
        [(0, 2, 3), (6, 1, 1)],
        [(0, 2, 1), (4, 3, 2)],
        [(2, 1, 2), (1, 1, 5)],
        [(0, 2, 2), (7, 1, 3), (1, 4, 5), (0, 3, 1)],
    ],
)
def test_pieces_come_in_row_major_order(block):
    cuts = [_cuts.Cut(*cut) for cut in block]
    expected = [*itertools.product(*(range(c.begin, c.begin + c.pieces * c.size, c.size) for c in cuts))]

    def note(begins, carry):
        places, n = carry
        return places.at[n].set(jnp.asarray(begins)), n + 1

    program = jax.jit(lambda carry: _cuts.loop_over(cuts, note, carry))
    start = (jnp.full((len(expected), len(cuts)), -1), 0)
    places, number = program(start)
    assert [tuple(place) for place in places.tolist()] == expected
    assert number == len(expected)
    assert ("stablehlo.while" in program.lower(start).as_text()) == (len(expected) > 1)  # no loop of one pass


def test_programs_do_not_grow_with_the_number_of_groups():
    def lines(groups):
        kernel = jax.ShapeDtypeStruct((3, 3, 16, 16 * groups), jnp.float32)
        x = jax.ShapeDtypeStruct((2, 12, 12, 16 * groups), jnp.float32)

        def loss(kernel, x):
            return fc.conv({"kernel": kernel}, x, padding=1, groups=groups).sum()

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(kernel, x).as_text().count("\n")

    assert lines(5) == lines(8) == lines(64) < 2 * lines(2)


@pytest.mark.parametrize("name", ["multiplied", "depthwise, large, three axes", "groups", "uneven groups"])
def test_taps_in_a_loop(name, monkeypatch, rng):
    monkeypatch.setattr(_groups, "_MOST_SLICED_TAPS", 0)
    kernel, image, options, _ = CASES[name]
    options = dict(options)
    groups = options.pop("groups")
    form = lowering.Form(resolve("op", image[1:-1], kernel[:-2], **options), groups)
    params, x = draw(rng, kernel, image)
    g = jnp.asarray(rng.normal(size=(len(x), *form.positions, kernel[-1])))
    (expected,) = jax.linear_transpose(lambda w: _lax.reference(x, w, form), params["kernel"])(g)
    close(jax.jit(partial(_groups.kernel_grad_by_taps, form=form))(x, g), expected)


@pytest.mark.parametrize("padding", [0, 1, 4, ((-1, 2), (0, 3))])
@pytest.mark.parametrize("dilation", [1, (2, 1), (1, 3)])
def test_windows_of_cotangents(padding, dilation, rng):
    form = lowering.Form(resolve("op", (9, 8), (3, 2), padding=padding, dilation=dilation))
    params, x = draw(rng, (3, 2, 5, 2), (3, 9, 8, 5))
    g = jnp.asarray(rng.normal(size=(3, *form.positions, 2)))
    (expected,) = jax.linear_transpose(lambda w: _lax.reference(x, w, form), params["kernel"])(g)
    close(jax.jit(partial(_blocks.kernel_grad_by_cotangent_windows, form=form))(x, g), expected)
    close(jax.jit(partial(_blocks.kernel_grad_by_both_windows, form=form))(x, g), expected)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": ((0, 2), (-1, 1))}),
        ((3, 3), {"padding": (2, 0), "dilation": 2}),
        ((3, 3), {}),
        ((3, 2), {"stride": 2}),
        ((2, 3), {"stride": (3, 2), "dilation": (1, 2)}),
        ((1, 3), {}),
        ((1, 3), {"padding": 1}),
        ((3, 3), {"padding": -1}),
    ],
)
def test_a_line_more(window, options, rng):
    form = lowering.Form(resolve("op", (6, 7), window, **options))
    params, x = draw(rng, (*window, 2, 4), (2, 6, 7, 2), np.float32)
    found = jax.jit(partial(_lax.conv_with_extra_row, form=form))(x, params["kernel"])
    close(found, _lax.reference(x, params["kernel"], form), terms=products_of(params))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_axis(dtype):
    def forms(inputs, outputs, window=3, library=None, **options):
        geometry = lowering.Form(resolve("op", (90,), (window,), padding=1, **options), library=library)
        shapes = (8, 90, inputs), (window, inputs, outputs)
        problem = lowering.Problem.of(geometry, *shapes, np.dtype(dtype), 0, lowering.Where("cpu", old=False))
        return [_choice.choose(table, problem).form for table in (_choice.CONV, _choice.KERNEL_GRAD)]

    assert forms(32, 8) == ["blocked_im2col" if dtype == np.float64 else "lax", "blocked_im2col_of_cotangents"]
    assert forms(4, 4) == ["blocked_im2col", "blocked_im2col"]
    assert forms(16, 32) == [forms(32, 8)[0], "blocked_im2col"]
    assert forms(16, 32, window=5) == forms(16, 32, dilation=2) == [forms(32, 8)[0], "exchanged_axes"]
    assert forms(16, 31, window=5)[1] == forms(7, 32, window=5)[1] == "blocked_im2col"
    # oneDNN is slow for the stride of 2 that this dilation becomes, if there are few taps.
    beside = {"library": library_of({"xla_cpu_experimental_onednn_custom_call": True}), "dilation": 2}
    assert forms(16, 32, **beside)[1] == "blocked_im2col"
    assert forms(32, 32, **beside)[1] == "blocked_im2col_of_both"
    assert forms(16, 32, window=5, **beside)[1] == "exchanged_axes"


@pytest.mark.parametrize(("dtype", "form"), [(np.float64, "matrix_product"), (np.float32, "lax")])
def test_one_tap_on_one_axis(dtype, form):
    geometry = lowering.Form(resolve("op", (90,), (1,)))
    problem = lowering.Problem.of(geometry, (8, 90, 32), (1, 32, 8), np.dtype(dtype), 0, lowering.Where("cpu"))
    assert _choice.choose(_choice.CONV, problem).form == form
    assert _choice.choose(_choice.KERNEL_GRAD, problem).form == "matrix_product"


def test_slow_ways_of_xla_are_gone_round():
    """Where they are slow, and nowhere else."""
    old, new = (lowering.Where("cpu", old=old) for old in (True, False))

    def form(where, inputs=32, outputs=48, batch=8, window=3, dtype=np.float32, size=28, **options):
        geometry = lowering.Form(resolve("op", (size, size), (window, window), **options))
        shapes = (batch, size, size, inputs), (window, window, inputs, outputs)
        return _choice.choose(_choice.CONV, lowering.Problem.of(geometry, *shapes, np.dtype(dtype), 0, where)).form

    unpadded, strided, with_zeros = {}, {"stride": 2}, {"padding": 1}
    for options in (unpadded, strided, with_zeros):
        assert form(old, **options) == "lax_with_extra_row"
        assert {form(new, **options), form(old, dtype=np.float64, **options)} == {"lax"}
    # Without padding: where windows overlap, and there is much to gather; whatever the number of images and outputs.
    assert {form(old, outputs=3), form(old, batch=1, inputs=64), form(old, inputs=8, batch=32)} == {
        "lax_with_extra_row"
    }
    assert {form(old, batch=1, size=14), form(old, window=2, stride=2)} == {"lax"}
    few = {"inputs": 8, "batch": 32}
    assert {form(old, **few, outputs=16), form(old, **few, window=2), form(old, **few, size=14)} == {"lax"}
    # With padding: results that are as large as the image, but not larger; a newer XLA with odd numbers of channels.
    assert {form(where, inputs=33, padding=1) for where in (old, new)} == {"lax_with_extra_row"}
    assert {form(old, padding=1, batch=1), form(old, padding=1, size=14, batch=2)} == {"lax"}
    others = ({"outputs": 8}, {"inputs": 15}, {"stride": 2}, {"padding": 2})
    for where in (old, new):
        assert {form(where, **({"padding": 1, "inputs": 33} | other)) for other in others} <= {"lax", "blocked_im2col"}
        assert form(where, padding=1, inputs=33, dtype=np.float64) == "lax"


def test_convolutions_by_products_of_gathered_windows():
    """Where the image is small, or there are few positions or few channels, on both versions."""

    def forms(size=40, inputs=32, outputs=64, batch=8, window=3, dtype=np.float32, library=None, axes=2, **options):
        geometry = lowering.Form(resolve("op", (size,) * axes, (window,) * axes, **options), library=library)
        shapes = (batch, *geometry.spatial, inputs), (*geometry.window, inputs, outputs)
        wheres = (lowering.Where("cpu", old=old) for old in (True, False))
        problems = (lowering.Problem.of(geometry, *shapes, np.dtype(dtype), 0, where) for where in wheres)
        return [_choice.choose(_choice.CONV, problem).form for problem in problems]

    blocks = (
        {"size": 3, "window": 5, "padding": 2},
        {"size": 2, "padding": 1},
        {"size": 7, "window": 7},
        {"size": 5, "dtype": np.float64},
        {"inputs": 1, "outputs": 16},
        {"inputs": 5, "outputs": 3},
        {"size": 4, "axes": 3},
        {"size": 14, "axes": 1},
        {"axes": 1, "inputs": 8, "outputs": 65, "padding": 1},
    )
    for options in blocks:
        assert forms(**options) == ["blocked_im2col", "blocked_im2col"], options
    small = {"size": 4, "window": 5, "padding": 2}
    others = (
        small | {"outputs": 4},
        {"size": 6, "dilation": 2, "padding": 1},
        {"stride": 3, "window": 3},
        {"inputs": 3, "outputs": 32, "padding": 1},
        {"size": 3, "library": "onednn"},
        {"axes": 1, "inputs": 16, "outputs": 65},
        {"axes": 1, "inputs": 8, "outputs": 64},
    )
    for options in others:
        assert forms(**options) == ["lax", "lax"], options
    assert forms(size=5, axes=3) == ["planes", "planes"]
    assert forms(size=4, axes=3, outputs=16) == ["sum_of_planes", "sum_of_planes"]


@pytest.mark.parametrize(
    "options", [{"padding": 2}, {"padding": (1, 2), "stride": 2}, {"padding": 4, "dilation": (2, 1)}]
)
def test_batch_and_channels_exchanged(options, rng):
    form = lowering.Form(resolve("op", (9, 8), (5, 4), **options))
    params, x = draw(rng, (5, 4, 3, 4), (3, 9, 8, 3))
    g = jnp.asarray(rng.normal(size=(3, *form.positions, 4)))
    (expected,) = jax.linear_transpose(lambda w: _lax.reference(x, w, form), params["kernel"])(g)
    close(jax.jit(partial(_lax.kernel_grad_with_exchanged_axes, form=form))(x, g), expected)


def test_kernel_gradients():
    """Products of what is cheapest to gather, but where that is whole windows, and XLA is fast."""

    def forms(inputs=64, outputs=64, batch=8, window=3, dtype=np.float32, padding=1, size=28, library=None, **options):
        geometry = lowering.Form(resolve("op", (size,) * 2, (window,) * 2, padding=padding, **options), library=library)
        shapes = (batch, size, size, inputs), (window, window, inputs, outputs)
        wheres = (lowering.Where("cpu", old=old) for old in (True, False))
        problems = (lowering.Problem.of(geometry, *shapes, np.dtype(dtype), 0, where) for where in wheres)
        return [_choice.choose(_choice.KERNEL_GRAD, problem).form for problem in problems]

    mixed = (
        {},
        {"inputs": 128},
        {"batch": 1},
        {"padding": 0},
        {"library": "onednn"},
        {"dtype": np.float64},
        {"window": 5, "padding": 2},
        {"size": 14, "batch": 4},
    )
    for options in mixed:
        assert forms(**options) == ["blocked_im2col_of_both", "blocked_im2col_of_both"], options
    blocks = {"window": 4, "stride": 4}, {"stride": 3}, {"stride": 2}, {"inputs": 2, "outputs": 33, "batch": 99}
    for options in blocks:
        assert forms(**options) == ["blocked_im2col", "blocked_im2col"], options
    assert forms(outputs=8) == forms(outputs=3) == ["blocked_im2col_of_cotangents", "blocked_im2col_of_cotangents"]
    hollow = {"window": 7, "padding": 3, "stride": 2, "size": 5, "batch": 99}
    small_image = {"size": 14, "stride": 2}
    for options in (hollow, hollow | {"dtype": np.float64}, small_image, small_image | {"dtype": np.float64}):
        assert forms(**options) == ["exchanged_axes", "exchanged_axes"], options
    assert forms(**small_image, batch=7) == ["exchanged_axes", "blocked_im2col"]
    many_taps = {"window": 4, "stride": 2}
    assert forms(**many_taps) == ["exchanged_axes", "exchanged_axes"]
    assert forms(**many_taps, outputs=63) == forms(**many_taps, batch=7) == ["blocked_im2col", "blocked_im2col"]
    assert forms(**many_taps, padding=0) == ["blocked_im2col", "exchanged_axes"]
    assert forms(window=5, padding=2, outputs=65) == ["blocked_im2col_of_both", "blocked_im2col_of_both"]
    assert forms(window=5, padding=2, outputs=68) == ["exchanged_axes", "blocked_im2col_of_both"]
    assert (
        forms(**small_image, batch=7, dtype=np.float64)
        == forms(**small_image, library="onednn")
        == ["blocked_im2col", "blocked_im2col"]
    )


@pytest.mark.once
@pytest.mark.parametrize("merges", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
def test_phases_by_themselves_or_as_channels(merges, groups, monkeypatch, rng):
    monkeypatch.setattr(_phases, "_merges", lambda *_: merges)
    for window, stride, lo, size in itertools.product((1, 3, 5), (2, 3), (-1, 4), (8,)):
        form = lowering.Form(resolve("op", (size,), window, stride=stride, padding=((lo, 1),)), groups)
        kernel = jnp.asarray(rng.normal(size=(window, 2, 2 * groups)))
        g = jnp.asarray(rng.normal(size=(2, *form.positions, 2 * groups)))
        image = jnp.zeros(form.image(g, kernel))
        (expected,) = jax.linear_transpose(lambda x, w=kernel, form=form: _lax.reference(x, w, form), image)(g)
        close(_phases.input_grad(kernel, g, form, _lax.reference), expected)


@given(
    st.tuples(*[st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))] * 2),
    st.integers(1, 6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([None, "cpu"]),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([None, 1, 4]),
)
@settings(max_examples=200, deadline=None)
def test_there_is_a_choice_for_everything(axes, groups, inputs, outputs, platform, devices, parts):
    form = lowering.Form(
        tuple(resolve("op", (size + 12,), k, stride=s, dilation=d)[0] for size, k, s, d in axes), groups
    )
    image, kernel = (2, *form.spatial, inputs * groups), (*form.window, inputs, outputs * groups)
    for stack, typed in ((0, False), (0, True), (1, False)):
        where = lowering.Where(platform, devices, parts, typed)
        shapes = ((3,) * stack + image, (3,) * stack + kernel)
        problem = lowering.Problem.of(form, *shapes, np.dtype(np.float32), stack, where)
        forms = [
            _choice.choose(table, problem).form for table in (_choice.CONV, _choice.INPUT_GRAD, _choice.KERNEL_GRAD)
        ]
        if stack:
            assert forms == ["batched_product"] * 3
        elif groups > 1 and parts != 1:
            assert "lax" not in forms
        elif platform is None or typed:
            assert forms == ["lax"] * 3
        elif devices != 1:
            assert not {
                "blocked_im2col",
                "blocked_im2col_of_cotangents",
                "blocked_im2col_of_both",
                "matrix_product",
                "exchanged_axes",
            } & {forms[2]}


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize(
    "name",
    ["dense", "three axes", "one tap", "depthwise", "depthwise, large", "groups", "uneven groups", "patches"],
)
def test_no_batch_is_gathered(name, chosen, rng):
    kernel, image, options, _ = CASES[name]
    of_a_spread_batch(draw(rng, kernel, (8, *image[1:])), options)
    assert chosen


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_no_batch_of_few_channels_is_gathered(chosen, rng):
    of_a_spread_batch(draw(rng, (3, 3, 3, 16), (8, 20, 20, 3), np.float32), {"padding": 1})
    assert (_choice.CONV, "lax") in chosen


def of_a_spread_batch(arrays, options):
    """Compare what four devices compute without gathering the batch to what XLA's own form computes on one."""
    params, x = arrays
    mesh = jax.make_mesh((4,), ("devices",), axis_types=(AxisType.Auto,))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("devices")))
    compiled = jax.jit(partial(everything, None, options)).lower(params, spread).compile()
    assert not any(word in compiled.as_text() for word in ("all-gather", "all-to-all", "collective-permute"))
    expected = jax.jit(partial(everything, "lax", options))(jax.device_get(params), x)
    jax.tree.map(
        lambda a, b: close(jax.device_get(a), b, terms=x[..., 0].size, steps=3, dtype=x.dtype),
        compiled(params, spread),
        expected,
    )


def test_a_symbolic_batch_takes_forms_without_blocks(chosen, rng):
    for name in ("dense", "one tap", "depthwise", "depthwise, large", "groups"):
        kernel, image, options, _ = CASES[name]
        params, x = draw(rng, kernel, image)
        batch = jax.export.symbolic_shape("b")
        f = jax.jit(lambda params, x, options=options: everything(None, options, params, x)[:2])
        exported = jax.export.export(f)(params, jax.ShapeDtypeStruct((*batch, *image[1:]), x.dtype))
        exported_result = exported.call(params, jnp.concatenate([x, x, x]))
        expected = jax.jit(partial(everything, "lax", options))(params, jnp.concatenate([x, x, x]))[:2]
        jax.tree.map(partial(close, ulps=256), exported_result, expected)
    assert "blocked_im2col" not in {form for table, form in chosen if table is _choice.KERNEL_GRAD}

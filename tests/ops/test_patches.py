"""Windows as an array and back: the transpose, PyTorch's order of axes, and numbers of other kinds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import funcconv as fc

MODES = ("zeros", "reflect", "symmetric", "replicate", "circular")


@st.composite
def geometries(draw):
    """Return the sizes of an image, a window and options."""
    n = draw(st.integers(1, 3))

    def each(strategy):
        return tuple(draw(strategy) for _ in range(n))

    window, dilation = each(st.integers(1, 4)), each(st.integers(1, 3))
    padding = draw(st.sampled_from(["VALID", "SAME", "SAME_LOWER", "HALF", "FULL", "CAUSAL", None]))
    padding = padding or tuple(zip(each(st.integers(-2, 9)), each(st.integers(-2, 9)), strict=True))
    options = {"stride": each(st.integers(1, 4)), "padding": padding, "dilation": dilation}
    return each(st.integers(1, 7)), window, options | {"pad_mode": each(st.sampled_from(MODES))}


@given(geometries())
@settings(max_examples=40, deadline=None)
def test_fold_is_the_transpose(geometry):
    sizes, window, options = geometry
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, *sizes, 2)))
    try:
        patches = fc.unfold(x, window, **options)
    except fc.FuncconvError:
        reject()
    p = jnp.asarray(rng.normal(size=patches.shape))
    back = fc.fold(p, sizes, **options)
    assert back.shape == x.shape
    inner = (x * back).sum()
    scale = jnp.linalg.norm(patches) * jnp.linalg.norm(p)
    close(inner / scale, (patches * p).sum() / scale, terms=p.size)


@pytest.mark.parametrize(
    ("window", "options"),
    [
        (3, {}),
        (2, {"stride": 2}),
        ((2, 3), {"stride": (2, 1), "padding": 1}),
        ((3, 1), {"dilation": (2, 1), "padding": (2, 0)}),
        (4, {"stride": 3, "padding": 2, "dilation": 2}),
    ],
)
def test_the_order_of_pytorch(window, options, rng):
    torch = needed("torch")
    F = torch.nn.functional
    x = rng.normal(size=(2, 3, 9, 8))
    theirs = F.unfold(torch.tensor(x), window, **options).numpy()
    ours = jax.jit(partial(fc.unfold, window=window, layout="NCHW", **options))(x)
    np.testing.assert_array_equal(np.asarray(ours).reshape(theirs.shape), theirs)
    p = rng.normal(size=ours.shape)
    back = jax.jit(partial(fc.fold, size=(9, 8), layout="NCHW", **options))(p)
    close(back, F.fold(torch.tensor(p.reshape(theirs.shape)), (9, 8), window, **options).numpy())


@pytest.mark.parametrize(
    ("layout", "order"),
    [
        ("NHWC", (0, 1, 2, 3, 4, 5)),
        ("NCHW", (0, 5, 3, 4, 1, 2)),
        ("HNWC", (1, 0, 2, 3, 4, 5)),
        ("CHWN", (5, 3, 4, 1, 2, 0)),
    ],
)
def test_layouts(layout, order, rng):
    x = jnp.asarray(rng.normal(size=(2, 5, 4, 3)))
    axes = ["NHWC".index(letter) for letter in layout]
    expected = fc.unfold(x, (2, 3), padding=1)
    patches = fc.unfold(x.transpose(axes), (2, 3), padding=1, layout=layout)
    np.testing.assert_array_equal(patches, expected.transpose(order))
    back = fc.fold(patches, (5, 4), padding=1, layout=layout)
    np.testing.assert_array_equal(back, fc.fold(expected, (5, 4), padding=1).transpose(axes))


def test_several_batch_axes_in_a_layout(rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 4, 5)))  # two batch axes, channels and a line
    patches = fc.unfold(x, 2, layout="NCW")
    assert patches.shape == (2, 3, 4, 2, 4)
    np.testing.assert_array_equal(patches[1, 2], fc.unfold(x[1, 2], 2, layout="CW"))
    np.testing.assert_array_equal(fc.fold(patches, 5, layout="NCW")[1, 2], fc.fold(patches[1, 2], 5, layout="CW"))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "bool", "float8_e4m3fn", "complex64"])
def test_numbers_of_every_kind(dtype, rng):
    x = jnp.asarray(rng.integers(0, 2, (2, 6, 2))).astype(dtype)
    patches = fc.unfold(x, 3, padding=1, pad_mode="reflect")
    assert patches.dtype == dtype
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (0, 0)), "reflect")
    np.testing.assert_array_equal(np.asarray(patches), np.stack([padded[:, t : t + 6] for t in range(3)], 2))
    if dtype == "bool":
        return
    back = fc.fold(patches, 6, padding=1, pad_mode="reflect")
    assert back.dtype == dtype
    counts = np.asarray(fc.fold(jnp.ones(patches.shape), 6, padding=1, pad_mode="reflect"))
    np.testing.assert_array_equal(np.asarray(back).astype("complex64"), np.asarray(x).astype("complex64") * counts)


def test_a_convolution_is_a_product_with_the_windows(rng):
    x, kernel = jnp.asarray(rng.normal(size=(2, 7, 6, 3))), jnp.asarray(rng.normal(size=(3, 2, 3, 4)))
    options = {"stride": 2, "padding": "SAME", "pad_mode": "circular"}
    windows = fc.unfold(x, (3, 2), **options)
    close(jnp.einsum("bhwijc,ijcd->bhwd", windows, kernel), fc.conv({"kernel": kernel}, x, **options))

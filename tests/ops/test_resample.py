"""Resizing, blurs and pixel shuffles against PyTorch, ONNX and TensorFlow's definitions."""

import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close
from jaxprs import primitives

import funcconv as fc
from funcconv._windows.sampling import Sampling, interpolated, selected

pytorch = pytest.mark.once
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def spatial_first(x):
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def theirs(x, method, new, *, scale=None, align_corners=False, antialias=False):
    """Return PyTorch's result, and its gradient of the product with random numbers."""
    torch = needed("torch")
    mode = {"linear": LINEAR[x.ndim - 2], "cubic": "bicubic"}.get(method, method)
    options = {} if method in ("nearest", "nearest-exact", "area") else {"align_corners": align_corners}
    if antialias:
        options["antialias"] = True
    tensor = torch.tensor(spatial_first(x)).requires_grad_()
    target = {"size": new} if scale is None else {"scale_factor": scale}
    y = torch.nn.functional.interpolate(tensor, mode=mode, **target, **options)
    cotangent = np.random.default_rng(1).normal(size=y.shape)
    y.backward(torch.tensor(cotangent))
    back = [np.moveaxis(array, 1, -1) for array in (y.detach().numpy(), tensor.grad.numpy())]
    return (*back, np.moveaxis(cotangent, 1, -1))


def same_as_pytorch(x, method, new, **options):
    y, gradient, cotangent = theirs(x, method, new, **options)
    target = {} if "scale" in options else {"size": new}
    own = partial(fc.resize, method=method, **target, **options)
    mine, pullback = jax.vjp(own, jnp.asarray(x))
    close(mine, y)
    close(pullback(jnp.asarray(cotangent))[0], gradient, terms=64 * math.prod(y.shape[1:-1]))


METHODS = [
    ("nearest", {}),
    ("nearest-exact", {}),
    ("area", {}),
    ("linear", {}),
    ("linear", {"align_corners": True}),
    ("cubic", {}),
    ("cubic", {"align_corners": True}),
    ("linear", {"antialias": True}),
    ("cubic", {"antialias": True}),
    ("linear", {"antialias": True, "align_corners": True}),
    ("cubic", {"antialias": True, "align_corners": True}),
]
SIZES = [((5, 7), (9, 3)), ((6, 4), (12, 8)), ((8, 6), (4, 3)), ((7, 5), (1, 1)), ((1, 1), (3, 4)), ((9, 11), (9, 4))]


@pytorch
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_images_are_those_of_pytorch(method, options, old, new, rng):
    same_as_pytorch(rng.normal(size=(2, *old, 3)), method, new, **options)


@pytorch
@pytest.mark.parametrize("seed", range(10))
def test_random_sizes_are_those_of_pytorch(seed):
    rng = np.random.default_rng(seed)
    for method, options in METHODS:
        two_only = method == "cubic" or options.get("antialias")
        n = 2 if two_only else int(rng.integers(1, 4))
        # If an antialiased image of PyTorch 2.13 is one column wide, all its rows are the first one.
        least = 2 if options.get("antialias") else 1
        old, new = (tuple(int(i) for i in rng.integers(least, 14, n)) for _ in range(2))
        same_as_pytorch(rng.normal(size=(1, *old, 2)), method, new, **options)


@pytorch
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
@pytest.mark.parametrize("scale", [2, 0.5, 1.7, (0.35, 2.6)])
def test_factors_are_those_of_pytorch(method, options, scale, rng):
    same_as_pytorch(rng.normal(size=(1, 10, 7, 2)), method, None, scale=scale, **options)


@pytorch
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
@pytest.mark.parametrize("scale", [1.05, (1.05, 2), (2.05, 1.1)])
def test_factors_that_change_no_size_are_those_of_pytorch(method, options, scale, rng):
    """Values only: PyTorch copies such axes in one direction and interpolates them in the other."""
    x = rng.normal(size=(1, 10, 7, 2))
    close(fc.resize(x, scale=scale, method=method, **options), theirs(x, method, None, scale=scale, **options)[0])


@pytorch
@pytest.mark.parametrize("method", ["nearest", "nearest-exact"])
def test_every_place_is_that_of_pytorch(method):
    """In float64. In float32, PyTorch rounds some centres that are between two inputs to the other one."""
    torch = needed("torch")
    for old in range(1, 65):
        x = torch.arange(float(old), dtype=torch.float64).reshape(1, 1, -1)
        for new in range(1, 65):
            places = torch.nn.functional.interpolate(x, new, mode=method)[0, 0].int().tolist()
            assert selected(Sampling(old, new, method)) == places, (old, new)


ONNX = [
    ("nearest", {}, {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("nearest-exact", {}, {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}),
    ("linear", {}, {"mode": "linear"}),
    ("linear", {"align_corners": True}, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("cubic", {}, {"mode": "cubic"}),
    ("cubic", {"align_corners": True}, {"mode": "cubic", "coordinate_transformation_mode": "align_corners"}),
    ("nearest", {"coordinates": "half_pixel"}, {"mode": "nearest", "nearest_mode": "floor"}),
    ("linear", {"coordinates": "asymmetric"}, {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}),
    (
        "cubic",
        {"cubic_coefficient": -0.5, "exclude_outside": True},
        {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1},
    ),
    ("linear", {"antialias": True, "exclude_outside": False}, {"mode": "linear", "antialias": 1}),
    ("cubic", {"antialias": True, "cubic_coefficient": -0.75}, {"mode": "cubic", "antialias": 1, "exclude_outside": 1}),
]


def onnx_result(op, x, sizes=None, **attributes):
    """Return the result of ONNX's reference for one operation."""
    needed("onnx")
    from onnx import TensorProto, helper
    from onnx.reference import ReferenceEvaluator

    constants = [] if sizes is None else [helper.make_tensor("sizes", TensorProto.INT64, [4], sizes)]
    names = ["x"] if sizes is None else ["x", "", "", "sizes"]
    node = helper.make_node(op, names, ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "one", values[:1], values[1:], constants))
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:::onnx.*")
@pytest.mark.parametrize(("method", "options", "attributes"), ONNX, ids=str)
@pytest.mark.parametrize(("old", "new"), SIZES[:3])
def test_images_are_those_of_onnx(method, options, attributes, old, new, rng):
    x = rng.normal(size=(1, *old, 2)).astype(np.float32)
    y = onnx_result("Resize", spatial_first(x), sizes=[1, 2, *new], **attributes)
    close(fc.resize(x, new, method=method, **options), np.moveaxis(y, 1, -1).astype(np.float32))


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("method", ["linear", "cubic"])
@pytest.mark.parametrize(("old", "new"), SIZES)
def test_images_are_those_of_jax(method, antialias, old, new, rng):
    x = jnp.asarray(rng.normal(size=(2, *old, 3)))
    options = {"cubic_coefficient": -0.5} if method == "cubic" else {}
    y = fc.resize(x, new, method=method, antialias=antialias, exclude_outside=True, **options)
    close(y, jax.image.resize(x, (2, *new, 3), method, antialias=antialias))


@pytest.mark.parametrize("method", ["nearest-exact", "linear", "cubic"])
def test_a_part_of_an_image(method, rng):
    """Centres at inputs select them. Beyond the ends, those at the ends are repeated."""
    x = jnp.asarray(rng.normal(size=(1, 6, 5, 2)))
    part = partial(fc.resize, method=method)
    close(part(x, (3, 2), coordinates=((1, 3), (4, 3))), x[:, 1:4, 4:2:-1])
    close(part(x, (1, 5), coordinates=((1, 3), (0, 4))), x[:, 2:3])
    close(part(x, (4, 5), coordinates=((-6, -3), (0, 4))), jnp.repeat(x[:, :1], 4, 1))
    if method != "nearest-exact":
        close(part(x, 9, coordinates=((0, 5), (0, 4))), part(x, 9, align_corners=True))


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "linear", "cubic"])
def test_named_coordinates_are_pairs(method):
    for old in range(1, 9):
        for new in range(2, 12):
            step = Fraction(old, new)
            pairs = {"half_pixel": ((step - 1) / 2, old - (step + 1) / 2), "asymmetric": (0, old - step)}
            for name, pair in pairs.items():
                computed = selected if method in ("nearest", "nearest-exact") else interpolated
                assert computed(Sampling(old, new, method, None, name)) == computed(
                    Sampling(old, new, method, None, pair)
                )


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:::onnx.*")
def test_shuffles_are_those_of_onnx(rng):
    x = rng.normal(size=(2, 12, 2, 3)).astype(np.float32)
    for order, mode in (("pytorch", "CRD"), ("tensorflow", "DCR")):
        y = onnx_result("DepthToSpace", x, blocksize=2, mode=mode)
        np.testing.assert_array_equal(fc.pixel_shuffle(x, 2, order=order, layout="NCHW"), y)
    unshuffled = fc.pixel_unshuffle(y, 2, order="tensorflow", layout="NCHW")
    np.testing.assert_array_equal(unshuffled, onnx_result("SpaceToDepth", y, blocksize=2))
    np.testing.assert_array_equal(unshuffled, x)


WEIGHTED = [
    {},
    {"coordinates": "align_corners"},
    {"coordinates": "asymmetric", "exclude_outside": True},
    {"coordinates": (-0.5, 3.25), "cubic_coefficient": -0.5},
    {"antialias": True},
    {"antialias": True, "exclude_outside": True, "cubic_coefficient": -0.5},
    {"antialias": True, "coordinates": "align_corners", "exclude_outside": True},
]


@pytest.mark.parametrize("options", WEIGHTED, ids=str)
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_weights_have_the_sum_one(method, options):
    for old in range(1, 12):
        for new in range(1, 20):
            rows = interpolated(Sampling(old, new, method, **options))
            assert len(rows) == new
            for row in rows:
                assert abs(sum(weight for _, weight in row) - 1) < 1e-13
                assert all(0 <= place < old for place, _ in row)
                assert len({place for place, _ in row}) == len(row)


@pytest.mark.parametrize("method", ["linear", "cubic", "nearest"])
def test_a_nan_is_seen_only_around_its_place(method):
    """A product with a matrix would spread it over the whole axis."""
    x = jnp.zeros((1, 8, 1)).at[0, 4].set(jnp.nan)
    seen = np.flatnonzero(np.isnan(fc.resize(x, 16, method=method)[0, :, 0]))
    reach = {"nearest": 0, "linear": 1, "cubic": 3}[method]
    assert list(seen) == list(range(8 - reach, 10 + reach))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
@pytest.mark.parametrize("method", ["nearest", "nearest-exact"])
def test_labels_are_resized_by_selection(method, dtype, rng):
    x = rng.integers(0, 2, (1, 5, 6, 1)).astype(dtype)
    y = fc.resize(x, (7, 4), method=method)
    assert y.dtype == dtype
    rows, columns = selected(Sampling(5, 7, method)), selected(Sampling(6, 4, method))
    np.testing.assert_array_equal(y, x[:, rows][:, :, columns])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn"])
@pytest.mark.parametrize("method", ["linear", "cubic", "area"])
def test_narrow_floats_are_rounded_once(dtype, method, rng):
    x = jnp.asarray(rng.uniform(0.5, 1, (1, 9, 6, 2))).astype(dtype)
    y = jax.jit(partial(fc.resize, size=(5, 8), method=method))(x)
    assert y.dtype == dtype
    exact = fc.resize(x.astype("float32"), (5, 8), method=method)
    np.testing.assert_array_equal(y.astype("float32"), exact.astype(dtype).astype("float32"))


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic", "area"])
def test_layouts_and_batch_axes(method, rng):
    x = rng.normal(size=(2, 3, 4, 5, 2))
    expected = fc.resize(x, (7, 3), method=method)
    first = fc.resize(np.moveaxis(x, -1, -3), (7, 3), method=method, layout="NCHW")
    np.testing.assert_array_equal(jnp.moveaxis(first, -3, -1), expected)
    np.testing.assert_array_equal(fc.resize(x[0], 6, method=method), fc.resize(x[0], (6, 6), method=method))
    np.testing.assert_array_equal(expected[1, 2], fc.resize(x[1, 2], (7, 3), method=method))


def test_an_axis_that_keeps_its_size_is_not_computed(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 5, 2)))
    for method in ("linear", "cubic"):
        jaxpr = jax.make_jaxpr(lambda x, method=method: fc.resize(x, (4, 9), method=method))(x)
        assert [eqn.primitive.name for eqn in jaxpr.eqns if "take" in eqn.primitive.name] == ["take_places"]
        np.testing.assert_array_equal(fc.resize(x, (4, 5), method=method), x)


def test_whole_factors_are_broadcasts_and_slices(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 6, 2)))
    for size in ((8, 6), (12, 2), (2, 3), (4, 6), (2, 18)):
        for method in ("nearest", "nearest-exact"):
            f = partial(fc.resize, size=size, method=method)
            assert "take_places" not in primitives(jax.make_jaxpr(f)(x))
            rows, columns = (selected(Sampling(old, new, method)) for old, new in zip((4, 6), size, strict=True))
            np.testing.assert_array_equal(f(x), np.asarray(x)[:, rows][:, :, columns])


# pixel shuffles ------------------------------------------------------------------------------------------------


@pytorch
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_shuffles_are_those_of_pytorch(factor, rng):
    torch = needed("torch")
    F = torch.nn.functional
    x = rng.normal(size=(2, 2 * factor**2, 3, 4))
    expected = F.pixel_shuffle(torch.tensor(x), factor).numpy()
    np.testing.assert_array_equal(fc.pixel_shuffle(x, factor, layout="NCHW"), expected)
    y = rng.normal(size=(2, 2, 3 * factor, 4 * factor))
    expected = F.pixel_unshuffle(torch.tensor(y), factor).numpy()
    np.testing.assert_array_equal(fc.pixel_unshuffle(y, factor, layout="NCHW"), expected)


@pytest.mark.parametrize("order", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("factor", [(2,), (1, 3), (2, 3), (2, 1, 3)])
def test_shuffles_are_inverse_to_each_other(order, factor, rng):
    n = len(factor)
    sizes = tuple(int(i) for i in rng.integers(1, 4, n))
    x = rng.integers(0, 100, (2, 3, *sizes, 2 * math.prod(factor)))
    y = fc.pixel_shuffle(x, factor, order=order)
    assert y.shape == (2, 3, *(size * f for size, f in zip(sizes, factor, strict=True)), 2)
    np.testing.assert_array_equal(fc.pixel_unshuffle(y, factor, order=order), x)


def test_the_orders_of_channels(rng):
    """The definitions of PyTorch and TensorFlow, with one reshape each."""
    x = rng.integers(0, 100, (2, 3, 5, 12))
    blocks = {"pytorch": x.reshape(2, 3, 5, 3, 2, 2).transpose(0, 1, 4, 2, 5, 3)}
    blocks["tensorflow"] = x.reshape(2, 3, 5, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    for order, block in blocks.items():
        np.testing.assert_array_equal(fc.pixel_shuffle(x, 2, order=order), block.reshape(2, 6, 10, 3))


# blurs ---------------------------------------------------------------------------------------------------------


@pytorch
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize(("stride", "mode"), [(1, "reflect"), (2, "reflect"), (2, "replicate"), (3, "zeros")])
def test_blurs_are_those_of_the_paper(window, stride, mode, rng):
    """The module of the paper: a filter in each channel, after padding."""
    torch = needed("torch")
    x = rng.normal(size=(2, 9, 8, 3))
    row = np.array([math.comb(window - 1, i) for i in range(window)], float)
    kernel = torch.tensor(np.multiply.outer(row, row) / row.sum() ** 2)[None, None].expand(3, 1, window, window)
    lo, hi = (window - 1) // 2, math.ceil((window - 1) / 2)
    tensor = torch.tensor(spatial_first(x)).requires_grad_()
    mode_there = {"zeros": "constant"}.get(mode, mode)
    padded = torch.nn.functional.pad(tensor, (lo, hi, lo, hi), mode_there)
    y = torch.nn.functional.conv2d(padded, kernel, stride=stride, groups=3)
    mine, pullback = jax.vjp(partial(fc.blur_pool, window=window, stride=stride, pad_mode=mode), jnp.asarray(x))
    close(mine, np.moveaxis(y.detach().numpy(), 1, -1))
    cotangent = rng.normal(size=mine.shape)
    y.backward(torch.tensor(spatial_first(cotangent)))
    close(pullback(jnp.asarray(cotangent))[0], np.moveaxis(tensor.grad.numpy(), 1, -1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_blurs_keep_the_dtype(dtype, rng):
    x = jnp.asarray(rng.normal(size=(1, 9, 8, 3))).astype(dtype)
    y = fc.blur_pool(x, 7)
    assert y.dtype == dtype
    wide = "complex128" if dtype == "complex64" else "float64"
    exact = fc.blur_pool(x.astype(wide), 7)
    np.testing.assert_allclose(np.asarray(y.astype(wide)), exact, rtol=0, atol=2 * float(jnp.finfo(dtype).eps))


def test_a_constant_stays_constant():
    for window in range(1, 8):
        close(fc.blur_pool(jnp.ones((1, 11, 2)), window, stride=3), np.ones((1, 4, 2)))

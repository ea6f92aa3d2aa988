"""Networks as ONNX files: onnxruntime computes the same, for batches of any size, or it is told why not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from compare import close, products_of
from flax import linen as nn

import funcconv as fc
from funcconv._primitives.plain import plain
from funcconv.interop import _onnx

needed("jax2onnx")
onnxruntime = needed("onnxruntime")
pytestmark = [
    pytest.mark.usefixtures("climate_of_a_user"),
    pytest.mark.filterwarnings("ignore"),  # those of jax2onnx 0.17 and what it imports, November 2026
    pytest.mark.once,
]
KEY = jax.random.key(0)
F32 = np.float32


def over(layers, *shape):
    x = fc.Input("x", shape)
    return fc.Graph(x, layers(x))


def lenet():
    layers = fc.serial(
        fc.Conv(6, 5, padding=2),
        jnp.tanh,
        fc.avg_pool,
        fc.Conv(8, 5),
        jax.nn.relu,
        fc.Pool(2),
        fc.Flatten(),
        fc.Dense(20),
        jax.nn.gelu,
        fc.Dense(10),
        jax.nn.softmax,
    )
    return over(layers, 28, 28, 1)


def strided():
    layers = fc.serial(
        fc.Conv(5, 3, stride=(2, 3), dilation=2, padding=((2, 1), (3, 0))),
        fc.Conv(4, 1, padding=1, pad_mode="reflect"),
        fc.Conv(8, 3, groups=4),
        fc.Conv(8, 3, groups=8),
        jax.nn.silu,
        fc.Conv(3, 2, padding=1, pad_mode="replicate", flip=True),
        fc.Conv(4, 2, stride=2, padding=-1),
    )
    return over(layers, 18, 21, 3)


def transposed():
    layers = fc.serial(
        fc.ConvTranspose(4, 4, stride=2, padding=1, groups=2),
        fc.ConvTranspose(3, 3, padding=1),
        fc.ConvTranspose(2, 3, stride=(3, 1), dilation=2, padding="SAME"),
        fc.ConvTranspose(4, 3, padding=3),
        fc.ConvTranspose(2, 2, stride=3, padding=-1),
    )
    return over(layers, 5, 6, 2)


def pools():
    layers = (
        fc.Pool(3, stride=2, padding=1),
        fc.Pool(3, stride=2, padding=1, reduce="mean"),
        fc.Pool(2, reduce="min", stride=1, dilation=2),
        fc.Pool(2, ceil_mode=True),
        fc.Pool(9, stride=1),
    )
    return over(fc.parallel(*layers), 11, 12, 3)


def other_axes():
    line = fc.Input("line", (16, 2))
    solid = fc.Input("solid", (6, 6, 6, 2))
    lines = fc.serial(fc.Conv(4, 3, padding="CAUSAL", dilation=2), fc.ConvTranspose(3, 4, stride=2), fc.Pool(2))
    solids = fc.serial(fc.Conv(4, (3, 2, 2), stride=(2, 1, 1), padding=1), fc.Pool(2), fc.ConvTranspose(2, 2, stride=2))
    return fc.Graph((line, solid), {"solid/out": solids(solid), "line/out": lines(line)})


def siamese():
    left, right = fc.Input("left", (12, 12, 1)), fc.Input("right", (12, 12, 1))
    trunk = fc.serial(fc.Conv(4, 3), jax.nn.relu, fc.Pool(2), fc.Flatten(), fc.Dense(6))
    a, b = trunk(left), trunk(right)
    distance = fc.node(lambda a, b: jnp.sqrt(jnp.square(a - b).sum(-1) + 1e-3), a, b)
    return fc.Graph((left, right), {"distance": distance, "embedded": (a, b)})


def normed():
    layers = fc.serial(
        fc.Conv(8, 3, bias=False),
        fc.BatchNorm(),
        jax.nn.relu,
        fc.GroupNorm(2),
        fc.LayerNorm(),
        fc.InstanceNorm(),
        fc.RMSNorm(),
        fc.WeightNorm(fc.Conv(4, 1)),
        fc.SpectralNorm(fc.ConvTranspose(4, 1)),
        fc.SpectralNorm(fc.Conv(4, 2), norm="conv"),
        partial(fc.local_response_norm, size=3),
        fc.DropPath(0.2),
        fc.Dropout(0.3),
        fc.global_pool,
        fc.Dense(3),
    )
    return over(layers, 8, 8, 2)


def resampled():
    layers = fc.serial(
        partial(fc.resize, size=(9, 7), method="cubic"),
        partial(fc.resize, scale=2),
        partial(fc.resize, size=(6, 8), method="linear", antialias=True),
        fc.parallel(partial(fc.resize, size=(3, 4), method="area"), fc.blur_pool, merge=fc.concat),
        partial(fc.pixel_shuffle, factor=2),
        partial(fc.pixel_unshuffle, factor=(3, 2), order="tensorflow"),
        partial(fc.unfold, window=(2, 2), padding=1, pad_mode="reflect"),
        partial(fc.fold, size=(2, 4), padding=1, pad_mode="reflect"),
    )
    return over(layers, 5, 6, 2)


def folded(window, size, **options):
    return fc.serial(partial(fc.unfold, window=window, **options), partial(fc.fold, size=size, **options))


IMAGE, BLOCKS = (6, 8, 4), (4, 6, 12)
WINDOWS = {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2), "pad_mode": "reflect"}
METHODS = ("nearest", "nearest-exact", "linear", "cubic", "area")
SHUFFLES = {"pixel_shuffle": fc.pixel_shuffle, "pixel_unshuffle": fc.pixel_unshuffle}
OPS = {
    **{f"resize {name} to a size": (partial(fc.resize, size=(9, 5), method=name), IMAGE) for name in METHODS},
    **{f"resize {name} by factors": (partial(fc.resize, scale=(0.6, 2), method=name), IMAGE) for name in METHODS},
    **{
        f"resize {name} {option}": (partial(fc.resize, size=(4, 11), method=name, **{option: True}), IMAGE)
        for name in ("linear", "cubic")
        for option in ("align_corners", "antialias", "exclude_outside")
    },
    "resize a part": (partial(fc.resize, size=3, method="linear", coordinates=(0.5, 4)), IMAGE),
    "resize a line": (partial(fc.resize, size=7, method="cubic"), (5, 2)),
    "resize a volume": (partial(fc.resize, scale=2, method="linear"), (2, 3, 4, 2)),
    **{
        f"{name} {order}": (partial(op, factor=(2, 3), order=order), BLOCKS)
        for name, op in SHUFFLES.items()
        for order in ("pytorch", "tensorflow")
    },
    **{f"{name} along one axis": (partial(op, factor=2), (6, 4)) for name, op in SHUFFLES.items()},
    **{f"{name} along three axes": (partial(op, factor=(1, 2, 2)), (2, 4, 2, 4)) for name, op in SHUFFLES.items()},
    "unfold": (partial(fc.unfold, window=(3, 2), **WINDOWS), IMAGE),
    "unfold a line": (partial(fc.unfold, window=3), (9, 2)),
    "fold": (folded((2, 3), (6, 8)), IMAGE),
    "fold with options": (folded((3, 2), (6, 8), **WINDOWS), IMAGE),
    "fold wide windows": (folded((66,), (70,), stride=2, padding=1), (70, 1)),
    "blur_pool": (fc.blur_pool, IMAGE),
    "blur_pool with options": (partial(fc.blur_pool, window=(5, 4), stride=(1, 3), pad_mode="circular"), IMAGE),
    "blur_pool of a line": (fc.blur_pool, (9, 2)),
    "rms_norm": (fc.RMSNorm(), IMAGE),
    "layer_norm": (fc.LayerNorm(), IMAGE),
    "group_norm": (fc.GroupNorm(2), IMAGE),
    "instance_norm": (fc.InstanceNorm(), IMAGE),
    "instance_norm of a volume": (fc.InstanceNorm(), (2, 3, 2, 4)),
    "local_response_norm": (partial(fc.local_response_norm, size=3, alpha=0.1, beta=0.5, k=2.0), IMAGE),
    "local_response_norm of even size": (partial(fc.local_response_norm, size=4), IMAGE),
    "weight_norm": (fc.WeightNorm(fc.Conv(4, 3)), IMAGE),
    "weight_norm of a dense layer": (fc.WeightNorm(fc.Dense(3)), IMAGE),
    "weight_standardize": (fc.WeightStandardize(fc.Conv(4, 3)), IMAGE),
    "batch_norm": (fc.BatchNorm(), IMAGE),
    "drop_path": (fc.DropPath(0.2), IMAGE),
    "dropout": (fc.Dropout(0.3), IMAGE),
}


def run(path, graph, batch, rng):
    """Return random inputs, and what onnxruntime makes of them by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    xs = [rng.normal(size=(*batch, *graph.shapes()[name].shape)).astype(F32) for name in graph.inputs]
    outputs = session.run(None, dict(zip(graph.inputs, xs, strict=True)))
    return xs, dict(zip((output.name for output in session.get_outputs()), outputs, strict=True))


@pytest.mark.parametrize("declare", [lenet, strided, transposed, pools, other_axes, siamese, normed, resampled])
def test_a_file_computes_the_same(declare, rng, tmp_path):
    graph, path = declare(), tmp_path / "net.onnx"
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape) * 0.3, F32), graph.init(KEY))
    state = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1, a.shape), F32), graph.init_state())
    names = fc.interop.to_onnx(graph, params, path, state=state)
    xs, outputs = run(path, graph, (5,), rng)
    leaves = jax.tree.leaves(jax.jit(lambda *xs: graph.apply(params, state, *xs)[0])(*xs))
    assert list(outputs) == list(names)
    other_sums = 2 * 6 * 6 * 4 if state else 9  # the mean and the variance of a group, or a window of a pool
    for name, expected in zip(names, leaves, strict=True):
        close(outputs[name], expected, F32, terms=products_of(params) + other_sums)


@pytest.mark.parametrize("name", OPS)
def test_the_reference_of_onnx_computes_the_same(name, rng, tmp_path):
    """`to_onnx` has compared the file with onnxruntime already."""
    layer, shape = OPS[name]
    graph, path = over(fc.serial(layer), *shape), tmp_path / "net.onnx"
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), F32), graph.init(KEY))
    state = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1, a.shape), F32), graph.init_state())
    fc.interop.to_onnx(graph, params, path, state=state)
    x = rng.normal(size=(3, *shape)).astype(F32)
    (y,) = needed("onnx.reference").ReferenceEvaluator(str(path)).run(None, {"x": x})
    close(y, graph.apply(params, state, x)[0], F32, terms=128)


@pytest.mark.parametrize("structure", ["an input", "one array twice"])
def test_outputs_of_one_value_have_names_of_their_own(structure, rng, tmp_path):
    x = fc.Input("x", (6, 6, 1))
    h = fc.Conv(2, 3)(x)
    graph = fc.Graph(x, {"a": x if structure == "an input" else fc.Dropout(0.5)(h), "b": h})
    params = graph.init(KEY)
    assert fc.interop.to_onnx(graph, params, tmp_path / "net.onnx") == ("a", "b")
    (image,), outputs = run(tmp_path / "net.onnx", graph, (4,), rng)
    close(outputs["a"], image if structure == "an input" else outputs["b"])
    close(outputs["b"], graph(params, image)["b"], F32)


def test_outputs_are_named_by_their_places(tmp_path):
    graph = siamese()
    names = fc.interop.to_onnx(graph, graph.init(KEY), tmp_path / "net.onnx", batch=1)
    assert names == ("distance", "embedded/0", "embedded/1")
    assert fc.interop.to_onnx(lenet(), lenet().init(KEY), tmp_path / "net.onnx", batch=1) == ("softmax1",)


def test_a_shared_weight_is_written_once(tmp_path):
    onnx = needed("onnx")
    fc.interop.to_onnx(siamese(), siamese().init(KEY), tmp_path / "net.onnx")
    sizes = [tuple(array.dims) for array in onnx.load(tmp_path / "net.onnx").graph.initializer]
    assert sizes.count((100, 6)) == 1


def test_other_packages_are_left_as_they_were(tmp_path):
    fc.interop.to_onnx(siamese(), siamese().init(KEY), tmp_path / "net.onnx")
    linen = [value for value in vars(nn).values() if isinstance(value, type)]
    for owner in (jnp, jax.lax, jax.nn, *linen):
        left = [name for name, value in vars(owner).items() if "jax2onnx" in str(getattr(value, "__module__", ""))]
        assert not left, owner


@pytest.mark.parametrize("batch", [None, 3])
def test_the_batch_is_what_is_asked_for(batch, rng, tmp_path):
    graph, path = over(fc.serial(fc.Conv(2, 3, padding=1), fc.max_pool), 6, 6, 1), tmp_path / "net.onnx"
    params = graph.init(KEY)
    fc.interop.to_onnx(graph, params, path, batch=batch, opset=20)
    (x,), outputs = run(path, graph, () if batch is None else (batch,), rng)
    close(outputs["max_pool1"], graph(params, x), F32)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (lambda x: jnp.linalg.svd(x, compute_uv=False), "cannot express.*svd"),
        (lambda x: jax.lax.map(lambda row: fc.max_pool(row, 2, spatial=1), x), "cannot express.*extreme"),
        (lambda x: x.astype(jnp.bfloat16), "bfloat16"),
        (fc.BatchNorm(), "has a state, but state is None"),
    ],
)
def test_what_cannot_be_written_is_refused(layer, said, tmp_path):
    graph = over(layer if isinstance(layer, fc.BatchNorm) else fc.serial(layer), 6, 4, 2)
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.to_onnx(graph, graph.init(KEY), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_names_that_meet_are_refused(tmp_path):
    x = fc.Input("x", (6, 6, 1))
    graph = fc.Graph(x, {"x": fc.Conv(2, 3)(x)})
    with pytest.raises(fc.FuncconvError, match="an input and an output are both called 'x'"):
        fc.interop.to_onnx(graph, graph.init(KEY), tmp_path / "net.onnx")


def test_other_dtypes_are_refused(tmp_path):
    params = over(fc.Conv(2, 3), 6, 6, 1).init(KEY)
    params["conv1"]["bias"] = params["conv1"]["bias"].astype(jnp.bfloat16)
    with pytest.raises(fc.FuncconvError, match=r"parameter 'conv1/bias' must be float32, as onnxruntime.*got bfloat16"):
        fc.interop.to_onnx(over(fc.Conv(2, 3), 6, 6, 1), params, tmp_path / "net.onnx")


def test_a_file_that_computes_another_thing_is_refused(monkeypatch, tmp_path):
    """The check bites: a result that is wrong by 1 % is found."""
    graph = over(fc.Conv(2, 3), 6, 6, 1)
    monkeypatch.setattr(_onnx, "plain", lambda f, *types: plain(lambda x: 1.01 * f(x), *types))
    with pytest.raises(fc.FuncconvError, match="on random inputs 'conv1' of the file differs by"):
        fc.interop.to_onnx(graph, graph.init(KEY), tmp_path / "net.onnx")

"""Files of weights: what is read is what was written, and damaged ones are told."""

import json
import struct

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from available import needed

import funcconv as fc

KEY = jax.random.key(0)


def network():
    trunk_input = fc.Input("x", (8, 8, 2))
    layers = fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jnp.tanh, fc.Pool(2), fc.Flatten(), fc.Dense(3, bias=False))
    trunk = fc.Graph(trunk_input, layers(trunk_input), name="trunk")
    a, b = fc.Input("a", (8, 8, 2)), fc.Input("b", (8, 8, 2))
    return fc.Graph((a, b), fc.siamese(trunk, jnp.subtract)(a, b))


@pytest.fixture
def saved(tmp_path):
    graph = network()
    params, state = graph.init(KEY), graph.init_state()
    path = tmp_path / "net.safetensors"
    fc.interop.save_safetensors(path, params, graph=graph, state=state, metadata={"made": "by a test"})
    return path, graph, params, state


def same(arrays, expected):
    jax.tree.map(np.testing.assert_array_equal, arrays, expected)
    assert jax.tree.map(lambda x: x.dtype, arrays) == jax.tree.map(lambda x: x.dtype, expected)


def test_a_network_is_read_in_one_call(saved, tmp_path):
    path, graph, params, state = saved
    loaded, weights = fc.interop.load(path)
    assert loaded == graph
    same(weights, params)
    same(fc.interop.load_state(path), state)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


def test_names_are_paths_and_a_shared_weight_is_there_once(saved):
    path, *_ = saved
    assert sorted(needed("safetensors.numpy").load_file(path)) == sorted(
        [
            "trunk/conv1/kernel",
            "trunk/conv1/bias",
            "trunk/batch_norm1/scale",
            "trunk/batch_norm1/bias",
            "trunk/dense1/kernel",
            "@state/trunk/batch_norm1/mean",
            "@state/trunk/batch_norm1/var",
        ]
    )
    assert fc.interop.load_safetensors(path)[1]["made"] == "by a test"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int8", "bool", "uint32"])
def test_dtypes_and_shapes_are_kept(tmp_path, dtype, rng):
    params = {"a": {"b": jnp.asarray(rng.normal(size=(3, 0, 2)), dtype)}, "c": jnp.asarray(rng.normal(size=()), dtype)}
    params["d"] = np.moveaxis(np.arange(24).reshape(2, 3, 4).astype(jnp.dtype(dtype)), 0, -1)  # not contiguous
    fc.interop.save_safetensors(tmp_path / "file", params)
    arrays, metadata = fc.interop.load_safetensors(tmp_path / "file")
    same(arrays, params)
    assert metadata == {}
    assert ml_dtypes.bfloat16  # the dtype that NumPy does not have by itself


def test_a_missing_bias_stays_missing_and_a_norm_without_parameters_is_one(tmp_path):
    x = fc.Input("x", (8, 8, 2))
    graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.BatchNorm(scale=False, bias=False))(x))
    params = graph.init(KEY)
    params["conv1"]["bias"] = None
    fc.interop.save_safetensors(tmp_path / "file", params, graph=graph)
    with pytest.raises(fc.FuncconvError, match="conv1"):  # the layer has one
        fc.interop.load(tmp_path / "file")
    params = graph.init(KEY)
    fc.interop.save_safetensors(tmp_path / "file", params, graph=graph)
    same(fc.interop.load(tmp_path / "file")[1], params)


# damage -------------------------------------------------------------------------------------------------------


def rewritten(content, **changes):
    """Return a file with another header."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size]) | changes
    text = json.dumps({name: value for name, value in header.items() if value is not None}).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def kernel(**changes):
    said = {"dtype": "F32", "shape": [3, 3, 2, 4], "data_offsets": [0, 288]}
    return {"trunk/conv1/kernel": said | changes}


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: c[:0],
        lambda c: c[:7],
        lambda c: c[:100],
        lambda c: c[:-4],
        lambda c: b"\x80\x04" + c[2:],
        lambda c: struct.pack("<Q", 2**63) + c[8:],
        lambda c: struct.pack("<Q", 2**40) + c[8:],
        lambda c: rewritten(c, **kernel(shape=[2**40, 2**40])),
        lambda c: rewritten(c, **kernel(shape=[-1])),
        lambda c: rewritten(c, **kernel(dtype="F33")),
        lambda c: rewritten(c, **kernel(data_offsets=[0, 2**60])),
        lambda c: struct.pack("<Q", 50_000) + b"[" * 50_000 + c,
        lambda c: c[:9] + b"\xff" + c[10:],
    ],
)
def test_damaged_files_are_told_in_one_line(saved, damage):
    path, *_ = saved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(fc.FuncconvError, match="cannot be read") as error:
        fc.interop.load(path)
    assert "\n" not in str(error.value)


def test_what_does_not_belong_together_is_told(saved, tmp_path):
    path, graph, params, _ = saved
    with pytest.raises(fc.FuncconvError, match="cannot be read"):
        fc.interop.load(tmp_path / "nowhere")
    fc.interop.save_safetensors(path, params)
    with pytest.raises(fc.FuncconvError, match="but not the network"):
        fc.interop.load(path)
    missing = {"trunk": {name: entry for name, entry in params["trunk"].items() if name != "dense1"}}
    fc.interop.save_safetensors(path, missing, graph=graph)
    with pytest.raises(fc.FuncconvError, match="trunk/dense1"):
        fc.interop.load(path)
    fc.interop.save_safetensors(path, {**params, "more": jnp.ones(2)}, graph=graph)
    with pytest.raises(fc.FuncconvError, match="'more' that the graph does not use"):
        fc.interop.load(path)
    mended = {"trunk": {**params["trunk"], "conv1": {"kernel": jnp.ones((3, 3, 2, 5)), "bias": jnp.ones(5)}}}
    fc.interop.save_safetensors(path, mended, graph=graph)
    with pytest.raises(fc.FuncconvError, match=r"conv1.*\(3, 3, 2, 5\)"):
        fc.interop.load(path)


def test_a_changed_network_is_told(saved):
    path, graph, *_ = saved
    other = (
        graph.to_json()
        .replace('"window": 3', '"window": 3, "padding": 0')
        .replace('"function": "jax.numpy.tanh"', '"function": "jax.numpy.sin"')
    )
    content = path.read_bytes()
    for text in (other, json.dumps({name: value for name, value in json.loads(other).items() if name != "hash"})):
        path.write_bytes(rewritten(content, __metadata__={"funcconv": text, "funcconv-hash": graph.content_hash}))
        with pytest.raises(fc.FuncconvError, match=r"not what was written|does not match its hash"):
            fc.interop.load(path)


def test_names_that_a_file_cannot_have(tmp_path):
    for params, said in (
        ({"a/b": jnp.ones(2)}, "names without '/'"),
        ({"a": [jnp.ones(2)]}, "nested dicts"),
        ({"a": jnp.ones(2, jnp.complex128)}, "cannot be written"),
    ):
        with pytest.raises(fc.FuncconvError, match=said):
            fc.interop.save_safetensors(tmp_path / "file", params)
    with pytest.raises(fc.FuncconvError, match="cannot be written"):
        fc.interop.save_safetensors(tmp_path / "no" / "file", {"a": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


def test_names_that_lie_inside_of_each_other_are_told(tmp_path):
    save_file = needed("safetensors.numpy").save_file
    for names in (("a", "a/b"), ("a/b", "a")):
        save_file({name: np.ones(2) for name in names}, tmp_path / "file")
        with pytest.raises(fc.FuncconvError, match="'a"):
            fc.interop.load_safetensors(tmp_path / "file")

"""Damaged files of weights are refused, whole ones are read exactly, and a failed save leaves the old file whole."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from available import needed
from damage import cuts, flipped_bits

import funcconv as fc
from funcconv._weight_files.safetensors_format import DTYPES

COUNTS = [pytest.param(100, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)]


def network():
    x = fc.Input("x", (6, 6, 1))
    return fc.Graph(x, fc.serial(fc.Conv(2, 3), fc.BatchNorm(), jnp.tanh, fc.Flatten(), fc.Dense(2))(x))


@pytest.fixture
def path(tmp_path):
    graph = network()
    place = tmp_path / "net.safetensors"
    fc.interop.save_safetensors(
        place, graph.init(jax.random.key(0)), graph=graph, state=graph.init_state(), metadata={"made": "by a test"}
    )
    return place


def header(content):
    """Return the header of a file, and its data."""
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def assembled(entries, data):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def refused(path, *, names=()):
    """Every reader of the file raises, in one line, and says which entries are damaged."""
    for reader in (fc.interop.load, fc.interop.load_safetensors, fc.interop.load_state):
        with pytest.raises(fc.FuncconvError) as error:
            reader(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
        for name in names:
            assert repr(name) in str(error.value)


@pytest.mark.parametrize("count", COUNTS)
def test_flipped_bits(path, rng, count):
    content = path.read_bytes()
    entries, data = header(content)
    begin = len(content) - len(data)
    for bit, damaged in flipped_bits(content, rng, count):
        path.write_bytes(damaged)
        position = bit // 8 - begin
        names = [
            name
            for name, entry in entries.items()
            if name != "__metadata__" and entry["data_offsets"][0] <= position < entry["data_offsets"][1]
        ]
        assert bool(names) == (position >= 0)
        refused(path, names=names)


@pytest.mark.once
@pytest.mark.parametrize("count", COUNTS)
def test_flipped_bits_of_the_header(path, rng, count):
    content = path.read_bytes()
    size = len(content) - len(header(content)[1])
    for _, damaged in flipped_bits(content[:size], rng, count):
        path.write_bytes(damaged + content[size:])
        refused(path)


@pytest.mark.once
@pytest.mark.parametrize("count", COUNTS)
def test_cuts(path, rng, count):
    content = path.read_bytes()
    for _, damaged in cuts(content, rng, count):
        path.write_bytes(damaged)
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


@pytest.mark.once
def test_every_field_of_an_entry_is_checked(path):
    """Changes that make another file of the format, each with an array that would be read without a checksum."""
    entries, data = header(path.read_bytes())
    name = "dense1/kernel"
    entry = entries[name]
    swapped = {"batch_norm1/scale": entries["batch_norm1/bias"], "batch_norm1/bias": entries["batch_norm1/scale"]}
    for changes, names in (
        ({name: entry | {"dtype": "I32"}}, [name]),
        ({name: entry | {"dtype": "U32"}}, [name]),
        ({name: entry | {"dtype": "F16", "shape": [*entry["shape"], 2]}}, [name]),
        ({name: entry | {"shape": entry["shape"][::-1]}}, [name]),
        ({name: entry | {"shape": [*entry["shape"], 1]}}, [name]),
        (swapped, list(swapped)),
    ):
        path.write_bytes(assembled(entries | changes, data))
        refused(path, names=names)
    renamed = {("dense1/kernal" if key == name else key): value for key, value in entries.items()}
    path.write_bytes(assembled(renamed, data))
    refused(path, names=["dense1/kernal"])
    without = {key: value for key, value in entries.items() if key != name}
    path.write_bytes(assembled(without, data))
    refused(path)


@pytest.mark.once
def test_every_text_is_checked(path):
    entries, data = header(path.read_bytes())
    texts = entries["__metadata__"]
    assert {"funcconv", "funcconv-hash", "funcconv-checksums", "funcconv-sha256", "made"} == set(texts)
    for name in texts:
        for changed in ({**texts, name: texts[name] + " "}, {**texts, name: ""}, texts | {"more": "text"}):
            path.write_bytes(assembled({**entries, "__metadata__": changed}, data))
            refused(path)
    for name in ("funcconv-checksums", "funcconv-sha256"):
        without = {key: text for key, text in texts.items() if key != name}
        path.write_bytes(assembled({**entries, "__metadata__": without}, data))
        refused(path)


@pytest.mark.once
def test_files_that_differ_only_in_spelling_are_read(path):
    """Another order of names, and other spaces, as other libraries may write them, change nothing."""
    expected = fc.interop.load(path)
    entries, data = header(path.read_bytes())
    path.write_bytes(assembled(dict(reversed(entries.items())), data))
    assert fc.interop.load(path)[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, fc.interop.load(path)[1], expected[1])


@pytest.mark.once
def test_entries_that_do_not_fill_the_file(tmp_path):
    """Without checksums too: overlaps, holes, sizes that are no sizes, names that are there twice."""
    place = tmp_path / "file"
    good = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    other = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    for entries in (
        {"a": good, "b": good},
        {"a": good, "b": other | {"data_offsets": [8, 12]}},
        {"a": good, "b": other | {"data_offsets": [2, 6]}},
        {"a": good},
        {"a": good, "b": other | {"shape": [True]}},
        {"a": good, "b": other | {"shape": [1.0]}},
        {"a": good, "b": other | {"shape": [-1, -1]}},
        {"a": good, "b": other | {"shape": {}}},
        {"a": good, "b": other | {"dtype": ["F32"]}},
        {"a": good, "b": other | {"more": 1}},
        {"a": good, "b": None},
        {"a": good, "b": other, "c": {"dtype": "F32", "shape": [0] + [2**40] * 3, "data_offsets": [8, 8]}},
        {"a": good, "b": other, "c": {"dtype": "F32", "shape": [0] * 100, "data_offsets": [8, 8]}},
        {"a": good, "b": other, "__metadata__": {"a": 1}},
        {"a": good, "b": other, "__metadata__": ["a"]},
    ):
        place.write_bytes(assembled(entries, b"\0" * 8))
        with pytest.raises(fc.FuncconvError, match="cannot be read"):
            fc.interop.load_safetensors(place)
    one = json.dumps(good)
    text = f'{{"a": {one}, "a": {one}}}'.encode()
    place.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)
    with pytest.raises(fc.FuncconvError, match="twice"):
        fc.interop.load_safetensors(place)
    truths = {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}
    place.write_bytes(assembled({"a": truths}, b"\1\2"))
    with pytest.raises(fc.FuncconvError, match="neither 0 nor 1"):
        fc.interop.load_safetensors(place)
    place.write_bytes(assembled({"a": good, "b": other}, np.float32([1, 2]).tobytes()))
    assert {name: float(array[0]) for name, array in fc.interop.load_safetensors(place)[0].items()} == {"a": 1, "b": 2}


def some_of(dtype):
    """Return numbers of a dtype from all over its range, which another one would not hold."""
    dtype = jnp.dtype(dtype)
    if dtype.name == "bool":
        return np.array([[True, False, True]])
    if jnp.issubdtype(dtype, jnp.integer):
        return np.array([[jnp.iinfo(dtype).min, jnp.iinfo(dtype).max, jnp.iinfo(dtype).max // 3]], dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return np.array([[1 / 3 + 1e30j, -0.0, np.inf]], dtype)
    return np.array(
        [[float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).tiny), 1 + float(jnp.finfo(dtype).eps)]], dtype
    )


@pytest.mark.parametrize("x64", [True, False])
def test_no_dtype_is_cast(tmp_path, x64):
    """What JAX has without 64 bits is a JAX array, everything else a NumPy array with the same numbers."""
    params = {dtype: some_of(dtype) for dtype in DTYPES.values()}
    with jax.enable_x64(x64):
        fc.interop.save_safetensors(tmp_path / "file", {"of": params}, state={"of": params})
        for loaded in (fc.interop.load_safetensors(tmp_path / "file")[0], fc.interop.load_state(tmp_path / "file")):
            for dtype, array in loaded["of"].items():
                assert array.dtype == dtype
                assert np.asarray(array).tobytes() == params[dtype].tobytes()
                assert isinstance(array, jax.Array) == (x64 or dtype not in ("float64", "int64", "uint64"))


def test_arrays_that_cannot_be_saved_are_named(tmp_path):
    deleted = jnp.ones(2)
    deleted.delete()
    for leaf, said in (
        (deleted, "deleted"),
        (jax.random.key(0), "random key"),
        (jnp.arange(4).astype(jnp.int4), "int4"),
        (np.ones(2, np.complex128), "complex128"),
        (np.array([None]), "object"),
        (np.array(["text"]), "<U4"),
        (np.zeros(2, "M8[s]"), "datetime64"),
        (np.zeros(2, "i4, f4"), "f0"),
        (2**70, "object"),
        ("text", "nested dicts of arrays"),
        ([np.ones(2)], "nested dicts of arrays"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), "object"),
    ):
        for tree in ({"params": {"a": leaf}}, {"params": {}, "state": {"a": leaf}}):
            with pytest.raises(fc.FuncconvError, match=said) as error:
                fc.interop.save_safetensors(tmp_path / "file", **tree)
            assert "a'" in str(error.value)
    with pytest.raises(fc.FuncconvError, match="cannot be saved"):
        jax.jit(lambda x: fc.interop.save_safetensors(tmp_path / "file", {"a": x}))(jnp.ones(2))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"a": {}},
        {"a": None},
        {"a": {"b": {}, "c": None, "d": np.ones(2)}},
        {"@state": {"a": np.ones(2)}},
        {"@state": np.ones(2)},
        {"@": np.ones(2), "@@": {"@": np.zeros(1)}, "@@state": {"a": np.ones(2)}},
        {"ä.b c": {"漢": np.ones(2)}, ".": {"..": np.ones(1)}},
        {"nul\0": np.ones(1), "line\n": np.ones(1)},
        {"funcconv": np.ones(1), "data_offsets": {"dtype": np.ones(1)}, "a": {"__metadata__": np.ones(1)}},
        {"a": np.ones((2, 3), ">f4"), "b": np.ones((4, 6))[::2, ::3].T, "c": np.float32(1.5), "d": np.ones((0, 3))},
    ],
)
def test_trees_come_back_as_they_were(tmp_path, tree):
    for params, state in ((tree, {}), (tree, {"a": np.ones(3)}), (tree, tree)):
        fc.interop.save_safetensors(tmp_path / "file", params, state=state)
        loaded, metadata = fc.interop.load_safetensors(tmp_path / "file")
        assert metadata == {}
        for saved_tree, loaded_tree in ((params, loaded), (state, fc.interop.load_state(tmp_path / "file"))):
            same(loaded_tree, saved_tree)


def same(actual, expected):
    """The trees have the same dicts, the same dtypes and the same numbers."""
    if isinstance(expected, dict):
        assert isinstance(actual, dict)
        assert actual.keys() == expected.keys()
        for name in expected:
            same(actual[name], expected[name])
    elif expected is None:
        assert actual is None
    else:
        assert actual.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.once
@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"": np.ones(1)}, "''"),
        ({"a": {"": np.ones(1)}}, "'a'"),
        ({"a": {"b/c": np.ones(1)}}, "'b/c'"),
        ({1: np.ones(1)}, "1"),
        ({"a": {None: np.ones(1)}}, "None"),
        ({"__metadata__": np.ones(1)}, "__metadata__"),
        ({"\ud800": np.ones(1)}, "UTF-8"),
        (np.ones(2), "ndarray"),
        (None, "NoneType"),
        ([], "list"),
    ],
)
def test_trees_that_cannot_be_saved(tmp_path, params, said):
    with pytest.raises(fc.FuncconvError, match=said):
        fc.interop.save_safetensors(tmp_path / "file", params)
    assert not list(tmp_path.iterdir())


@pytest.mark.once
@pytest.mark.parametrize(
    "metadata",
    [{"a": 1}, {1: "a"}, {"a": None}, {"a": b"b"}, ["a"], "text", 5, {"\ud800": "a"}, {"a": "\ud800"}]
    + [{name: "x"} for name in ("funcconv-checksums", "funcconv-sha256", "funcconv-empty")],
)
def test_metadata_that_cannot_be_saved(tmp_path, metadata):
    with pytest.raises(fc.FuncconvError, match="save_safetensors"):
        fc.interop.save_safetensors(tmp_path / "file", {"a": np.ones(1)}, metadata=metadata)
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_metadata_comes_back(path, tmp_path):
    """What was read can be written again, and names another network only if it is told to."""
    params, metadata = fc.interop.load_safetensors(path)
    fc.interop.save_safetensors(tmp_path / "again", params, metadata=metadata | {"": "", "ä\n": "漢"})
    assert fc.interop.load_safetensors(tmp_path / "again")[1] == metadata | {"": "", "ä\n": "漢"}
    assert fc.interop.load(tmp_path / "again")[0] == network()
    x = fc.Input("x", (3,))
    with pytest.raises(fc.FuncconvError, match="reserved"):
        fc.interop.save_safetensors(tmp_path / "again", {}, graph=fc.Graph(x, fc.node(jnp.tanh, x)), metadata=metadata)


def test_other_libraries_read_and_write_these_files(path, tmp_path):
    numpy = needed("safetensors.numpy")
    params, _ = fc.interop.load_safetensors(path)
    theirs = numpy.load_file(path)
    np.testing.assert_array_equal(theirs["conv1/kernel"], params["conv1"]["kernel"])
    numpy.save_file({"@a": theirs["conv1/kernel"], "@@b": np.ones(2)}, tmp_path / "theirs", metadata={"of": "them"})
    loaded, metadata = fc.interop.load_safetensors(tmp_path / "theirs")
    assert metadata == {"of": "them"}
    assert sorted(loaded) == ["@@b", "@a"]
    numpy.save_file({"a": np.ones(2)}, tmp_path / "theirs")
    assert fc.interop.load_safetensors(tmp_path / "theirs")[1] == {}


@pytest.mark.parametrize("layer", [fc.Dense(2, dtype="float16"), fc.WeightStandardize(fc.Dense(2, dtype="float16"))])
def test_dtypes_are_those_that_the_layers_declare(tmp_path, layer):
    x = fc.Input("x", (3,), "float16")
    graph = fc.Graph(x, layer(x))
    params = graph.init(jax.random.key(0))
    place = tmp_path / "file"
    fc.interop.save_safetensors(place, params, graph=graph)
    same(fc.interop.load(place)[1], params)
    fc.interop.save_safetensors(place, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params), graph=graph)
    with pytest.raises(fc.FuncconvError, match="dense1/kernel is float32, but needs float16"):
        fc.interop.load(place)


def test_layers_that_declare_no_dtype_take_any_floats(tmp_path):
    x = fc.Input("x", (3,))
    graph = fc.Graph(x, fc.Dense(2)(x))
    params = graph.init(jax.random.key(0))
    for dtype, fits in (("float16", True), ("bfloat16", True), ("float64", True), ("int32", False), ("bool", False)):
        cast = jax.tree.map(lambda leaf, dtype=dtype: np.asarray(leaf).astype(jnp.dtype(dtype)), params)
        fc.interop.save_safetensors(tmp_path / "file", cast, graph=graph)
        with jax.enable_x64(False):
            if fits:
                same(fc.interop.load(tmp_path / "file")[1], cast)
            else:
                with pytest.raises(fc.FuncconvError, match=f"dense1/kernel is {dtype}, but needs floats"):
                    fc.interop.load(tmp_path / "file")

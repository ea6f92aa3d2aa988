"""Parts of a model from a checkpoint of another one: what is taken, what is listed, and what is never guessed."""

import re
import warnings

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from available import needed
from damage import cuts, flipped_bits
from flax import serialization

import funcconv as fc
from funcconv._checkpoints.parts.layouts import in_order, is_certain, readings

pytestmark = pytest.mark.usefixtures("climate_of_a_user")

KEY = jax.random.key(0)
F32 = np.float32
restore = fc.train.restore


def numbers(shape=(2,), dtype=F32, start=1):
    return np.arange(start, start + int(np.prod(shape))).reshape(shape).astype(dtype)


def zeros(tree):
    return jax.tree.map(lambda leaf: np.zeros_like(leaf), tree)


def refused(*parts, **options):
    with pytest.raises(fc.FuncconvError) as error:
        restore(**options)
    for part in ("train", *parts):
        assert re.search(part, str(error.value), re.DOTALL), (part, str(error.value))
    return str(error.value)


def same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert (type(leaf), np.asarray(leaf).dtype) == (type(other), np.asarray(other).dtype)
        np.testing.assert_array_equal(leaf, other)


# names -----------------------------------------------------------------------------------------------------------

FILE = {
    "encoder": {"conv1": {"kernel": numbers((3,)), "bias": numbers()}, "conv2": {"bias": numbers()}},
    "fc": {"kernel": numbers((4,))},
}


@pytest.mark.parametrize(
    ("match", "restored"),
    [
        (None, {"fc/kernel": "fc/kernel"}),
        (
            {"encoder/*": "trunk/*"},
            {"trunk/conv1/bias": "encoder/conv1/bias", "trunk/conv2/bias": "encoder/conv2/bias"},
        ),
        ({"encoder": "trunk"}, {"trunk/conv1/bias": "encoder/conv1/bias", "trunk/conv2/bias": "encoder/conv2/bias"}),
        ({"encoder.conv2": "trunk/conv1"}, {"trunk/conv1/bias": "encoder/conv2/bias"}),
        ({"fc/kernel": "head/w"}, {"head/w": "fc/kernel"}),
        ({"fc.*": "fc.*"}, {"fc/kernel": "fc/kernel"}),
        ({"*/conv1/bias": "*/conv1/bias", "encoder/*2/*": "trunk/*1/*"}, {"trunk/conv1/bias": "encoder/conv2/bias"}),
        # The first pattern counts; the last one takes the rest.
        (
            {"encoder/conv2/*": "trunk/conv1/*", "encoder/conv1/*": "trunk/conv2/*", "*": "*"},
            {
                "trunk/conv1/bias": "encoder/conv2/bias",
                "trunk/conv2/bias": "encoder/conv1/bias",
                "fc/kernel": "fc/kernel",
            },
        ),
    ],
)
def test_names_are_paired_by_patterns(match, restored):
    into = {
        "trunk": {"conv1": {"bias": numbers(start=7)}, "conv2": {"bias": numbers(start=8)}},
        "fc": {"kernel": numbers((4,), start=9)},
        "head": {"w": numbers((4,), start=10)},
    }
    if match and any(pattern.startswith("*/conv1") for pattern in match):
        refused("gives no name that the tree has; for example, 'encoder/conv1/bias'", path=FILE, into=into, match=match)
        return
    tree, report = restore(FILE, into=into, match=match, missing="keep")
    assert report.restored == restored
    names = {"fc/kernel", "head/w", "trunk/conv1/bias", "trunk/conv2/bias"}
    assert set(report.missing) == names - set(restored)
    used = set(restored.values())
    assert (
        set(report.unused) == {"encoder/conv1/kernel", "encoder/conv1/bias", "encoder/conv2/bias", "fc/kernel"} - used
    )
    for name in names:
        values, kept, source = tree, into, FILE
        for part in name.split("/"):
            values, kept = values[part], kept[part]
        for part in restored.get(name, "").split("/"):
            source = source[part] if part else kept
        np.testing.assert_array_equal(values, source)


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ({"encodr/*": "trunk/*"}, r"'encodr/\*' matches no name in the file; did you mean 'encoder/conv"),
        (
            {"encoder/*": "trnk/*"},
            r"gives no name that the tree has; for example, 'encoder/conv.*' of the file becomes 'trnk",
        ),
        ({"encoder/conv2": "trunk", "encoder/conv2/*": "trunk/*"}, r"'encoder/conv2/\*' has no effect.*Put it before"),
        ({"encoder/*/bias": "trunk/bias"}, r"must have as many `\*`.*they have 1 and 0"),
        ({"encoder/*": "trunk/*/*"}, "they have 1 and 2"),
        (
            {"*/*": "*/x/*"},
            "'encoder/conv1/.*' of the file in several ways, which give 'encoder/conv1/x/.*' and 'encoder/x",
        ),
        (
            {"encoder/conv1/bias": "trunk/bias", "encoder/conv2/bias": "trunk/bias"},
            "'encoder/conv1/bias' and 'encoder/conv2/bias' of the file both belong to 'trunk/bias'",
        ),
        ({}, "match must be a dict"),
        (["encoder"], "match must be a dict"),
        ({"encoder": 3}, "names or patterns on both sides; got 'encoder': 3"),
        ({"": "trunk"}, "names or patterns on both sides"),
    ],
)
def test_patterns_are_never_guessed(match, said):
    into = {"trunk": {"bias": numbers(), "x": numbers()}}
    refused(said, path=FILE, into=into, match=match, missing="keep", mismatched="keep")


def test_several_readings_of_a_name_with_one_result():
    tree, report = restore({"a/b": {"c": F32(1)}}, into={"a": {"b": {"c": F32(0)}}}, match={"*/*": "*/*"})
    assert (tree["a"]["b"]["c"], report.restored) == (1, {"a/b/c": "a/b/c"})


def test_an_earlier_pattern_decides_what_a_later_one_cannot():
    file = {"a": {"b": {"c": F32(1)}, "d": F32(2)}}
    tree, _ = restore(file, into={"x": F32(0), "a": {"x": {"d": F32(0)}}}, match={"a/b/c": "x", "*/*": "*/x/*"})
    assert (tree["x"], tree["a"]["x"]["d"]) == (1, 2)


def test_names_that_are_equal():
    twice = {"a/b": F32(1), "a": {"b": F32(2)}}
    refused("two arrays in the tree have the name 'a/b'", path=twice, into={"a": F32(0)})
    refused("two arrays in into have the name 'a/b'", path={"a": F32(0)}, into=twice)


def test_names_that_are_equal_with_a_dot():
    refused(
        "the names 'a.b' and 'a/b' in the file are the same", path={"a.b": F32(1), "a/b": F32(2)}, into={"c": F32(0)}
    )
    refused(
        "the names 'a/b' and 'a.b' in into are the same", path={"c": F32(1)}, into={"a.b": F32(1), "a": {"b": F32(2)}}
    )


# what does not fit -------------------------------------------------------------------------------------------------


def test_missing_entries():
    into = {
        "fc": {"kernel": numbers((4,), start=5), "bias": numbers()},
        "encoder": {"conv1": {"bias": numbers(start=3)}},
    }
    said = refused("lacks 1 of 3 arrays", "fc/bias", path=FILE, into=into)
    assert "only the file has 2 of the names" in said
    tree, report = restore(FILE, into=into, missing="keep")
    assert (report.missing, sorted(report.restored)) == (("fc/bias",), ["encoder/conv1/bias", "fc/kernel"])
    same(tree, {"fc": {"kernel": numbers((4,)), "bias": numbers()}, "encoder": {"conv1": {"bias": numbers()}}})


@pytest.mark.parametrize("other", [numbers((3,)), numbers((2, 1)), numbers(dtype=np.float16), numbers(dtype=np.int32)])
def test_mismatched_entries(other):
    into = {"a": numbers(start=5), "b": numbers(start=5)}
    text = rf"b: {other.dtype}\{list(other.shape)}".replace("]", r"\]") + r" in the file, float32\[2\] expected"
    refused("1 arrays have another shape or dtype", text, path={"a": numbers(), "b": other}, into=into)
    refused(text, path={"a": numbers(), "b": other}, into=into, missing="keep")
    tree, report = restore({"a": numbers(), "b": other}, into=into, mismatched="keep")
    assert list(report.mismatched) == ["b"]
    assert re.fullmatch(text, f"b: {report.mismatched['b']}")
    assert (report.missing, report.unused, report.restored) == ((), (), {"a": "a"})
    same(tree, {"a": numbers(), "b": numbers(start=5)})


def test_everything_that_does_not_fit_is_in_one_message():
    into = {"a": numbers((3,)), "b": numbers((3,)), "c": numbers()}
    said = refused("2 arrays have", "lacks 1 of 3", path={"a": numbers(), "b": numbers()}, into=into)
    assert "a: float32[2] in the file, float32[3] expected, b: float32[2]" in said


def test_nothing_is_restored():
    refused(
        "no array was restored.*unused in the file: b", path={"b": numbers()}, into={"a": numbers()}, missing="keep"
    )
    refused("no array was restored", path={"a": numbers()}, into={"a": numbers((3,))}, mismatched="keep")
    refused("no array was restored", path={}, into={}, missing="keep")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"into": {"a": 1.0}, "missing": "kep"}, "missing must be 'raise' or 'keep'; got 'kep'; did you mean 'keep'"),
        ({"into": {"a": 1.0}, "mismatched": None}, "mismatched must be 'raise' or 'keep'; got None"),
        ({"into": {"a": 1.0}, "key": "b"}, "choose a part of a file"),
        ({"into": {"a": 1.0}, "which": 3}, "choose a part of a file"),
        ({"into": {"a": 1.0}, "key": 3}, "key must be the path of an entry.*got 3"),
        ({"into": {"a": 1.0}, "key": ""}, "key must be the path of an entry"),
        ({"into": {"a": 1.0}, "like": {"a": 1.0}}, "pass like=.*or into="),
        ({"like": {"a": 1.0}, "missing": "keep"}, "missing, mismatched and key need into="),
        ({"like": {"a": 1.0}, "match": {"a": "b"}}, "need into="),
        ({}, "pass like="),
    ],
)
def test_options_that_do_not_go_together(options, said):
    refused(said, path={"a": 1.0}, **options)


# types -------------------------------------------------------------------------------------------------------------


def test_the_result_has_the_types_of_into():
    device = jax.devices()[1]
    sharding = jax.NamedSharding(jax.make_mesh((2,), ("a",)), jax.P("a"))
    into = {
        "jax": jax.device_put(jnp.zeros(2), device),
        "spread": jax.device_put(jnp.zeros(4), sharding),
        "numpy": np.zeros(2, F32),
        "wide": np.zeros(2),
        "scalar": F32(0),
        "number": 0.0,
        "flag": False,
        "count": np.zeros((), np.int64),
        "half": jnp.zeros(2, jnp.float16),
        "brain": jnp.zeros(2, jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "type": jax.ShapeDtypeStruct((2,), F32),
        "wide type": jax.ShapeDtypeStruct((2,), np.float64),
    }
    source = {
        "jax": numbers(),
        "spread": jnp.asarray(numbers((4,))),
        "numpy": jnp.asarray(numbers()),
        "wide": np.array([1 / 3, 1e300]),
        "scalar": F32(2),
        "number": 1 / 3,
        "flag": True,
        "count": np.int64(2**40),
        "half": numbers(dtype=np.float16),
        "brain": numbers(dtype=ml_dtypes.bfloat16),
        "empty": np.zeros((0, 3), F32),
        "type": numbers(),
        "wide type": np.array([1 / 3, 1e300]),
    }
    tree, report = restore(source, into=into)
    assert len(report.restored) == len(into)
    for name, leaf in into.items():
        is_type = isinstance(leaf, jax.ShapeDtypeStruct)
        kind = (jax.Array if leaf.dtype == F32 else np.ndarray) if is_type else type(leaf)
        assert isinstance(tree[name], kind), name
        assert np.asarray(tree[name]).dtype == np.asarray(source[name]).dtype
        np.testing.assert_array_equal(tree[name], source[name])
    assert tree["jax"].devices() == {device}
    assert tree["spread"].sharding == sharding


def test_64_bits_without_x64():
    wide = {"a": np.array([1 / 3]), "n": np.array([2**40])}
    tree, _ = restore(wide, into=zeros(wide))
    same(tree, wide)
    refused(r"a: float64\[1\] in the file, float32\[1\] expected", path=wide, into={"a": jnp.zeros(1)})


def test_only_types_have_no_values_to_keep():
    into = {"a": jax.ShapeDtypeStruct((2,), F32), "b": jax.ShapeDtypeStruct((2,), F32)}
    refused("only the types, and no values to keep.*: b", path={"a": numbers()}, into=into, missing="keep")


def test_the_result_shares_no_memory():
    source, into = {"a": numbers(), "j": jnp.ones(2)}, {"a": np.zeros(2, F32), "j": jnp.zeros(2), "k": jnp.zeros(2)}
    tree, _ = restore(source, into=into, missing="keep")
    source["a"][:] = 9
    assert tree["a"].tolist() == [1, 2]
    jax.jit(lambda x: x + 1, donate_argnums=0)(tree["j"])
    assert source["j"].tolist() == [1, 1]


def test_a_report_is_a_text():
    file = {f"layer{i:02}": {"w": numbers()} for i in range(30)}
    _, report = restore(file, into=zeros(file) | {"x": 0.0}, match={"layer*": "layer*"}, missing="keep")
    assert repr(report) == "RestoreReport: 30 of 31 arrays restored\n  missing in the file, kept: x"
    _, report = restore(file, into={"a": numbers(), "b": F32(0)}, match={"layer00/w": "a"}, missing="keep")
    lines = repr(report).splitlines()
    assert lines[1:4] == ["  renamed: a from layer00/w", "  missing in the file, kept: b", "  unused in the file:"]
    assert lines[-1].strip() == "and 9 more"


# files -------------------------------------------------------------------------------------------------------------

PARAMS = {"trunk": {"conv": {"kernel": numbers((3, 3, 2, 4)), "bias": numbers((4,))}}, "@odd": {"w": numbers()}}


def test_a_folder(tmp_path):
    for step in (1, 2):
        fc.train.save(tmp_path, jax.tree.map(lambda leaf, step=step: step * leaf, PARAMS), step)
    tree, report = restore(tmp_path, into=zeros(PARAMS))
    same(tree, jax.tree.map(lambda leaf: 2 * leaf, PARAMS))
    assert report.notes == ()
    same(restore(tmp_path, into=zeros(PARAMS), which=1)[0], PARAMS)
    same(restore(tmp_path, into=zeros(PARAMS["trunk"]), key="trunk", which=1)[0], PARAMS["trunk"])
    refused("no checkpoint of step 3", path=tmp_path, into=zeros(PARAMS), which=3)
    refused("no entry 'trnk'; it has '@odd', 'trunk'", path=tmp_path, into=zeros(PARAMS), key="trnk")


@pytest.mark.usefixtures("rest_of_a_failed_read")
def test_a_damaged_folder_is_skipped(tmp_path):
    for step in (1, 2):
        fc.train.save(tmp_path, jax.tree.map(lambda leaf, step=step: step * leaf, PARAMS), step)
    record = tmp_path / "2" / "record.jsonl"
    record.write_bytes(record.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="step 2 .* is skipped: it is damaged"):
        tree, _ = restore(tmp_path, into=zeros(PARAMS))
    same(tree, PARAMS)
    refused("step 2 .* is damaged", path=tmp_path, into=zeros(PARAMS), which=2)


@pytest.fixture
def run(tmp_path):
    """Return the folder of a run and its last state."""

    def loss(params, batch, *, key, state):
        del key
        value = jnp.square(params["trunk"]["w"] * batch - params["head"]["w"]).mean()
        return value, {"state": {"count": state["count"] + 1}}

    params = {"trunk": {"w": jnp.ones(2)}, "head": {"w": jnp.zeros(2)}}
    init, step = fc.train.make_step(loss, optax.adam(0.1), ema=0.5, has_aux=True)
    state = init(params, KEY, {"count": jnp.int32(0)})
    state, _ = fc.train.fit(step, state, iter([F32(2)] * 3), steps=3, checkpoint=tmp_path / "run", progress=False)
    return tmp_path / "run", state, init(params, jax.random.key(7), {"count": jnp.int32(0)})


def test_a_run(run):
    folder, state, _ = run
    new = {"backbone": {"w": jnp.zeros(2)}, "head": {"w": jnp.zeros(2)}}
    tree, report = restore(folder, into=new, match={"trunk/*": "backbone/*"}, missing="keep")
    same(tree, {"backbone": state.params["trunk"], "head": new["head"]})
    assert report.unused == ("head/w",)
    assert report.notes == ("used the entry 'params'; the state also has ema, key, model, optimizer, skipped, step",)
    same(restore(folder, into=jax.tree.map(jnp.zeros_like, state.params), key="ema")[0], state.ema)
    same(restore(folder, into={"count": jnp.int32(0)}, key="model")[0], state.model)


def test_a_whole_state(run):
    folder, state, first = run
    tree, report = restore(folder, into=first, key=".")
    assert fc.train.digest(tree) == fc.train.digest(state)
    assert report.unused == ()
    assert isinstance(tree, fc.train.State)


def test_our_own_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    running = {"norm": {"mean": numbers()}}
    fc.interop.save_safetensors(path, PARAMS, state=running)
    tree, report = restore(path, into=zeros(PARAMS))
    same(tree, PARAMS)  # also a name with @, and a square window: the axes are ours
    assert report.unused == ("@state/norm/mean",)
    same(restore(path, into=zeros(running), key="@state")[0], running)
    refused(r"which=3 needs a folder", path=path, into=zeros(PARAMS), which=3)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, F32, np.float64, np.int64, np.uint8, bool])
def test_dtypes_of_files(tmp_path, dtype):
    params = {"a": {"w": numbers((5,)).astype(dtype)}}
    fc.interop.save_safetensors(tmp_path / "a.safetensors", params)
    fc.train.save(tmp_path / "folder", params)
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(params))
    for name in ("a.safetensors", "folder", "a.msgpack"):
        same(restore(tmp_path / name, into=zeros(params))[0], params)


@pytest.mark.parametrize("flat", [True, False])
def test_a_file_of_flax(tmp_path, flat):
    variables = {"params": PARAMS, "batch_stats": {"norm": {"mean": numbers()}}}
    nested = {"params/trunk": PARAMS["trunk"], "params": {"@odd": PARAMS["@odd"]}} if flat else variables
    (tmp_path / "a.msgpack").write_bytes(serialization.to_bytes(nested))
    tree, report = restore(tmp_path / "a.msgpack", into=zeros(PARAMS), match={"params/*": "*"})
    same(tree, PARAMS)
    assert report.unused == (() if flat else ("batch_stats/norm/mean",))
    if not flat:
        same(restore(tmp_path / "a.msgpack", into=zeros(PARAMS), key="params")[0], PARAMS)


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
def test_a_folder_of_orbax(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as writer:
        writer.save(tmp_path / "orbax", {"params": PARAMS})
    same(restore(tmp_path / "orbax", into=zeros(PARAMS), match={"params/*": "*"})[0], PARAMS)
    same(restore(tmp_path / "orbax", into=zeros({"params": PARAMS}))[0], {"params": PARAMS})


@pytest.mark.filterwarnings("ignore:::(orbax|flax|etils).*")
def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    refused("", path=tmp_path / "nothing.pt", into=zeros(PARAMS))
    (tmp_path / "page.pt").write_text("<html><title>Not found</title>")
    refused("web page with the title 'Not found'", path=tmp_path / "page.pt", into=zeros(PARAMS))
    (tmp_path / "folder").mkdir()
    refused("not a checkpoint of orbax", path=tmp_path / "folder", into=zeros(PARAMS))
    for path in ("", "a\0b"):
        refused("path", path=path, into=zeros(PARAMS))


def test_damaged_safetensors(tmp_path, rng):
    path = tmp_path / "a.safetensors"
    fc.interop.save_safetensors(path, PARAMS)
    content = path.read_bytes()
    for _, damaged in [*flipped_bits(content, rng, 200), *cuts(content, rng, 50)]:
        path.write_bytes(damaged)
        refused("a.safetensors", path=path, into=zeros(PARAMS), missing="keep", mismatched="keep")


# PyTorch -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return needed("torch")


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_kernels_and_vectors_of_torch(torch, tmp_path, name, whole):
    weights = {"encoder.conv.weight": numbers((4, 2, 3, 5)), "encoder.conv.bias": numbers((4,))}
    weights |= {"encoder.norm.running_mean": numbers((4,)), "fc.weight": numbers((7, 6))}
    tensors = {f"module.{key}": torch.tensor(value) for key, value in weights.items()}
    if name == "a.safetensors":
        needed("safetensors.torch").save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors if whole else {"epoch": 3, "state_dict": tensors}, tmp_path / name)
    into = {"trunk": {"conv": {"kernel": jnp.zeros((3, 5, 2, 4)), "bias": jnp.zeros(4)}}, "head": jnp.zeros(1)}
    match = {"encoder.*.weight": "trunk/*/kernel", "encoder.*": "trunk.*"}
    tree, report = restore(tmp_path / name, into=into, match=match, missing="keep")
    np.testing.assert_array_equal(tree["trunk"]["conv"]["kernel"], weights["encoder.conv.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(tree["trunk"]["conv"]["bias"], weights["encoder.conv.bias"])
    assert (report.missing, report.unused) == (("head",), ("encoder.norm.running_mean", "fc.weight"))
    assert report.restored["trunk/conv/kernel"] == "encoder.conv.weight"
    assert report.notes[-1] == "removed the prefix 'module.' of all names"


K, C, A = "kernel", "channels first", "as it is"


@pytest.mark.parametrize(
    ("shape", "expected", "fits"),
    [
        ((4,), (4,), {A}),
        ((), (), {A}),
        ((4,), (3,), set()),
        ((64, 3, 7, 5), (7, 5, 3, 64), {K}),
        ((64, 64, 1, 1), (1, 1, 64, 64), {K}),
        ((64, 1, 3, 3), (3, 3, 1, 64), {K}),  # a depthwise kernel
        ((8, 6, 3), (3, 6, 8), {K}),
        ((3, 3, 3, 3), (3, 3, 3, 3), {A, K, C}),
        ((5, 5, 5), (5, 5, 5), {A, K, C}),
        ((64, 7, 7), (7, 7, 64), {K, C}),  # a kernel, or a scale of each position and channel
        ((64, 7, 5), (7, 5, 64), {C}),
        ((1, 196, 768), (1, 196, 768), {A}),
        ((10, 512), (512, 10), {"dense"}),  # the order of inputs after a flatten is not known
        ((64, 64), (64, 64), {A, "dense"}),
        ((10, 512), (10, 512), {A}),
        ((1, 512), (512, 1), {"dense"}),
        ((1, 1), (1, 1), {A}),
        ((1, 1, 3), (1, 1, 3), {A}),
        ((1, 1, 1, 1), (1, 1, 1, 1), {A}),  # all readings have one result
        ((4, 3, 2, 2), (2, 2, 4, 3), set()),  # in and out exchanged
        ((0, 3), (3, 0), {"dense"}),
    ],
)
def test_readings_of_a_shape(torch, tmp_path, shape, expected, fits):
    ways = readings(shape, expected)
    assert len(ways) == len(fits)
    array = numbers(shape)
    results = {way: in_order(array, way) for way in ways}
    assert all(result.shape == expected for result in results.values())
    if K in fits:
        assert any(np.array_equal(np.moveaxis(array, (0, 1), (-1, -2)), result) for result in results.values())
    if C in fits:
        assert any(np.array_equal(np.moveaxis(array, 0, -1), result) for result in results.values())
    certain = len(fits) == 1 and "dense" not in fits
    assert (bool(ways) and is_certain(ways)) == certain
    torch.save({"w.weight": torch.tensor(array), "b": torch.ones(2)}, tmp_path / "a.pt")
    options = {"path": tmp_path / "a.pt", "into": {"w": {"weight": np.zeros(expected, F32)}}}
    if certain:
        (result,) = results.values()
        np.testing.assert_array_equal(restore(**options)[0]["w"]["weight"], result)
    elif ways:
        refused("order of PyTorch, and shapes do not show how to read: w/weight: .*from_torch", **options)
        refused("shapes do not show", mismatched="keep", missing="keep", **options)
    else:
        refused("1 arrays have another shape or dtype", **options)


def test_arrays_in_the_order_of_into_are_taken_as_they_are(torch, tmp_path):
    array = numbers((3, 3, 3, 3))
    torch.save({"w": torch.tensor(array)}, tmp_path / "a.pt")
    arrays = fc.interop.read_weights(tmp_path / "a.pt")
    np.testing.assert_array_equal(restore(arrays, into=zeros(arrays))[0]["w"], array)
    refused("shapes do not show", path=torch.load(tmp_path / "a.pt"), into=zeros(arrays))  # tensors are of PyTorch


def test_a_trunk_of_torch_by_its_graph(torch, tmp_path):
    """`from_torch` knows all layouts, also that of a dense kernel after an image; the result is a tree."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 3, 3),
        torch.nn.BatchNorm2d(3),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(48, 48),
    ]
    module = torch.nn.ModuleDict({"encoder": torch.nn.Sequential(*layers), "fc": torch.nn.Linear(48, 10)}).eval()
    torch.save(module.state_dict(), tmp_path / "a.pt")
    x = fc.Input("x", (6, 6, 3))
    trunk = fc.Graph(
        x, fc.serial(fc.Conv(3, 3), fc.BatchNorm(), jax.nn.relu, fc.Flatten(), fc.Dense(48))(x), name="trunk"
    )
    graph = fc.Graph(x, fc.serial(trunk, fc.Dense(2))(x))
    weights = fc.interop.read_weights(tmp_path / "a.pt", key="encoder")
    own, running = fc.interop.from_torch(trunk, weights)
    params, state = graph.init(KEY), graph.init_state()
    params, report = restore(own, into=params, match={"*": "trunk/*"}, missing="keep")
    state, _ = restore(running, into=state, match={"*": "trunk/*"})
    assert report.missing == ("dense1/bias", "dense1/kernel")
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(F32)
    features = trunk.apply(params["trunk"], state["trunk"], image)[0]
    with torch.no_grad():
        expected = module["encoder"](torch.tensor(image).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


def test_tied_weights(torch, tmp_path):
    """Two names of one tensor are two names. One name fills two entries in two calls."""
    tied = torch.ones(3, requires_grad=True)
    torch.save({"embed.w": tied, "head.w": tied, "b": torch.zeros(2)}, tmp_path / "a.pt")
    refused(
        "'embed.w' and 'head.w' of the file both".replace(".w", "/w"),
        path=tmp_path / "a.pt",
        into={"w": np.zeros(3, F32)},
        match={"embed.w": "w", "head.w": "w"},
    )
    tree, report = restore(tmp_path / "a.pt", into={"w": np.zeros(3, F32)}, match={"embed.w": "w"})
    assert tree["w"].tolist() == [1, 1, 1]
    assert report.unused == ("head.w", "b")
    into = {"embed": {"w": np.zeros(3, F32)}, "out": {"w": np.zeros(3, F32)}}
    for target in ("embed.w", "out.w"):
        into, _ = restore(tmp_path / "a.pt", into=into, match={"embed.w": target}, missing="keep")
    assert into["embed"]["w"].tolist() == into["out"]["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64"])
def test_dtypes_of_torch(torch, tmp_path, dtype):
    torch.save({"w": torch.arange(5).to(getattr(torch, dtype))}, tmp_path / "a.pt")
    into = {"w": np.zeros(5, jnp.dtype(dtype))}
    same(restore(tmp_path / "a.pt", into=into)[0], {"w": np.arange(5).astype(jnp.dtype(dtype))})
    refused(rf"w: {dtype}\[5\] in the file, float32\[5\] expected", path=tmp_path / "a.pt", into={"w": jnp.zeros(5)})
    cast = {name: array.astype(F32) for name, array in fc.interop.read_weights(tmp_path / "a.pt").items()}
    same(restore(cast, into={"w": jnp.zeros(5)})[0], {"w": jnp.arange(5.0)})


def test_several_state_dicts(torch, tmp_path):
    torch.save({"model": {"w": torch.ones(3)}, "ema": {"w": 2 * torch.ones(3)}}, tmp_path / "a.pt")
    into = {"w": np.zeros(3, F32)}
    refused("2 dicts in it have weights", "key='ema'", path=tmp_path / "a.pt", into=into)
    assert restore(tmp_path / "a.pt", into=into, key="ema")[0]["w"].tolist() == [2, 2, 2]


def test_damaged_files_of_torch(torch, tmp_path, rng):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(100)}, path)
    content = path.read_bytes()
    for _, damaged in cuts(content, rng, 50):
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            refused("a.pt", path=path, into={"w": np.zeros(100, F32)}, missing="keep", mismatched="keep")


# then it is trained ------------------------------------------------------------------------------------------------


def test_a_restored_trunk_is_frozen_and_the_head_is_trained(tmp_path, rng):
    x = fc.Input("x", (4,))

    def network(classes):
        trunk = fc.Graph(x, fc.serial(fc.Dense(8), fc.BatchNorm(), jnp.tanh)(x), name="trunk")
        return fc.Graph(x, fc.serial(trunk, fc.Dense(classes))(x))

    old, new = network(5), network(2)
    trained = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), old.init(KEY))
    fc.train.save(tmp_path, trained)
    params, report = restore(tmp_path, into=new.init(KEY), mismatched="keep")
    assert sorted(report.mismatched) == ["dense1/bias", "dense1/kernel"]

    def loss(params, batch, *, key, state):
        y, state = new.apply(params, state, batch["x"], key=key, train=True, evaluating="trunk/*")
        return optax.softmax_cross_entropy_with_integer_labels(y, batch["y"]).mean(), {"state": state}

    init, step = fc.train.make_step(loss, optax.adam(0.1), has_aux=True, frozen="trunk/*")
    state = init(params, KEY, new.init_state())
    batch = {"x": rng.normal(size=(32, 4)).astype(F32), "y": np.arange(32) % 2}
    batch["x"][:, 0] += 3 * batch["y"]
    losses = []
    for _ in range(30):
        state, metrics = jax.jit(step)(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] / 2
    same(state.params["trunk"], trained["trunk"])

"""Whatever file the command gets, it gives the right answer, or one line and the exit status 2."""

import io
import json
import os
import pickle
import shutil
import warnings

import jax
import numpy as np
import optax
import pytest
from available import needed
from damage import child, cuts, flipped_bits
from flax import serialization

import funcconv as fc
from funcconv._command_line import main

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
KEY = jax.random.key(0)
COUNTS = [pytest.param(100, id="few"), pytest.param(2000, id="many", marks=pytest.mark.slow)]
FEWER = [pytest.param(15, id="few"), pytest.param(300, id="many", marks=pytest.mark.slow)]  # each costs more


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a network, its weights and an input for it."""
    monkeypatch.chdir(tmp_path)
    x = fc.Input("x", (4, 4, 1))
    graph = fc.Graph(x, fc.serial(fc.Conv(2, 3), fc.BatchNorm(), fc.flatten, fc.Dense(3))(x))
    fc.interop.save_safetensors("net.safetensors", graph.init(KEY), graph=graph, state=graph.init_state())
    (tmp_path / "net.json").write_text(graph.to_json())
    np.save("x.npy", np.arange(32, dtype=np.float32).reshape(2, 4, 4, 1))
    return tmp_path


@pytest.fixture
def run(folder, capsys):
    """Run a command; return its output, or None where it fails with one line and status 2."""
    del folder

    def called(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        if status == 0:
            assert not err
            return out
        assert status == 2
        assert err.startswith("funcconv: ")
        assert err.count("\n") == 1
        return None

    return called


def damaged(content, rng, count):
    for _, damaged_content in flipped_bits(content, rng, count):
        yield damaged_content
    for _, damaged_content in cuts(content, rng, count // 2):
        yield damaged_content
    yield content + b"\0"


# damage -------------------------------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize("count", COUNTS)
def test_damaged_weights(folder, run, rng, count):
    path = folder / "net.safetensors"
    for content in damaged(path.read_bytes(), rng, count):
        path.write_bytes(content)
        assert run("summary", path) is None


@pytest.mark.once
@pytest.mark.parametrize("count", COUNTS)
def test_damaged_networks(folder, run, rng, count):
    """A changed letter may make another network, since JSON has no checksum; there is never a traceback."""
    path = folder / "net.json"
    for content in damaged(path.read_bytes(), rng, count):
        path.write_bytes(content)
        out = run("draw", path, "-o", "x.dot")
        assert out is None or out == ""


@pytest.mark.parametrize("count", FEWER)
def test_damaged_inputs(folder, run, rng, count):
    """An .npy file has no checksum: a flipped bit of a number is not seen, but every cut and every wrong size is."""
    path = folder / "x.npy"
    content = path.read_bytes()
    header = len(content) - 32 * 4
    for _, damaged_header in flipped_bits(content[:header], rng, count):
        path.write_bytes(damaged_header + content[header:])
        run("predict", "net.safetensors", path)
    for _, damaged_header in cuts(content, rng, count):
        path.write_bytes(damaged_header)
        assert run("predict", "net.safetensors", path) is None
    path.write_bytes(content + b"\0")
    assert run("predict", "net.safetensors", path) is None


@pytest.mark.parametrize("count", FEWER)
def test_damaged_msgpack(folder, run, rng, count):
    """A msgpack file has no checksum: a flipped bit of a number is not seen, but every cut is."""
    assert run("convert", "net.safetensors", "net.msgpack") is not None
    path = folder / "net.msgpack"
    content = path.read_bytes()
    for _, damaged_content in flipped_bits(content, rng, count):
        path.write_bytes(damaged_content)
        run("convert", path, "y.safetensors", "--graph", "net.json")
    for _, damaged_content in cuts(content, rng, count):
        path.write_bytes(damaged_content)
        assert run("convert", path, "y.safetensors", "--graph", "net.json") is None


@pytest.mark.once
@pytest.mark.parametrize("count", FEWER)
@pytest.mark.filterwarnings("ignore:::torch")
def test_damaged_weights_of_torch(folder, run, rng, count):
    torch = needed("torch")
    graph, params = fc.interop.load("net.safetensors")
    weights = fc.interop.to_torch(graph, params, fc.interop.load_state("net.safetensors"))
    path = folder / "net.pt"
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, path)
    assert run("convert", path, "y.safetensors", "--graph", "net.json") is not None
    content = path.read_bytes()
    for damaged_content in damaged(content, rng, count):
        path.write_bytes(damaged_content)
        run("convert", path, "y.safetensors", "--graph", "net.json")
    for _, damaged_content in cuts(content, rng, count):
        path.write_bytes(damaged_content)
        assert run("convert", path, "y.safetensors", "--graph", "net.json") is None


@pytest.mark.parametrize("count", FEWER)
@pytest.mark.filterwarnings("ignore")  # of orbax about what it finds
def test_damaged_checkpoints(folder, run, rng, count):
    """Parts of a checkpoint have checksums of their own; there is never a traceback."""
    assert run("convert", "net.safetensors", "whole") is not None
    for _ in range(count):
        shutil.copytree("whole", "damaged")
        files = sorted(path for path in (folder / "damaged").rglob("*") if path.is_file() and path.stat().st_size)
        path = files[rng.integers(len(files))]
        content = path.read_bytes()
        _, damaged_content = next(flipped_bits(content, rng, 1) if rng.integers(2) else cuts(content, rng, 1))
        path.write_bytes(damaged_content)
        run("convert", "damaged", "y.safetensors", "--graph", "net.json")
        shutil.rmtree("damaged")


# files of other kinds -----------------------------------------------------------------------------------------


def contents():
    """Return files of many kinds."""
    array, archive, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.ones(3))
    np.savez(archive, a=np.ones((1, 4, 4, 1)))
    np.save(objects, np.array([{1: 2}]), allow_pickle=True)
    return {
        "empty": b"",
        "text": b"hello\n",
        "zeros": bytes(1000),
        "array": array.getvalue(),
        "archive": archive.getvalue(),
        "objects": objects.getvalue(),
        "pickle": pickle.dumps({"a": 1}),
        "JSON": b"{}",
        "list": b"[1, 2]",
        "deep": b"[" * 10_000,
        "number": b"1e999",
        "NaN": b"NaN",
        "JSON of others": json.dumps({"format": "funcconv graph", "version": 2}).encode(),
        "msgpack": serialization.msgpack_serialize({"params": {"a": np.ones(2)}}),
        "msgpack number": serialization.msgpack_serialize({"a": 1})[2:],
        "msgpack text": b"\xa4text",
        "msgpack names": b"\x81\x01\x02",
        "msgpack state": serialization.msgpack_serialize({"params": 3}),
    }


@pytest.mark.once
@pytest.mark.parametrize("kind", contents())
@pytest.mark.filterwarnings("ignore:::torch")
def test_files_of_other_kinds(folder, run, kind):
    content = contents()[kind]
    for ending in (".safetensors", ".json", ".npy", ".png", ".msgpack", ".pt", ".docx", ""):
        path = folder / f"other{ending}"
        path.write_bytes(content)
        assert run("summary", path) is None
        assert run("draw", path, "-o", "x.dot") is None
        assert run("bench", path) is None
        assert run("predict", path, "x.npy") is None
        assert run("predict", "net.safetensors", path) is None
        assert run("convert", path, "y.safetensors", "--graph", "net.json") is None
        assert run("convert", "net.safetensors", "y.onnx", "--graph", path) is None
    assert not (folder / "y.safetensors").exists()


@pytest.mark.once
@pytest.mark.parametrize("path", ["", ".", "..", "folder", "nowhere", "a\0b", "x" * 300, "/dev/null", "pipe"])
def test_paths_of_no_file(folder, run, path):
    (folder / "folder").mkdir()
    os.mkfifo("pipe")
    for ending in ("", ".safetensors", ".json", ".npy", ".msgpack", ".pt"):
        if ending:
            (folder / f"folder{ending}").mkdir()
            os.mkfifo(f"pipe{ending}")
        for arguments in (
            ("summary",),
            ("draw", "-o", "x.dot"),
            ("bench",),
            ("predict", "x.npy"),
            ("convert", "y.safetensors", "--graph", "net.json"),
        ):
            assert run(arguments[0], path + ending, *arguments[1:]) is None or arguments[0] == "draw"
        assert run("predict", "net.safetensors", path + ending) is None


@pytest.mark.once
@pytest.mark.parametrize("existing", ["folder", "file", "link", "."])
def test_folders_that_exist_are_not_written_to(folder, run, existing):
    (folder / "folder").mkdir()
    (folder / "file").write_bytes(b"old")
    (folder / "link").symlink_to("nowhere")
    assert run("convert", "net.safetensors", existing) is None
    assert sorted(os.listdir()) == ["file", "folder", "link", "net.json", "net.safetensors", "x.npy"]
    assert (folder / "file").read_bytes() == b"old"


@pytest.mark.once
def test_a_folder_that_cannot_be_written_leaves_nothing(run, monkeypatch):
    ocp = pytest.importorskip("orbax.checkpoint")
    for target in ("nowhere/new", "", "x" * 300):
        assert run("convert", "net.safetensors", target) is None

    def save(_, path, *__, **___):
        path.mkdir()
        (path / "part").write_bytes(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", save)
    assert run("convert", "net.safetensors", "new") is None
    assert sorted(os.listdir()) == ["net.json", "net.safetensors", "x.npy"]


@pytest.mark.once
@pytest.mark.parametrize("batch", ["0", "-1", "1.5", "many", "1" * 30])
def test_batches_that_are_none(run, batch):
    for command in ("bench", "summary"):
        try:
            assert run(command, "net.json", "--batch", batch) is None or (command == "summary" and batch.isdigit())
        except SystemExit as error:
            assert error.code == 2  # noqa: PT017 (some of these numbers are read)


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["summary"], ["bench", "net.json", "--batch", "x"], ["draw", "net.json"], ["summary", "a", "b"]],
)
def test_arguments_that_are_wrong(folder, capsys, arguments):
    del folder
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.once
def test_endings_of_drawings(run, capsys):
    """Every ending that the help names can be written, and an error names the same ones."""
    with pytest.raises(SystemExit):
        main(["draw", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for ending in (".svg", ".png", ".pdf", ".dot", ".md"):
        assert ending in text
    for ending in (".dot", ".md", ".MD"):
        assert run("draw", "net.json", "-o", f"x{ending}") == ""
        assert os.path.getsize(f"x{ending}")
    assert run("draw", "net.json", "-o", "x.txt") is None


@pytest.mark.once
@pytest.mark.parametrize("names", [["conv1"], ["conv1=a", "conv1=b"], ["conv1=a", "nothing=b"]])
def test_names_that_are_wrong(run, names):
    needed("torch")
    options = [option for name in names for option in ("--name", name)]
    assert run("convert", "net.safetensors", "y.safetensors", *options[:2], *options) is None
    assert run("convert", "net.safetensors", "y.safetensors", "--graph", "") is None


# dtypes -------------------------------------------------------------------------------------------------------


def test_numbers_that_the_network_does_not_hold(folder, run):
    x = np.zeros((1, 4, 4, 1))
    expected = None
    for dtype, number, fits in (
        ("float32", 1, True),
        ("float64", 1, True),
        ("float16", 1, True),
        ("int64", 1, True),
        ("bool", 1, True),
        ("uint8", 1, True),
        ("float64", np.nan, True),
        ("float64", 1 / 3, False),
        ("float64", 1e300, False),
        ("int64", 2**24, True),
        ("int64", 2**40 + 1, False),
        ("uint64", 2**64 - 1, False),
        ("int32", -(2**25), False),
        ("complex64", 1, False),
        ("complex128", 1j, False),
        ("U1", "1", False),
        ("M8[s]", 1, False),
    ):
        given = x.astype(dtype)
        given[0, 0, 0, 0] = number
        np.save("given.npy", given)
        out = run("predict", "net.safetensors", "given.npy", "-o", "y.npy")
        assert (out is not None) == fits, (dtype, number)
        if fits and number == 1:
            prediction = np.load("y.npy")
            expected = prediction if expected is None else expected
            np.testing.assert_array_equal(prediction, expected)
    del folder


def test_networks_of_64_bits_need_64_bits(folder, run):
    x = fc.Input("x", (2,), "float64")
    graph = fc.Graph(x, fc.Dense(3, dtype="float64")(x))
    params = {"dense1": {"kernel": np.full((2, 3), 1 / 3), "bias": np.zeros(3)}}
    np.save("x.npy", np.ones((1, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, about float64
        fc.interop.save_safetensors("wide.safetensors", params, graph=graph)
        assert run("predict", "wide.safetensors", "x.npy") is None
        assert run("bench", "wide.safetensors") is None
        assert run("summary", "wide.safetensors") is not None
        assert run("convert", "wide.safetensors", "again.safetensors") is not None
        assert run("convert", "wide.safetensors", "wide.msgpack") is not None
        assert run("convert", "wide.safetensors", "wide") is not None
        assert run("convert", "wide.msgpack", "two.safetensors") is not None
        assert run("convert", "wide", "three.safetensors") is not None
    for name in ("again", "two", "three"):
        converted = fc.interop.load_safetensors(f"{name}.safetensors")[0]
        assert converted["dense1"]["kernel"].dtype == np.float64
        np.testing.assert_array_equal(converted["dense1"]["kernel"], params["dense1"]["kernel"])
    with jax.enable_x64(True):
        assert run("predict", "wide.safetensors", "x.npy", "-o", "y.npy") is not None
        np.testing.assert_array_equal(np.load("y.npy"), np.full((1, 3), 1 / 3 + 1 / 3))
        fc.train.save(
            "run", fc.train.make_step(lambda *_, **__: 0, optax.sgd(0.1))[0](graph.init(KEY), KEY, graph.init_state())
        )
    assert run("convert", "run", "four.safetensors") is not None
    assert fc.interop.load_safetensors("four.safetensors")[0]["dense1"]["kernel"].dtype == np.float64
    del folder


def test_results_that_a_file_does_not_hold(run):
    x = fc.Input("x", (2,), "bfloat16")
    graph = fc.Graph(x, fc.Dense(3, dtype="bfloat16")(x))
    fc.interop.save_safetensors("narrow.safetensors", graph.init(KEY), graph=graph)
    np.save("x.npy", np.ones((1, 2), np.float32))
    assert run("predict", "narrow.safetensors", "x.npy") is not None
    assert run("predict", "narrow.safetensors", "x.npy", "-o", "y.npy") is None
    assert not os.path.exists("y.npy")
    x = fc.Input("x", (2,))
    two = fc.Graph(x, {"a": fc.Dense(3)(x), "b": fc.Dense(2)(x)})
    fc.interop.save_safetensors("two.safetensors", two.init(KEY), graph=two)
    assert run("predict", "two.safetensors", "x.npy") is None


@pytest.mark.once
def test_output_that_cannot_be_printed(folder):
    """The whole process, on a full device: one line, status 2."""
    with child(
        "import sys; from funcconv._command_line import main; sys.stdout = open('/dev/full', 'w')\n"
        "sys.exit(main(['summary', 'net.json']))",
        folder,
    ) as process:
        err = process.stderr.read()
    assert process.returncode == 2, err
    assert err == "funcconv: [Errno 28] No space left on device\n"

"""The command `funcconv`, as a user types it."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from available import needed
from compare import close
from flax import serialization

import funcconv as fc
from funcconv._command_line import main

pytestmark = pytest.mark.usefixtures("climate_of_a_user")
KEY = jax.random.key(0)


@pytest.fixture
def saved(tmp_path):
    x = fc.Input("x", (8, 8, 1))
    layers = fc.serial(fc.Conv(4, 3), fc.BatchNorm(), jax.nn.relu, fc.max_pool, fc.flatten, fc.Dense(3))
    graph = fc.Graph(x, layers(x))
    params, state = graph.init(KEY), jax.tree.map(lambda a: a + 0.5, graph.init_state())
    path = tmp_path / "net.safetensors"
    fc.interop.save_safetensors(path, params, graph=graph, state=state)
    (tmp_path / "net.json").write_text(graph.to_json())
    return tmp_path, graph, params, state


def called(*arguments):
    return main([str(each) for each in arguments])


@pytest.mark.parametrize("file", ["net.safetensors", "net.json"])
def test_looking(saved, capsys, file):
    folder, graph, params, _ = saved
    assert called("summary", folder / file) == 0
    assert capsys.readouterr().out == f"{fc.summary(graph, params=params)}\n"
    assert called("summary", folder / file, "--json", "--batch", 3) == 0
    assert json.loads(capsys.readouterr().out) == fc.summary(graph, 3).as_dict()
    assert called("draw", folder / file, "-o", folder / "net.dot") == 0
    assert "batch_norm1" in (folder / "net.dot").read_text()
    assert called("draw", folder / file, "-o", folder / "net.md") == 0
    text = (folder / "net.md").read_text()
    assert text.startswith("```mermaid\n")
    assert text.endswith("```\n")
    assert fc.to_mermaid(graph, params=params) in text


def test_files_of_other_kinds_are_refused_by_their_endings(saved, capsys):
    folder, *_ = saved
    (folder / "notes.md").write_text("# Notes")
    for command in (("summary",), ("draw", "-o", folder / "x.dot"), ("bench",)):
        assert called(command[0], folder / "notes.md", *command[1:]) == 2
        assert "notes.md' is not a network: pass a .safetensors file, or a .json file" in capsys.readouterr().err
    assert called("draw", folder / "net.json", "-o", folder / "x.txt") == 2
    assert "ends in .svg, .png, .pdf, .dot or .md; got" in capsys.readouterr().err


def test_draw_lists_its_formats(saved, capsys):
    folder, *_ = saved
    with pytest.raises(SystemExit):
        called("draw", "--help")
    formats = ".svg, .png, .pdf, .dot or .md"
    assert formats in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="2"):
        called("draw", folder / "net.json")
    assert f"draw: --out is missing; give it the file to write, which ends in {formats}" in capsys.readouterr().err


def test_versions(capsys):
    assert called("versions") == 0
    assert capsys.readouterr().out == f"{fc.versions()}\n"


def test_predicting(saved, capsys, rng):
    folder, graph, params, state = saved
    x = rng.normal(size=(2, 8, 8, 1)).astype(np.float32)
    np.save(folder / "x.npy", x)
    assert called("predict", folder / "net.safetensors", folder / "x.npy", "-o", folder / "y.npy") == 0
    expected = np.asarray(graph.apply(params, state, x)[0])
    close(np.load(folder / "y.npy"), expected)
    assert called("predict", folder / "net.safetensors", folder / "x.npy") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.partition(":")[0]) for line in lines] == expected.argmax(-1).tolist()


def test_predicting_from_an_image(saved, capsys):
    plt = needed("matplotlib.pyplot")
    folder, *_ = saved
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    plt.imsave(folder / "x.png", pixels, cmap="gray", vmin=0, vmax=255)
    x = fc.Input("x", (8, 8, 4))  # as matplotlib writes it
    coloured = fc.Graph(x, fc.serial(fc.Conv(2, 8), fc.flatten)(x))
    weights = coloured.init(KEY)
    fc.interop.save_safetensors(folder / "colour.safetensors", weights, graph=coloured)
    assert called("predict", folder / "colour.safetensors", folder / "x.png") == 0
    image = np.stack([pixels / 255] * 3 + [np.ones((8, 8))], -1).astype(np.float32)
    best = int(np.asarray(coloured(weights, image)).argmax())
    assert capsys.readouterr().out.startswith(f"{best}: ")


def test_timing(saved, capsys):
    assert called("bench", saved[0] / "net.json", "--batch", 2) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["value", "gradient"]


def test_timing_with_a_tuning(saved, tmp_path, capsys):
    fc.Tuning().save(tmp_path / "tuning.json")
    assert called("bench", saved[0] / "net.json", "--batch", 2, "--tuning", tmp_path / "tuning.json") == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["value", "gradient"]
    assert called("bench", saved[0] / "net.json", "--tuning", tmp_path / "missing.json") == 2
    assert "missing.json" in capsys.readouterr().err


def test_converting_around_gives_the_same_weights(saved):
    folder, graph, params, state = saved
    path = folder / "net.safetensors"
    for target in ("net.msgpack", "orbax", "again.safetensors"):
        assert called("convert", path, folder / target, "--graph", folder / "net.json") == 0
        path = folder / target
    found, weights = fc.interop.load(path)
    assert found == graph
    jax.tree.map(np.testing.assert_array_equal, weights, params)
    restored = serialization.msgpack_restore((folder / "net.msgpack").read_bytes())
    jax.tree.map(np.testing.assert_array_equal, restored, {"params": params, "batch_stats": state})
    jax.tree.map(np.testing.assert_array_equal, fc.interop.load_state(path), state)


def test_converting_a_run(saved):
    folder, _, params, state = saved
    init, _ = fc.train.make_step(lambda *_, **__: 0, optax.adam(0.1))
    fc.train.save(folder / "run", init(params, KEY, state))
    assert called("convert", folder / "run", folder / "out.safetensors", "--graph", folder / "net.json") == 0
    jax.tree.map(np.testing.assert_array_equal, fc.interop.load(folder / "out.safetensors")[1], params)
    jax.tree.map(np.testing.assert_array_equal, fc.interop.load_state(folder / "out.safetensors"), state)


@pytest.mark.filterwarnings("ignore")  # those of jax2onnx 0.17 and what it imports, November 2026
def test_converting_to_onnx(saved, capsys):
    folder, graph, params, state = saved
    assert called("convert", folder / "net.safetensors", folder / "net.msgpack") == 0
    assert called("convert", folder / "net.msgpack", folder / "net.onnx") == 2
    assert "Pass --graph FILE" in capsys.readouterr().err
    needed("jax2onnx")
    onnxruntime = needed("onnxruntime")
    assert called("convert", folder / "net.safetensors", folder / "net.onnx") == 0
    session = onnxruntime.InferenceSession(folder / "net.onnx")
    x = np.linspace(-1, 1, 5 * 64, dtype=np.float32).reshape(5, 8, 8, 1)
    (found,) = session.run(None, {"x": x})
    close(found, graph.apply(params, state, x)[0])


def test_converting_from_torch(saved):
    torch = needed("torch")
    folder, graph, params, state = saved
    weights = fc.interop.to_torch(graph, params, state)
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, folder / "net.pt")
    names = [option for entry in graph.entries for option in ("--name", f"{entry}={entry}")]
    assert called("convert", folder / "net.pt", folder / "out.safetensors", "--graph", folder / "net.json", *names) == 0
    jax.tree.map(np.testing.assert_array_equal, fc.interop.load(folder / "out.safetensors")[1], params)
    torch.save([1, 2], folder / "list.pt")
    assert called("convert", folder / "list.pt", folder / "x.safetensors", "--graph", folder / "net.json") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["summary", "nowhere.safetensors"], "cannot be read"),
        (["summary", "nowhere.json"], "nowhere.json"),
        (["summary", "bad.json"], "it is not JSON"),
        (["draw", "net.json", "-o", "net.xyz"], "xyz"),
        (["predict", "net.json", "x.npy"], "net.json has no weights"),
        (["predict", "net.safetensors", "nowhere.npy"], "cannot be read"),
        (["predict", "net.safetensors", "bad.npy"], "cannot be read"),
        (["predict", "net.safetensors", "small.npy"], "must have shape"),
        (["convert", "net.pt", "x.safetensors"], "need a network. Pass --graph FILE"),
        (["convert", "net.safetensors", "x.docx"], "the ending of a format that can be written"),
        (["convert", "net.docx", "x.safetensors"], "a file in one of the formats"),
        (["convert", "bad.msgpack", "x.safetensors"], "not a msgpack file"),
        (["convert", "empty", "x.safetensors"], "not a checkpoint of orbax"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(saved, capsys, monkeypatch, arguments, said):
    folder, *_ = saved
    monkeypatch.chdir(folder)
    (folder / "bad.json").write_text("{")
    (folder / "bad.npy").write_bytes(b"\x80\x04 no array")
    (folder / "bad.msgpack").write_bytes(b"\xc1")
    (folder / "empty").mkdir()
    np.save("small.npy", np.ones((3, 3, 1), np.float32))
    assert called(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("funcconv: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert not captured.out


@pytest.mark.parametrize("command", [[], ["summary"], ["draw"], ["convert"], ["predict"], ["bench"]])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: funcconv" in capsys.readouterr().out


def test_it_is_a_module_too(saved):
    folder, *_ = saved
    done = subprocess.run(
        [sys.executable, "-m", "funcconv", "summary", folder / "net.json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "batch_norm1" in done.stdout

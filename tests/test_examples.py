"""The examples, run as a user runs them, with few steps; and the data files they read."""

import gzip
import re
import struct
import subprocess
import sys
from pathlib import Path

import digits
import jax
import numpy as np
import pytest
import siamese_mnist
from flax import serialization

EXAMPLES = Path(siamese_mnist.__file__).parent
LAST_LINE = r"verification=(\S+) nearest_neighbour=(\S+) unseen=(\S+) seconds=(\S+)"


def write_idx(path, array, code=0x08):
    """Write an array in the IDX format."""
    content = struct.pack(">HBB", 0, code, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content += array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_set(folder, ending="", classes=5, side=8, count=40):
    """Write a set of small images that are bright where their class is."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        labels = np.arange(count * classes) % classes
        images = rng.integers(0, 60, (len(labels), side, side))
        images[np.arange(len(labels)), labels % side, :] += 190
        write_idx(folder / f"{part}-images-idx3-ubyte{ending}", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte{ending}", labels.astype(np.uint8))
    return folder


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, EXAMPLES / "siamese_mnist.py", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_siamese_mnist_learns(tmp_path):
    """With a tenth of its steps it is far better than chance, and leaves its picture and weights."""
    done = run("--steps", 40, "--seed", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    match = re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    verification, nearest, unseen, _ = map(float, match.groups())
    assert verification > 0.85
    assert nearest > 0.8
    assert unseen > 0.6
    assert "training" in done.stderr
    assert "step" in done.stderr
    assert "loss=" in done.stderr
    assert (tmp_path / "siamese.png").read_bytes().startswith(b"\x89PNG")

    network = siamese_mnist.siamese_network((28, 28, 1))
    like = jax.eval_shape(network.init, jax.random.key(0))
    params = serialization.from_bytes(like, (tmp_path / "siamese.msgpack").read_bytes())
    data = digits.load(None)[1].of_classes(np.arange(8))
    with jax.enable_x64(False):
        embeddings = siamese_mnist.embed(network, params, data.images)
        threshold = siamese_mnist.best_threshold(embeddings, data.labels, 0)
        again = siamese_mnist.verification(embeddings, data.labels, threshold, 0)
    assert abs(again - verification) < 0.02


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_siamese_mnist_reads_idx(tmp_path, ending):
    folder = write_set(tmp_path / "set", ending)
    done = run("--data", folder, "--steps", 30, "--out", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["siamese.msgpack", "siamese.png"]


def test_siamese_mnist_fails_where_there_is_nothing_to_learn(tmp_path):
    folder = write_set(tmp_path / "set")
    rng = np.random.default_rng(1)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (200, 8, 8)).astype(np.uint8))
    done = run("--data", folder, "--steps", 3, cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(LAST_LINE, done.stdout.splitlines()[-1])
    assert "failed to learn" in done.stderr


def damage(folder, what):
    """Damage a set in one way, and return what the message must say."""
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    content = images.read_bytes()
    if what == "missing folder":
        return folder / "nowhere", "is not a folder"
    if what == "missing file":
        labels.unlink()
        return folder, "has no train-labels-idx1-ubyte, gzipped or not"
    if what == "cut":
        images.write_bytes(content[:-7])
        return folder, "is damaged: its header promises"
    if what == "cut header":
        images.write_bytes(content[:9])
        return folder, "is damaged"
    if what == "empty":
        images.write_bytes(b"")
        return folder, "is not in the IDX format: it begins with nothing"
    if what == "other format":
        images.write_bytes(b"\x89PNG" + content)
        return folder, "is not in the IDX format: it begins with 89 50 4e 47"
    if what == "huge":
        images.write_bytes(content[:4] + b"\xff" * 12 + content[16:])
        return folder, "is damaged"
    if what == "cut gzip":
        images.with_suffix(".gz").write_bytes(gzip.compress(content)[:-20])
        images.unlink()
        (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content)[:-20])
        return folder, "cannot be read"
    if what == "counts":
        write_idx(labels, np.zeros(3, np.uint8))
        return folder, "not images and their labels"
    if what == "labels":
        write_idx(labels, np.zeros(200, np.float32), 0x0D)
        return folder, "which are not integers"
    if what == "few classes":
        write_idx(labels, np.arange(200).astype(np.uint8) % 3)
        return folder, "3 classes are too few"
    if what == "unlike classes":
        write_idx(folder / "t10k-labels-idx1-ubyte", np.zeros(200, np.uint8))
        return folder, "held out"
    write_set(folder, side=3)
    return folder, "does not fit"


@pytest.mark.parametrize(
    "what",
    ["missing folder", "missing file", "cut", "cut header", "empty", "other format", "huge", "cut gzip", "counts",
     "labels", "few classes", "unlike classes", "small images"],
)  # fmt: skip
def test_siamese_mnist_says_in_one_line_what_is_wrong_with_a_file(tmp_path, capsys, what):
    folder, message = damage(write_set(tmp_path / "set"), what)
    status = siamese_mnist.main(["--data", str(folder), "--steps", "1", "--out", str(tmp_path)])
    assert status == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith("siamese_mnist: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--steps", "many"], ["--seed", "-1"], ["--sets", "x"]])
def test_siamese_mnist_refuses_bad_options(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        siamese_mnist.main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_siamese_mnist_has_help(capsys):
    with pytest.raises(SystemExit) as caught:
        siamese_mnist.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--data", "--steps", "--seed", "--out"))


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_of_every_type(tmp_path, code, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_idx(tmp_path / "file", array, code)
    found = digits.read_idx(tmp_path / "file")
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, array)


def test_the_bundled_digits():
    training, held_out = digits.load(None)
    assert training.images.shape == (4000, 28, 28, 1)
    assert held_out.images.shape == (1000, 28, 28, 1)
    for split, each in ((training, 400), (held_out, 100)):
        assert np.bincount(split.labels).tolist() == [each] * 10
        assert split.images.dtype == np.float32
        assert (split.images.min(), split.images.max()) == (0, 1)
    seen = {image.tobytes() for image in training.images}
    assert sum(image.tobytes() in seen for image in held_out.images) == 0

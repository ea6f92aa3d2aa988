"""The examples, run as a user runs them, with few steps; and the data files they read."""

import gzip
import importlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import digits
import hessian_spectrum
import jax
import jax.numpy as jnp
import maml
import newton_cg
import numpy as np
import pytest
import siamese_mnist
import uncertainty
from compare import STEP, close, close_to_differences, rounding
from flax import serialization

import funcconv as fc

pytestmark = pytest.mark.once

EXAMPLES = Path(siamese_mnist.__file__).parent
LAST_LINE = r"verification=(\S+) nearest_neighbour=(\S+) unseen=(\S+) seconds=(\S+)"


ENVIRONMENT = os.environ | {  # programs that are run more than once are compiled once
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


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
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT,
    )


def test_siamese_mnist_learns(tmp_path):
    """With a tenth of its steps it is far better than chance, and leaves its picture and weights."""
    process = run("--steps", 40, "--seed", 1, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    match = re.fullmatch(LAST_LINE, process.stdout.splitlines()[-1])
    verification, nearest, unseen, _ = map(float, match.groups())
    assert verification > 0.85
    assert nearest > 0.8
    assert unseen > 0.6
    assert "training" in process.stderr
    assert "step" in process.stderr
    assert "loss=" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]  # the folder that git ignores
    out = tmp_path / "runs" / "siamese_mnist"
    assert process.stdout.startswith("writing to runs/siamese_mnist\n")
    assert (out / "siamese.png").read_bytes().startswith(b"\x89PNG")

    network = siamese_mnist.siamese_network((28, 28, 1))
    like = jax.eval_shape(network.init, jax.random.key(0))
    params = serialization.from_bytes(like, (out / "siamese.msgpack").read_bytes())
    data = digits.load(None)[1].of_classes(np.arange(8))
    with jax.enable_x64(False):
        embeddings = siamese_mnist.embed(network, params, data.images)
        threshold = siamese_mnist.best_threshold(embeddings, data.labels, 0)
        again = siamese_mnist.verification(embeddings, data.labels, threshold, 0)
    assert abs(again - verification) < 0.02


def test_siamese_mnist_fails_where_there_is_nothing_to_learn(tmp_path, climate_of_a_user, capsys, monkeypatch):
    del climate_of_a_user
    monkeypatch.setattr(siamese_mnist, "draw", lambda *_: None)  # the picture is tested where it learns
    folder = write_set(tmp_path / "set")
    rng = np.random.default_rng(1)
    for part in ("train", "t10k"):
        write_idx(folder / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (200, 8, 8)).astype(np.uint8))
    assert siamese_mnist.main(["--data", str(folder), "--steps", "3", "--out", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(LAST_LINE, captured.out.splitlines()[-1])
    assert "failed to learn" in captured.err


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
    [
        "missing folder",
        "missing file",
        "cut",
        "cut header",
        "empty",
        "other format",
        "huge",
        "cut gzip",
        "counts",
        "labels",
        "few classes",
        "unlike classes",
        "small images",
    ],
)
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


EXPERIMENTS = {
    hessian_spectrum: r"loss=(\S+) outliers=(\S+) gap=(\S+) near_zero=(\S+) seconds=(\S+)",
    newton_cg: r"newton=(\S+) momentum=(\S+) adam=(\S+) seconds=(\S+)",
    maml: r"maml=(\S+) joint=(\S+) random=(\S+) seconds=(\S+)",
    uncertainty: r"upright=(\S+) rotated=(\S+) alone=(\S+) calibrated=(\S+) seconds=(\S+)",
}
experiments = pytest.mark.parametrize("module", EXPERIMENTS, ids=lambda module: module.__name__)


@experiments
def test_experiment_runs_and_draws(tmp_path, module, monkeypatch, climate_of_a_user, capsys):
    """On a few small images, where what it is to show need not hold yet."""
    del climate_of_a_user
    monkeypatch.setattr(newton_cg, "RATES", {"momentum": (0.3,), "adam": (0.01,)})
    monkeypatch.setattr(maml, "ASKED", 10)
    monkeypatch.setattr(maml, "RATES", (0.1,))
    monkeypatch.setattr(maml, "INNER_STEPS", 2)
    monkeypatch.setattr(uncertainty, "ANGLES", (0, 90))
    folder, out = write_set(tmp_path / "set", classes=6, count=10), tmp_path / "out"
    steps = 30 if module is newton_cg else 1
    status = module.main(["--data", str(folder), "--steps", str(steps), "--out", str(out)])
    captured = capsys.readouterr()
    assert status in (0, 1)
    assert ("failed" in captured.err) == (status == 1)
    assert re.fullmatch(EXPERIMENTS[module], captured.out.splitlines()[-1])
    assert captured.out.startswith(f"writing to {out}\n")
    assert captured.err.count("loss=") <= 4  # a bar in a file is a few lines, not one for each step
    assert (out / f"{module.__name__}.png").read_bytes().startswith(b"\x89PNG")


@experiments
@pytest.mark.parametrize("what", ["missing folder", "missing file", "cut", "few classes"])
def test_experiment_says_in_one_line_what_is_wrong_with_a_file(tmp_path, capsys, module, what):
    folder, message = damage(write_set(tmp_path / "set"), what)
    if what == "few classes":
        if module in (newton_cg, uncertainty):
            pytest.skip("any number of classes will do")
        for part in ("train", "t10k"):
            write_idx(folder / f"{part}-labels-idx1-ubyte", (np.arange(200) % 2).astype(np.uint8))
        message = "2 classes are too few"
    status = module.main(["--data", str(folder), "--steps", "1", "--out", str(tmp_path)])
    assert status == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.startswith(f"{module.__name__}: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


@experiments
@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--seed", "-1"], ["--sets", "x"]])
def test_experiment_refuses_bad_options(module, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_spectrum_is_described():
    """Three of six large eigenvalues stand apart, by a factor of four; half of the spectrum is near zero."""
    density = fc.Density(np.array([-1.0, 0.0, 1.0, 10.0]), np.array([1.0, 3.0, 2.0, 2.0]))
    spectrum = hessian_spectrum.Spectrum(7, 0.5, np.array([10.0, 9.0, 8.0, 2.0, 1.5, 1.2]), density)
    assert (spectrum.outliers, spectrum.gap) == (3, 4)
    assert spectrum.near_zero == 3 / 8
    assert str(spectrum) == "loss=0.5000 outliers=3 gap=4.00 near_zero=0.3750"


def test_newton_step_solves_a_quadratic(climate_of_a_user):
    """A linear model with squared loss: nearly undamped, one step is to the minimum, and the model foretells it."""
    del climate_of_a_user
    a, b = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 1.0]], np.float32), np.array([1.0, 2.0, 3.0], np.float32)
    newton = newton_cg.Newton(lambda w: a @ w, lambda y: ((y - b) ** 2).sum() / 2)
    w = jnp.zeros(2)
    value, gradient = newton.value_and_grad(w)
    d, predicted, products = newton.direction(newton.curvature(w), np.asarray(gradient, float), 1e-9, rtol=1e-5)
    tolerance = np.linalg.cond(a) ** 2 * (1e-5 + rounding(np.float32))  # the residual becomes an error by so much
    np.testing.assert_allclose(d, np.linalg.lstsq(a, b)[0], rtol=tolerance)
    np.testing.assert_allclose(newton.loss(d.astype(np.float32)) - value, predicted, rtol=tolerance)
    assert products == 3  # two of conjugate gradients and one for the quadratic model


def test_meta_gradient_is_that_of_the_loss_after_adaptation(monkeypatch):
    """It has the second derivatives: it agrees with finite differences, in float64."""
    monkeypatch.setattr(maml, "INNER_STEPS", 2)
    rng = np.random.default_rng(0)
    network = maml.convnet((8, 8, 1), maml.WAYS)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), network.init(jax.random.key(0)))
    data = digits.Split(rng.random((60, 8, 8, 1)), np.arange(60) % 4)
    tasks = maml.draw_tasks(rng, data, 2)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)

    @jax.jit
    def along(t):
        return maml.meta_loss(network, jax.tree.map(lambda p, d: p + t * d, params, direction), tasks)

    close_to_differences(jax.jit(jax.grad(along))(0.0), (along(STEP) - along(-STEP)) / (2 * STEP), terms=1024)


def test_tasks_are_drawn_rightly():
    rng = np.random.default_rng(0)
    labels = np.arange(80) % 5
    data = digits.Split(np.arange(80, dtype=np.float32)[:, None, None, None], labels)  # an image is its number
    tasks = maml.draw_tasks(rng, data, 20)
    for known, names, asked, asked_names in zip(*tasks, strict=True):
        known, asked = known.ravel().astype(int), asked.ravel().astype(int)
        assert len({*known, *asked}) == maml.WAYS * (maml.SHOTS + maml.QUERIES)
        classes = [
            set(labels[known[names == way]]) | set(labels[asked[asked_names == way]]) for way in range(maml.WAYS)
        ]
        assert [len(examples) for examples in classes] == [1] * maml.WAYS
        assert len(set.union(*classes)) == maml.WAYS


@pytest.mark.parametrize(("width", "turns"), [(2, [0, 1, 2, 3]), (3, [0, 2])])
def test_turned_images_are_other_classes(width, turns):
    data = digits.Split(np.arange(4.0 * width).reshape(2, 2, width, 1), np.array([3, 8]))
    turned = maml.turned(data)
    assert turned.labels.tolist() == list(range(2 * len(turns)))
    for image, label in zip(turned.images, turned.labels, strict=True):
        np.testing.assert_array_equal(image, np.rot90(data.images[label % 2], turns[label // 2]))


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x08, "u1"), (0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_idx_of_every_type(tmp_path, code, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_idx(tmp_path / "file", array, code)
    stored = fc.train.read_idx(tmp_path / "file")
    assert stored.dtype == dtype
    np.testing.assert_array_equal(stored, array)


def test_images_are_rotated_and_calibration_is_measured():
    images = jnp.asarray(np.random.default_rng(0).random((3, 7, 7, 1)), jnp.float32)
    close(uncertainty.rotate(images, 0), images)
    close(uncertainty.rotate(images, 90), jnp.rot90(images, 1, (1, 2)))
    confidence, correct = np.array([0.25, 0.25, 1.0, 0.95]), np.array([True, False, True, True])
    assert uncertainty.bins(confidence, correct) == [(0.5, 0.25, 0.5), (0.5, 0.975, 1)]
    close(uncertainty.calibration_error(confidence, correct), (0.25 + 0.025) / 2)


def test_the_bundled_digits():
    training, held_out = digits.load(None)
    assert training.images.shape == (4000, 28, 28, 1)
    assert held_out.images.shape == (1000, 28, 28, 1)
    for split, count in ((training, 400), (held_out, 100)):
        assert np.bincount(split.labels).tolist() == [count] * 10
        assert split.images.dtype == np.float32
        assert (split.images.min(), split.images.max()) == (0, 1)
    seen = {image.tobytes() for image in training.images}
    assert sum(image.tobytes() in seen for image in held_out.images) == 0


@pytest.mark.parametrize(
    "name", ["gallery", "hessian_spectrum", "maml", "newton_cg", "siamese_mnist", "train_cnn", "uncertainty"]
)
def test_examples_write_to_a_folder_that_git_ignores(name, monkeypatch, capsys):
    """By default, to `runs/NAME`, and `.gitignore` has `/runs/`."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(name).main()
    assert caught.value.code == 0
    assert f"(default: runs/{name})" in " ".join(capsys.readouterr().out.split())
    ignored = EXAMPLES.parent / ".gitignore"
    assert "/runs/" in ignored.read_text().splitlines()


def test_gallery_draws_every_picture(tmp_path):
    process = subprocess.run(
        [sys.executable, EXAMPLES / "gallery.py", "--out", tmp_path, "--steps", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    pictures = {path.name for path in tmp_path.iterdir()}
    assert pictures >= {"siamese.png", "siamese.svg", "norm.png", "gradient.png", "loop.png", "hvp.png"}
    assert pictures >= {
        "filters-on-a-digit.png",
        "activations.png",
        "saliency.png",
        "windows.png",
        "receptive-field.jpg",
    }
    assert float(process.stdout.split("accuracy=")[1]) > 0.5


# several processes ---------------------------------------------------------------------------------------------


def test_two_processes_train_as_one_does(tmp_path):
    """Each computes half of every batch; the losses are those of one process, and the first of them asks and draws."""
    data = write_set(tmp_path / "data", ".gz")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    options = [sys.executable, EXAMPLES / "siamese_mnist.py", "--data", data, "--steps", "10", "--seed", "2"]
    together = [
        subprocess.Popen(
            [*options, "--out", tmp_path / "two", "--process", f"{i}/2", "--coordinator", at],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        for i in range(2)
    ]
    alone = subprocess.run(
        [*options, "--out", tmp_path / "one"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    outputs = [process.communicate() for process in together]
    assert [process.returncode for process in together] == [0, 0], outputs
    assert alone.returncode == 0, alone.stderr
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "siamese.msgpack",
        "siamese.png",
        "siamese_mnist-0.jsonl",
        "checkpoints",
    }
    assert re.fullmatch(LAST_LINE, outputs[0][0].splitlines()[-1])
    assert not re.search(LAST_LINE, outputs[1][0])

    def losses(folder, process):
        lines = (tmp_path / folder / f"siamese_mnist-{process}.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    close(losses("two", 0), losses("one", 0), np.float32, terms=7 * 7 * 32, steps=10)
    assert losses("two", 0) == losses("two", 1)


# a loop that goes on -----------------------------------------------------------------------------------------


# Whether a run goes on exactly does not depend on how well XLA optimizes it.
CNN_ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} | ENVIRONMENT


def cnn(*arguments, cwd):
    process = subprocess.run(
        [sys.executable, EXAMPLES / "train_cnn.py", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env=CNN_ENVIRONMENT,
    )
    figures = re.findall(
        r"^accuracy=(\S+) steps=(\d+) seconds=(\S+) digest=([0-9a-f]{64})$", process.stdout, re.MULTILINE
    )
    return process, figures[-1] if figures else None


def test_train_cnn_learns_and_goes_on(tmp_path):
    """Killed in the middle and resumed, it ends with the parameters of a run that was not."""
    options = ("--data", write_set(tmp_path / "data"), "--seed", 3, "--steps", 40)
    done, whole = cnn(*options, "--out", tmp_path / "whole", "--resume", cwd=tmp_path)  # there is nothing to resume
    assert done.returncode == 0, done.stderr
    command = [sys.executable, EXAMPLES / "train_cnn.py", *map(str, options), "--out", tmp_path / "killed"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CNN_ENVIRONMENT)
    log = tmp_path / "killed" / "train_cnn.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 25):
        time.sleep(0.02)
    process.kill()
    process.communicate()
    done, resumed = cnn(*options, "--out", tmp_path / "killed", "--resume", cwd=tmp_path)
    assert (resumed[1], resumed[3]) == ("40", whole[3]), done.stderr
    assert (tmp_path / "killed" / "train_cnn.png").read_bytes().startswith(b"\x89PNG")
    assert log.read_text() == (tmp_path / "whole" / "train_cnn.jsonl").read_text()

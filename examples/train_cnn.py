"""Train a small residual network to classify handwritten digits, in a loop that you can kill and resume.

Images are shifted by up to two pixels during training. The moving average of the parameters is evaluated. With
`--resume`, a run continues from its last checkpoint and ends with the same digest as a run without the interruption.

The last line has the share of held-out images that are classified correctly, and the SHA-256 digest of the parameters.
"""

import argparse
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import DataError, Split, load, shifted
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import funcconv as fc

BATCH = 64
LEARNED = 0.3  # an accuracy below this after 100 steps is a failure


def residual_network(shape: tuple[int, ...], classes: int) -> fc.Graph:
    """Return the network: images to one number for each class."""
    image = fc.Input("image", shape)
    conv = partial(fc.Conv, window=3, padding="SAME", init="he_normal")

    def block(channels: int) -> object:
        return fc.residual(fc.serial(jax.nn.relu, conv(channels), jax.nn.relu, conv(channels)))

    network = fc.serial(
        conv(16),
        block(16),
        fc.Pool(2),
        conv(32),
        block(32),
        fc.Pool(2),
        conv(64),
        block(64),
        jax.nn.relu,
        partial(fc.global_pool, spatial=2),
        fc.Dense(classes),
    )
    return fc.Graph(image, network(image))


@partial(jax.jit, static_argnums=0)
def classify(network: fc.Graph, params: dict, images: jax.Array) -> jax.Array:
    """Return the class with the largest logit for each image."""
    return network(params, images).argmax(-1)


def accuracy(network: fc.Graph, params: dict, split: Split) -> float:
    """Return the share of images that are classified correctly."""
    parts = [classify(network, params, split.images[i : i + 500]) for i in range(0, len(split.images), 500)]
    return float(np.mean(np.concatenate(parts) == split.labels))


def train(
    network: fc.Graph, training: Split, held_out: Split, options: argparse.Namespace, mesh: Mesh
) -> tuple[fc.train.State, fc.train.History]:
    """Return the state at the end of the run, and its history."""

    def loss(params: dict, batch: dict, *, key: jax.Array, state: dict) -> jax.Array:
        del state
        logits = network(params, shifted(key, batch["image"], 2)).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    optimizer = optax.adamw(optax.cosine_onecycle_schedule(max(options.steps, 2), 4e-3), weight_decay=1e-3)
    init, step = fc.train.make_step(
        loss, optimizer, ema=0.98, compute_dtype=None if options.dtype == "float32" else options.dtype, mesh=mesh
    )
    key, order = jax.random.split(jax.random.key(options.seed))
    data = fc.train.batches(
        {"image": training.images, "label": training.labels},
        BATCH,
        order,
        sharding=NamedSharding(mesh, PartitionSpec("data")),
    )
    out = Path(options.out)
    if not options.resume:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        (out / "train_cnn.jsonl").unlink(missing_ok=True)
    state, history = fc.train.fit(
        step,
        init(network.init(key), key),
        data,
        steps=options.steps,
        every=50,
        evaluate=lambda state: {"accuracy": accuracy(network, state.ema, held_out)},
        checkpoint=out / "checkpoints",
        about={"architecture": network.to_json()},
        log=out / "train_cnn.jsonl",
    )
    if history.stopped:
        print(f"train_cnn: {history.stopped}; continue with --resume", file=sys.stderr)
    return state, history


def draw(path: Path, history: fc.train.History) -> None:
    """Draw the loss of each step, and the accuracy of each evaluation."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, (loss_at, accuracy_at) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    fc.plot.history(history, "loss", ax=loss_at)
    loss_at.set(title="training", ylabel="cross-entropy")
    fc.plot.history(history, "eval/accuracy", log=False, ax=accuracy_at)
    accuracy_at.set(title="held-out images", ylabel="accuracy of the averaged parameters")
    accuracy_at.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        command_line.resume(parser)
        parser.add_argument("--devices", type=int, default=1, metavar="N", help="over how many to spread each batch")
        parser.add_argument(
            "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="to compute in"
        )

    return command_line.main(
        "train_cnn",
        __doc__,
        run,
        arguments,
        steps=600,
        unit=f"of {BATCH} images each",
        seed="the weights, the order and the shifts",
        writes="train_cnn.png, checkpoints and train_cnn.jsonl",
        more=more,
    )


def run(options: argparse.Namespace) -> int:
    """Train and say what was reached; return the exit status."""
    begin = time.perf_counter()
    if options.devices < 1 or BATCH % options.devices:
        msg = f"--devices must divide the batch of {BATCH}; got {options.devices}"
        raise fc.FuncconvError(msg)
    if options.devices > 1 and jax.config.jax_platforms in (None, "", "cpu"):
        jax.config.update("jax_num_cpu_devices", options.devices)
    if len(jax.devices()) < options.devices:
        msg = f"there are {len(jax.devices())} devices, not {options.devices}"
        raise fc.FuncconvError(msg)
    mesh = Mesh(np.array(jax.devices()[: options.devices]), ("data",))
    training, held_out = load(options.data)
    if len(training.labels) < BATCH:
        msg = f"{len(training.labels)} images to train on are fewer than a batch of {BATCH}"
        raise DataError(msg)
    classes = int(max(training.labels.max(), held_out.labels.max())) + 1
    network = residual_network(training.images.shape[1:], classes)
    out = command_line.output_folder(options)
    state, history = train(network, training, held_out, options, mesh)
    draw(out / "train_cnn.png", history)
    reached = accuracy(network, jax.device_get(state.ema), held_out)
    seconds, digest = time.perf_counter() - begin, fc.train.digest(jax.device_get(state.params))
    print(f"accuracy={reached:.4f} steps={int(state.step)} seconds={seconds:.1f} digest={digest}")
    if int(state.step) >= 100 and not reached >= LEARNED:
        print(f"train_cnn: failed to learn: {reached:.4f} is below {LEARNED}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

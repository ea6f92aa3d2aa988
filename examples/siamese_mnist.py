"""Train a siamese network on pairs of handwritten digits: one trunk, two inputs, shared weights.

It trains on all classes except the last two. The contrastive loss moves images of one class close together and others
apart (Hadsell, Chopra and LeCun, "Dimensionality reduction by learning an invariant mapping", 2006). Then it is tested
on images that it has not seen, and on the two classes that it has not seen.

The last line has three results: the share of held-out pairs that are classified correctly (same class or not), the
share of held-out images whose nearest neighbour among the training images is of their class, and the share of pairs of
the two unseen classes that are classified correctly.
"""

import argparse
import math
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import DataError, Split, load, shifted
from flax import serialization
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import funcconv as fc

PAIRS = 128  # in a step
MARGIN = 2.0  # different digits need not be further apart
LEARNED = 0.8  # a verification below this is a failure; chance is 0.5


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the Euclidean distance of two embeddings, differentiable where they are equal too."""
    return jnp.sqrt(((a - b) ** 2).sum(-1) + 1e-8)


def siamese_network(shape: tuple[int, ...]) -> fc.Graph:
    """Return the network: two images to the distance of their embeddings."""
    left, right = fc.Input("left", shape), fc.Input("right", shape)
    trunk = fc.serial(
        fc.Conv(8, 5, padding="SAME", init="he_normal"),
        jax.nn.relu,
        fc.Pool(2),
        fc.Conv(32, 5, padding="SAME", init="he_normal"),
        jax.nn.relu,
        fc.Pool(2),
        fc.Flatten(),
        fc.Dense(64, init="he_normal"),
        jax.nn.relu,
        fc.Dense(16, name="embedding"),
    )
    return fc.Graph((left, right), fc.siamese(trunk, distance)(left, right))


def contrastive_loss(distances: jax.Array, same: jax.Array) -> jax.Array:
    """Pull pairs of one class together and push others beyond the margin."""
    return jnp.where(same, distances**2, jnp.maximum(MARGIN - distances, 0) ** 2).mean()


def draw_pairs(rng: np.random.Generator, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the indices of so many pairs, every other one of the same class, and whether they are."""
    same = np.arange(count) % 2 == 0
    order = np.argsort(labels, kind="stable")
    _, begin, size = np.unique(labels[order], return_index=True, return_counts=True)
    first = rng.integers(len(size), size=count)
    second = np.where(same, first, (first + rng.integers(1, len(size), size=count)) % len(size))
    left, right = (order[begin[c] + (rng.random(count) * size[c]).astype(int)] for c in (first, second))
    return left, right, same


def pairs(data: Split, seed: int, sharding: NamedSharding) -> Iterator[dict[str, jax.Array]]:
    """Give one batch of pairs after another, spread over the devices of all processes."""
    rng = np.random.default_rng(seed)
    while True:
        left, right, same = draw_pairs(rng, data.labels, PAIRS)
        batch = {"left": data.images[left], "right": data.images[right], "same": same}
        yield jax.tree.map(lambda each: jax.make_array_from_process_local_data(sharding, each, each.shape), batch)


def train(network: fc.Graph, data: Split, options: argparse.Namespace) -> tuple[dict, list[float]]:
    """Return the trained parameters and the loss of every step."""

    def loss(params: dict, batch: dict, *, key: jax.Array, state: dict) -> jax.Array:
        del state
        keys = jax.random.split(key)
        left, right = (shifted(each, batch[side], 1) for each, side in zip(keys, ("left", "right"), strict=True))
        return contrastive_loss(network(params, left, right), batch["same"])

    mesh = Mesh(np.array(jax.devices()[: math.gcd(PAIRS, jax.device_count())]), ("data",))
    optimizer = optax.adam(optax.cosine_onecycle_schedule(max(options.steps, 2), 3e-3))
    init, step = fc.train.make_step(loss, optimizer, mesh=mesh)
    key, out = jax.random.key(options.seed), Path(options.out)
    log = out / f"siamese_mnist-{jax.process_index()}.jsonl"
    if not options.resume:
        log.unlink(missing_ok=True)
    state, history = fc.train.fit(
        step,
        init(network.init(key), key),
        pairs(data, options.seed, NamedSharding(mesh, PartitionSpec("data"))),
        steps=options.steps,
        checkpoint=out / "checkpoints",
        log=log,
        progress=jax.process_index() == 0,
    )
    if history.stopped:
        print(f"siamese_mnist: {history.stopped}; continue with --resume", file=sys.stderr)
    return jax.device_get(state.params), history["loss"]


def embed(network: fc.Graph, params: dict, images: np.ndarray) -> np.ndarray:
    """Return the embeddings of images, `(examples, features)`, by the trunk alone."""
    trunk = network.subgraph("embedding")
    apply = jax.jit(partial(trunk, trunk.select(params)))
    return np.concatenate([apply(images[i : i + 500]) for i in range(0, len(images), 500)])


def verification(embeddings: np.ndarray, labels: np.ndarray, threshold: float, seed: int) -> float:
    """Return the share of 10,000 pairs, half of them of one class, that the threshold tells rightly."""
    left, right, same = draw_pairs(np.random.default_rng(seed), labels, 10_000)
    return float(np.mean((distance(embeddings[left], embeddings[right]) < threshold) == same))


def best_threshold(embeddings: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return the distance that tells pairs of the training images best."""
    left, right, same = draw_pairs(np.random.default_rng(seed), labels, 10_000)
    distances = np.asarray(distance(embeddings[left], embeddings[right]))
    order = np.argsort(distances)
    rightly = np.cumsum(np.where(same[order], 1, -1))  # those below that are the same, less those that are not
    return float(distances[order][np.argmax(rightly)])


def nearest_neighbour(known: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Return the label of the nearest of the known embeddings for each that is asked about."""
    squares = (known**2).sum(1) - 2 * asked @ known.T
    return labels[np.argmin(squares, axis=1)]


def draw(
    path: Path,
    losses: list[float],
    seen: Split,
    points: np.ndarray,
    unseen: Split,
    unseen_points: np.ndarray,
    threshold: float,
):
    """Draw the loss, the embedding in two dimensions, and some pairs with their distances.

    Args:
        path: file to write.
        losses: loss of each step.
        seen: held-out images of the classes that the network was trained on.
        points: embeddings of these images, `(examples, features)`.
        unseen: images of the classes that the network was not trained on.
        unseen_points: embeddings of these images.
        threshold: distance below which two images are predicted to be of one class.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 9.5), layout="constrained")
    above, *below = figure.subfigures(3, 1, height_ratios=(5, 2, 2))
    losses_at, embedding_at = above.subplots(1, 2)
    losses_at.plot(losses, color="0.8", label="each step")
    width = max(len(losses) // 20, 1)
    means = np.convolve(losses, np.ones(width) / width, "valid")
    losses_at.plot(np.arange(len(means)) + (width - 1) / 2, means, label=f"mean of {width}")
    losses_at.set(title="training", xlabel="step", ylabel="contrastive loss", yscale="log")
    losses_at.legend()

    mean = points.mean(0)
    axes = np.linalg.svd(points - mean, full_matrices=False)[2][:2].T  # the two principal axes, (features, 2)
    for i, label in enumerate(np.unique(seen.labels)):
        plane = (points[seen.labels == label] - mean) @ axes
        embedding_at.scatter(*plane.T, s=6, color=f"C{i % 10}", label=str(label))
    for label, marker in zip(np.unique(unseen.labels), "x+", strict=True):
        plane = (unseen_points[unseen.labels == label] - mean) @ axes
        embedding_at.scatter(
            *plane.T, s=18, color="black", marker=marker, linewidths=0.8, label=f"{label}, not trained on"
        )
    embedding_at.set(
        title="embeddings of held-out images",
        aspect="equal",
        xlabel="first principal axis",
        ylabel="second principal axis",
    )
    embedding_at.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=1.5)

    rows = (("the classes trained on", seen, points), ("classes that were not trained on", unseen, unseen_points))
    for row, (name, split, embeddings) in zip(below, rows, strict=True):
        row.suptitle(f"pairs of {name}: equal if the distance is below {threshold:.2f}; green if predicted correctly")
        left, right, same = draw_pairs(np.random.default_rng(0), split.labels, 16)
        for panel, a, b, alike in zip(row.subplots(1, 16), left, right, same, strict=True):
            apart = float(distance(embeddings[a], embeddings[b]))
            panel.imshow(np.concatenate([split.images[a, ..., 0], split.images[b, ..., 0]]), cmap="gray_r")
            panel.set_axis_off()
            panel.set_title(f"{apart:.2f}", color="C2" if (apart < threshold) == alike else "C3")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status."""

    def more(parser: argparse.ArgumentParser) -> None:
        command_line.resume(parser)
        parser.add_argument(
            "--process", metavar="I/N", help="take part as the I-th of N processes; the first of them asks and draws"
        )
        parser.add_argument(
            "--coordinator",
            metavar="HOST:PORT",
            default="127.0.0.1:9731",
            help="where the first process is reached by the others (default: %(default)s)",
        )

    return command_line.main(
        "siamese_mnist",
        __doc__,
        run,
        arguments,
        steps=400,
        unit=f"of {PAIRS} pairs each",
        seed="the weights, the pairs and the shifts",
        writes="siamese.png, siamese.msgpack, checkpoints and a log",
        more=more,
    )


def join(process: str, coordinator: str) -> None:
    """Become one of several processes that train together."""
    index, _, count = process.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count) and PAIRS % int(count) == 0):
        msg = f"--process must be I/N with I below N, which divides {PAIRS}; got {process!r}"
        raise fc.FuncconvError(msg)
    jax.distributed.initialize(coordinator, int(count), int(index), heartbeat_timeout_seconds=30)


def run(options: argparse.Namespace) -> int:
    """Train, and ask; return the exit status."""
    begin = time.perf_counter()
    training, held_out = load(options.data)
    classes = np.unique(training.labels)
    if len(classes) < 4:
        msg = f"{len(classes)} classes are too few: two are to be learnt and two to be new"
        raise DataError(msg)
    if not np.array_equal(classes, np.unique(held_out.labels)):
        msg = f"the classes held out, {np.unique(held_out.labels)}, are not those to train on, {classes}"
        raise DataError(msg)
    training, unseen = training.of_classes(classes[:-2]), held_out.of_classes(classes[-2:])
    held_out = held_out.of_classes(classes[:-2])

    if not options.resume:
        shutil.rmtree(Path(options.out) / "checkpoints", ignore_errors=True)
    if options.process:
        join(options.process, options.coordinator)  # before JAX computes anything
    network = siamese_network(training.images.shape[1:])
    command_line.output_folder(options)
    params, losses = train(network, training, options)
    if jax.process_index() > 0:
        return 0
    with jax.default_device(jax.local_devices()[0]):
        return ask(network, params, losses, training, held_out, unseen, options, begin)


def ask(
    network: fc.Graph,
    params: dict,
    losses: list[float],
    training: Split,
    held_out: Split,
    unseen: Split,
    options: argparse.Namespace,
    begin: float,
) -> int:
    """Say what was learnt, draw it and save it; return the exit status."""
    out = Path(options.out)
    known, asked, new = (embed(network, params, split.images) for split in (training, held_out, unseen))
    threshold = best_threshold(known, training.labels, options.seed)
    verified = verification(asked, held_out.labels, threshold, options.seed)
    verified_unseen = verification(new, unseen.labels, threshold, options.seed)
    neighbours = np.mean(nearest_neighbour(known, training.labels, asked) == held_out.labels)

    draw(out / "siamese.png", losses, held_out, asked, unseen, new, threshold)
    (out / "siamese.msgpack").write_bytes(serialization.to_bytes(params))
    seconds = time.perf_counter() - begin
    print(
        f"verification={verified:.4f} nearest_neighbour={neighbours:.4f} "
        f"unseen={verified_unseen:.4f} seconds={seconds:.1f}"
    )
    if not verified >= LEARNED:
        print(f"siamese_mnist: failed to learn: {verified:.4f} is below {LEARNED}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

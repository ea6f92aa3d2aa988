"""Measure how certain a convolutional network is of handwritten digits that it was not trained on: rotated ones.

The network is trained on upright digits. A Laplace approximation with Kronecker factors gives the variances of its
logits `z`, less the mean of the logits of an image (Daxberger and others, "Laplace redux", 2021, arXiv:2106.14806). The
precision of the prior maximizes the marginal likelihood of the training set, so no image is held out for it. The
probabilities with the variances `v` are `softmax(z / sqrt(1 + pi v / 8))` (MacKay, "The evidence framework applied to
classification networks", 1992).

The test images are rotated by angles up to 90 degrees. The more an image is rotated, the larger are the variances. The
network alone is too certain of rotated images: its confidence, the probability of the class that it chooses, is larger
than its accuracy. With the variances, the two are closer, but the confidence is still too large at large angles, and
about 0.05 too small for upright images.

The last line has the mean standard deviation of the chosen logit for upright images and at 90 degrees, and the expected
calibration error over all angles, without and with the variances: the mean distance of confidence and accuracy, over
bins of the confidence (Guo and others, "On calibration of modern neural networks", 2017, arXiv:1706.04599).
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import Split, load

import funcconv as fc

BATCH = 64  # images in a step
PRIOR = 1.0  # the precision of the prior in training
PRIORS = np.logspace(-2, 3, 51)  # of which the marginal likelihood chooses one
ANGLES = range(0, 91, 15)
ASKED = 300  # test images for each angle
BINS = 10  # of the confidence

loss = optax.softmax_cross_entropy_with_integer_labels


class Rotated(NamedTuple):
    """Of test images that are rotated by one angle: arrays `(images,)`."""

    correct: np.ndarray
    deviation: np.ndarray  # of the chosen logit
    alone: np.ndarray  # the confidence of the network alone
    confidence: np.ndarray  # with the variances


def convnet(shape: tuple[int, ...], classes: int) -> fc.Graph:
    """Return the network: an image, halved, to the logits of the classes."""
    x = fc.Input("x", shape)
    net = fc.serial(
        fc.Pool(2, reduce="mean"),
        fc.Conv(8, 3, stride=2, padding="SAME"),
        jax.nn.relu,
        fc.Conv(16, 3, stride=2, padding="SAME"),
        jax.nn.relu,
        fc.Flatten(),
        fc.Dense(classes),
    )
    return fc.Graph(x, net(x))


def train(network: fc.Graph, data: Split, steps: int, seed: int) -> dict:
    """Return the parameters of about the largest posterior density."""
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    count = len(data.labels)

    def objective(params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
        squares = sum(jnp.square(leaf).sum() for leaf in jax.tree.leaves(params))
        return loss(network(params, images), labels).mean() + PRIOR / count / 2 * squares

    @jax.jit
    def step(params: dict, moments: optax.OptState, images: jax.Array, labels: jax.Array) -> tuple:
        updates, moments = optimizer.update(jax.grad(objective)(params, images, labels), moments)
        return optax.apply_updates(params, updates), moments

    params, rng = network.init(jax.random.key(seed)), np.random.default_rng(seed)
    moments = optimizer.init(params)
    with command_line.progress_bar(steps, "training") as bar:
        for _ in range(steps):
            chosen = rng.integers(0, count, BATCH)
            params, moments = step(params, moments, data.images[chosen], data.labels[chosen])
            bar.update()
    return params


def rotate(images: jax.Array, degrees: float) -> jax.Array:
    """Rotate images `(n, height, width, 1)` around their centers, with empty pixels coming in."""
    height, width = images.shape[1:3]
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rows, columns = cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    places = [jnp.asarray(rows, images.dtype), jnp.asarray(columns, images.dtype)]
    return jax.vmap(lambda image: jax.scipy.ndimage.map_coordinates(image[..., 0], places, order=1))(images)[..., None]


@jax.jit
def predict(posterior: fc.Laplace, images: jax.Array, labels: jax.Array) -> Rotated:
    """Return what the network and its posterior say of some images."""
    logits = posterior.model(posterior.params, images)
    covariances = posterior.predictive_variance(images, covariance=True)  # (images, classes, classes)
    # A number that is added to all logits changes no probability, so its variance is left out.
    center = jnp.eye(logits.shape[1]) - 1 / logits.shape[1]
    logits, variances = logits @ center, jnp.diagonal(center @ covariances @ center, axis1=1, axis2=2)
    chosen = logits.argmax(1)
    probabilities = jax.nn.softmax(logits / jnp.sqrt(1 + jnp.pi / 8 * variances))
    deviation = jnp.sqrt(jnp.take_along_axis(variances, chosen[:, None], 1)[:, 0])
    return Rotated(chosen == labels, deviation, jax.nn.softmax(logits).max(1), probabilities.max(1))


def bins(confidence: np.ndarray, correct: np.ndarray) -> list[tuple[float, float, float]]:
    """Return the share, the mean confidence and the accuracy of the images in each bin that has some."""
    bin_of = np.minimum((confidence * BINS).astype(int), BINS - 1)
    members = [bin_of == index for index in np.unique(bin_of)]
    return [(here.mean(), confidence[here].mean(), correct[here].mean()) for here in members]


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Return the mean distance of confidence and accuracy."""
    return float(sum(share * abs(mean - accuracy) for share, mean, accuracy in bins(confidence, correct)))


def draw(path: Path, image: np.ndarray, results: dict[int, Rotated], everything: Rotated):
    """Draw one image at each angle, the means over the angles, and accuracy against confidence."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(10, 6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 3))
    for axes, angle in zip(top.subplots(1, len(ANGLES)), ANGLES, strict=True):
        axes.imshow(np.asarray(rotate(jnp.asarray(image[None]), angle))[0, ..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(f"{angle}°", fontsize=10)
    left, middle, right = bottom.subplots(1, 3)
    means = {name: [getattr(r, name).mean() for r in results.values()] for name in Rotated._fields}
    left.plot(ANGLES, means["deviation"], "k.-")
    left.set(title="standard deviation of the logit", xlabel="angle in degrees", ylim=(0, None))
    middle.plot(ANGLES, means["correct"], "k.--", label="accuracy")
    for name, color, label in (("alone", "C3", "network alone"), ("confidence", "C0", "with variances")):
        middle.plot(ANGLES, means[name], ".-", color=color, label=f"confidence, {label}")
        _, confidence, accuracy = zip(*bins(getattr(everything, name), everything.correct), strict=True)
        right.plot(confidence, accuracy, ".-", color=color, label=label)
    middle.set(title="mean over the images", xlabel="angle in degrees", ylim=(0, 1.4))
    right.plot([0, 1], [0, 1], "k--", linewidth=0.8)
    right.set(title="calibration, all angles", xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    middle.legend(loc="upper right")
    right.legend(loc="upper left")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status."""
    return command_line.main(
        "uncertainty",
        __doc__,
        run,
        arguments,
        steps=1000,
        unit="training steps",
        seed="the weights and the batches",
        writes="uncertainty.png",
    )


def run(options: argparse.Namespace) -> int:
    """Train, approximate, and compare; return the exit status."""
    begin = time.perf_counter()
    training, test = load(options.data)
    asked = Split(*(array[np.random.default_rng(0).permutation(len(test.labels))[:ASKED]] for array in test))
    network = convnet(training.images.shape[1:], int(training.labels.max()) + 1)
    out = command_line.output_folder(options)
    params = train(network, training, options.steps, options.seed)

    make = jax.jit(partial(fc.laplace, network, loss))
    posterior = make(params, tuple(training))
    evidence = np.asarray(jax.jit(jax.vmap(posterior.log_marginal_likelihood))(jnp.asarray(PRIORS, jnp.float32)))
    best = float(PRIORS[evidence.argmax()])
    posterior = posterior.with_prior_precision(best)
    print(f"prior precision {best:.3g}, log marginal likelihood {evidence.max():.1f}", flush=True)

    results = {}
    for angle in ANGLES:
        result = predict(posterior, rotate(jnp.asarray(asked.images), angle), asked.labels)
        results[angle] = Rotated(*map(np.asarray, result))
        means = " ".join(f"{name}={values.mean():.3f}" for name, values in results[angle]._asdict().items())
        print(f"angle={angle} {means}", flush=True)
    everything = Rotated(*map(np.concatenate, zip(*results.values(), strict=True)))
    draw(out / "uncertainty.png", asked.images[0], results, everything)

    upright, rotated = (float(results[angle].deviation.mean()) for angle in (ANGLES[0], ANGLES[-1]))
    alone, calibrated = (
        calibration_error(confidence, everything.correct) for confidence in (everything.alone, everything.confidence)
    )
    seconds = time.perf_counter() - begin
    print(f"upright={upright:.3g} rotated={rotated:.3g} {alone=:.3f} {calibrated=:.3f} seconds={seconds:.1f}")
    if not (rotated > upright and calibrated < alone):
        print("uncertainty: failed: rotated images are not more uncertain, or not better calibrated", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

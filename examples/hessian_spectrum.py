"""Compute the spectrum of the Hessian of a convolutional network while it learns handwritten digits.

Nearly all eigenvalues are near zero. After a few steps, one fewer eigenvalues than there are classes are much larger
than the others (Sagun et al., "Empirical analysis of the Hessian of over-parametrized neural networks", 2017,
arXiv:1706.04454; Ghorbani, Krishnan and Xiao, "An investigation into neural net optimization via Hessian eigenvalue
density", 2019, arXiv:1901.10159).

The output has a line for each point of the training: the loss, the number of eigenvalues above the widest gap among
the largest ones, the ratio of the eigenvalues on both sides of the gap, and the share of the spectrum that is near
zero. The last line repeats the line of the point with the widest gap.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import command_line
import jax
import numpy as np
import optax
from digits import DataError, Split, load

import funcconv as fc

BATCH = 64  # images in a step
SAMPLE = 300  # images whose mean loss has the Hessian
NEAR = 0.1  # an eigenvalue is near zero if it is so small a part of the largest
APART = 1.5  # a gap is one if the eigenvalues differ by this factor
BULK = 0.9  # the least share of the spectrum that is near zero


class Spectrum(NamedTuple):
    """Of the Hessian after so many steps: the loss, the largest eigenvalues, the largest first, and the density."""

    step: int
    loss: float
    values: np.ndarray
    density: fc.Density

    @property
    def outliers(self) -> int:
        """The number of eigenvalues above the widest gap."""
        return 1 + int(np.argmax(self.values[:-1] / self.values[1:]))

    @property
    def gap(self) -> float:
        """By what factor the eigenvalues beside the widest gap differ."""
        return float(np.max(self.values[:-1] / self.values[1:]))

    @property
    def near_zero(self) -> float:
        """The share of the eigenvalues that are near zero."""
        inside = np.abs(self.density.grid) < NEAR * self.values[0]
        return float(self.density.density[inside].sum() / self.density.density.sum())

    def __str__(self) -> str:
        return f"loss={self.loss:.4f} outliers={self.outliers} gap={self.gap:.2f} near_zero={self.near_zero:.4f}"


def convnet(shape: tuple[int, ...], classes: int) -> fc.Graph:
    """Return the network: an image, halved, to the logits of the classes."""
    x = fc.Input("x", shape)
    net = fc.serial(
        fc.Pool(2, reduce="mean"),
        fc.Conv(8, 3, padding="SAME", init="he_normal"),
        jax.nn.relu,
        fc.Pool(2),
        fc.Conv(16, 3, padding="SAME", init="he_normal"),
        jax.nn.relu,
        fc.Pool(2),
        fc.Flatten(),
        fc.Dense(classes),
    )
    return fc.Graph(x, net(x))


def cross_entropy(network: fc.Graph, params: dict, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean loss of some images."""
    return optax.softmax_cross_entropy_with_integer_labels(network(params, images), labels).mean()


def checkpoints(steps: int) -> list[int]:
    """Return after how many steps to look: at the start, early, later, at the end."""
    return sorted({0, steps // 10, steps // 3, steps})


def spectra(network: fc.Graph, data: Split, classes: int, steps: int, seed: int) -> list[Spectrum]:
    """Train by gradient descent with momentum, and return the spectra on the way."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    chosen = rng.permutation(len(data.labels))[:SAMPLE]
    sample = Split(data.images[chosen], data.labels[chosen])
    optimizer = optax.sgd(0.02, momentum=0.9)

    @jax.jit
    def step(params: dict, moments: optax.OptState, images: jax.Array, labels: jax.Array) -> tuple:
        gradient = jax.grad(partial(cross_entropy, network))(params, images, labels)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    @jax.jit
    def look(params: dict, key: jax.Array) -> tuple:
        loss = partial(cross_entropy, network, images=sample.images, labels=sample.labels)
        hessian = fc.hessian(loss, params)
        return loss(params), hessian, hessian.density(key, order=24, samples=2, smoothing=0.005)

    def spectrum(i: int) -> Spectrum:
        loss, hessian, density = look(params, jax.random.fold_in(key, i))
        values, _ = hessian.eigsh(2 * classes, tol=1e-3)
        return Spectrum(i, float(loss), np.asarray(values)[::-1], jax.tree.map(np.asarray, density))

    params, found = network.init(key), []
    moments = optimizer.init(params)
    with command_line.progress_bar(steps + 1, "training") as bar:
        for i in range(steps + 1):
            if i in checkpoints(steps):
                found.append(spectrum(i))
            batch = rng.choice(len(data.labels), BATCH)
            params, moments = step(params, moments, data.images[batch], data.labels[batch])
            bar.update()
    return found


def draw(path: Path, found: list[Spectrum], classes: int):
    """Draw the density of the eigenvalues at each point of the training, and the largest eigenvalues in order."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 2 + 1.8 * len(found)), layout="constrained")
    densities, largest = figure.subfigures(1, 2, width_ratios=(3, 2))
    rows = densities.subplots(len(found), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for i, (axes, each) in enumerate(zip(rows, found, strict=True)):
        each.density.plot(axes, color=f"C{i}")
        outliers = each.values[: classes - 1]
        marks = {"color": "0.2", "markersize": 12, "label": f"the largest {classes - 1}, by eigsh"}
        axes.plot(outliers, np.full_like(outliers, 3e-5), "|", **marks)
        axes.set(title=f"after {each.step} steps, loss {each.loss:.3f}", yscale="log", ylim=(1e-5, None), xlabel="")
    axes.set(xlabel="eigenvalue of the Hessian")
    rows[0].legend(loc="upper right")

    axes = largest.subplots()
    for i, each in enumerate(found):
        axes.plot(1 + np.arange(len(each.values)), each.values, ".-", color=f"C{i}", label=f"after {each.step} steps")
    axes.axvline(classes - 0.5, color="0.6", linestyle=":", label="classes less one")
    axes.set(title="the largest eigenvalues", xlabel="place in order", ylabel="eigenvalue", yscale="log")
    axes.xaxis.set_major_locator(mpl.ticker.MultipleLocator(2))
    axes.legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status."""
    return command_line.main(
        "hessian_spectrum",
        __doc__,
        run,
        arguments,
        steps=300,
        unit=f"of {BATCH} images each",
        seed="the weights and the images",
        writes="hessian_spectrum.png",
    )


def run(options: argparse.Namespace) -> int:
    """Train, look at the Hessian on the way and draw; return the exit status."""
    begin = time.perf_counter()
    training, _ = load(options.data)
    classes, labels = np.unique(training.labels, return_inverse=True)
    if len(classes) < 3:
        msg = f"{len(classes)} classes are too few to tell their number from the spectrum"
        raise DataError(msg)

    network = convnet(training.images.shape[1:], len(classes))
    out = command_line.output_folder(options)
    found = spectra(network, Split(training.images, labels), len(classes), options.steps, options.seed)
    for each in found:
        print(f"step={each.step} {each}")
    draw(out / "hessian_spectrum.png", found, len(classes))
    widest = max(found[1:], key=lambda each: each.gap)
    print(f"{widest} seconds={time.perf_counter() - begin:.1f}")
    if widest.outliers != len(classes) - 1 or not widest.gap >= APART or not widest.near_zero >= BULK:
        expected = f"{len(classes) - 1} outliers, a gap of {APART} and a bulk of {BULK}"
        print(f"hessian_spectrum: failed: there should be {expected}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

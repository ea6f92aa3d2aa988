"""Train a convolutional network with Newton's method and conjugate gradients, and compare it with first-order methods.

Each step solves `(G + damping) d = -gradient` approximately with conjugate gradients, which need only products with the
Gauss-Newton matrix `G`. The damping is that of Levenberg and Marquardt: it decreases if the loss falls as the quadratic
model predicts, and increases otherwise (Martens, "Deep learning via Hessian-free optimization", 2010).

The other methods are gradient descent with momentum and Adam, each with the best of several step sizes. All methods fit
the same few hundred digits with full-batch steps. The cost is counted in gradients: a product counts as two, a
linearization and an evaluation of the loss as one each. This is more than Newton's method really costs: the second line
of the output says how long a product takes. At first the other methods are much faster, but then they slow down, and
Newton's method does not. This is true if the loss can reach zero. With weight decay, squared loss or an autoencoder,
Adam ended below Newton's method in first trials of the same size.

The last line has the loss that each method has reached when the budget is spent.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import command_line
import jax
import jax.numpy as jnp
import numpy as np
import optax
from digits import Split, load
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, cg

import funcconv as fc

IMAGES = 300
CG_STEPS = 50  # at most, for one step of Newton's method
PRODUCT = 2  # gradients that a product with the Gauss-Newton matrix counts as
FLOOR = 1e-7  # what is below is rounding in float32, and counts as this
RATES = {"momentum": (0.3, 1.0, 3.0), "adam": (0.01, 0.03, 0.1, 0.3)}
OPTIMIZERS = {"momentum": partial(optax.sgd, momentum=0.9), "adam": optax.adam}

Curve = tuple[list[float], list[float]]  # what was paid, in gradients, and the loss then


def convnet(shape: tuple[int, ...], classes: int) -> fc.Graph:
    """Return the network: an image, halved, to the logits of the classes."""
    x = fc.Input("x", shape)
    net = fc.serial(
        fc.Pool(2, reduce="mean"),
        fc.Conv(8, 3, stride=2, padding="SAME"),
        jnp.tanh,
        fc.Conv(16, 3, stride=2, padding="SAME"),
        jnp.tanh,
        fc.Flatten(),
        fc.Dense(classes),
    )
    return fc.Graph(x, net(x))


class Newton:
    """Damped Newton steps on `loss(model(params))`, with vectors for parameters; all that is compiled is so once."""

    def __init__(self, model: Callable, loss: Callable):
        def evaluate(params: jax.Array) -> jax.Array:
            return loss(model(params))

        self.loss = jax.jit(evaluate)
        self.value_and_grad = jax.jit(jax.value_and_grad(evaluate))
        self.curvature = jax.jit(partial(fc.gauss_newton, model, loss))
        self.times = jax.jit(fc.Operator.mv)

    def direction(
        self, curvature: fc.Operator, gradient: np.ndarray, damping: float, rtol: float = 0.1
    ) -> tuple[np.ndarray, float, int]:
        """Return the step, by how much the quadratic model says the loss changes, and the number of products."""
        count = 0

        def curved(v: np.ndarray) -> np.ndarray:
            nonlocal count
            count += 1
            return np.asarray(self.times(curvature, jnp.asarray(v, jnp.float32)), float)

        damped = LinearOperator((len(gradient),) * 2, lambda v: curved(v) + damping * v, dtype=float)
        d, _ = cg(damped, -gradient, rtol=rtol, maxiter=CG_STEPS)
        return d, gradient @ d + d @ curved(d) / 2, count

    def train(self, params: jax.Array, budget: int) -> Curve:
        """Return what was paid and the loss, before each step that begins within the budget."""
        damping, paid, curve = 1.0, 0, ([], [])
        bar = command_line.progress_bar(budget, "newton", "gradient")
        while paid < budget:
            value, gradient = self.value_and_grad(params)
            value = float(value)
            curve[0].append(paid + 1)  # so much for the gradient, with which the loss comes
            curve[1].append(max(value, FLOOR))
            if value < FLOOR:
                break
            d, predicted, products = self.direction(self.curvature(params), np.asarray(gradient, float), damping)
            there = params + jnp.asarray(d, jnp.float32)
            change = float(self.loss(there)) - value
            if change / predicted > 0.75:
                damping /= 3
            elif not change / predicted > 0.25:  # or nan
                damping *= 4
            params = there if change < 0 else params
            paid += 3 + PRODUCT * products
            bar.update(3 + PRODUCT * products)
            bar.set_postfix(loss=f"{value:.2g}", damping=f"{damping:.1g}", refresh=False)
        bar.close()
        return curve

    def cost_of_product(self, params: jax.Array) -> float:
        """Return by how much a product takes longer than a gradient, by the clock."""
        curvature = self.curvature(params)

        def seconds(f: Callable, *args) -> float:
            times = []
            for _ in range(12):
                begin = time.perf_counter()
                jax.block_until_ready(f(*args))
                times.append(time.perf_counter() - begin)
            return min(times)

        return seconds(self.times, curvature, params) / seconds(self.value_and_grad, params)


def first_order(loss: Callable, params: jax.Array, name: str, rate: float, budget: int) -> Curve:
    """Return the curve of an optimizer of optax."""
    optimizer = OPTIMIZERS[name](rate)

    @partial(jax.jit, donate_argnums=1)
    def step(params: jax.Array, moments: optax.OptState) -> tuple:
        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, losses = optimizer.init(params), []
    with command_line.progress_bar(budget, f"{name}, step size {rate}", "gradient") as bar:
        for _ in range(budget):
            params, moments, value = step(params, moments)
            losses.append(value)
            bar.update()
    return list(range(1, budget + 1)), np.maximum(np.asarray(losses, float), FLOOR).tolist()


def draw(path: Path, curves: dict[str, Curve]):
    """Draw the loss of each method over what was paid; those of step sizes that were not the best are thin."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    best = best_of(curves)
    styles = {"newton": ("C3", "Newton-CG"), "momentum": ("C0", "momentum"), "adam": ("C1", "Adam")}
    for name, (paid, losses) in curves.items():
        method, _, rate = name.partition(" ")
        color, label = styles[method]
        chosen = name == best[method]
        axes.plot(
            paid,
            losses,
            ".-" if method == "newton" else "-",
            color=color,
            linewidth=1.8 if chosen else 0.8,
            alpha=1 if chosen else 0.35,
            zorder=2 + chosen,
            label=(f"{label}, step size {rate}" if rate else label) if chosen else None,
        )
    lowest, highest = min(curves["newton"][1]), curves["newton"][1][0]
    axes.set(
        title=f"training loss of a convolutional network on {IMAGES} digits",
        yscale="log",
        xlabel=f"cost in gradients of the loss (a product with the Gauss-Newton matrix is {PRODUCT})",
        ylabel="cross-entropy",
        ylim=(lowest / 2, highest * 3),
    )
    axes.plot([], [], color="0.6", linewidth=0.8, label="other step sizes")
    axes.legend(loc="upper right")  # where no curve is: losses fall
    figure.savefig(path, dpi=100)
    plt.close(figure)


def best_of(curves: dict[str, Curve]) -> dict[str, str]:
    """Return for each method the name of the curve that ends lowest."""
    ends = {name: np.nan_to_num(losses[-1], nan=np.inf) for name, (_, losses) in curves.items()}
    methods = dict.fromkeys(name.partition(" ")[0] for name in curves)
    return {each: min((name for name in ends if name.startswith(each)), key=ends.get) for each in methods}


def main(arguments: list[str] | None = None) -> int:
    """Run, and return the exit status."""
    return command_line.main(
        "newton_cg",
        __doc__,
        run,
        arguments,
        steps=600,
        unit="the budget of each, in gradients",
        seed="the weights and the images",
        writes="newton_cg.png",
    )


def run(options: argparse.Namespace) -> int:
    """Train by each method, draw and compare; return the exit status."""
    begin = time.perf_counter()
    training, _ = load(options.data)
    chosen = np.random.default_rng(options.seed).permutation(len(training.labels))[:IMAGES]
    data = Split(training.images[chosen], training.labels[chosen])

    network = convnet(data.images.shape[1:], int(training.labels.max()) + 1)
    out = command_line.output_folder(options)
    params, unravel = ravel_pytree(network.init(jax.random.key(options.seed)))

    def model(params: jax.Array) -> jax.Array:
        return network(unravel(params), data.images)

    def loss(logits: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.labels).mean()

    newton = Newton(model, loss)
    print(f"a product costs {newton.cost_of_product(params):.2f} gradients by the clock, and counts as {PRODUCT}")
    curves = {"newton": newton.train(params, options.steps)}
    for name, rates in RATES.items():
        for rate in rates:
            curves[f"{name} {rate}"] = first_order(newton.loss, params, name, rate, options.steps)

    draw(out / "newton_cg.png", curves)
    ends = {method: curves[name][1][-1] for method, name in best_of(curves).items()}
    seconds = time.perf_counter() - begin
    print(" ".join(f"{method}={end:.3g}" for method, end in ends.items()) + f" seconds={seconds:.1f}")
    if not ends["newton"] < min(ends["momentum"], ends["adam"]):
        print("newton_cg: failed: the loss of Newton's method is not the lowest", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

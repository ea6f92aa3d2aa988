"""Draw one picture of each kind, from real digits and a photograph that matplotlib ships.

python examples/gallery.py
"""

import argparse
from pathlib import Path

import digits
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib import cbook

import funcconv as fc

FILTERS = {  # of a 3x3 convolution, as a first lesson has them
    "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    "blur": np.ones((3, 3)) / 9,
    "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
    "horizontal edges": [[-1, -2, -1], [0, 0, 0], [1, 2, 1]],
    "vertical edges": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
}


def siamese_network() -> fc.Graph:
    """Return a network that compares two digits by one trunk."""
    image = fc.Input("image", (28, 28, 1))
    layers = (fc.Conv(8, 5), jax.nn.relu, fc.max_pool, fc.Conv(16, 5), jax.nn.relu, fc.max_pool, fc.flatten)
    trunk = fc.Graph(image, fc.serial(*layers, fc.Dense(16))(image), name="trunk")
    left, right = fc.Input("left", (28, 28, 1)), fc.Input("right", (28, 28, 1))
    return fc.Graph((left, right), fc.node(distance, trunk(left), trunk(right)))


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the squared distance of two embeddings."""
    return jnp.square(a - b).sum(-1)


def classifier() -> fc.Graph:
    """Return a small network that names digits."""
    image = fc.Input("image", (28, 28, 1))
    convolutions = (fc.Conv(8, 5, name="conv1"), jax.nn.relu, fc.max_pool, fc.Conv(16, 5), jax.nn.relu, fc.max_pool)
    return fc.Graph(image, fc.serial(*convolutions, fc.flatten, fc.Dense(10))(image))


def trained(graph: fc.Graph, data: digits.Split, steps: int) -> dict:
    """Return parameters that name digits."""
    optimizer = optax.adam(3e-3)
    params = graph.init(jax.random.key(0))

    def loss(params, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(graph(params, images), labels).mean()

    @jax.jit
    def step(params, state, images, labels):
        updates, state = optimizer.update(jax.grad(loss)(params, images, labels), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(steps):
        batch = rng.choice(len(data.labels), 64)
        params, state = step(params, state, data.images[batch], data.labels[batch])
    return params


def photograph() -> np.ndarray:
    """Return a photograph, `(height, width, 3)` in [0, 1]."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        return plt.imread(file).astype(np.float32)[::2, ::2] / 255


def five_filters(image: np.ndarray) -> plt.Figure:
    """Draw a digit as five filters see it."""
    figure, axes = plt.subplots(2, len(FILTERS), figsize=(10, 4.2), layout="constrained")
    for (name, kernel), above, below in zip(FILTERS.items(), *axes, strict=True):
        kernel = jnp.asarray(kernel, jnp.float32)[..., None, None]
        fc.plot.filters(kernel, ax=above)
        above.set(title=name, xlabel="", ylabel="")
        above.figure.axes[-1].remove()  # the colour bar
        below.imshow(fc.conv({"kernel": kernel}, image, padding=1)[..., 0], cmap="gray")
        below.axis("off")
    return figure


def norm(x: jax.Array) -> jax.Array:
    """Return the length of a vector."""
    return jnp.sqrt((x * x).sum())


def two_layers(params: dict, x: jax.Array) -> jax.Array:
    """Return the loss of a net with two layers."""
    hidden = jnp.tanh(x @ params["layer1"]["kernel"])
    return jnp.square(jnp.tanh(hidden @ params["layer2"]["kernel"])).sum()


def loop(w: list, x: jax.Array) -> jax.Array:
    """Use each of two weights twice."""
    for i in range(4):
        x = jnp.tanh(w[i % 2] * x)
    return x


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gallery"), help="folder for the pictures (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, default=200, help="training steps of the classifier (default: %(default)s)"
    )
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    print(f"writing to {out}")

    def save(name: str, figure: plt.Figure) -> None:
        figure.savefig(out / name, dpi=100)
        print(out / name)

    train, test = digits.load(None)
    digit = test.images[0]
    save("filters-on-a-digit.png", five_filters(digit))
    fc.draw(siamese_network(), out / "siamese.png")
    fc.draw(siamese_network(), out / "siamese.svg", direction="LR")
    weights = {f"layer{i + 1}": {"kernel": jnp.ones(shape)} for i, shape in enumerate(((3, 4), (4, 2)))}
    fc.draw_autodiff(norm, jnp.ones(3), path=out / "norm.png", direction="LR")
    fc.draw_autodiff(jax.grad(two_layers), weights, jnp.ones(3), path=out / "gradient.png")
    fc.draw_autodiff(loop, [jnp.ones(()), jnp.ones(())], jnp.ones(()), path=out / "loop.png", direction="LR")
    fc.draw_autodiff(lambda w, v: jax.jvp(jax.grad(norm), (w,), (v,))[1], *[jnp.ones(3)] * 2, path=out / "hvp.png")
    for name in ("siamese", "norm", "gradient", "loop", "hvp"):
        print(out / f"{name}.png")

    graph = classifier()
    params = trained(graph, train, options.steps)
    accuracy = (graph(params, test.images).argmax(-1) == test.labels).mean()
    save("learned-filters.png", fc.plot.filters(params["conv1"]))
    save("activations.png", fc.plot.activations(graph, params, digit, most=8))
    label = int(test.labels[0])
    save("saliency.png", fc.plot.saliency(fc.attribution.gradient(graph, params, digit, of=lambda y: y[label]), digit))
    save("windows.png", fc.plot.windows((7, 7), 3, stride=2, padding=1, position=(1, 2)))

    photo = photograph()
    x = fc.Input("photo", photo.shape)
    layers = [fc.serial(fc.Conv(16, 3, padding=1), jax.nn.relu, fc.max_pool) for _ in range(4)]
    save("receptive-field.jpg", fc.plot.receptive_field(fc.Graph(x, fc.serial(*layers)(x)), photo))
    print(fc.summary(graph))
    print(f"accuracy={accuracy:.3f}")


if __name__ == "__main__":
    main()

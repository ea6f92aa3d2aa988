"""The pictures of the pages, but for those of `examples/gallery.py` and of `docs/speed.md`: python docs/pictures.py."""

import argparse
import contextlib
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import funcconv as fc

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import digits
import gallery


def dag() -> fc.Graph:
    """Return three nodes of which two share a matrix."""
    x0 = fc.Input("x0", (3,))
    x1 = fc.node(jnp.matmul, x0, params="w1", name="x1")
    x2 = fc.node(lambda w, x, y: x + w @ y, x0, x1, params="w2", name="x2")
    return fc.Graph(x0, fc.node(lambda w, x, y: w @ (x + y), x1, x2, params="w1", name="x3"))


def norm(x: jax.Array) -> jax.Array:
    """Return the length of a vector."""
    return jnp.sqrt((x * x).sum())


def product(x: jax.Array, v: jax.Array) -> jax.Array:
    """Return the product of the Hessian of the norm with a vector."""
    return jax.jvp(jax.grad(norm), (x,), (v,))[1]


def matrices() -> plt.Figure:
    """Draw the matrices of a 3x3 kernel on a 4x4 and on an 8x8 image."""
    kernel = {"kernel": jnp.arange(1.0, 10.0).reshape(3, 3, 1, 1)}
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for ax, size in zip(axes, (4, 8), strict=True):
        matrix = np.asarray(fc.conv_matrix(kernel, (size, size)))
        ax.imshow(np.ma.masked_equal(matrix, 0), cmap="viridis", interpolation="nearest")
        ax.set(xlabel=f"pixels of the {size}x{size} image", ylabel="positions", xticks=[], yticks=[])
    return figure


def pools(digit: np.ndarray) -> plt.Figure:
    """Draw a digit and what two kinds of pool leave of it."""
    figure, axes = plt.subplots(1, 5, figsize=(10, 2.4), layout="constrained")
    shown = {"28x28": digit}
    for window in (2, 4):
        shown[f"maxima of {window}x{window}"] = fc.max_pool(digit, (window, window))
        shown[f"averages of {window}x{window}"] = fc.avg_pool(digit, (window, window))
    for ax, (title, image) in zip(axes, shown.items(), strict=True):
        ax.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        ax.set_axis_off()
        ax.set_title(title, fontsize=10)
    return figure


def attributions(train: digits.Split, digit: np.ndarray, label: int) -> plt.Figure:
    """Draw which pixels the score of a digit depends on, by seven methods."""
    image = fc.Input("image", (28, 28, 1))
    layers = [fc.Conv(8, 5), jax.nn.relu, fc.max_pool, fc.Conv(32, 3), jax.nn.relu, fc.Conv(64, 3), jax.nn.relu]
    graph = fc.Graph(image, fc.serial(*layers, fc.global_pool, fc.Dense(10))(image))
    params = gallery.trained(graph, train, 400)
    methods = {
        "gradient": {},
        "smooth_grad": {"key": jax.random.key(0), "noise": 0.15},
        "integrated_gradients": {},
        "grad_cam": {"at": "relu3"},
        "guided": {},
        "deconvolution": {},
        "occlusion": {"window": 5, "stride": 1},
    }
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
    axes.flat[0].imshow(digit[..., 0], cmap="gray", vmin=0, vmax=1)
    axes.flat[0].set_title(f"a {label}", fontsize=10)
    axes.flat[0].set_axis_off()
    for ax, (name, options) in zip(axes.flat[1:], methods.items(), strict=True):
        result = getattr(fc.attribution, name)(graph, params, digit, of=lambda y: y[label], **options)
        array = result.attributions if name == "integrated_gradients" else result
        fc.plot.saliency(array, digit, signed=True, ax=ax)
        figure.axes[-1].remove()  # the colour bar
        ax.set_title(name, fontsize=10)
    return figure


def from_page(page: str, picture: str) -> tuple[bytes, dict[str, Any]]:
    """Run the blocks of a page in an empty folder. Return the picture that they write, and their variables."""
    text, names = (Path(__file__).parent / page).read_text(), {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        exec("".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)), names)
        return Path(picture).read_bytes(), names


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = Path(__file__).parent / "pictures"
    parser.add_argument("--out", type=Path, default=here, help="the folder to write to (default: %(default)s)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    mpl.use("agg")
    fc.draw(dag(), out / "course-dag.svg")
    fc.draw_autodiff(jax.grad(norm), jnp.ones(3), path=out / "course-norm.svg", direction="LR")
    fc.draw_autodiff(product, jnp.ones(3), jnp.ones(3), path=out / "course-hvp.svg")
    train, test = digits.load(None)
    digit, seven = test.images[0], int(np.flatnonzero(test.labels == 7)[0])
    windows = fc.plot.windows((7, 7), 3, stride=2, padding=1, position=(1, 2))
    for name, figure in (
        ("attribution", attributions(train, test.images[seven], 7)),
        ("matrix", matrices()),
        ("pools", pools(digit)),
        ("windows", windows),
    ):
        figure.savefig(out / f"course-{name}.png", dpi=80)
    for page, written, name in (
        ("siamese.md", "siamese.png", "siamese-digits.png"),
        ("course/factors.md", "factors.png", "course-factors.png"),
        ("course/kernels.md", "kernels.png", "course-kernels.png"),
        ("course/uncertainty.md", "uncertainty.png", "course-uncertainty.png"),
        ("recipes/image_folder.md", "predictions.png", "recipe-image-folder.png"),
        ("recipes/augmentation.md", "augmented.png", "recipe-augmentation.png"),
        ("recipes/schedules.md", "schedules.png", "recipe-schedules.png"),
        ("recipes/unet.md", "segmentation.png", "recipe-unet.png"),
        ("recipes/triplet.md", "embedding.png", "recipe-triplet.png"),
        ("recipes/gan.md", "generated.png", "recipe-gan.png"),
        ("recipes/audio.md", "prediction.png", "recipe-audio.png"),
    ):
        picture, names = from_page(page, written)
        (out / name).write_bytes(picture)
        if page == "siamese.md":
            fc.draw(names["network"], out / "siamese-network.svg")


if __name__ == "__main__":
    main()

"""Pictures of kernels, activations and attributions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .._common.errors import FuncconvError, suggest
from .._common.types import Params
from .._graph.use.graph import Graph
from ._axes import as_image, axes_for, remove_frame, tiled


def filters(params: Any, *, most: int = 64, ax: Any = None) -> Any:
    """Draw the kernels of a convolution side by side. Zero is white, negative weights are blue and positive ones red.

    Each column is an output channel, and each row an input channel of its group. A 1-d kernel is drawn as one row of
    squares. For a 3-d kernel, each slice along its first axis has its own row.

    Args:
        params: the entry of a convolution, such as `params["conv1"]`, or its kernel, an array
            `(*window, in // groups, out)` with one to three window axes.
        most: the maximum number of input channels and of output channels that are drawn. Default: 64.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure.

    Raises:
        FuncconvError: if the kernel does not have one to three window axes, or matplotlib is not installed.

    Example:
        >>> import funcconv as fc, jax
        >>> figure = fc.plot.filters(fc.init_conv(jax.random.key(0), 1, 5, (3, 3)))
        >>> figure.axes[0].images[0].get_array().shape
        (3, 19)
    """
    kernel = np.asarray(params["kernel"] if isinstance(params, Mapping) else params, np.float64)
    if not 3 <= kernel.ndim <= 5 or not kernel.size:
        msg = (
            f"plot.filters: the kernel must have shape (*window, in // groups, out) with one to three window axes; got "
            f"{kernel.shape}"
        )
        raise FuncconvError(msg)
    # (slices, rows, columns, in, out): a 2-d kernel has one slice, and a 1-d kernel one row.
    layers = kernel.reshape((-1, *kernel.shape[-4:])) if kernel.ndim > 3 else kernel[None, None]
    rows = [
        [layer[:, :, i, o] for o in range(min(kernel.shape[-1], most))]
        for i in range(min(kernel.shape[-2], most))
        for layer in layers
    ]
    sheet = tiled(rows)
    ax = axes_for("plot.filters", ax, _size(sheet))
    largest = np.abs(kernel).max() or 1.0
    # Symmetric limits, so that white is zero.
    drawn = ax.imshow(sheet, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="nearest")
    ax.figure.colorbar(drawn, ax=ax, shrink=0.8)
    ax.set(xlabel="output channel", ylabel="input channel" if kernel.ndim < 5 else "input channel, layer")
    remove_frame(ax)
    return ax.figure


def activations(
    graph: Graph, params: Params, x: Any, *, nodes: Sequence[str] | None = None, most: int = 16, ax: Any = None
) -> Any:
    """Draw the activations of nodes beside the input, one row per node. Each channel is scaled to its own range.

    Args:
        graph: the graph.
        params: the parameters of the graph, as `graph.init` returns them.
        x: one image `(height, width, channels)` without a batch axis, or a tuple with one image for each input.
        nodes: the names of the nodes to draw. Default: all nodes whose value has the shape
            `(height, width, channels)`, the inputs first.
        most: the maximum number of channels that are drawn for each node. Default: 16.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure.

    Raises:
        FuncconvError: if there is no such node, if its value does not have the shape `(height, width, channels)`, or if
            matplotlib is not installed.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), jax.nn.relu)(x))
        >>> params = graph.init(jax.random.key(0))
        >>> figure = fc.plot.activations(graph, params, jnp.ones((8, 8, 1)))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['x', 'conv1', 'relu1']
    """
    values = graph.values(params, *(x if isinstance(x, tuple) else (x,)))
    for name in nodes or ():
        if name not in values:
            msg = f"plot.activations: the graph has no node {name!r}{suggest(name, values)}"
            raise FuncconvError(msg)
        if np.ndim(values[name]) != 3:
            msg = (
                f"plot.activations: the value of {name!r} must have shape (height, width, channels); got "
                f"{np.shape(values[name])}. Pass other nodes, and one image without a batch axis"
            )
            raise FuncconvError(msg)
    names = list(nodes) if nodes else [name for name, value in values.items() if np.ndim(value) == 3]
    if not names:
        shapes = ", ".join(f"{name} {np.shape(values[name])}" for name in graph.inputs)
        msg = (
            "plot.activations: the value of at least one node must have shape (height, width, channels); got the "
            f"inputs {shapes}. Pass one image without a batch axis"
        )
        raise FuncconvError(msg)
    maps = [np.moveaxis(np.asarray(values[name], np.float64), -1, 0)[:most] for name in names]
    sheet = tiled([[_stretched(image) for image in row] for row in maps], gap=2)
    height = max(image.shape[1] for image in maps)
    ax = axes_for("plot.activations", ax, _size(sheet))
    ax.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    remove_frame(ax)
    # The labels are at the middle of the rows, which have the gap of the sheet between them.
    ax.set_yticks([i * (height + 2) + height / 2 for i in range(len(names))], names)
    ax.tick_params(length=0)
    return ax.figure


def saliency(attributions: Any, x: Any, *, signed: bool = False, ax: Any = None) -> Any:
    """Draw attributions over an image: of each pixel the largest absolute value over the channels, or their sum.

    Args:
        attributions: an array of one example, `(height, width, channels)`, such as `fc.attribution.gradient` returns,
            or a map `(height, width)`, such as `fc.attribution.grad_cam` returns.
        x: the image, `(height, width, channels)`.
        signed: whether to draw the sum over the channels, positive in red and negative in blue, so that less strong
            colours are closer to zero. Default: False, the largest absolute value over the channels.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure.

    Raises:
        FuncconvError: if the attributions do not have the height and width of the image, or matplotlib is not
            installed.

    Source: Simonyan, Vedaldi and Zisserman 2014, "Deep Inside Convolutional Networks", for the largest absolute value.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> image = jnp.ones((8, 8, 1))
        >>> gradient = jax.grad(lambda x: (x[2:4] ** 2).sum())(image)
        >>> figure = fc.plot.saliency(gradient, image)
        >>> figure.axes[0].images[1].get_array()[:, 0].tolist()
        [0.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0]
    """
    image = as_image("plot.saliency", x)
    values = np.asarray(attributions, np.float64)
    if values.ndim not in (2, 3) or values.shape[:2] != image.shape[:2]:
        msg = (
            f"plot.saliency: the attributions must be (height, width, channels) or (height, width) with the sizes "
            f"{image.shape[:2]} of the image; got {values.shape}. Omit the batch axis, or resize them with fc.resize"
        )
        raise FuncconvError(msg)
    values = values[..., None] if values.ndim == 2 else values
    drawn_values = values.sum(-1) if signed else np.abs(values).max(-1)
    largest = np.abs(drawn_values).max() or 1.0
    ax = axes_for("plot.saliency", ax, (4.5, 4))
    # A pale image leaves the colours of both signs visible.
    ax.imshow((1 + image) / 2 if signed else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    # The opacity is limited, so that the image stays visible everywhere.
    options = {"alpha": np.clip(np.abs(drawn_values) / largest, 0.15, 0.85), "interpolation": "nearest"}
    limits = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest} if signed else {"cmap": "inferno"}
    drawn = ax.imshow(drawn_values, **options, **limits)
    ax.figure.colorbar(drawn, ax=ax, label="attribution" if signed else "|attribution|", shrink=0.8)
    remove_frame(ax)
    return ax.figure


def _stretched(image: np.ndarray) -> np.ndarray:
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)


def _size(sheet: np.ndarray) -> tuple[float, float]:
    """Return the size of a figure for a sheet of images, in inches."""
    height, width = sheet.shape[:2]
    wide = min(max(width / 8, 4.0), 10.0)  # inches, for any number of channels
    return wide, min(max(wide * height / width, 1.5), 12.0)

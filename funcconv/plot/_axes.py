"""Functions that all pictures share: axes to draw on, and images side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._common.errors import FuncconvError
from .._common.optional_packages import needs


def axes_for(function: str, ax: Any, size: tuple[float, float]) -> Any:
    """Return the given axes, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    with needs("draw", function):
        from matplotlib.figure import Figure
    # Not pyplot, which keeps every figure in memory until it is closed.
    figure = Figure(figsize=size, layout="constrained")
    return figure.subplots()


def tiled(images: Sequence[Sequence[np.ndarray]], gap: int = 1) -> np.ndarray:
    """Join rows of images to one image, with gaps of NaN. Smaller images are enlarged by integer factors."""
    height = max(image.shape[0] for row in images for image in row)
    width = max(image.shape[1] for row in images for image in row)
    columns = max(map(len, images))
    shape = (len(images) * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full(shape + images[0][0].shape[2:], np.nan)
    for i, row in enumerate(images):
        for j, image in enumerate(row):
            factor = max(min(height // image.shape[0], width // image.shape[1]), 1)
            large = image.repeat(factor, 0).repeat(factor, 1)
            top, left = i * (height + gap), j * (width + gap)
            sheet[top : top + large.shape[0], left : left + large.shape[1]] = large
    return sheet


def remove_frame(ax: Any) -> None:
    """Remove ticks and frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set_visible(False)


def as_image(function: str, x: Any) -> np.ndarray:
    """Convert an image `(height, width, channels)` for matplotlib: grey or with three colours, from 0 to 1."""
    image = np.asarray(x, np.float64)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3:
        msg = f"{function}: an image must have shape (height, width, channels); got {image.shape}. Omit the batch axis"
        raise FuncconvError(msg)
    if image.shape[-1] != 3:
        image = image.mean(-1)  # only three channels can be shown as colours
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else np.zeros_like(image)

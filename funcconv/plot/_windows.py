"""Pictures of windows and receptive fields."""

from typing import Any

import numpy as np

from .._common.errors import FuncconvError
from .._common.optional_packages import needs
from .._common.types import Padding, Params, Shape, Sizes
from .._graph.use.graph import Graph
from .._inspect.receptive_field import receptive_field as fields_of
from .._windows.geometry import Axis, resolve
from ._axes import as_image, axes_for, remove_frame

_INPUT, _PADDING, _WINDOW, _OUTPUT = "#9ad0f5", "#ececec", "#e08a2e", "#8fd3b6"


def windows(
    size: Shape,
    window: Sizes,
    *,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    position: int | tuple[int, int] = 0,
    ax: Any = None,
) -> Any:
    """Draw where the windows of a convolution or pool are: the image with its padding, one window, and the result.

    Positions of the image are blue, padding is grey, and the result is green. One window, and the position of the
    result that it computes, have an orange frame. Dots show where windows begin.

    Args:
        size: the size of the image, `(height, width)` or `(length,)`.
        window: taps of a window (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: positions added before and after each spatial axis; negative numbers crop. One integer, one integer per
            axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding. `"SAME"`: the result has
            `ceil(size / stride)` positions; if the total is odd, the extra position comes after. `"SAME_LOWER"`: the
            same, but the extra position comes before. `"HALF"`: `dilation * (window - 1) // 2` on both sides. `"FULL"`:
            `dilation * (window - 1)` on both sides. `"CAUSAL"`: `dilation * (window - 1)` before, none after.
            Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        position: the window to frame, by its position in the result, from 0. One integer for all axes, or a tuple with
            one per axis. Default: 0, the first window.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure.

    Raises:
        FuncconvError: if the windows do not fit, if the image does not have one or two axes, if there is no such
            position, or if matplotlib is not installed.

    Example:
        >>> import funcconv as fc
        >>> figure = fc.plot.windows((5, 5), 3, stride=2, padding=1)
        >>> figure.axes[0].get_title()
        '5x5, window 3x3, stride 2x2, padding (1, 1)x(1, 1), dilation 1x1: 3x3'
    """
    if not 1 <= len(size) <= 2:
        msg = f"plot.windows: size must have one or two axes; got {size}. Draw two axes at a time"
        raise FuncconvError(msg)
    axes = resolve("plot.windows", tuple(size), window, stride=stride, padding=padding, dilation=dilation)
    at = tuple(position) if isinstance(position, tuple) else (position,) * len(axes)
    if len(at) != len(axes) or not all(0 <= o < axis.outputs for o, axis in zip(at, axes, strict=True)):
        counts = tuple(axis.outputs for axis in axes)
        msg = f"plot.windows: position must be a place in the result, which has size {counts}; got {position}"
        raise FuncconvError(msg)
    title = _title(axes)
    if len(axes) == 1:
        axes, at = (Axis(1, 1, 1, 1, 0, 0, 1), *axes), (0, *at)  # a 1-d image is drawn as one row
    rows, columns = axes
    # The result is drawn to the right of the image and its padding.
    shift = columns.size + max(columns.lo, 0) + max(columns.hi_used, columns.hi, 0) + 1
    tall = rows.size + max(rows.lo, 0) + max(rows.hi_used, rows.hi, 0)
    ax = axes_for("plot.windows", ax, (max(0.35 * (shift + columns.outputs), 4), max(0.35 * tall, 1.2) + 0.6))
    for i in range(-max(rows.lo, 0), rows.size + max(rows.hi, rows.hi_used, 0)):
        for j in range(-max(columns.lo, 0), columns.size + max(columns.hi, columns.hi_used, 0)):
            inside = 0 <= i < rows.size and 0 <= j < columns.size
            _square(ax, j, i, _INPUT if inside else _PADDING)
    for o in np.ndindex(rows.outputs, columns.outputs):
        _square(ax, shift + o[1], (tall - rows.outputs) / 2 - max(rows.lo, 0) + o[0], _OUTPUT)
        top, left = (p * axis.stride - axis.lo for p, axis in zip(o, axes, strict=True))
        ax.plot(left, top, ".", color="#404040", markersize=3)
    for t in np.ndindex(rows.window, columns.window):
        i, j = (p * axis.stride - axis.lo + tap * axis.dilation for p, axis, tap in zip(at, axes, t, strict=True))
        _square(ax, j, i, None)
    _square(ax, shift + at[1], (tall - rows.outputs) / 2 - max(rows.lo, 0) + at[0], None)
    ax.set(aspect="equal", title=title)
    ax.title.set_fontsize(9)
    ax.autoscale_view()
    ax.invert_yaxis()  # row 0 at the top, as in an image
    remove_frame(ax)
    return ax.figure


def receptive_field(
    graph: Graph,
    image: Any,
    *,
    of: str | None = None,
    wrt: str | None = None,
    position: tuple[int, int] | None = None,
    params: Params | None = None,
    ax: Any = None,
) -> Any:
    """Draw the receptive field of one position of a node, as a frame on an image. Padding is outside of the image.

    Args:
        graph: the graph.
        image: an image with the shape of the input, `(height, width, channels)`.
        of: the name of the node. Default: the first output.
        wrt: the name of the input. Default: the first input.
        position: the position in the value of the node, `(row, column)`. Default: the middle.
        params: the parameters or their shapes. Needed only if a node has parameters that nothing draws. Default: None,
            the shapes that `graph.init` draws.
        ax: matplotlib axes to draw on. Default: a new figure.

    Returns:
        The figure.

    Raises:
        FuncconvError: if there is no such node or input, if the receptive field of the node does not have two axes, or
            if matplotlib is not installed.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = fc.Input("x", (8, 8, 1))
        >>> graph = fc.Graph(x, fc.serial(fc.Conv(4, 3), fc.Conv(4, 3))(x))
        >>> fc.plot.receptive_field(graph, jnp.ones((8, 8, 1))).axes[0].get_title()
        'conv2[2, 2] sees 5x5 pixels of x'
    """
    of = graph.outputs[0] if of is None else of
    wrt = graph.inputs[0] if wrt is None else wrt
    seen = fields_of(graph, of, wrt, params=params).get(wrt, ())
    if len(seen) != 2:
        msg = (
            f"plot.receptive_field: the receptive field of {of!r} in the input {wrt!r} must have two axes; it has "
            f"{len(seen)}. Pass the node before the image is flattened or pooled"
        )
        raise FuncconvError(msg)
    shape = graph.shapes(params)[of].shape
    if position is None:
        position = (shape[0] // 2, shape[1] // 2) if len(shape) > 1 else (0, 0)
    with needs("draw", "plot.receptive_field"):
        from matplotlib.patches import Rectangle
    ax = axes_for("plot.receptive_field", ax, (4, 4))
    pixels = as_image("plot.receptive_field", image)
    ax.imshow(pixels, cmap="gray", interpolation="nearest")
    (top, bottom), (left, right) = (axis.reaches(o) for axis, o in zip(seen, position, strict=True))
    for colour, width in (("white", 4), (_WINDOW, 2)):  # the white edge keeps the frame visible on any image
        frame: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": width}
        ax.add_patch(Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, **frame))
    height, width = pixels.shape[:2]
    ax.set_xlim(min(left, 0) - 1, max(right + 1, width))
    ax.set_ylim(max(bottom + 1, height), min(top, 0) - 1)
    ax.set_title(f"{of}{list(position)} sees {seen[0].size}x{seen[1].size} pixels of {wrt}", fontsize=9)
    remove_frame(ax)
    return ax.figure


def _title(axes: tuple[Axis, ...]) -> str:
    def joined(of: Any) -> str:
        return "x".join(str(of(axis)) for axis in axes)

    return (
        f"{joined(lambda a: a.size)}, window {joined(lambda a: a.window)}, stride {joined(lambda a: a.stride)}, "
        f"padding {joined(lambda a: (a.lo, a.hi))}, dilation {joined(lambda a: a.dilation)}: "
        f"{joined(lambda a: a.outputs)}"
    )


def _square(ax: Any, x: float, y: float, fill: str | None) -> None:
    """Draw a filled square, or only its frame if `fill` is None."""
    with needs("draw", "plot.windows"):
        from matplotlib.patches import Rectangle
    kind = {"facecolor": fill, "edgecolor": "white"} if fill else {"fill": False, "edgecolor": _WINDOW, "linewidth": 2}
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, zorder=1 if fill else 2, **kind))

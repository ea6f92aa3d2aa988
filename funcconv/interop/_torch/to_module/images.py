"""Images in PyTorch's order of axes, their padding, and their windows.

PyTorch computes on `(batch, channels, *spatial)`. An image with its channels last is moved there and back as a view, so
that nothing is copied: PyTorch knows this order in memory as `torch.channels_last`.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from ...._common.errors import FuncconvError
from ...._common.types import Shape
from ...._windows.geometry import Axis, source
from ...._windows.layout import channels_last_order, spatial_of_layout
from .lazy_torch import functional, torch


class Image(NamedTuple):
    """An image in PyTorch's order of axes, with what is needed to restore the order of the graph.

    Attributes:
        op: the name of the op, for messages.
        array: `(batch, channels, *spatial)`.
        batch: the sizes of the batch axes in the graph.
        layout: the layout of the op.
    """

    op: str
    array: Any
    batch: tuple[Any, ...]
    layout: str | None

    @property
    def sizes(self) -> Shape:
        """The sizes of the spatial axes."""
        return tuple(self.array.shape[2:])

    def restore(self, result: Any) -> Any:
        """Return a result, `(batch, channels, *positions)` or `(batch, channels)`, in the order of the graph."""
        result = result.movedim(1, -1)
        if len(self.batch) != 1:
            result = result.reshape(*self.batch, *result.shape[1:])
        if self.layout is None:
            return result
        has_positions = result.ndim > len(self.batch) + 1
        layout = self.layout if has_positions else "".join(letter for letter in self.layout if letter in "NC")
        order = channels_last_order(self.op, layout, result.ndim)
        return result.permute([order.index(i) for i in range(result.ndim)])


def image(op: str, x: Any, spatial: int | None, layout: str | None = None) -> Image:
    """Return `(*batch, *spatial, channels)`, or an array of another layout, as PyTorch has images.

    Args:
        op: the name of the op, for messages.
        x: the tensor.
        spatial: the number of spatial axes; None means that there is one batch axis.
        layout: the order of the axes. Default: None, channels last.

    Returns:
        The image.

    Raises:
        FuncconvError: if there are too few axes.
    """
    if layout is not None:
        spatial = spatial_of_layout(op, layout)
        x = x.permute(channels_last_order(op, layout, x.ndim))
    leading = 1 if spatial is None else x.ndim - spatial - 1
    if leading < 0 or x.ndim <= leading:
        msg = f"{op}: the input must have {spatial} spatial axes and one of channels; got shape {tuple(x.shape)}"
        raise FuncconvError(msg)
    batch = tuple(x.shape[:leading])
    array = x if leading == 1 else x.reshape(prod(batch), *x.shape[leading:])
    return Image(op, array.movedim(-1, 1), batch, layout)


def is_symmetric(axes: Sequence[Axis], modes: Sequence[str | None], mode: str | None) -> bool:
    """Return whether all axes are padded in one mode, by as much before as after, and nowhere cropped."""
    return all(m == mode or axis.lo == axis.hi == 0 for m, axis in zip(modes, axes, strict=True)) and all(
        axis.lo == axis.hi >= 0 for axis in axes
    )


def padded(x: Any, axes: Sequence[Axis], modes: Sequence[str | None], value: float = 0) -> Any:
    """Pad the spatial axes so that the windows just fit, as `funcconv.conv` and `funcconv.pool` do.

    Args:
        x: `(batch, channels, *spatial)`.
        axes: one for each spatial axis.
        modes: the pad mode of each axis. None fills the padding with the value.
        value: for the mode None, and beyond the padding, where `ceil_mode` lets the last window extend.

    Returns:
        `(batch, channels, *padded)`.
    """
    zeros, values = [(0, 0)] * len(axes), [(0, 0)] * len(axes)
    for i, (axis, mode) in enumerate(zip(axes, modes, strict=True)):
        before, after = axis.lo, min(axis.hi, axis.hi_used)
        beyond = axis.hi_used - after
        if mode is None:
            values[i] = (before, after + beyond)
        elif mode == "zeros":
            zeros[i], values[i] = (before, after), (0, beyond)
        else:
            places = [source(mode, position, axis.size) for position in range(-before, axis.size + after)]
            x = x if places == list(range(axis.size)) else x.index_select(2 + i, indices(places, x))
            values[i] = (0, beyond)
    for fill, pairs in ((0, zeros), (value, values)):
        if any(pair != (0, 0) for pair in pairs):
            x = functional.pad(x, [n for pair in reversed(pairs) for n in pair], value=fill)
    return x


def windows(x: Any, axes: Sequence[Axis]) -> Any:
    """Return the taps of all windows of a padded image.

    Args:
        x: `(batch, channels, *padded)`.
        axes: one for each spatial axis.

    Returns:
        `(batch, channels, *positions, taps)`, the taps in row-major order.
    """
    for i, axis in enumerate(axes):
        places = [o * axis.stride + tap * axis.dilation for o in range(axis.outputs) for tap in range(axis.window)]
        x = x.index_select(2 + 2 * i, indices(places, x)).unflatten(2 + 2 * i, (axis.outputs, axis.window))
    n = len(axes)
    positions, taps = range(2, 2 + 2 * n, 2), range(3, 2 + 2 * n, 2)
    return x.permute(0, 1, *positions, *taps).flatten(2 + n)


def indices(places: Sequence[int | None], x: Any) -> Any:
    """Return integers as a tensor on the device of another."""
    return torch.tensor(places, dtype=torch.int64, device=x.device)


def is_narrow(x: Any) -> bool:
    """Return whether numbers are floats of 16 bits, whose sums funcconv computes in float32."""
    return bool(x.is_floating_point() and x.element_size() < 4)


def wide(x: Any) -> Any:
    """Return numbers in the dtype in which their sums are computed."""
    return x.float() if x is not None and is_narrow(x) else x


def torch_dtype(dtype: Any) -> Any:
    """Return PyTorch's dtype of the same name."""
    name = str(getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype))
    return getattr(torch, {"bool_": "bool"}.get(name, name))

"""How every op sees an array inside: `(batch, *spatial, channels)`, with one batch axis."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.mesh_axes import whole_along
from .._common.types import Array, ArrayLike, Shape
from .geometry import channels_last_order, spatial_of_layout


def as_array(op: str, name: str, value: ArrayLike) -> Array:
    """Return an argument as a JAX array."""
    try:
        return jnp.asarray(value)
    except FuncconvError as error:  # a node of a graph says what to write
        msg = f"{op}: {name} must be an array; {error}"
        raise FuncconvError(msg) from None
    except (TypeError, ValueError):
        msg = f"{op}: {name} must be an array; got {type(value).__name__}"
        raise FuncconvError(msg) from None


class Image(NamedTuple):
    """An array brought into the inner form, and what is needed to bring a result back."""

    array: Array  # (batch, *spatial, channels)
    batch: Shape
    op: str
    layout: str | None

    @property
    def spatial(self) -> Shape:
        """The sizes of the spatial axes."""
        return self.array.shape[1:-1]

    def whole(self) -> "Image":
        """Return the image with no spatial axis sharded over explicit axes of a mesh.

        JAX has no sharding rules for the slices and reshapes that split such an axis into windows.
        """
        return self._replace(array=whole_along(self.array, range(1, self.array.ndim - 1)))

    def restore(self, result: Array) -> Array:
        """Return a result, `(batch, *spatial, channels)` or `(batch, channels)`, in the form the op was given."""
        result = result.reshape(self.batch + result.shape[1:])
        if self.layout is None:
            return result
        spatial_left = result.ndim > len(self.batch) + 1
        layout = self.layout if spatial_left else "".join(letter for letter in self.layout if letter in "NC")
        order = channels_last_order(self.op, layout, result.ndim)
        return result.transpose([order.index(i) for i in range(result.ndim)])


def image(op: str, x: Array, spatial: int | None, said_by: str, layout: str | None, *, least: int = 1) -> Image:
    """Return `x`, with any number of batch axes, in the inner form.

    The number of spatial axes is `spatial`, said by what `said_by` names, or that of the letters of `layout`. Where
    neither is given, there is exactly one batch axis. There are at least `least` of them.

    Returns:
        The array and the way back.
    """
    if layout is not None:
        named = spatial_of_layout(op, layout)
        if spatial not in (None, named):
            msg = f"{op}: layout {layout!r} has {named} spatial axes, but {said_by} says {spatial}"
            raise FuncconvError(msg)
        spatial = named
    if spatial is None:
        spatial = x.ndim - 2
        if spatial < 1:
            axes = {0: "(*batch, channels)", 1: "(spatial, channels)"}
            ways = [f"spatial={n} if its axes are {axes[n]}" for n in (0, 1) if least <= n < x.ndim]
            msg = (
                f"{op}: one batch axis, at least one spatial axis and the channels make three axes, "
                f"but the input has shape {x.shape}{'; say spatial=n: ' if ways else ''}{', or '.join(ways)}"
            )
            raise FuncconvError(msg)
    if spatial < least:
        msg = f"{op}: at least one spatial axis is needed, but {said_by} says {spatial} for the shape {x.shape}"
        raise FuncconvError(msg)
    if x.ndim < spatial + 1:
        msg = (
            f"{op}: the input must have {spatial} spatial axes and one of channels, (*batch, *spatial, channels); "
            f"got shape {x.shape}"
        )
        raise FuncconvError(msg)
    if layout is not None:
        x = x.transpose(channels_last_order(op, layout, x.ndim))
    batch = x.shape[: x.ndim - spatial - 1]
    return Image(x.reshape((math.prod(batch), *x.shape[len(batch) :])), batch, op, layout)


def spatial_axes(op: str, name: str, sizes: Any, spatial: int | None) -> tuple[int | None, str]:
    """Return the number of spatial axes that a tuple or `spatial` says, and which of them says it."""
    if not isinstance(sizes, Sequence):
        return spatial, "spatial="
    if spatial not in (None, len(sizes)):
        msg = f"{op}: the {name} {sizes!r} is for {len(sizes)} spatial axes, but spatial= says {spatial}"
        raise FuncconvError(msg)
    return len(sizes), f"the {name} {sizes!r}"

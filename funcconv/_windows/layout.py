"""The order of axes: every op computes on `(batch, *spatial, channels)`, with one batch axis."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._common.errors import FuncconvError
from .._common.mesh_axes import whole_along
from .._common.types import Array, ArrayLike, Shape


def as_array(op: str, name: str, value: ArrayLike) -> Array:
    """Return an argument as a JAX array."""
    try:
        return jnp.asarray(value)
    except FuncconvError as error:  # from a node of a graph, whose error says how to use an op in a graph
        msg = f"{op}: {name} must be an array; {error}"
        raise FuncconvError(msg) from None
    except (TypeError, ValueError):
        msg = f"{op}: {name} must be an array; got {type(value).__name__}"
        raise FuncconvError(msg) from None


class Image(NamedTuple):
    """An array as `(batch, *spatial, channels)`, with what is needed to restore the caller's axes."""

    array: Array  # (batch, *spatial, channels)
    batch: Shape  # the sizes of the caller's batch axes
    op: str  # for messages
    layout: str | None

    @property
    def spatial(self) -> Shape:
        """The sizes of the spatial axes."""
        return self.array.shape[1:-1]

    def whole(self) -> "Image":
        """Return the image without spatial axes that are sharded over explicit axes of a mesh.

        JAX has no sharding rules for the slices and reshapes that split a sharded axis into windows.
        """
        return self._replace(array=whole_along(self.array, range(1, self.array.ndim - 1)))

    def restore(self, result: Array) -> Array:
        """Return a result, `(batch, *spatial, channels)` or `(batch, channels)`, with the caller's order of axes."""
        result = result.reshape(self.batch + result.shape[1:])
        if self.layout is None:
            return result
        spatial_left = result.ndim > len(self.batch) + 1
        layout = self.layout if spatial_left else "".join(letter for letter in self.layout if letter in "NC")
        order = channels_last_order(self.op, layout, result.ndim)
        return result.transpose([order.index(i) for i in range(result.ndim)])


def image(op: str, x: Array, spatial: int | None, said_by: str, layout: str | None, *, least: int = 1) -> Image:
    """Return `x`, with any number of batch axes, as `(batch, *spatial, channels)`.

    The number of spatial axes is `spatial`, or is given by the letters of `layout`. If both are None, there is exactly
    one batch axis. Messages name `said_by` as the argument that set `spatial`. There must be at least `least` spatial
    axes.

    Returns:
        The array and what is needed to restore the caller's axes.
    """
    if layout is not None:
        named = spatial_of_layout(op, layout)
        if spatial not in (None, named):
            msg = (
                f"{op}: layout {layout!r} has {named} spatial axes, but {said_by} says {spatial}"
                "; pass a layout with a letter for each"
            )
            raise FuncconvError(msg)
        spatial = named
    if spatial is None:
        spatial = x.ndim - 2
        if spatial < 1:
            axes = {0: "(*batch, channels)", 1: "(spatial, channels)"}
            choices = [f"spatial={n} if its axes are {axes[n]}" for n in (0, 1) if least <= n < x.ndim]
            msg = (
                f"{op}: one batch axis, at least one spatial axis and the channels make three axes, "
                f"but the input has shape {x.shape}{'; pass spatial=n: ' if choices else ''}{', or '.join(choices)}"
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
    if len(batch) > 1:
        x = _mergeable(x, len(batch))
    return Image(x.reshape((math.prod(batch), *x.shape[len(batch) :])), batch, op, layout)


def _mergeable(x: Array, number: int) -> Array:
    """Return `x` with a sharding over explicit mesh axes that JAX keeps when the first axes are merged.

    These are sharded axes followed by axes that are not sharded.
    """
    sharded = [entry is not None for entry in jax.typeof(x).sharding.spec[:number]]
    first_whole = sharded.index(False) if False in sharded else number
    return whole_along(x, range(first_whole, number))


def spatial_axes(op: str, name: str, sizes: Any, spatial: int | None) -> tuple[int | None, str]:
    """Return the number of spatial axes that a tuple or `spatial` gives, and the name of that argument."""
    if not isinstance(sizes, Sequence):
        return spatial, "spatial="
    if spatial not in (None, len(sizes)):
        msg = (
            f"{op}: the {name} {sizes!r} is for {len(sizes)} spatial axes, but spatial= says {spatial}"
            "; leave spatial out, or change it"
        )
        raise FuncconvError(msg)
    return len(sizes), f"the {name} {sizes!r}"


def spatial_of_layout(op: str, layout: str) -> int:
    """Return the number of spatial axes that a layout such as `"NCHW"` names."""
    letters = layout if isinstance(layout, str) else ""
    if not letters.isalpha() or letters.count("C") != 1 or len(set(letters)) != len(letters):
        msg = (
            f"{op}: a layout is a word such as 'NCHW' or 'NHWC': C once for the channels, N for all batch axes, "
            f"and a letter for each spatial axis; got {layout!r}"
        )
        raise FuncconvError(msg)
    return len(set(letters) - {"N", "C"})


def channels_last_order(op: str, layout: str, ndim: int) -> Shape:
    """Return the permutation that brings an array with this layout to `(*batch, *spatial, channels)`."""
    batch = ndim - len(layout.replace("N", ""))
    if batch < 0 or (batch > 0 and "N" not in layout):
        expected = len(layout.replace("N", ""))
        expected_axes = f"at least {expected}" if "N" in layout else str(expected)
        msg = f"{op}: an array of layout {layout!r} cannot have {ndim} axes; it must have {expected_axes}"
        raise FuncconvError(msg)
    axis, axes = 0, {}
    for letter in layout:
        axes[letter] = axis
        axis += batch if letter == "N" else 1  # one letter stands for all batch axes
    first_batch = axes.get("N", 0)
    spatial = (axes[letter] for letter in layout if letter not in "NC")
    return (*range(first_batch, first_batch + batch), *spatial, axes["C"])


def patches_order(layout: str, ndim: int, spatial: int) -> Shape:
    """Return the permutation that brings `(*batch, *positions, *window, channels)` to the order of a layout.

    The positions are in the place of the spatial axes. The window is beside the channels: before them if they are the
    last axis, otherwise after them.
    """
    batch = ndim - 2 * spatial - 1
    window, channels = range(batch + spatial, ndim - 1), ndim - 1
    positions = iter(range(batch, batch + spatial))
    order: list[int] = []
    for letter in layout:
        if letter == "N":
            order += range(batch)
        elif letter == "C":
            order += [*window, channels] if layout[-1] == "C" else [channels, *window]
        else:
            order.append(next(positions))
    return tuple(order)

"""Halos: the positions of neighbouring blocks that the windows of a device read."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from .._common.dtypes import in_wide
from .._common.errors import FuncconvError
from .._common.mesh_axes import axis_size
from .._common.types import Array
from .._windows.geometry import Axis, source


def halo_exchange(x: Array, before: int, after: int, /, *, axis: int, axis_name: str, wrap: bool = False) -> Array:
    """Extend each device's block by positions of the blocks before and after it.

    Call it inside `jax.shard_map`. The blocks follow each other along `axis` in the order of the mesh axis. A halo that
    is wider than a block comes from several devices, one hop per device.

    Args:
        x: this device's block. The blocks of all devices have the same shape.
        before: number of positions to add before the block, from the devices before this one.
        after: number of positions to add after the block, from the devices after this one.
        axis: axis of the array along which it is sharded.
        axis_name: name of the mesh axis.
        wrap: whether the first device follows the last one (periodic). Default: False, zeros beyond both ends.

    Returns:
        The block with `before + after` more positions along `axis`. The gradient of a position goes back to the device
        that it came from.

    Raises:
        FuncconvError: if a number is negative, the block is empty, or `axis_name` is not a mapped axis.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> mesh, spec = jax.sharding.Mesh(jax.devices()[:1], ("rows",)), jax.P("rows")
        >>> borrow = lambda x: fc.spatial.halo_exchange(x, 1, 2, axis=0, axis_name="rows", wrap=True)
        >>> jax.shard_map(borrow, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(4)).tolist()
        [3, 0, 1, 2, 3, 0, 1]
    """
    devices, size = axis_size("halo_exchange", axis_name), x.shape[axis]
    if min(before, after) < 0 or not size:
        msg = f"halo_exchange: {before} and {after} places cannot be put around a block of {size}"
        raise FuncconvError(msg)
    parts = [x]
    for width, forward in ((before, True), (after, False)):
        for hop in range(1, -(-width // size) + 1):
            near = min(size, width - (hop - 1) * size)  # of the last device asked only the near end
            start = size - near if forward else 0
            part = lax.slice_in_dim(x, start, start + near, axis=axis)
            part = _moved(part, axis_name, devices, hop if forward else -hop, wrap=wrap)
            parts = [part, *parts] if forward else [*parts, part]
    return lax.concatenate(parts, axis % x.ndim) if len(parts) > 1 else x


class Share(NamedTuple):
    """What each of several devices computes of the windows on one axis: as many of them, one after another."""

    axis: Axis  # of the whole image
    name: str
    devices: int

    @property
    def block(self) -> int:
        """The places that a device holds."""
        return self.axis.size // self.devices

    @property
    def places(self) -> int:
        """The places that a device reads, from the first tap of its first window to the last of its last."""
        return (self.axis.outputs // self.devices - 1) * self.axis.stride + self.axis.extent

    @property
    def starts(self) -> tuple[int, ...]:
        """The first place that each device reads, in the whole image."""
        step = self.axis.outputs // self.devices * self.axis.stride
        return tuple(device * step - self.axis.lo for device in range(self.devices))


def shared(op: str, axis: Axis, name: str) -> Share:
    """Return how the windows of an axis are shared; every device must have as many.

    Raises:
        FuncconvError: if they cannot be shared evenly.
    """
    devices = axis_size("spatial", name)
    if axis.outputs % devices:
        msg = (
            f"{op}: {axis.outputs} windows on an axis of {axis.size} cannot be shared evenly by the {devices} devices "
            f"of {name!r}; padding such as 'SAME', or another image size, makes them divisible"
        )
        raise FuncconvError(msg)
    return Share(axis, name, devices)


def read(x: Array, share: Share, axis: int, mode: str | None) -> Array:
    """Return the places that the windows of this device read.

    Args:
        x: this device's block.
        share: what it computes.
        axis: of the array.
        mode: what is shown beyond the image, as `numpy.pad` does it; None shows zeros.

    Returns:
        The block with `share.places` places along the axis.
    """
    block, places = share.block, share.places
    if mode in (None, "zeros", "circular"):  # what is borrowed stands already where it is read
        firsts = share.starts
        lasts = [start + places - 1 for start in firsts]
    else:
        seen = [[source(str(mode), start + i, share.axis.size) or 0 for i in range(places)] for start in share.starts]
        firsts, lasts = tuple(map(min, seen)), [max(each) for each in seen]
    before = max(0, *(device * block - first for device, first in enumerate(firsts)))
    after = max(0, *(last + 1 - (device + 1) * block for device, last in enumerate(lasts)))
    held = halo_exchange(x, before, after, axis=axis, axis_name=share.name, wrap=mode == "circular")
    begin = [device * block - before for device in range(share.devices)]  # where what each now holds begins
    if mode in (None, "zeros", "circular"):
        return _sliced(held, [first - at for first, at in zip(firsts, begin, strict=True)], places, axis, share.name)
    table = jnp.asarray([[place - at for place in each] for each, at in zip(seen, begin, strict=True)])
    return in_wide(lambda x: jnp.take(x, table[lax.axis_index(share.name)], axis=axis), held)


def _sliced(x: Array, offsets: Sequence[int], places: int, axis: int, name: str) -> Array:
    if len(set(offsets)) == 1:
        return lax.slice_in_dim(x, offsets[0], offsets[0] + places, axis=axis)
    start = jnp.asarray(offsets)[lax.axis_index(name)]
    return lax.dynamic_slice_in_dim(x, start, places, axis=axis)


def _moved(x: Array, name: str, devices: int, hops: int, *, wrap: bool) -> Array:
    """Return what the device so many hops before this one sends; a negative number means after."""
    pairs = [(device, device + hops) for device in range(devices)]
    if wrap:
        pairs = [(source, target % devices) for source, target in pairs]
    moved: Array = lax.ppermute(x, name, [pair for pair in pairs if 0 <= pair[1] < devices])  # type: ignore[no-untyped-call]
    return moved

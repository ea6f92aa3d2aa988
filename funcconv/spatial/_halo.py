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
        before: number of positions to add before the block, which come from the devices before this one.
        after: number of positions to add after the block, which come from the devices after this one.
        axis: axis of the array that is sharded over the devices.
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
        >>> extend = lambda x: fc.spatial.halo_exchange(x, 1, 2, axis=0, axis_name="rows", wrap=True)
        >>> jax.shard_map(extend, mesh=mesh, in_specs=spec, out_specs=spec)(jnp.arange(4)).tolist()
        [3, 0, 1, 2, 3, 0, 1]
    """
    devices, size = axis_size("halo_exchange", axis_name), x.shape[axis]
    if min(before, after) < 0 or not size:
        msg = (
            "halo_exchange: before and after must be at least 0, and the block must have at least one position; got "
            f"before={before}, after={after} and {size} positions"
        )
        raise FuncconvError(msg)
    parts = [x]
    for width, forward in ((before, True), (after, False)):
        for hop in range(1, -(-width // size) + 1):
            count = min(size, width - (hop - 1) * size)  # the farthest device sends only its near end
            start = size - count if forward else 0
            part = lax.slice_in_dim(x, start, start + count, axis=axis)
            part = _received(part, axis_name, devices, hop if forward else -hop, wrap=wrap)
            parts = [part, *parts] if forward else [*parts, part]
    return lax.concatenate(parts, axis % x.ndim) if len(parts) > 1 else x


class Share(NamedTuple):
    """The windows of one axis that each device computes: equally many, in the order of the devices."""

    axis: Axis  # of the whole image
    name: str  # of the mesh axis
    devices: int

    @property
    def block(self) -> int:
        """The number of positions of a device's block."""
        return self.axis.size // self.devices

    @property
    def places(self) -> int:
        """The number of positions that a device reads, from the first tap of its first window to its last tap."""
        return (self.axis.outputs // self.devices - 1) * self.axis.stride + self.axis.extent

    @property
    def starts(self) -> tuple[int, ...]:
        """The first position that each device reads, counted in the whole image."""
        step = self.axis.outputs // self.devices * self.axis.stride
        return tuple(device * step - self.axis.lo for device in range(self.devices))


def shared(op: str, axis: Axis, name: str) -> Share:
    """Return the windows of an axis that each device computes.

    Raises:
        FuncconvError: if the number of windows is not divisible by the number of devices.
    """
    devices = axis_size("spatial", name)
    if axis.outputs % devices:
        msg = (
            f"{op}: the number of windows must be a multiple of the {devices} devices of {name!r}; an axis of "
            f"{axis.size} positions has {axis.outputs} windows. Use padding such as 'SAME', or another image size"
        )
        raise FuncconvError(msg)
    return Share(axis, name, devices)


def read(x: Array, share: Share, axis: int, mode: str | None) -> Array:
    """Return the positions that the windows of this device read, from its block and its neighbours.

    Args:
        x: this device's block.
        share: the windows of each device along this axis.
        axis: axis of the array.
        mode: the pad mode for positions outside the image; None means zeros.

    Returns:
        The block with `share.places` positions along the axis.
    """
    block, places = share.block, share.places
    in_order = mode in (None, "zeros", "circular")  # the halo is already in the order in which it is read
    if in_order:
        firsts = share.starts
        lasts = [start + places - 1 for start in firsts]
    else:  # padding repeats inputs, for example mirrored: the inputs that each device reads, in order
        inputs = [[source(str(mode), start + i, share.axis.size) or 0 for i in range(places)] for start in share.starts]
        firsts, lasts = tuple(map(min, inputs)), [max(device_inputs) for device_inputs in inputs]
    # All devices exchange halos of the same width, since they run the same program.
    before = max(0, *(device * block - first for device, first in enumerate(firsts)))
    after = max(0, *(last + 1 - (device + 1) * block for device, last in enumerate(lasts)))
    extended = halo_exchange(x, before, after, axis=axis, axis_name=share.name, wrap=mode == "circular")
    begins = [device * block - before for device in range(share.devices)]  # of the extended blocks
    if in_order:
        offsets = [first - begin for first, begin in zip(firsts, begins, strict=True)]
        return _sliced(extended, offsets, places, axis, share.name)
    table = jnp.asarray([[i - begin for i in row] for row, begin in zip(inputs, begins, strict=True)])
    # The gradient of an input is the sum over its copies in the padding, in float32 for 16-bit inputs.
    return in_wide(lambda x: jnp.take(x, table[lax.axis_index(share.name)], axis=axis), extended)


def margins_of(share: Share, *, filled: bool) -> list[tuple[int, int, int]]:
    """Return for each device the positions to cut off after its block, and the padding before and after.

    Positions beyond the padding, which `ceil_mode` reads, are cut off but are not padding. Padding that a mode fills is
    a part of the block.
    """
    axis = share.axis
    margins = []
    for start in share.starts:
        beyond = max(start + share.places - axis.size - axis.hi, 0)
        before = 0 if filled else max(-start, 0)
        after = 0 if filled else max(start + share.places - beyond - axis.size, 0)
        margins.append((beyond + after, before, after))
    return margins


def _sliced(x: Array, offsets: Sequence[int], places: int, axis: int, name: str) -> Array:
    """Return `places` positions, starting at the offset of this device."""
    if len(set(offsets)) == 1:
        return lax.slice_in_dim(x, offsets[0], offsets[0] + places, axis=axis)
    start = jnp.asarray(offsets)[lax.axis_index(name)]
    return lax.dynamic_slice_in_dim(x, start, places, axis=axis)


def _received(x: Array, name: str, devices: int, hops: int, *, wrap: bool) -> Array:
    """Return the array from the device that is `hops` before this one, or after it if `hops` is negative."""
    pairs = [(device, device + hops) for device in range(devices)]
    if wrap:
        pairs = [(source, target % devices) for source, target in pairs]
    # A device without a sender receives zeros.
    pairs = [pair for pair in pairs if 0 <= pair[1] < devices]
    received: Array = lax.ppermute(x, name, pairs)  # type: ignore[no-untyped-call]
    return received

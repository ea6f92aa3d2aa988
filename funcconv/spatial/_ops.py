"""Convolution and pool of a block of an image."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .._common.errors import FuncconvError
from .._common.mesh_axes import axis_size
from .._common.types import (
    Array,
    ArrayLike,
    DTypeLike,
    Number,
    Padding,
    PadMode,
    Params,
    Precision,
    Reduce,
    Shape,
    Sizes,
)
from .._ops.conv import conv as conv_of_all
from .._ops.parameters import kernel_and_bias
from .._ops.pool import pool as pool_of_all
from .._windows.geometry import Axis, pad_modes, resolve
from .._windows.layout import as_array
from ._halo import Share, read, shared

AxisNames = Sequence[str | None]


def conv(
    params: Params,
    x: ArrayLike,
    /,
    *,
    axis_names: AxisNames,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    pad_mode: PadMode = "zeros",
    flip: bool = False,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
    implementation: str | None = None,
) -> Array:
    """Convolve an image of which each device holds a block: the result is this device's block of `fc.conv`'s.

    Args:
        params: see `fc.conv`; the same on all devices.
        x: `(*batch, *spatial, channels)`, this device's block.
        axis_names: for each spatial axis the mesh axis over which it is spread, or None where it is whole.
        stride: see `fc.conv`, like those that follow. Paddings are those of the whole image.
        padding: see `fc.conv`.
        dilation: see `fc.conv`.
        groups: see `fc.conv`.
        pad_mode: see `fc.conv`.
        flip: see `fc.conv`.
        precision: see `fc.conv`.
        accumulate_dtype: see `fc.conv`.
        implementation: see `fc.conv`.

    Returns:
        `(*batch, *positions, channels)`, this device's block. All blocks have one shape.

    Raises:
        FuncconvError: as `fc.conv`, and if the windows cannot be shared evenly.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> mesh, rows = jax.sharding.Mesh(jax.devices()[:1], ("rows",)), jax.P(None, "rows")
        >>> params, x = fc.init_conv(jax.random.key(0), 3, 8, (3, 3)), jnp.ones((2, 16, 16, 3))
        >>> def spread(params, x):
        ...     return fc.spatial.conv(params, x, axis_names=("rows", None), padding="SAME")
        >>> y = jax.shard_map(spread, mesh=mesh, in_specs=(jax.P(), rows), out_specs=rows)(params, x)
        >>> bool(jnp.allclose(y, fc.conv(params, x, padding="SAME")))
        True
    """
    op = "spatial.conv"
    kernel, _, x = kernel_and_bias(op, params, x)
    n = _spatial(op, axis_names, x)
    if kernel.ndim != n + 2:
        msg = f"{op}: axis_names {tuple(axis_names)} are for {n} spatial axes, but the kernel has shape {kernel.shape}"
        raise FuncconvError(msg)
    modes = pad_modes(op, pad_mode, n)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    axes = resolve(op, _whole(x, axis_names), kernel.shape[:n], padding=padding, **options)
    for i, share in _shares(op, axes, axis_names):
        x = read(x, share, x.ndim - 1 - n + i, modes[i])
    whole = [name is None for name in axis_names]
    return conv_of_all(
        params, x, padding=[(axis.lo, axis.hi) if own else (0, 0) for axis, own in zip(axes, whole, strict=True)],
        groups=groups, pad_mode=[str(mode) if own else "zeros" for mode, own in zip(modes, whole, strict=True)],
        flip=flip, precision=precision, accumulate_dtype=accumulate_dtype, implementation=implementation, **options,
    )  # fmt: skip


def pool(
    x: ArrayLike,
    window: Sizes = 2,
    *,
    axis_names: AxisNames,
    reduce: Reduce = "max",
    stride: Sizes | None = None,
    padding: Padding = 0,
    dilation: Sizes = 1,
    pad_mode: PadMode | None = None,
    ties: str = "first",
    p: Number = 2,
    temperature: Number = 1.0,
    count_include_pad: bool = False,
    ceil_mode: bool = False,
) -> Array:
    """Pool an image of which each device holds a block: the result is this device's block of `fc.pool`'s.

    Args:
        x: `(*batch, *spatial, channels)`, this device's block.
        window: see `fc.pool`.
        axis_names: see `conv`.
        reduce: see `fc.pool`, like those that follow. Paddings are those of the whole image.
        stride: see `fc.pool`.
        padding: see `fc.pool`.
        dilation: see `fc.pool`.
        pad_mode: see `fc.pool`.
        ties: see `fc.pool`.
        p: see `fc.pool`.
        temperature: see `fc.pool`, here a plain number.
        count_include_pad: see `fc.pool`.
        ceil_mode: see `fc.pool`.

    Returns:
        `(*batch, *positions, channels)`, this device's block. All blocks have one shape.

    Raises:
        FuncconvError: as `fc.pool`, and if the windows cannot be shared evenly.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> mesh, rows = jax.sharding.Mesh(jax.devices()[:1], ("rows",)), jax.P(None, "rows")
        >>> spread = jax.shard_map(
        ...     lambda x: fc.spatial.pool(x, axis_names=("rows", None)), mesh=mesh, in_specs=rows, out_specs=rows)
        >>> spread(jnp.ones((2, 16, 16, 3))).shape
        (2, 8, 8, 3)
    """
    op = "spatial.pool"
    x = as_array(op, "the input", x)
    n = _spatial(op, axis_names, x)
    modes = pad_modes(op, pad_mode, n, optional=True)
    stride = window if stride is None else stride
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "ceil_mode": ceil_mode}
    axes = resolve(op, _whole(x, axis_names), window, padding=padding, **options)
    pool_block: Callable[..., Any] = partial(
        pool_of_all, window=window, reduce=reduce, ties=ties, p=p, temperature=temperature, spatial=n,
        count_include_pad=count_include_pad, **options,
    )  # fmt: skip
    # Whatever the whole image is refused for, such as windows wholly in padding, is refused here in the same words.
    sizes = (*x.shape[: x.ndim - 1 - n], *_whole(x, axis_names), x.shape[-1])
    image = jax.ShapeDtypeStruct(sizes, x.dtype)  # type: ignore[no-untyped-call]
    jax.eval_shape(partial(pool_block, padding=padding, pad_mode=pad_mode), image)
    margins: list[Sequence[tuple[int, int, int]]] = [[(0, axis.lo, axis.hi)] for axis in axes]
    for i, share in _shares(op, axes, axis_names):
        x = read(x, share, x.ndim - 1 - n + i, modes[i])
        margins[i] = _margins(share, shown=modes[i] is not None)

    def at(margins: Sequence[tuple[int, int, int]]) -> Any:
        """Return the pool of a device at such a place: it takes off what is no part of the image, as padding."""

        def of(x: Array) -> Any:
            padding = []
            for i, ((cut, lo, hi), name) in enumerate(zip(margins, axis_names, strict=True), x.ndim - 1 - n):
                x = lax.slice_in_dim(x, lo if name else 0, x.shape[i] - cut, axis=i)
                padding.append((lo, hi))
            shows = [None if name else mode for mode, name in zip(modes, axis_names, strict=True)]
            return pool_block(x, padding=padding, pad_mode=shows)

        return of

    places = list(dict.fromkeys(product(*map(dict.fromkeys, margins))))
    if len(places) == 1:
        return at(places[0])(x)  # type: ignore[no-any-return]
    own = jnp.zeros((), jnp.int32)
    for i, kinds in enumerate(map(list, map(dict.fromkeys, margins))):
        own = own * len(kinds)
        if len(kinds) > 1:
            own += jnp.asarray([kinds.index(each) for each in margins[i]], jnp.int32)[lax.axis_index(axis_names[i])]
    return lax.switch(own, [at(each) for each in places], x)  # type: ignore[no-any-return]


def _margins(share: Share, *, shown: bool) -> list[tuple[int, int, int]]:
    """Return for each device what it has read too far, and how much of that before and after is padding.

    What lies beyond the padding, where `ceil_mode` lets the last window hang over, is cut off and is no padding.
    """
    axis = share.axis
    found = []
    for start in share.starts:
        over = max(start + share.places - axis.size - axis.hi, 0)
        before = 0 if shown else max(-start, 0)
        after = 0 if shown else max(start + share.places - over - axis.size, 0)
        found.append((over + after, before, after))
    return found


def _spatial(op: str, axis_names: AxisNames, x: Array) -> int:
    """Return the number of spatial axes."""
    if isinstance(axis_names, str) or not axis_names or len(axis_names) >= x.ndim:
        msg = (
            f"{op}: axis_names must be a tuple with the name of a mesh axis, or None, for each spatial axis of "
            f"(*batch, *spatial, channels), here {x.shape}; got {axis_names!r}"
        )
        raise FuncconvError(msg)
    return len(axis_names)


def _whole(x: Array, axis_names: AxisNames) -> Shape:
    """Return the spatial sizes of the whole image."""
    blocks = x.shape[x.ndim - 1 - len(axis_names) : -1]
    return tuple(
        size * axis_size("spatial", name) if name else size for size, name in zip(blocks, axis_names, strict=True)
    )


def _shares(op: str, axes: Sequence[Axis], axis_names: AxisNames) -> list[tuple[int, Share]]:
    return [(i, shared(op, axis, name)) for i, (axis, name) in enumerate(zip(axes, axis_names, strict=True)) if name]

"""Convolution and pooling of images whose spatial axes are sharded over devices."""

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
from .._ops.conv import conv as whole_conv
from .._ops.parameters import kernel_and_bias
from .._ops.pooling.pool import pool as whole_pool
from .._windows.geometry import Axis, pad_modes, resolve
from .._windows.layout import as_array
from ._halo import Share, margins_of, read, shared

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
    """Convolve an image whose spatial axes are sharded. Returns this device's block of the result of `fc.conv`.

    Call it inside `jax.shard_map`. Each device receives from its neighbours the positions that its windows need.

    Args:
        params: `{"kernel": (*window, in // groups, out), "bias": (out,)}`. Omit the bias, or set it to None, for none.
            The number of spatial axes is the number of axes of the kernel minus two.
        x: `(*batch, *spatial, in)`, this device's block, floating or complex, with any number of batch axes.
        axis_names: a tuple with one entry for each spatial axis: the name of the mesh axis over which it is sharded, or
            None if every device has the whole axis.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: 1.
        padding: padding of the whole image: positions added before and after each spatial axis; negative numbers crop.
            One integer, one integer per axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding.
            `"SAME"`: the result has `ceil(size / stride)` positions; if the total is odd, the extra position comes
            after. `"SAME_LOWER"`: the same, but the extra position comes before. `"HALF"`:
            `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides. `"CAUSAL"`:
            `dilation * (window - 1)` before, none after. Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        groups: number of groups of channels. Each output channel reads only the `in // groups` input channels of its
            group; `groups=in` gives a depthwise convolution. Default: 1.
        pad_mode: values in the padding of the whole image: `"zeros"`, `"reflect"` (mirrored, without repeating the
            edge), `"symmetric"` (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or
            `"circular"` (periodic). One mode for all spatial axes, or one per axis. Padding wider than the axis
            continues as in `numpy.pad`. Default: `"zeros"`.
        flip: whether to reverse the kernel along its window axes, which turns the cross-correlation into the
            convolution of mathematics. Default: False.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold `x.dtype`.
            The result always has the dtype of `x`. Default: None, the platform's choice, at least float32 for 16-bit
            inputs.
        implementation: how the result is computed. None: funcconv chooses a form that is fast for the shape and the
            platform (`funcconv.explain` shows which). `"fft"`: fast Fourier transforms, whose rounding errors are
            relative to the norms of the operands; infinities and NaNs spread. `"lax"`: the traced program contains only
            operations of `jax.lax`, for tools that know no others. Default: None.

    Returns:
        `(*batch, *positions, out)`, this device's block. The blocks of all devices have the same shape.

    Raises:
        FuncconvError: if the number of windows on a sharded axis is not divisible by the number of devices, if a name
            is not a mapped mesh axis, if `x`, kernel and bias differ in dtype or are integers, if channels, groups or
            bias do not match the kernel, if an option has another value than listed above, or if a window does not fit.
        ValueError: from JAX, if `precision` is unknown.

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
        msg = (
            f"{op}: axis_names {tuple(axis_names)} are for {n} spatial axes, but the kernel has {kernel.ndim - 2} "
            f"(shape {kernel.shape}). Pass one name or None for each spatial axis of the kernel"
        )
        raise FuncconvError(msg)
    modes = pad_modes(op, pad_mode, n)
    options: dict[str, Any] = {"stride": stride, "dilation": dilation}
    axes = resolve(op, _global_sizes(x, axis_names), kernel.shape[:n], padding=padding, **options)
    for i, share in _shares(op, axes, axis_names):
        x = read(x, share, x.ndim - 1 - n + i, modes[i])
    # `read` has added the padding of the sharded axes; the others are padded here.
    local = [name is None for name in axis_names]
    return whole_conv(
        params,
        x,
        padding=[(axis.lo, axis.hi) if is_local else (0, 0) for axis, is_local in zip(axes, local, strict=True)],
        groups=groups,
        pad_mode=[str(mode) if is_local else "zeros" for mode, is_local in zip(modes, local, strict=True)],
        flip=flip,
        precision=precision,
        accumulate_dtype=accumulate_dtype,
        implementation=implementation,
        **options,
    )


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
    """Pool an image whose spatial axes are sharded. Returns this device's block of the result of `fc.pool`.

    Call it inside `jax.shard_map`. Each device receives from its neighbours the positions that its windows need.

    Args:
        x: `(*batch, *spatial, channels)`, this device's block, with any number of batch axes. `"max"`, `"min"`,
            `"median"`, `"sum"` and `"prod"` accept integers too.
        window: taps of a window (PyTorch's `kernel_size`). One integer for all spatial axes, or one per axis.
            Default: 2.
        axis_names: a tuple with one entry for each spatial axis: the name of the mesh axis over which it is sharded, or
            None if every device has the whole axis.
        reduce: how to reduce each window: `"max"`, `"min"`, `"sum"`, `"mean"`, `"prod"` (product), `"median"` (the
            lower one of an even number), `"lse"` (`temperature * log(sum of exp(x / temperature))`, a smooth maximum),
            `"lp"` (`(sum of |x|^p)^(1 / p)`), or a function such as `jnp.std`. The function is called with an array
            `(..., taps)`, the taps in row-major order, and `axis=-1`; it removes that axis and keeps the dtype.
            Default: `"max"`.
        stride: step from one window to the next, in positions. One integer for all spatial axes, or one per axis.
            Default: None, the window.
        padding: padding of the whole image: positions added before and after each spatial axis; negative numbers crop.
            One integer, one integer per axis, one pair `(before, after)` per axis, or a name. `"VALID"`: no padding.
            `"SAME"`: the result has `ceil(size / stride)` positions; if the total is odd, the extra position comes
            after. `"SAME_LOWER"`: the same, but the extra position comes before. `"HALF"`:
            `dilation * (window - 1) // 2` on both sides. `"FULL"`: `dilation * (window - 1)` on both sides. `"CAUSAL"`:
            `dilation * (window - 1)` before, none after. Default: 0.
        dilation: step from one tap of a window to the next, in positions. One integer for all spatial axes, or one per
            axis. Default: 1.
        pad_mode: what the padding contains. None: nothing, so padding takes no part in the result. A mode fills the
            padding with values that take part like the inputs: `"zeros"`, `"reflect"` (mirrored, without repeating the
            edge), `"symmetric"` (mirrored, with the edge repeated), `"replicate"` (the value at the edge) or
            `"circular"` (periodic). One mode for all spatial axes, or one per axis. Padding wider than the axis
            continues as in `numpy.pad`. Default: None.
        ties: where the derivative of `"max"` and `"min"` goes if several taps are equally extreme: to the `"first"` in
            row-major order, or `"split"` evenly among them. The same in forward and reverse mode. Default: `"first"`.
        p: exponent of `"lp"`, a number from 1 to `math.inf`. Default: 2.
        temperature: temperature of `"lse"`, a positive Python number. Default: 1.0.
        count_include_pad: whether `"mean"` divides by the number of all taps on the image and its padding, instead of
            the taps on the image. Taps beyond the padding, which `ceil_mode` can cause, never count. Default: False.
        ceil_mode: whether a last window may extend beyond the padded image, unless it would start in the padding on
            that side; as in PyTorch. Default: False.

    Returns:
        `(*batch, *positions, channels)`, this device's block. The blocks of all devices have the same shape.

    Raises:
        FuncconvError: if the number of windows on a sharded axis is not divisible by the number of devices, if a name
            is not a mapped mesh axis, if an option has another value than listed above, if a window does not fit
            or has no tap that takes part, or if the result would have to be rounded to an integer.

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
    axes = resolve(op, _global_sizes(x, axis_names), window, padding=padding, **options)
    pool_block: Callable[..., Any] = partial(
        whole_pool,
        window=window,
        reduce=reduce,
        ties=ties,
        p=p,
        temperature=temperature,
        spatial=n,
        count_include_pad=count_include_pad,
        **options,
    )
    # Trace the pool of the whole image, so that its errors, such as for a window of only padding, are raised here too.
    sizes = (*x.shape[: x.ndim - 1 - n], *_global_sizes(x, axis_names), x.shape[-1])
    image = jax.ShapeDtypeStruct(sizes, x.dtype)  # type: ignore[no-untyped-call]
    jax.eval_shape(partial(pool_block, padding=padding, pad_mode=pad_mode), image)
    margins: list[Sequence[tuple[int, int, int]]] = [[(0, axis.lo, axis.hi)] for axis in axes]
    for i, share in _shares(op, axes, axis_names):
        x = read(x, share, x.ndim - 1 - n + i, modes[i])
        margins[i] = margins_of(share, filled=modes[i] is not None)

    def pool_with(margins: Sequence[tuple[int, int, int]]) -> Any:
        """Return the pool of a device with these margins. It replaces the positions outside the image by padding."""

        def pooled(x: Array) -> Any:
            padding = []
            for i, ((cut, lo, hi), name) in enumerate(zip(margins, axis_names, strict=True), x.ndim - 1 - n):
                x = lax.slice_in_dim(x, lo if name else 0, x.shape[i] - cut, axis=i)
                padding.append((lo, hi))
            block_modes = [None if name else mode for mode, name in zip(modes, axis_names, strict=True)]
            return pool_block(x, padding=padding, pad_mode=block_modes)

        return pooled

    return _switched(pool_with, margins, axis_names, x)  # type: ignore[no-any-return]


def _switched(
    f: Callable[[Sequence[tuple[int, int, int]]], Any], margins: Sequence[Any], axis_names: AxisNames, x: Array
) -> Any:
    """Return `f(margins of this device)(x)`. `margins` contains the margins of all devices along each axis."""
    # Devices at a border have padding and others have not, so there is one branch per combination of margins.
    combinations = list(dict.fromkeys(product(*map(dict.fromkeys, margins))))
    if len(combinations) == 1:
        return f(combinations[0])(x)
    branch = jnp.zeros((), jnp.int32)
    for i, kinds in enumerate(map(list, map(dict.fromkeys, margins))):
        branch = branch * len(kinds)
        if len(kinds) > 1:
            kind_of_device = jnp.asarray([kinds.index(margin) for margin in margins[i]], jnp.int32)
            branch += kind_of_device[lax.axis_index(axis_names[i])]
    return lax.switch(branch, [f(combination) for combination in combinations], x)


def _spatial(op: str, axis_names: AxisNames, x: Array) -> int:
    """Return the number of spatial axes."""
    if isinstance(axis_names, str) or not axis_names or len(axis_names) >= x.ndim:
        msg = (
            f"{op}: axis_names must be a tuple with the name of a mesh axis, or None, for each spatial axis of "
            f"(*batch, *spatial, channels); got {axis_names!r} for x of shape {x.shape}"
        )
        raise FuncconvError(msg)
    return len(axis_names)


def _global_sizes(x: Array, axis_names: AxisNames) -> Shape:
    """Return the spatial sizes of the whole image."""
    sizes = x.shape[x.ndim - 1 - len(axis_names) : -1]
    return tuple(
        size * axis_size("spatial", name) if name else size for size, name in zip(sizes, axis_names, strict=True)
    )


def _shares(op: str, axes: Sequence[Axis], axis_names: AxisNames) -> list[tuple[int, Share]]:
    """Return the index of each sharded axis, and how its windows are divided among the devices."""
    return [(i, shared(op, axis, name)) for i, (axis, name) in enumerate(zip(axes, axis_names, strict=True)) if name]

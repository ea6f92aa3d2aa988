"""Read and check parameters: `{"kernel": array, "bias": array or None}`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np

from .._common.dtypes import wide
from .._common.errors import FuncconvError, suggest
from .._common.mesh_axes import last_axes_like
from .._common.types import Array, ArrayLike, DTypeLike, Params, Shape
from .._windows.layout import Image, as_array


def entry(op: str, params: Params) -> tuple[Array, Array | None]:
    """Return the kernel and the bias of an op, or None for a missing bias."""
    if not isinstance(params, Mapping):
        description = _described(params)
        msg = f'{op}: params must be {{"kernel": array, "bias": array}} (the bias may be missing); got {description}'
        raise FuncconvError(msg)
    for name in params:
        if name not in ("kernel", "bias"):
            msg = f"{op}: params have an unknown entry {name!r}{suggest(name, ('kernel', 'bias'))}"
            raise FuncconvError(msg)
    if params.get("kernel") is None:
        msg = f"{op}: params have no kernel; their entries are {sorted(params)}; pass {{'kernel': array}}"
        raise FuncconvError(msg)
    kernel = as_array(op, "the kernel", params["kernel"])
    bias = None if params.get("bias") is None else as_array(op, "the bias", params["bias"])
    return kernel, bias


def kernel_and_bias(op: str, params: Params, x: ArrayLike) -> tuple[Array, Array | None, Array]:
    """Return the kernel, the bias and the input as arrays of one floating dtype."""
    kernel, bias = entry(op, params)
    x = as_array(op, "the input", x)
    check_inexact(op, x)
    for name, array in (("kernel", kernel), ("bias", bias)):
        if array is not None and array.dtype != x.dtype:
            cast = f"x.astype({name}.dtype)" if jnp.issubdtype(array.dtype, jnp.inexact) else f"{name}.astype(x.dtype)"
            msg = f"{op}: the input is {x.dtype} but the {name} is {array.dtype}; cast one of them, for instance {cast}"
            raise FuncconvError(msg)
    return kernel, bias, x


def check_inexact(op: str, x: Array) -> None:
    """Raise an error for integers and booleans, whose results would have to be rounded or could overflow."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        msg = f"{op}: the input is {x.dtype}, but must be floating or complex; cast it first: x.astype(jnp.float32)"
        raise FuncconvError(msg)


def check_bias(op: str, bias: Array | None, *shapes: tuple[int, ...]) -> None:
    """Raise an error if the bias has none of the shapes."""
    if bias is not None and bias.shape not in shapes:
        msg = f"{op}: the bias must have shape {' or '.join(map(str, shapes))}; got {bias.shape}"
        raise FuncconvError(msg)


def check_channels(op: str, inside: Image, expected: int, verb: str, kernel_hint: str = "") -> None:
    """Raise an error if the image does not have the channels that the kernel takes or gives.

    Args:
        op: name of the op, for messages.
        inside: the image.
        expected: number of channels that the kernel takes or gives.
        verb: `"takes"` or `"gives"`.
        kernel_hint: what to do if the axes of the kernel are in another order. It replaces a hint about the layout.
    """
    shape = inside.array.shape  # (batch, *spatial, channels)
    if shape[-1] == expected:
        return
    hint = kernel_hint
    if not hint and inside.layout is None and shape[1] == expected:
        layout = {1: "NCW", 2: "NCHW", 3: "NCDHW"}.get(len(inside.spatial), "NC" + "...")
        hint = f"; it looks channels-first: pass layout={layout!r}"
    elif not hint and inside.layout is not None and shape[-2] == expected:
        hint = f"; it does not look like {inside.layout!r} but channels-last: leave layout out"
    msg = (
        f"{op}: the kernel {verb} {expected} channels, but the input has {shape[-1]}: its shape "
        f"(*batch, *spatial, channels) is {(*inside.batch, *shape[1:])}{hint}"
    )
    raise FuncconvError(msg)


def check_kernel(op: str, kernel: Array) -> None:
    """Refuse a kernel without window axes, or without numbers."""
    if kernel.ndim < 3 or 0 in kernel.shape:
        msg = (
            f"{op}: the kernel must be (*window, in // groups, out), with at least one window axis and none empty; "
            f"got shape {kernel.shape}"
        )
        raise FuncconvError(msg)


def check_groups(op: str, groups: int, kernel: Shape) -> None:
    """Raise an error if the groups do not divide the output channels of the kernel."""
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or kernel[-1] % groups:
        msg = (
            f"{op}: groups must be a positive integer that divides the kernel's {kernel[-1]} outputs; got {groups!r}. "
            f"The kernel of shape {kernel} must be (*window, in // groups, out)"
        )
        if kernel[-2] == groups:
            msg += (
                "; if it is (*window, groups, out // groups), as depthwise kernels of TensorFlow are, pass "
                f"kernel.reshape({(*kernel[:-2], 1, kernel[-2] * kernel[-1])})"
            )
        elif isinstance(groups, int) and groups > 0 and kernel[-2] % groups == 0:
            msg += "; if it is (*window, out, in // groups), pass kernel.swapaxes(-1, -2)"
        elif isinstance(groups, int) and groups > 0 and kernel[0] % groups == 0:
            msg += f"; {_PYTORCH}"
        raise FuncconvError(msg)


# Libraries order the axes of a kernel differently. If the shapes fit another order, these hints name the conversion.
_PYTORCH = "if it is (out, in // groups, *window), the order of PyTorch, pass jnp.moveaxis(kernel, (0, 1), (-1, -2))"


def other_order(kernel: Shape, groups: int, channels: int) -> str:
    """Return a hint if the shape of a kernel fits the image's channels with its axes in another order."""
    expected = f"; the kernel of shape {kernel} must be (*window, in // groups, out): "
    if kernel[1] * groups == channels and kernel[0] % groups == 0:
        return expected + _PYTORCH
    if groups > 1 and kernel[-2] == channels:
        return f"{expected}with groups={groups}, in // groups is {channels} // {groups}"
    if kernel[-1] * groups == channels:
        if len(set(kernel[:-2])) == 1:
            return f"{expected}if it is (*window, out, in // groups), pass kernel.swapaxes(-1, -2)"
        return f"{expected}if it is (out, *window, in // groups), pass jnp.moveaxis(kernel, 0, -1)"
    return ""


def other_order_transposed(kernel: Shape, groups: int, channels: int) -> str:
    """Return a hint if the kernel of a transposed convolution fits with its axes in another order."""
    expected = f"; the kernel of shape {kernel} must be that of the convolution, (*window, in // groups, out): "
    if kernel[0] == channels:
        return (
            f"{expected}if it is (out, in // groups, *window), the order of PyTorch's ConvTranspose, pass "
            "jnp.moveaxis(kernel, (0, 1), (-1, -2))"
        )
    if groups == 1 and kernel[-2] == channels:
        axes = tuple(range(len(kernel) - 2))
        return (
            f"{expected}if it is (*window, out, in), the order of Flax's ConvTranspose, pass "
            f"jnp.flip(kernel.swapaxes(-1, -2), {axes})"
        )
    return ""


@contextmanager
def hint_added(hint: str) -> Iterator[None]:
    """Append a hint to the text of a `FuncconvError`."""
    try:
        yield
    except FuncconvError as error:
        if not hint:
            raise
        msg = f"{error}{hint}"
        raise FuncconvError(msg) from None


def check_accumulate(op: str, accumulate_dtype: DTypeLike | None, dtype: DTypeLike) -> None:
    """Raise an error if sums of products of `dtype` do not fit into `accumulate_dtype`."""
    if accumulate_dtype is None:
        return
    try:
        sum_dtype = jnp.dtype(accumulate_dtype)
    except TypeError:
        msg = f"{op}: accumulate_dtype must be a dtype, such as jnp.float32, or None; got {accumulate_dtype!r}"
        raise FuncconvError(msg) from None
    if not np.can_cast(np.dtype(dtype), sum_dtype):
        msg = f"{op}: accumulate_dtype={sum_dtype} cannot hold sums of {dtype} products; pass None or a wider dtype"
        raise FuncconvError(msg)


def add_bias(y: Array, bias: Array | None) -> Array:
    """Return `y + bias` with the dtype of `y`. The axes of the bias are the last axes of `y`."""
    if bias is None:
        return y
    # The gradient of the bias is a sum over all positions, computed in the dtype of this addition. In 16 bits it would
    # lose most terms, so a 16-bit bias is added in float32.
    wide_bias = last_axes_like(bias, y).astype(wide(y.dtype)).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return (y.astype(wide_bias.dtype) + wide_bias).astype(y.dtype)


def _described(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"

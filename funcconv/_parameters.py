"""Reading a parameter entry: `{"kernel": array, "bias": array or None}`."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ._dtypes import wide
from ._errors import FuncconvError, suggest
from ._layout import Image, as_array
from ._typing import Array, ArrayLike, DTypeLike, Params


def entry(op: str, params: Params) -> tuple[Array, Array | None]:
    """Return the kernel and the bias, None where there is none."""
    if not isinstance(params, Mapping):
        msg = f'{op}: params must be {{"kernel": array, "bias": array}} (the bias may be missing); got {_kind(params)}'
        raise FuncconvError(msg)
    for name in params:
        if name not in ("kernel", "bias"):
            msg = f"{op}: params have an unknown entry {name!r}{suggest(name, ('kernel', 'bias'))}"
            raise FuncconvError(msg)
    if params.get("kernel") is None:
        msg = f"{op}: params have no kernel; they hold {sorted(params)}"
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
            msg = (
                f"{op}: the input is {x.dtype} but the {name} is {array.dtype}; "
                f"cast one of them, for instance x.astype({name}.dtype)"
            )
            raise FuncconvError(msg)
    return kernel, bias, x


def check_inexact(op: str, x: Array) -> None:
    """Refuse integers and booleans, whose results would have to be rounded or would overflow."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        msg = f"{op}: the input is {x.dtype}, but must be floating or complex; cast it first: x.astype(jnp.float32)"
        raise FuncconvError(msg)


def check_bias(op: str, bias: Array | None, *shapes: tuple[int, ...]) -> None:
    """Refuse a bias that has none of the shapes."""
    if bias is not None and bias.shape not in shapes:
        msg = f"{op}: the bias must have shape {' or '.join(map(str, shapes))}; got {bias.shape}"
        raise FuncconvError(msg)


def check_channels(op: str, inside: Image, expected: int, verb: str) -> None:
    """Refuse an image whose channels are not those that the kernel takes or gives."""
    shape = inside.array.shape  # (batch, *spatial, channels)
    if shape[-1] == expected:
        return
    hint = ""
    if inside.layout is None and shape[1] == expected:
        layout = {1: "NCW", 2: "NCHW", 3: "NCDHW"}.get(len(inside.spatial), "NC" + "...")
        hint = f"; it looks channels-first: pass layout={layout!r}"
    elif inside.layout is not None and shape[-2] == expected:
        hint = f"; it does not look like {inside.layout!r} but channels-last: leave layout out"
    msg = (
        f"{op}: the kernel {verb} {expected} channels, but the input has {shape[-1]}: its shape "
        f"(*batch, *spatial, channels) is {(*inside.batch, *shape[1:])}{hint}"
    )
    raise FuncconvError(msg)


def check_groups(op: str, groups: int, outputs: int) -> None:
    """Refuse groups that do not divide the output channels."""
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or outputs % groups:
        msg = f"{op}: groups must be a positive integer that divides the kernel's {outputs} outputs; got {groups!r}"
        raise FuncconvError(msg)


def check_accumulate(op: str, accumulate_dtype: DTypeLike | None, dtype: DTypeLike) -> None:
    """Refuse a dtype that cannot hold products of the other."""
    if accumulate_dtype is not None and not np.can_cast(np.dtype(dtype), np.dtype(accumulate_dtype)):
        msg = f"{op}: accumulate_dtype={jnp.dtype(accumulate_dtype)} cannot hold sums of {dtype} products"
        raise FuncconvError(msg)


def add_bias(y: Array, bias: Array | None) -> Array:
    """Return `y + bias` in the dtype of `y`, the bias having the last axes of `y`.

    A 16-bit bias is added in float32: its gradient is a sum over all places, in the dtype in which it was added.
    """
    if bias is None:
        return y
    shift = bias.astype(wide(y.dtype)).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    return (y.astype(shift.dtype) + shift).astype(y.dtype)


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"an array of shape {shape}"

"""The dense (fully connected) layer, and the flattening before it."""

import math

import jax.numpy as jnp

from .._common.errors import FuncconvError, suggest
from .._common.mesh_axes import matmul_sharding, whole_along
from .._common.types import Array, ArrayLike, DTypeLike, Params, Precision
from .._windows.layout import as_array, image
from .parameters import add_bias, check_accumulate, check_bias, kernel_and_bias

_ORDERS = ("channels_last", "channels_first")


def dense(
    params: Params,
    x: ArrayLike,
    /,
    *,
    precision: Precision = None,
    accumulate_dtype: DTypeLike | None = None,
) -> Array:
    """Multiply the last axis of `x` by a matrix: `y = x @ kernel + bias`.

    Args:
        params: `{"kernel": (in, out), "bias": (out,)}`. Omit the bias, or set it to None, for none.
        x: `(*batch, in)`, floating or complex.
        precision: precision of the products on accelerators: `"default"`, `"high"`, `"highest"`, a `jax.lax.Precision`,
            or a pair of these, one per operand. Default: None, JAX's setting.
        accumulate_dtype: dtype in which products are summed and the bias is added; it must be able to hold `x.dtype`.
            The result always has the dtype of `x`. Default: None, the platform's choice.

    Returns:
        `(*batch, out)`, with the dtype of `x`.

    Raises:
        FuncconvError: if `params` has no kernel or an unknown entry, if the shapes do not match, if `x`, kernel and
            bias differ in dtype or are integers, or if `accumulate_dtype` cannot hold `x.dtype`.
        ValueError: from JAX, if `precision` is unknown.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> params = {"kernel": jnp.array([[1.0, 0.0], [2.0, 1.0]]), "bias": jnp.array([0.5, 0.0])}
        >>> fc.dense(params, jnp.array([1.0, 1.0])).tolist()
        [3.5, 1.0]
    """
    kernel, bias, x = kernel_and_bias("dense", params, x)
    if kernel.ndim != 2:
        msg = f"dense: the kernel must be (in, out); got shape {kernel.shape}"
        raise FuncconvError(msg)
    if x.ndim < 1 or x.shape[-1] != kernel.shape[0]:
        hint = "; flatten the image first" if x.ndim > 2 and math.prod(x.shape[1:]) == kernel.shape[0] else ""
        if not hint and x.ndim and x.shape[-1] == kernel.shape[1]:
            hint = "; if the kernel is (out, in), the order of PyTorch, pass kernel.T"
        msg = f"dense: the kernel takes {kernel.shape[0]} features, but the input has shape {x.shape}{hint}"
        raise FuncconvError(msg)
    check_bias("dense", bias, kernel.shape[1:])
    check_accumulate("dense", accumulate_dtype, x.dtype)
    y = jnp.matmul(
        x,
        kernel,
        precision=precision,
        preferred_element_type=accumulate_dtype,
        out_sharding=matmul_sharding(x, kernel),
    )
    return add_bias(y, bias).astype(x.dtype)


def flatten(
    x: ArrayLike, /, *, spatial: int | None = None, order: str = "channels_last", layout: str | None = None
) -> Array:
    """Merge the spatial axes and the channels into one axis of features.

    Args:
        x: `(*batch, *spatial, channels)`. Pass `layout` for another order.
        spatial: number of spatial axes. Give it if there is not exactly one batch axis. Default: None, all axes but the
            first and the last.
        order: which axis varies fastest in the result. `"channels_last"`: the channels, as in Keras and Flax.
            `"channels_first"`: the last spatial axis, as in PyTorch. A dense kernel fits only the order that it was
            trained with. Default: `"channels_last"`.
        layout: order of the axes of `x`, such as `"NCHW"`: `C` is the channels, `N` stands for all batch axes, and each
            other letter is a spatial axis. The letters also set the number of spatial axes. They do not change the
            order of the features. Default: None, channels last.

    Returns:
        `(*batch, features)`, with the dtype of `x`.

    Raises:
        FuncconvError: if the order is unknown, if `layout` or `spatial` do not fit the axes of `x`, or if `x` has fewer
            than three axes and neither is given.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> x = jnp.array([[[1.0, 10.0], [2.0, 20.0]]])  # one example, two positions, two channels
        >>> fc.flatten(x).tolist(), fc.flatten(x, order="channels_first").tolist()
        ([[1.0, 10.0, 2.0, 20.0]], [[1.0, 2.0, 10.0, 20.0]])
    """
    if order not in _ORDERS:
        msg = f"flatten: unknown order {order!r}{suggest(order, _ORDERS)}"
        raise FuncconvError(msg)
    inside = image("flatten", as_array("flatten", "the input", x), spatial, "spatial=", layout, least=0)
    array = inside.array if order == "channels_last" else jnp.moveaxis(inside.array, -1, 1)
    array = whole_along(array, range(1, array.ndim))  # JAX has no sharding rule for a reshape of sharded axes
    features = array.reshape(array.shape[0], math.prod(array.shape[1:]))
    return features.reshape(*inside.batch, features.shape[1])  # JAX cannot shard a reshape that merges and splits

"""Normalization over the last axes, of each example or position."""

from ..._common.dtypes import wide
from ..._common.errors import FuncconvError
from ..._common.types import Array, ArrayLike, Number, Params
from ..._windows.masks import read_mask, zero_masked
from .standardize import divided_by_rms, read_inputs, scaled, standardized


def layer_norm(
    params: Params, x: ArrayLike, /, *, axes: int | None = None, epsilon: Number = 1e-5, mask: ArrayLike | None = None
) -> Array:
    """Normalize over the last axes: `y = (x - mean) / sqrt(var + epsilon) * scale + bias`.

    Mean and variance (with the divisor n) are computed over the last axes of `x`, the axes that scale and bias have. So
    each example, or each position of it, is normalized separately.

    Args:
        params: `{"scale": shape, "bias": shape}`, where `shape` is the sizes of the last axes of `x`; either may be
            missing. They have the dtype of `x`, or float32 if `x` has 16 bits.
        x: `(*batch, *shape)`, floating. An input `(*batch, *spatial, channels)` is normalized at each position if the
            scale has shape `(channels,)`, and over the whole image if it has shape `(*spatial, channels)`.
        axes: number of last axes to normalize over. Default: None, as many as scale or bias have, or 1 without them.
        epsilon: positive number added to the variance. Default: 1e-5.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. Default: None,
            all.

    Returns:
        An array like `x`. For float16 and bfloat16 inputs, mean and variance are computed in float32.

    Raises:
        FuncconvError: if scale or bias have a wrong shape or dtype, if the input is not floating, or if `axes` or
            `epsilon` is out of range.

    Source: Ba, Kiros and Hinton, "Layer normalization", 2016, arXiv:1607.06450.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.layer_norm({}, jnp.array([[1.0, 3.0], [10.0, 30.0]])).round(3).tolist()
        [[-1.0, 1.0], [-1.0, 1.0]]
    """
    x, scale, bias = read_inputs("layer_norm", params, x, epsilon)
    over = _last_axes("layer_norm", x, axes, scale=scale, bias=bias)
    real = None if mask is None else read_mask("layer_norm", mask, x.shape, None)
    y, _, _ = standardized(zero_masked(x, real).astype(wide(x.dtype)), over, epsilon, real=real)
    return zero_masked(scaled(y, scale, bias).astype(x.dtype), real)


def rms_norm(
    params: Params, x: ArrayLike, /, *, axes: int | None = None, epsilon: Number = 1e-5, mask: ArrayLike | None = None
) -> Array:
    """Divide by the root mean square of the last axes: `y = x / sqrt(mean(x^2) + epsilon) * scale`.

    Unlike `layer_norm`, it does not subtract the mean and adds no bias.

    Args:
        params: `{"scale": shape}`, where `shape` is the sizes of the last axes of `x`; the scale may be missing.
        x: `(*batch, *shape)`, floating. An input `(*batch, *spatial, channels)` is normalized at each position if the
            scale has shape `(channels,)`, and over the whole image if it has shape `(*spatial, channels)`.
        axes: number of last axes to normalize over. Default: None, as many as the scale has, or 1 without it.
        epsilon: positive number added to the mean of the squares. Default: 1e-5.
        mask: which positions of `x` are real, `(*batch, *spatial)`, boolean; for images or sequences of different sizes
            in one batch. The others do not count, and may contain anything; the result is zero there. Default: None,
            all.

    Returns:
        An array like `x`. Zeros give zeros, with the derivative `scale / sqrt(epsilon)`. For float16 and bfloat16
        inputs, the mean is computed in float32. No square overflows or underflows.

    Raises:
        FuncconvError: if the scale has a wrong shape or dtype, if `params` have another entry, or if the input is not
            floating.

    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019, arXiv:1910.07467.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> fc.rms_norm({}, jnp.array([[3.0, -3.0], [30.0, 30.0]])).round(3).tolist()
        [[1.0, -1.0], [1.0, 1.0]]
    """
    x, scale, _ = read_inputs("rms_norm", params, x, epsilon, bias=False)
    over = _last_axes("rms_norm", x, axes, scale=scale)
    real = None if mask is None else read_mask("rms_norm", mask, x.shape, None)
    y = divided_by_rms(zero_masked(x, real).astype(wide(x.dtype)), over, epsilon, real)
    return scaled(y, scale, None).astype(x.dtype)


def _last_axes(op: str, x: Array, axes: int | None, **arrays: Array | None) -> tuple[int, ...]:
    """Return the axes to normalize over, which are the last ones. The arrays must have the sizes of these axes."""
    shapes = {array.shape for array in arrays.values() if array is not None}
    count = (len(next(iter(shapes))) if shapes else 1) if axes is None else axes
    if isinstance(count, bool) or not 1 <= count <= x.ndim:
        msg = f"{op}: axes must be from 1 to {x.ndim}, the axes of the input {x.shape}; got {count}"
        raise FuncconvError(msg)
    if shapes - {x.shape[x.ndim - count :]}:
        shape_texts = " and ".join(map(str, sorted(shapes)))
        names = " and ".join(arrays)
        msg = f"{op}: {names} must have the last {count} axes of the input {x.shape}; got {shape_texts}"
        raise FuncconvError(msg)
    return tuple(range(x.ndim - count, x.ndim))

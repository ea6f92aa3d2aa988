"""Norms, dropout and linear maps on tensors: the counterparts of functions of the same names in funcconv."""

from collections.abc import Mapping
from typing import Any

from ...._common.types import Number
from .images import image, is_narrow, torch_dtype, wide
from .lazy_torch import functional, torch

Params = Mapping[str, Any]


def dense(params: Params, x: Any, *, precision: Any = None, accumulate_dtype: Any = None) -> Any:
    """Multiply the last axis by a matrix `(in, out)`."""
    del precision
    kernel, bias = params["kernel"], params.get("bias")
    if accumulate_dtype is None:
        return functional.linear(x, kernel.T, bias)
    dtype = torch_dtype(accumulate_dtype)
    y = functional.linear(x.to(dtype), kernel.T.to(dtype), None if bias is None else bias.to(dtype))
    return y.to(x.dtype)


def flatten(x: Any, *, spatial: int | None = None, order: str = "channels_last", layout: str | None = None) -> Any:
    """Merge the spatial axes and the channels."""
    inside = image("flatten", x, spatial, layout)
    array = inside.array if order == "channels_first" else inside.array.movedim(1, -1)
    features = array.flatten(1) if array.ndim > 1 else array
    return features if len(inside.batch) == 1 else features.reshape(*inside.batch, features.shape[-1])


def layer_norm(params: Params, x: Any, *, axes: int | None = None, epsilon: Number = 1e-5) -> Any:
    """Normalize over the last axes."""
    scale, bias = _scale_and_bias(params, x)
    if axes is None:
        axes = 1 if scale is None else scale.ndim
    y = functional.layer_norm(wide(x), x.shape[x.ndim - axes :], scale, bias, epsilon)
    return y.to(x.dtype)


def group_norm(
    params: Params,
    x: Any,
    groups: int,
    *,
    epsilon: Number = 1e-5,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Normalize each example by groups of channels."""
    inside = image("group_norm", x, spatial, layout)
    scale, bias = _scale_and_bias(params, x)
    y = functional.group_norm(wide(inside.array), groups, scale, bias, epsilon)
    return inside.restore(y.to(x.dtype))


def _scale_and_bias(params: Params, x: Any) -> tuple[Any, Any]:
    """Return both or neither, because some norms of PyTorch need both, in the dtype in which an input is normalized."""
    scale, bias = params.get("scale"), params.get("bias")
    if scale is None and bias is None:
        return None, None
    scale = torch.ones_like(bias) if scale is None else scale
    bias = torch.zeros_like(scale) if bias is None else bias
    dtype = torch.float32 if is_narrow(x) else x.dtype
    return scale.to(dtype), bias.to(dtype)


def batch_norm(
    params: Params,
    state: Mapping[str, Any],
    x: Any,
    *,
    train: bool,
    momentum: Number,
    epsilon: Number,
    unbiased: bool,
) -> tuple[Any, dict[str, Any]]:
    """Normalize each channel over the batch, as `funcconv.batch_norm` with the same options.

    Args:
        params: scale and bias.
        state: the running mean and variance, which stay as they are.
        x: `(batch, *spatial, channels)`.
        train: whether to normalize by the batch.
        momentum: share of the running statistics that is kept.
        epsilon: number that is added to the variance.
        unbiased: whether the running variance has the divisor n - 1.

    Returns:
        The result and the next running statistics.
    """
    array = wide(x).movedim(-1, 1)
    scale, bias = _scale_and_bias(params, x)
    mean, var = (state[name].to(array.dtype) for name in ("mean", "var"))
    if not train:
        y = functional.batch_norm(array, mean, var, scale, bias, eps=epsilon)
        return y.movedim(1, -1).to(x.dtype), dict(state)
    mean, var = mean.clone(), var.clone()
    y = functional.batch_norm(array, mean, var, scale, bias, training=True, momentum=1 - momentum, eps=epsilon)
    if not unbiased:  # PyTorch's own update has the divisor n - 1
        axes = [i for i in range(array.ndim) if i != 1]
        var = momentum * state["var"] + (1 - momentum) * array.detach().var(axes, correction=0)
    new = {"mean": mean, "var": var}
    return y.movedim(1, -1).to(x.dtype), {name: value.to(state[name].dtype) for name, value in new.items()}


def weight_standardize(params: Params, *, spatial: int | None = None, epsilon: Number = 1e-5) -> dict[str, Any]:
    """Normalize a kernel for each output channel."""
    kernel = params["kernel"]
    window_axes = kernel.ndim - 2 if spatial is None else spatial
    axes = tuple(range(kernel.ndim - 2 - window_axes, kernel.ndim - 1))
    numbers = wide(kernel)
    centred = numbers - numbers.mean(axes, keepdim=True)
    y = centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    return {**params, "kernel": y.to(kernel.dtype)}


def dropout(x: Any, rate: Number, *, spatial: int) -> Any:
    """Set random entries to zero; the axes before the channels share one random number if they are `spatial`."""
    if not spatial:
        return functional.dropout(x, rate)
    shape = [*x.shape[: x.ndim - 1 - spatial], *[1] * spatial, x.shape[-1]]
    return x * functional.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), rate)

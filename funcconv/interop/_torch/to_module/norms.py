"""Norms, dropout and linear maps on tensors: the counterparts of functions of the same names in funcconv."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from ...._common.types import Number
from ...._windows.layout import channels_last_order
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


def rms_norm(params: Params, x: Any, *, axes: int | None = None, epsilon: Number = 1e-5) -> Any:
    """Divide by the root mean square of the last axes."""
    scale, numbers = params.get("scale"), wide(x)
    if axes is None:
        axes = 1 if scale is None else scale.ndim
    y = numbers * torch.rsqrt((numbers * numbers).mean(tuple(range(-axes, 0)), keepdim=True) + epsilon)
    return (y if scale is None else y * scale.to(y.dtype)).to(x.dtype)


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


def instance_norm(
    params: Params, x: Any, *, epsilon: Number = 1e-5, spatial: int | None = None, layout: str | None = None
) -> Any:
    """Normalize each channel of each example."""
    channels = x.shape[-1] if layout is None else image("instance_norm", x, None, layout).array.shape[1]
    return group_norm(params, x, channels, epsilon=epsilon, spatial=spatial, layout=layout)


def local_response_norm(
    x: Any,
    size: int,
    *,
    alpha: Number = 1e-4,
    beta: Number = 0.75,
    k: Number = 1.0,
    layout: str | None = None,
) -> Any:
    """Divide each number by a power of the mean square of the channels nearby."""
    axis = x.ndim - 1 if layout is None else channels_last_order("local_response_norm", layout, x.ndim)[-1]
    last = wide(x).movedim(axis, -1)
    y = functional.local_response_norm(last.reshape(-1, last.shape[-1], 1), size, alpha, beta, k)
    return y.reshape(last.shape).movedim(-1, axis).to(x.dtype)


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


def weight_norm(params: Params, *, axis: Any = -1) -> dict[str, Any]:
    """Compute a kernel from its direction and the norms of its slices along the axes."""
    kernel, scale = params["kernel"], params["scale"]
    axes = () if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    kept = sorted(i % kernel.ndim for i in axes)
    numbers = wide(kernel)
    y = directions(numbers, [i for i in range(kernel.ndim) if i not in kept])
    shape = [size if i in kept else 1 for i, size in enumerate(kernel.shape)]
    y = y * scale.to(y.dtype).reshape(shape)
    return {**{name: value for name, value in params.items() if name != "scale"}, "kernel": y.to(kernel.dtype)}


def spectral_norm(
    params: Params, state: Mapping[str, Any], linear_map: Callable[[Any, Any], Any], *, iterations: int
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Divide a kernel by the norm of a linear map, as the layer `SpectralNorm`.

    Args:
        params: the parameters with the kernel.
        state: the vectors of the power iteration, which have begun.
        linear_map: computes the linear map of a kernel and an array.
        iterations: number of power iterations.

    Returns:
        The parameters and the next state.
    """
    kernel = wide(params["kernel"])
    left, right = (state[name].to(kernel.dtype) for name in ("left", "right"))
    for _ in range(iterations):
        image, transpose = torch.func.vjp(partial(linear_map, kernel.detach()), right)
        left = _unit(image)
        right = _unit(transpose(left)[0])
    # Copies, because the next use of the layer changes the buffers in place, which this one has yet to differentiate.
    left, right = left.detach().clone(), right.detach().clone()
    sigma = (left * linear_map(kernel, right)).sum()
    divided = (kernel / torch.where(sigma == 0, 1, sigma)).to(params["kernel"].dtype)
    new_state = {"left": left.to(state["left"].dtype), "right": right.to(state["right"].dtype)}
    return {**params, "kernel": divided}, new_state if iterations else state


def _unit(x: Any) -> Any:
    length = torch.linalg.vector_norm(x)
    return x / torch.where(length == 0, 1, length)


def directions(x: Any, axes: Sequence[int]) -> Any:
    """Divide slices by their norms, where the norm is the root of the sum of squares over axes; zeros stay zeros."""
    squares = (x * x).sum(tuple(axes), keepdim=True) if axes else x * x
    is_zero = squares == 0
    return x * torch.where(is_zero, 0, torch.rsqrt(torch.where(is_zero, 1, squares)))


def dropout(x: Any, rate: Number, *, spatial: int) -> Any:
    """Set random entries to zero; the axes before the channels share one random number if they are `spatial`."""
    if not spatial:
        return functional.dropout(x, rate)
    shape = [*x.shape[: x.ndim - 1 - spatial], *[1] * spatial, x.shape[-1]]
    return x * functional.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), rate)


def drop_path(x: Any, rate: Number, *, spatial: int) -> Any:
    """Set random examples to zero as a whole."""
    shape = [size if i < x.ndim - spatial - 1 else 1 for i, size in enumerate(x.shape)]
    return x * functional.dropout(torch.ones(shape, dtype=x.dtype, device=x.device), rate)

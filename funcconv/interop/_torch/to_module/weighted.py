"""Functions of an input and of weights in PyTorch's order of axes, by the names under which files know them.

The input has any number of batch axes in front, and the weights have none.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .convolutions import conv, conv_transpose
from .images import wide
from .lazy_torch import functional, torch
from .norms import group_norm, layer_norm, rms_norm


def _kernel(weight: Any, bias: Any) -> dict[str, Any]:
    return {"kernel": weight.movedim((0, 1), (-1, -2)), "bias": bias}


def _convolved(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    return conv(_kernel(weight, bias), x, **options)


def _convolved_transposed(x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
    return conv_transpose(_kernel(weight, bias), x, **options)


def _linear(x: Any, weight: Any, bias: Any = None) -> Any:
    return functional.linear(x, weight, bias)


def _scale_and_bias(weights: Sequence[Any], *, has_scale: bool) -> dict[str, Any]:
    given = iter(weights)
    return {"scale": next(given, None) if has_scale else None, "bias": next(given, None)}


def _normalized_groups(x: Any, *weights: Any, groups: int, epsilon: Any, spatial: int, has_scale: bool = True) -> Any:
    params = _scale_and_bias(weights, has_scale=has_scale)
    return group_norm(params, x, groups, epsilon=epsilon, spatial=spatial)


def _normalized_layer(x: Any, *weights: Any, axes: int, epsilon: Any, has_scale: bool = True) -> Any:
    return layer_norm(_scale_and_bias(weights, has_scale=has_scale), x, axes=axes, epsilon=epsilon)


def _normalized_rms(x: Any, *weights: Any, axes: int, epsilon: Any) -> Any:
    added = torch.finfo(wide(x).dtype).eps if epsilon is None else epsilon
    return rms_norm({"scale": weights[0]} if weights else {}, x, axes=axes, epsilon=added)


def _normalized_by(x: Any, mean: Any, var: Any, *weights: Any, epsilon: Any, has_scale: bool = True) -> Any:
    given = _scale_and_bias(weights, has_scale=has_scale)
    factor = torch.rsqrt(var + epsilon) * (1 if given["scale"] is None else given["scale"])
    y = (x - mean) * factor
    return (y if given["bias"] is None else y + given["bias"]).to(x.dtype)


def _normalized_by_batch(x: Any, *weights: Any, epsilon: Any, has_scale: bool = True) -> Any:
    given = _scale_and_bias(weights, has_scale=has_scale)
    numbers, axes = wide(x), tuple(range(x.ndim - 1))
    centred = numbers - numbers.mean(axes, keepdim=True)
    y = (centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)).to(x.dtype)
    y = y if given["scale"] is None else y * given["scale"]
    return y if given["bias"] is None else y + given["bias"]


WEIGHTED: dict[str, Callable[..., Any]] = {
    "funcconv.torch.convolved": _convolved,
    "funcconv.torch.convolved_transposed": _convolved_transposed,
    "funcconv.torch.linear": _linear,
    "funcconv.torch.normalized_groups": _normalized_groups,
    "funcconv.torch.normalized_layer": _normalized_layer,
    "funcconv.torch.normalized_rms": _normalized_rms,
    "funcconv.torch.normalized_by": _normalized_by,
    "funcconv.torch.normalized_by_batch": _normalized_by_batch,
}

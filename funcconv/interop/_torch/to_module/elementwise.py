"""Functions that act on each number by itself, by the names under which files know them.

Their derivatives at kinks are those of the graph: `jax.nn.leaky_relu` has the derivative 1 at 0 and PyTorch's the
slope, so that the former is written out.
"""

import operator
from collections.abc import Callable
from typing import Any

from .images import torch_dtype
from .lazy_torch import functional, torch


def _tensors(a: Any, b: Any) -> tuple[Any, Any]:
    """Return two operands, one of which may be a number, as tensors."""
    if not hasattr(a, "dtype"):
        a = torch.as_tensor(a, dtype=torch.result_type(b, a), device=b.device)
    if not hasattr(b, "dtype"):
        b = torch.as_tensor(b, dtype=torch.result_type(a, b), device=a.device)
    return a, b


def _power(a: Any, b: Any) -> Any:
    return torch.pow(a, b)


def _of_tensors(name: str) -> Callable[..., Any]:
    """Return a function of two that PyTorch has for tensors alone."""

    def apply(a: Any, b: Any) -> Any:
        return getattr(torch, name)(*_tensors(a, b))

    return apply


def _clip(x: Any, min: Any = None, max: Any = None) -> Any:  # the names are those of jax.numpy
    x = x if min is None else _of_tensors("maximum")(x, min)
    return x if max is None else _of_tensors("minimum")(x, max)


def _absolute(x: Any) -> Any:
    return x.abs() if x.is_complex() else torch.where(x >= 0, x, -x)  # the derivative at 0 is 1, that of PyTorch 0


def _leaky_relu(x: Any, negative_slope: Any = 1e-2) -> Any:
    return torch.where(x >= 0, x, negative_slope * x)


def _hard_tanh(x: Any) -> Any:
    return torch.where(x > 1, 1, torch.where(x < -1, -1, x))


def _softplus(x: Any) -> Any:
    return torch.logaddexp(x, torch.zeros_like(x))  # PyTorch's own softplus is x from 20 on, where this is exact


def _sparse_plus(x: Any) -> Any:
    return torch.where(x <= -1, 0, torch.where(x >= 1, x, (x + 1) ** 2 / 4))


def _gelu(x: Any, approximate: bool = True) -> Any:  # noqa: FBT001, FBT002
    return functional.gelu(x, approximate="tanh" if approximate else "none")


def _squareplus(x: Any, b: Any = 4) -> Any:
    return (x + torch.sqrt(x * x + b)) / 2


def _round(x: Any, decimals: int = 0) -> Any:
    return torch.round(x, decimals=decimals)


def _as_pytorch(name: str) -> Callable[..., Any]:
    """Return a function of PyTorch that is looked up when it is called."""

    def apply(*xs: Any) -> Any:
        return getattr(torch, name)(*xs)

    return apply


def _activation(name: str) -> Callable[..., Any]:
    def apply(x: Any) -> Any:
        return getattr(functional, name)(x)

    return apply


def _scaled_activation(name: str) -> Callable[..., Any]:
    def apply(x: Any, alpha: Any = 1.0) -> Any:
        return getattr(functional, name)(x, alpha=alpha)

    return apply


# PyTorch's activations, as `trace_torch` writes them ----------------------------------------------------------


def _hardsigmoid(x: Any) -> Any:
    return functional.relu6(x + 3) / 6  # PyTorch's own has the derivative 1/6 of float32 in float64 too


def _hardswish(x: Any) -> Any:
    return x * _hardsigmoid(x)


def _leaky_relu_of_pytorch(x: Any, *, negative_slope: Any) -> Any:
    return functional.leaky_relu(x, negative_slope)


def _prelu(x: Any, slope: Any) -> Any:
    return torch.where(x > 0, x, slope * x)


def _clamp(x: Any, *, low: Any, high: Any) -> Any:
    return x if low is high is None else torch.clamp(x, low, high)


def _hardtanh(x: Any, *, low: Any, high: Any) -> Any:
    return functional.hardtanh(x, low, high)


def _softplus_of_pytorch(x: Any, *, beta: Any, threshold: Any) -> Any:
    return torch.where(x * beta > threshold, x, _softplus(x * beta) / beta)


def _hardshrink(x: Any, *, bound: Any) -> Any:
    return functional.hardshrink(x, bound)


def _softshrink(x: Any, *, bound: Any) -> Any:
    return functional.softshrink(x, bound)


def _threshold(x: Any, *, bound: Any, value: Any) -> Any:
    return functional.threshold(x, bound, value)


def _power_with(x: Any, *, exponent: Any) -> Any:
    return x**exponent


def _power_of(x: Any, *, base: Any) -> Any:
    return torch.pow(base, x)


def _floor_divide(a: Any, b: Any) -> Any:
    return torch.div(*_tensors(a, b), rounding_mode="floor")


def _truncated_divide(a: Any, b: Any) -> Any:
    return torch.div(*_tensors(a, b), rounding_mode="trunc")


def _added(a: Any, b: Any, *, alpha: Any) -> Any:
    return a + alpha * b


def _added_product(x: Any, a: Any, b: Any, *, value: Any) -> Any:
    return x + value * (a * b)


def _added_quotient(x: Any, a: Any, b: Any, *, value: Any) -> Any:
    return x + value * (a / b)


def _interpolated(a: Any, b: Any, weight: Any) -> Any:
    return a + weight * (b - a)


def _masked(x: Any, mask: Any, value: Any) -> Any:
    return torch.where(mask, value.to(x.dtype), x)


def _cast(x: Any, *, dtype: Any) -> Any:
    return x.to(torch_dtype(dtype))


def _identity(x: Any) -> Any:
    return x


def _without_gradient(x: Any) -> Any:
    return x.detach()


def _sum_of_equals(x: Any, *others: Any) -> Any:
    for other in others:
        x = x + other
    return x


_SAME_NAMES = (
    *("cos", "exp", "expm1", "log", "log1p", "log2", "log10", "reciprocal", "sign", "sin", "sqrt", "square"),
    *("tanh", "tan", "arctan", "sinh", "cosh", "arcsin", "arccos", "ceil", "floor", "trunc"),
    *("isnan", "logical_not", "bitwise_not", "where"),
)
_OF_TENSORS = ("arctan2", "logical_and", "logical_or", "maximum", "minimum", "remainder")
_OPERATORS = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "true_divide": operator.truediv,
    "negative": operator.neg,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
_SAME_OPERATORS = ("add", "mul", "neg", "pow", "sub", "truediv")
_OF_PYTORCH = {
    "relu6": _activation("relu6"),
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "absolute": _as_pytorch("abs"),
    "leaky_relu": _leaky_relu_of_pytorch,
    "prelu": _prelu,
    "clamp": _clamp,
    "hardtanh": _hardtanh,
    "softplus": _softplus_of_pytorch,
    "hardshrink": _hardshrink,
    "softshrink": _softshrink,
    "threshold": _threshold,
    "rsqrt": _as_pytorch("rsqrt"),
    "erf": _as_pytorch("erf"),
    "power": _power_with,
    "power_of": _power_of,
    "floor_divide": _floor_divide,
    "truncated_divide": _truncated_divide,
    "added": _added,
    "added_product": _added_product,
    "added_quotient": _added_quotient,
    "interpolated": _interpolated,
    "masked": _masked,
    "cast": _cast,
}
_OF_NN = {
    "hard_sigmoid": _hardsigmoid,
    "hard_silu": _hardswish,
    "hard_swish": _hardswish,
    "hard_tanh": _hard_tanh,
    "swish": _activation("silu"),
    "identity": _identity,
    "leaky_relu": _leaky_relu,
    "softplus": _softplus,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: _clip(x + 1.0, 0.0, 2.0) / 2,
    "squareplus": _squareplus,
    "gelu": _gelu,
    "celu": _scaled_activation("celu"),
    "elu": _scaled_activation("elu"),
    "log_sigmoid": _activation("logsigmoid"),
    "soft_sign": _activation("softsign"),
} | {name: _activation(name) for name in ("mish", "relu", "relu6", "selu", "sigmoid", "silu")}

ELEMENTWISE: dict[str, Callable[..., Any]] = (
    {f"jax.numpy.{name}": _as_pytorch(name) for name in _SAME_NAMES}
    | {f"jax.numpy.{name}": function for name, function in _OPERATORS.items()}
    | {f"operator.{name}": getattr(operator, name) for name in _SAME_OPERATORS}
    | {f"funcconv.torch.{name}": function for name, function in _OF_PYTORCH.items()}
    | {f"jax.nn.{name}": function for name, function in _OF_NN.items()}
    | {
        "jax.numpy.abs": _absolute,
        "operator.abs": _absolute,
        **{f"jax.numpy.{name}": _of_tensors(name) for name in _OF_TENSORS},
        "jax.numpy.power": _power,
        "jax.numpy.clip": _clip,
        "jax.numpy.round": _round,
        "jax.lax.stop_gradient": _without_gradient,
        "funcconv.add": _sum_of_equals,
    }
)

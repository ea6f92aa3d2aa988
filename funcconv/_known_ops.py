"""The functions that files may name without more: activations, elementwise functions, reductions, funcconv's own."""

import operator
from types import ModuleType

import jax
import jax.numpy as jnp

from . import _adaptive, _compose, _dense, _norms, _pool
from ._registry import register_op

_ACTIVATIONS = (
    "celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax",
    "softplus", "sparse_plus", "sparse_sigmoid", "squareplus", "standardize", "swish",
)  # fmt: skip
_NUMPY = (
    "abs", "add", "clip", "cos", "divide", "dot", "exp", "expm1", "flip", "log", "log1p", "matmul", "max", "maximum",
    "mean", "median", "min", "minimum", "moveaxis", "multiply", "negative", "power", "prod", "ptp", "ravel",
    "reciprocal", "reshape", "sign", "sin", "sqrt", "square", "squeeze", "std", "subtract", "sum", "swapaxes", "tanh",
    "transpose", "var",
)  # fmt: skip
_OPERATORS = ("abs", "add", "matmul", "mul", "neg", "pow", "sub", "truediv")
_OWN: dict[ModuleType, tuple[str, ...]] = {
    _adaptive: ("adaptive_pool",),
    _compose: ("add", "concat"),
    _dense: ("dense", "flatten"),
    _norms: ("group_norm", "layer_norm"),
    _pool: ("avg_pool", "global_pool", "max_pool", "min_pool", "pool", "sum_pool"),
}

_OTHERS: dict[ModuleType, tuple[str, ...]] = {jax.nn: _ACTIVATIONS, jnp: _NUMPY, operator: _OPERATORS}

for _module, _names in (_OTHERS | _OWN).items():
    _prefix = _module.__name__ if _module in _OTHERS else "funcconv"
    for _name in _names:
        if hasattr(_module, _name):  # not all versions of JAX have all
            register_op(f"{_prefix}.{_name}", getattr(_module, _name))

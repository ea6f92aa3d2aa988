"""The functions that files can name without `register_op`: activations, elementwise functions, reductions, our ops."""

import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from ..._ops import dense as _dense
from ..._ops.norms import group as _group
from ..._ops.norms import layer as _layer
from ..._ops.norms import response as _response
from ..._ops.pooling import adaptive as _adaptive
from ..._ops.pooling import global_pool as _global_pool
from ..._ops.pooling import named as _named_pools
from ..._ops.pooling import pool as _pool
from ..._ops.resampling import patches as _patches
from ..._ops.resampling import pixels as _pixels
from ..._ops.resampling import resize as _resize
from ..._primitives.conv import checkpoint_policy
from ..combine import merge as _merge

_ACTIVATIONS = (
    "celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax",
    "softplus", "sparse_plus", "sparse_sigmoid", "squareplus", "standardize", "swish",
)  # fmt: skip
_NUMPY = (
    "abs", "add", "clip", "cos", "divide", "dot", "exp", "expm1", "flip", "log", "log1p", "matmul", "max", "maximum",
    "mean", "median", "min", "minimum", "moveaxis", "multiply", "negative", "power", "prod", "ptp", "ravel",
    "reciprocal", "reshape", "sign", "sin", "sqrt", "square", "squeeze", "std", "subtract", "sum", "swapaxes", "tanh",
    "transpose", "var", "ceil", "floor", "round", "trunc", "logical_not", "isnan", "equal", "not_equal", "less",
    "less_equal", "greater", "greater_equal", "where", "logical_and", "logical_or", "log2", "log10", "tan", "arctan",
    "sinh", "cosh", "arcsin", "arccos", "argmax", "argmin", "remainder", "arctan2", "true_divide", "bitwise_not",
)  # fmt: skip
_LAX = ("stop_gradient",)
_POLICIES = ("everything_saveable", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
_OPERATORS = ("abs", "add", "matmul", "mul", "neg", "pow", "sub", "truediv")
_OWN: dict[ModuleType, tuple[str, ...]] = {
    _adaptive: ("adaptive_pool",),
    _merge: ("add", "concat"),
    _dense: ("dense", "flatten"),
    _group: ("group_norm", "instance_norm"),
    _layer: ("layer_norm", "rms_norm"),
    _response: ("local_response_norm",),
    _patches: ("fold", "unfold"),
    _pixels: ("pixel_shuffle", "pixel_unshuffle"),
    _global_pool: ("global_pool",),
    _named_pools: ("avg_pool", "max_pool", "min_pool", "sum_pool"),
    _pool: ("pool",),
    _resize: ("blur_pool", "resize"),
}

_OTHERS: dict[ModuleType, tuple[str, ...]] = {jax.nn: _ACTIVATIONS, jnp: _NUMPY, jax.lax: _LAX, operator: _OPERATORS}

KNOWN_OPS: dict[str, Callable[..., Any]] = {
    f"{module.__name__ if module in _OTHERS else 'funcconv'}.{name}": getattr(module, name)
    for module, names in (_OTHERS | _OWN).items()
    for name in names
    if hasattr(module, name)  # not every version of JAX has all
}
# Of `jax.checkpoint`, for the option `remat` of `repeat`; they are not functions of arrays.
POLICIES: dict[str, Callable[..., Any]] = {
    "funcconv.checkpoint_policy": checkpoint_policy,
    **{f"jax.checkpoint_policies.{name}": getattr(jax.checkpoint_policies, name) for name in _POLICIES},
}

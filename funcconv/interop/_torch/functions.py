"""PyTorch functions that keep the axes of an array: activations, dropout, pools and arithmetic.

The handlers have the arguments of the PyTorch functions, in the same order and with the same defaults, so that calls
by position and by keyword both work. An argument that a handler does not have makes the operation untranslatable.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.types import Number
from ..._graph.combine.merge import add as add_layer
from ..._graph.declare.layers import Pool
from ..._graph.declare.training_layers import Dropout
from ..._ops.adaptive import adaptive_pool
from . import ops as ops
from .translation import BatchSize, Translation, Value, as_tuple

ELEMENTWISE: dict[str, Callable[..., Any]] = {  # functions of one array, without options
    "relu": jax.nn.relu,
    "relu6": ops.relu6,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": ops.hardswish,
    "hardsigmoid": ops.hardsigmoid,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "softsign": jax.nn.soft_sign,
    "logsigmoid": jax.nn.log_sigmoid,
    "abs": ops.absolute,
    "exp": jnp.exp,
    "log": jnp.log,
    "sqrt": jnp.sqrt,
    "neg": jnp.negative,
    "square": jnp.square,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "identity": jax.nn.identity,
    "contiguous": jax.nn.identity,
    "clone": jax.nn.identity,
    "detach": jax.lax.stop_gradient,
}


# activations with options, and dropout -------------------------------------------------------------------------


def leaky_relu(translation: Translation, x: Value, negative_slope: Number = 0.01) -> Value:
    return translation.apply(ops.leaky_relu, x, negative_slope=negative_slope)


def elu(translation: Translation, x: Value, alpha: Number = 1.0) -> Value:
    return translation.apply(jax.nn.elu, x, alpha=alpha)


def gelu(translation: Translation, x: Value, approximate: str = "none") -> Value:
    return translation.apply(jax.nn.gelu, x, approximate=approximate == "tanh")


def softplus(translation: Translation, x: Value, beta: Number = 1, threshold: Number = 20) -> Value:
    return translation.apply(ops.softplus, x, beta=beta, threshold=threshold)


def clamp(translation: Translation, x: Value, min: Number | None = None, max: Number | None = None) -> Value:
    return translation.apply(ops.clamp, x, low=min, high=max)


def hardtanh(translation: Translation, x: Value, min_val: Number = -1.0, max_val: Number = 1.0) -> Value:
    return translation.apply(ops.clamp, x, low=min_val, high=max_val)


def softmax(
    translation: Translation, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Value:
    return _along_axis(translation, jax.nn.softmax, x, dim, dtype)


def log_softmax(
    translation: Translation, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Value:
    return _along_axis(translation, jax.nn.log_softmax, x, dim, dtype)


def _along_axis(translation: Translation, op: Callable[..., Any], x: Value, dim: int | None, dtype: Any) -> Value:
    if dim is None or dtype is not None:
        translation.refuse("it needs dim, and no other dtype")
    return translation.apply(op, x, axis=translation.axis_channels_last(x, dim))


def dropout(translation: Translation, x: Value, p: Number = 0.5, training: bool = True) -> Value:
    del training  # the evaluation of the graph says whether it draws
    return translation.as_value(Dropout(p, name=translation.operation.name)(x.node))


def dropout_of_channels(translation: Translation, x: Value, p: Number = 0.5, training: bool = True) -> Value:
    del training
    return translation.as_value(Dropout(p, whole_channels=True, name=translation.operation.name)(x.node))


# pools ---------------------------------------------------------------------------------------------------------


def max_pool(
    translation: Translation,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Value:
    if return_indices:
        translation.refuse("indices of a pool")
    dilation = as_tuple(dilation, len(x.shape) - 1)
    return _pool(translation, x, kernel_size, stride, padding, dilation=dilation, ceil_mode=ceil_mode)


def avg_pool(
    translation: Translation,
    x: Value,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Value:
    if divisor_override is not None:
        translation.refuse("divisor_override")
    options = {"reduce": "mean", "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _pool(translation, x, kernel_size, stride, padding, **options)


def _pool(translation: Translation, x: Value, kernel_size: Any, stride: Any, padding: Any, **options: Any) -> Value:
    axes = len(x.shape) - 1
    window, padding = as_tuple(kernel_size, axes), as_tuple(padding, axes)
    stride = window if stride in (None, [], ()) else as_tuple(stride, axes)  # PyTorch's default, in all its spellings
    layer = Pool(window, stride=stride, padding=padding, name=translation.operation.name, **options)
    return translation.as_value(layer(x.node))


def adaptive_avg_pool(translation: Translation, x: Value, output_size: Any) -> Value:
    return _adaptive_pool(translation, x, output_size, "mean")


def adaptive_max_pool(translation: Translation, x: Value, output_size: Any, return_indices: bool = False) -> Value:
    if return_indices:
        translation.refuse("indices of a pool")
    return _adaptive_pool(translation, x, output_size, "max")


def _adaptive_pool(translation: Translation, x: Value, output_size: Any, reduce: str) -> Value:
    input_sizes = x.shape[1:]
    sizes = as_tuple(output_size, len(input_sizes))
    sizes = tuple(old if new is None else new for new, old in zip(sizes, input_sizes, strict=True))  # None keeps a size
    return translation.apply(adaptive_pool, x, output_size=sizes, reduce=reduce)


# arithmetic, of arrays or of sizes -----------------------------------------------------------------------------


def add(translation: Translation, a: Any, b: Any, *, alpha: Number = 1) -> Any:
    if alpha != 1:
        translation.refuse("alpha")
    return arithmetic(operator.add, translation, a, b)


def floordiv(translation: Translation, a: Any, b: Any) -> Any:
    if isinstance(a, Value) or isinstance(b, Value):
        translation.refuse("of values that are no sizes")
    return arithmetic(operator.floordiv, translation, a, b)


def arithmetic(op: Callable[[Any, Any], Any], translation: Translation, a: Any, b: Any) -> Any:
    """Translate an operation on two operands, which are arrays, numbers or sizes."""
    operands = (a, b)
    values = [operand for operand in operands if isinstance(operand, Value)]
    batch_sizes = [operand for operand in operands if isinstance(operand, BatchSize)]
    if values and batch_sizes:
        translation.refuse("of values and the size of the batch, which a graph does not know")
    if not values:  # sizes, which are Python numbers here; a product with the batch size stays unknown
        return batch_sizes[0] if batch_sizes else op(a, b)
    if len(values) == 2 and len(a.shape) != len(b.shape):
        # PyTorch aligns the last axes, which are not the last ones here.
        translation.refuse(f"values of shapes {a.shape} and {b.shape} without the batch")
    if op is operator.add and len(values) == 2 and a.shape == b.shape:
        return translation.apply(add_layer, a, b)
    return translation.as_value(op(*(operand.node if isinstance(operand, Value) else operand for operand in operands)))


HANDLERS: dict[str, Callable[..., Any]] = {
    "leaky_relu": leaky_relu,
    "elu": elu,
    "gelu": gelu,
    "softplus": softplus,
    "clamp": clamp,
    "hardtanh": hardtanh,
    "softmax": softmax,
    "log_softmax": log_softmax,
    "dropout": dropout,
    "dropout_of_channels": dropout_of_channels,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "adaptive_avg_pool": adaptive_avg_pool,
    "adaptive_max_pool": adaptive_max_pool,
    "add": add,
    "sub": partial(arithmetic, operator.sub),
    "mul": partial(arithmetic, operator.mul),
    "truediv": partial(arithmetic, operator.truediv),
    "pow": partial(arithmetic, operator.pow),
    "floordiv": floordiv,
}

"""Operations on each number by itself: activations, arithmetic, comparisons, casts."""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Number
from ...._graph.combine.merge import add as add_equal
from ...._graph.declare.arithmetic import WithNumber
from ...._graph.declare.training_layers import Dropout
from .. import ops
from ..alignment import aligned
from ..tensors import Tensor
from ..translation import PendingRow, SymbolicSize, Translation

# Functions of one array without options.
UNARY: dict[str, Callable[..., Any]] = {
    "relu": jax.nn.relu,
    "relu6": ops.relu6,
    "selu": jax.nn.selu,
    "silu": jax.nn.silu,
    "mish": jax.nn.mish,
    "hardswish": ops.hardswish,
    "hardsigmoid": ops.hardsigmoid,
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "tanh": jnp.tanh,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "sqrt": jnp.sqrt,
    "rsqrt": ops.rsqrt,
    "reciprocal": jnp.reciprocal,
    "square": jnp.square,
    "abs": ops.absolute,
    "neg": jnp.negative,
    "sign": jnp.sign,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "erf": ops.erf,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "trunc": jnp.trunc,
    "isnan": jnp.isnan,
    "logical_not": jnp.logical_not,
    "bitwise_not": jnp.bitwise_not,
    "detach": jax.lax.stop_gradient,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "bitwise_and": jnp.logical_and,
    "bitwise_or": jnp.logical_or,
    "remainder": jnp.remainder,
    "atan2": jnp.arctan2,
}


def unary(op: Callable[..., Any], translation: Translation, x: Tensor) -> Tensor:
    return translation.like(op, x)


def unchanged(translation: Translation, x: Tensor, *args: Any, **options: Any) -> Tensor:
    del translation, args, options
    return x


# activations with options, and dropout -------------------------------------------------------------------------


def leaky_relu(translation: Translation, x: Tensor, negative_slope: Number = 0.01) -> Tensor:
    return translation.like(ops.leaky_relu, x, negative_slope=negative_slope)


def prelu(translation: Translation, x: Tensor, weight: Tensor) -> Tensor:
    if weight.size(0) == 1 or x.rank < 2:
        return binary(ops.prelu, translation, x, weight.with_axes(((),)) if x.rank else weight)
    weight = weight.with_axes((weight.axes[0], *((),) * (x.rank - 2)))  # one slope for each channel, the axis 1
    return binary(ops.prelu, translation, x, weight)


def elu(
    translation: Translation, x: Tensor, alpha: Number = 1, scale: Number = 1, input_scale: Number = 1
) -> Tensor:
    if scale != 1 or input_scale != 1:
        translation.refuse(f"its scales {scale} and {input_scale}")
    return translation.like(jax.nn.elu, x, alpha=alpha)


def celu(translation: Translation, x: Tensor, alpha: Number = 1.0) -> Tensor:
    return translation.like(jax.nn.celu, x, alpha=alpha)


def gelu(translation: Translation, x: Tensor, approximate: str = "none") -> Tensor:
    return translation.like(jax.nn.gelu, x, approximate=approximate == "tanh")


def glu(translation: Translation, x: Tensor, dim: int = -1) -> Tensor:
    axis = translation.axis(x, dim)
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    half = x.sizes[stored] // 2
    sizes = (*x.sizes[:stored], half, *x.sizes[stored + 1 :])
    return translation.compute(partial(jax.nn.glu, axis=stored), (x,), sizes, x.axes)


def softplus(translation: Translation, x: Tensor, beta: Number = 1, threshold: Number = 20) -> Tensor:
    return translation.like(ops.softplus, x, beta=beta, threshold=threshold)


def hardshrink(translation: Translation, x: Tensor, lambd: Number = 0.5) -> Tensor:
    return translation.like(ops.hardshrink, x, bound=lambd)


def softshrink(translation: Translation, x: Tensor, lambd: Number = 0.5) -> Tensor:
    return translation.like(ops.softshrink, x, bound=lambd)


def threshold(translation: Translation, x: Tensor, threshold: Number, value: Number) -> Tensor:
    return translation.like(ops.threshold, x, bound=threshold, value=value)


def clamp(translation: Translation, x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    for bound, op in ((min, jnp.maximum), (max, jnp.minimum)):
        if isinstance(bound, Tensor):
            x = binary(op, translation, x, bound)
    low, high = (None if isinstance(bound, Tensor) else bound for bound in (min, max))
    return x if low is None and high is None else translation.like(ops.clamp, x, low=low, high=high)


def clamp_min(translation: Translation, x: Tensor, min: Any) -> Tensor:
    return clamp(translation, x, min)


def clamp_max(translation: Translation, x: Tensor, max: Any) -> Tensor:
    return clamp(translation, x, None, max)


def hardtanh(translation: Translation, x: Tensor, min_val: Number = -1, max_val: Number = 1) -> Tensor:
    if (min_val, max_val) == (0, 6):
        return translation.like(ops.relu6, x)
    return translation.like(ops.hardtanh, x, low=min_val, high=max_val)


def dropout(translation: Translation, x: Tensor, p: Number, train: bool, *, whole_channels: bool = False) -> Tensor:
    del train  # the evaluation of the graph says whether it draws
    if x.is_weight:
        translation.refuse("dropout of weights")
    if whole_channels:
        x = translation.channels_last(x)
        if translation.extra(x):
            translation.refuse("dropout of whole channels, of an array with other axes merged with the batch")
    row = PendingRow(translation.new_name("dropout"), None, (x.source,), layer=Dropout(p, whole_channels=whole_channels))
    return translation.add(row, x.sizes, x.axes)


def inactive(translation: Translation, x: Tensor, p: Number, train: bool) -> Tensor:
    if p:
        translation.refuse(f"in training it draws random numbers (p={p}), as no layer of funcconv does; set p to 0")
    return x


# arithmetic ----------------------------------------------------------------------------------------------------


def binary(op: Callable[..., Any], translation: Translation, *operands: Any, **options: Any) -> Any:
    """Translate an operation on arrays and numbers, of which the arrays are broadcast."""
    if any(isinstance(operand, SymbolicSize) for operand in operands):
        if not any(isinstance(operand, Tensor) for operand in operands):
            return SymbolicSize()
        translation.refuse("it computes with the batch size, which a graph does not know")
    op = partial(op, **options) if options else op
    if len(operands) == 2 and not all(isinstance(operand, Tensor) for operand in operands):
        a, b = operands
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            return op(a, b)
        x, number, first = (b, a, True) if isinstance(b, Tensor) else (a, b, False)
        return translation.like(WithNumber(op, number, first, type(number)), x)
    tensors = [x if isinstance(x, Tensor) else _number(translation, x) for x in operands]
    arrays, sizes, axes = aligned(translation, tensors)
    return translation.compute(op, arrays, sizes, axes)


def _number(translation: Translation, value: Any) -> Tensor:
    dtype = jnp.result_type(type(value))
    return translation.constant(partial(ops.filled, shape=(), value=value, dtype=dtype), ())


def add(translation: Translation, a: Any, b: Any, *, alpha: Number = 1) -> Any:
    if alpha != 1:
        return binary(ops.added, translation, a, b, alpha=alpha)
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor) and not a.is_weight and not b.is_weight
    same = tensors and translation.operand_dtypes_agree() and _torch_shape(a) == _torch_shape(b)
    return binary(add_equal if same else operator.add, translation, a, b)


def _torch_shape(x: Tensor) -> Any:
    return [(x.size(axis), axis == x.batch_axis) for axis in range(x.rank)]


def sub(translation: Translation, a: Any, b: Any, *, alpha: Number = 1) -> Any:
    if alpha != 1:
        return binary(ops.added, translation, a, b, alpha=-alpha)
    return binary(operator.sub, translation, a, b)


def rsub(translation: Translation, a: Any, b: Any, alpha: Number = 1) -> Any:
    return sub(translation, b, a, alpha=alpha)


def div(translation: Translation, a: Any, b: Any, *, rounding_mode: str | None = None) -> Any:
    modes = {None: operator.truediv, "floor": ops.floor_divide, "trunc": ops.truncated_divide}
    return binary(modes[rounding_mode], translation, a, b)


def power(translation: Translation, a: Any, b: Any) -> Any:
    if isinstance(a, Tensor) and isinstance(b, int | float):
        return translation.like(ops.power, a, exponent=b)
    if isinstance(b, Tensor) and isinstance(a, int | float):
        return translation.like(ops.power_of, b, base=a)
    return binary(jnp.power, translation, a, b)


def addcmul(translation: Translation, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Any:
    return binary(ops.added_product, translation, x, a, b, value=value)


def addcdiv(translation: Translation, x: Tensor, a: Tensor, b: Tensor, *, value: Number = 1) -> Any:
    return binary(ops.added_quotient, translation, x, a, b, value=value)


def lerp(translation: Translation, a: Tensor, b: Tensor, weight: Any) -> Any:
    return binary(ops.interpolated, translation, a, b, weight)


def where(translation: Translation, condition: Tensor, a: Any, b: Any) -> Any:
    return binary(jnp.where, translation, condition, a, b)


def masked_fill(translation: Translation, x: Tensor, mask: Tensor, value: Any) -> Any:
    return binary(ops.masked, translation, x, mask, value)


# dtypes --------------------------------------------------------------------------------------------------------


def to(translation: Translation, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """Translate a change of dtype or device, in any of its spellings."""
    del args, options
    dtype = translation.dtype()
    if dtype == translation.dtype(translation.operation.args[0].meta["val"]):
        return x
    return translation.like(ops.cast, x, dtype=dtype)


HANDLERS: dict[str, Callable[..., Any]] = {
    **{name: partial(unary, op) for name, op in UNARY.items()},
    **{name: partial(binary, op) for name, op in _BINARY.items()},
    **dict.fromkeys(("alias", "contiguous", "clone", "lift_fresh_copy", "positive"), unchanged),
    "leaky_relu": leaky_relu,
    "prelu": prelu,
    "elu": elu,
    "celu": celu,
    "gelu": gelu,
    "glu": glu,
    "softplus": softplus,
    "hardshrink": hardshrink,
    "softshrink": softshrink,
    "threshold": threshold,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": clamp_min,
    "clamp_max": clamp_max,
    "hardtanh": hardtanh,
    "dropout": dropout,
    "feature_dropout": partial(dropout, whole_channels=True),
    "alpha_dropout": inactive,
    "feature_alpha_dropout": inactive,
    "add": add,
    "sub": sub,
    "subtract": sub,
    "rsub": rsub,
    "mul": partial(binary, operator.mul),
    "multiply": partial(binary, operator.mul),
    "div": div,
    "divide": div,
    "true_divide": div,
    "truediv": div,
    "floor_divide": partial(binary, ops.floor_divide),
    "floordiv": partial(binary, ops.floor_divide),
    "pow": power,
    "addcmul": addcmul,
    "addcdiv": addcdiv,
    "lerp": lerp,
    "where": where,
    "masked_fill": masked_fill,
    **dict.fromkeys(("to", "_to_copy", "type_as", "float", "double", "half", "bfloat16"), to),
}

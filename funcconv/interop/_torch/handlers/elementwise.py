"""Operations on each number by itself: functions of one array, arithmetic, comparisons, casts."""

import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Number
from ...._graph.combine.merge import add as add_equal
from ...._graph.declare.arithmetic import WithNumber
from .. import ops
from ..tensors import Tensor
from ..translation import SymbolicSize, Translation
from .alignment import aligned

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
    tensors = _promoted(translation, [x if isinstance(x, Tensor) else _number(translation, x) for x in operands])
    arrays, sizes, axes = aligned(translation, tensors)
    return translation.compute(op, arrays, sizes, axes)


def _promoted(translation: Translation, tensors: list[Tensor]) -> list[Tensor]:
    """Cast operands of several dtypes to one, of which PyTorch's result is, unless that is a bool."""
    dtypes = {x.dtype for x in tensors if x.dtype is not None and x.dtype != jnp.dtype(bool)}
    if len(dtypes) < 2:
        return tensors
    dtype = translation.dtype()
    if dtype == jnp.dtype(bool):
        dtype = reduce(jnp.promote_types, dtypes)
    return [
        x
        if x.dtype in (None, jnp.dtype(bool), dtype)
        else replace(translation.like(ops.cast, x, dtype=dtype), dtype=dtype)
        for x in tensors
    ]


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

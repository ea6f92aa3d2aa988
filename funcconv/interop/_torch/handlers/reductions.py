"""Operations that reduce axes, or compute along one."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Number
from .. import ops
from ..tensors import BATCH, Tensor
from ..translation import Translation, as_tuple
from .elementwise import binary


def _reduced(
    op: Callable[..., Any], translation: Translation, x: Tensor, dims: Any, *, keepdim: bool, **options: Any
) -> Tensor:
    """Apply a reduction along axes of PyTorch, each of which may be several stored axes."""
    axes = list(range(x.rank)) if dims in (None, [], ()) else [translation.axis(x, dim) for dim in as_tuple(dims, 1)]
    if any(BATCH in x.axes[axis] for axis in axes if x.rank):
        translation.refuse("it reduces the batch")
    stored = sorted({i for axis in axes for i in x.axes[axis]}) if x.rank else []
    left = [i for i in range(len(x.sizes)) if i not in stored]
    number = {i: k for k, i in enumerate(left)} | {BATCH: BATCH}
    new_axes: list[tuple[int, ...]] = []
    for axis, part in enumerate(x.axes):
        if axis not in axes:
            new_axes.append(tuple(number[i] for i in part))
        elif keepdim:
            new_axes.append(())
    sizes = tuple(x.sizes[i] for i in left)
    return translation.compute(partial(op, axis=tuple(stored), **options), (x,), sizes, tuple(new_axes))


def reduce(
    op: Callable[..., Any],
    translation: Translation,
    x: Tensor,
    dim: Any = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    if dtype is not None:
        translation.refuse("another dtype")
    return _reduced(op, translation, x, dim, keepdim=keepdim)


def with_correction(
    op: Callable[..., Any],
    translation: Translation,
    x: Tensor,
    dim: Any = None,
    unbiased: Any = True,
    keepdim: bool = False,
    *,
    correction: Any = None,
) -> Tensor:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    divisor = int(bool(unbiased)) if correction is None else correction
    return _reduced(op, translation, x, dim, keepdim=keepdim, correction=divisor)


def var_mean(translation: Translation, x: Tensor, dim: Any = None, *args: Any, **options: Any) -> Any:
    keepdim = bool(options.get("keepdim", args[1] if len(args) > 1 else False))
    variance = with_correction(ops.variance, translation, x, dim, *args, **options)
    return variance, _reduced(ops.average, translation, x, dim, keepdim=keepdim)


def extreme(
    op: Callable[..., Any],
    position: Callable[..., Any],
    translation: Translation,
    x: Tensor,
    *args: Any,
    **options: Any,
) -> Any:
    """Translate `max` and `min`: of all, of two tensors, or along an axis with the positions."""
    if args and isinstance(args[0], Tensor):
        return binary(jnp.maximum if op is jnp.max else jnp.minimum, translation, x, args[0])
    if not args and not options:
        return _reduced(op, translation, x, None, keepdim=False)
    keepdim = bool(options.get("keepdim", args[1] if len(args) > 1 else False))
    dim = options.get("dim", args[0] if args else None)
    values = _reduced(op, translation, x, dim, keepdim=keepdim)
    return values, arg_extreme(position, translation, x, dim, keepdim)


def arg_extreme(
    op: Callable[..., Any], translation: Translation, x: Tensor, dim: Any = None, keepdim: bool = False
) -> Tensor:
    if dim is None:
        translation.refuse("the position among all numbers")
    axis = translation.axis(x, dim)
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    sizes = (*x.sizes[:stored], *x.sizes[stored + 1 :])
    moved = [tuple(i - 1 if i > stored else i for i in part) for part in x.axes]
    axes = [part if i != axis else () for i, part in enumerate(moved) if i != axis or keepdim]
    return translation.compute(partial(op, axis=stored), (x,), sizes, tuple(axes))


def vector_norm(
    translation: Translation, x: Tensor, ord: Number = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    if dtype is not None:
        translation.refuse("another dtype")
    return _reduced(ops.vector_norm, translation, x, dim, keepdim=keepdim, order=float(ord))


def normalize_norm(
    translation: Translation, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Tensor:
    return vector_norm(translation, x, 2 if p is None else p, dim, keepdim, dtype=dtype)


def along(op: Callable[..., Any], translation: Translation, x: Tensor, dim: int, *args: Any, **options: Any) -> Tensor:
    """Translate a function along one axis, which keeps the shape."""
    if any(args) or any(value is not None for value in options.values()):
        dtype = translation.dtype()
        if dtype != translation.dtype(translation.operation.args[0].meta["val"]):
            x = translation.like(ops.cast, x, dtype=dtype)
    axis = translation.axis(x, dim)
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    return translation.like(op, x, axis=stored)


HANDLERS: dict[str, Callable[..., Any]] = {
    "mean": partial(reduce, ops.average),
    "sum": partial(reduce, ops.total),
    "amax": partial(reduce, jnp.max),
    "amin": partial(reduce, jnp.min),
    "prod": partial(reduce, jnp.prod),
    "var": partial(with_correction, ops.variance),
    "std": partial(with_correction, ops.deviation),
    "var_mean": var_mean,
    "max": partial(extreme, jnp.max, jnp.argmax),
    "min": partial(extreme, jnp.min, jnp.argmin),
    "argmax": partial(arg_extreme, jnp.argmax),
    "argmin": partial(arg_extreme, jnp.argmin),
    "linalg_vector_norm": vector_norm,
    "norm": normalize_norm,
    "softmax": partial(along, jax.nn.softmax),
    "_softmax": partial(along, jax.nn.softmax),
    "log_softmax": partial(along, jax.nn.log_softmax),
    "_log_softmax": partial(along, jax.nn.log_softmax),
    "cumsum": partial(along, ops.cumulated),
}

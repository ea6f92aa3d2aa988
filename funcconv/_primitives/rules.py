"""Definition of primitives on windows, and of pairs of linear maps that depend on integers (such as selected taps).

    forward.bind(x, integers, axes=axes) -> y
    transpose.bind(y, integers, axes=axes) -> x

Both maps are linear in the first operand, and each is the transpose of the other. So derivatives of every order consist
of these two. Shapes, with any number of batch axes:

    x (*batch, *spatial, channels)    y, integers (*batch, *positions, channels)
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from .._common.mesh_axes import sharded_like, varying_alike
from .._common.types import Array
from .._windows.geometry import Axis


def define(primitive: Primitive, compute: Callable[..., Array], size: Callable[[Axis], int]) -> None:
    """Define the type, the batching rule and the lowering of a primitive.

    Args:
        primitive: a primitive of arrays with the same number of axes, with at least the parameter `axes`, a tuple.
        compute: a function of the same operands and parameters, in operations of JAX.
        size: a function that returns the size of a spatial axis of the result.
    """
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(partial(_type, size))
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    batching.primitive_batchers[primitive] = partial(_batch, primitive)


def define_transposes(
    forward: Primitive, compute: Callable[..., Array], transpose: Primitive, compute_transpose: Callable[..., Array]
) -> None:
    """Define two linear primitives, each the transpose of the other.

    Args:
        forward: the primitive from images to windows.
        compute: the function that computes it.
        transpose: the primitive from windows to images.
        compute_transpose: the function that computes it.
    """
    define(forward, compute, lambda axis: axis.outputs)
    define(transpose, compute_transpose, lambda axis: axis.size)
    for primitive, other in ((forward, transpose), (transpose, forward)):
        ad.deflinear2(primitive, partial(_transpose, other))
        ad.defjvp(primitive, partial(_derivative, primitive), None)
        jet_rules[primitive] = partial(_taylor, primitive)


def _type(size: Callable[[Axis], int], x: Any, *_: Any, axes: tuple[Axis, ...], **__: Any) -> Any:
    return x.update(shape=(*x.shape[: -len(axes) - 1], *map(size, axes), x.shape[-1]), weak_type=False)


def _batch(primitive: Primitive, operands: Sequence[Array], dims: Sequence[Any], **params: Any) -> Any:
    """Batching rule: the new axis becomes the first batch axis of all operands."""
    moved = [x if dim is None else jnp.moveaxis(x, dim, 0) for x, dim in zip(operands, dims, strict=True)]
    like = next(x for x, dim in zip(moved, dims, strict=True) if dim is not None)
    stacked = [_repeated(x, like) if dim is None else x for x, dim in zip(moved, dims, strict=True)]
    return primitive.bind(*stacked, **params), 0


def _repeated(x: Array, like: Array) -> Array:
    """Return `x` with a new first axis, and sharded like `like`, whose first axis has the same size."""
    return sharded_like(jnp.broadcast_to(x, (like.shape[0], *x.shape)), like)


def _derivative(primitive: Primitive, t: Array, _: Array, integers: Array, *, axes: tuple[Axis, ...]) -> Array:
    return primitive.bind(*varying_alike(t, integers), axes=axes)


def _transpose(other: Primitive, cotangent: Array, _: Any, integers: Array, *, axes: tuple[Axis, ...]) -> Any:
    return other.bind(*varying_alike(cotangent, integers), axes=axes), None


def _taylor(primitive: Primitive, primals: Any, series: Any, *, axes: tuple[Axis, ...]) -> Any:
    # The map is linear, so each Taylor coefficient is mapped by itself.
    y, *coefficients = (primitive.bind(x, primals[1], axes=axes) for x in (primals[0], *series[0]))
    return y, coefficients

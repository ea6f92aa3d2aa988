"""The convolution as a closed family of three bilinear maps.

A convolution is the trilinear form of an image `x`, a kernel `w` and a result `g`

    T(x, w, g) = sum over positions and taps of x[position * stride - lo + tap * dilation] . w[tap] . g[position]

seen from one of its arguments: `conv(x, w)` is its gradient by `g`, `conv_input_grad(w, g)` by `x` and
`conv_kernel_grad(x, g)` by `w`. So each is bilinear, and the transposes of each are the other two:

    conv(x, w) -> g             transposed by x: conv_input_grad(w, g)    by w: conv_kernel_grad(x, g)
    conv_input_grad(w, g) -> x  transposed by w: conv_kernel_grad(x, g)   by g: conv(x, w)
    conv_kernel_grad(x, g) -> w transposed by x: conv_input_grad(w, g)    by g: conv(x, w)

From this all derivatives of every order follow; none of them leaves the family.

Shapes, with `stack` axes in front of all three where each image has a kernel of its own:

    x (batch, *spatial, in)    w (*window, in // groups, out)    g (batch, *positions, out)
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from . import _lowering
from ._lowering import Form, Type, Where
from ._typing import Array
from ._varying import varying_alike

conv_p = Primitive("conv")
conv_input_grad_p = Primitive("conv_input_grad")
conv_kernel_grad_p = Primitive("conv_kernel_grad")

# For each map, its two operands and its result.
PRIMITIVES = {conv_p: ("x", "w", "g"), conv_input_grad_p: ("w", "g", "x"), conv_kernel_grad_p: ("x", "g", "w")}

# The index that each shares with each of the others, by its axis; from the end, or counted after the stack.
_INDICES = {"x": {"batch": 0, "in": -1}, "w": {"in": -2, "out": -1}, "g": {"batch": 0, "out": -1}}


def conv(x: Array, w: Array, form: Form) -> Array:
    """Return the result to which the kernel takes the image."""
    x, w = varying_alike(x, w)
    if jax.typeof(x).sharding.mesh.empty:
        out = jax.typeof(x).update(shape=form.result(x, w), dtype=form.accumulate_dtype or x.dtype, weak_type=False)
    else:  # on a mesh JAX knows best, and refuses what it cannot shard
        (out,) = jax.make_jaxpr(partial(_lowering.reference, form=form))(x, w).out_avals
    return conv_p.bind(x, w, form=form, stack=0, out=out)


def conv_input_grad(w: Array, g: Array, form: Form) -> Array:
    """Return the image to which the transpose takes the result back."""
    w, g = varying_alike(w, g)
    out = jax.typeof(g).update(shape=form.image(g, w), dtype=w.dtype, weak_type=False)
    return conv_input_grad_p.bind(w, g, form=form, stack=0, out=out)


def checkpoint_policy(primitive: Primitive, *operands: Any, **params: Any) -> bool:
    """Tell `jax.checkpoint` to save the results of products and convolutions, and to recompute the rest.

    `jax.checkpoint_policies.checkpoint_dots` does not know funcconv's convolutions; this adds them to it.

    Args:
        primitive: the operation, as `jax.checkpoint` gives it.
        *operands: the types of its operands.
        **params: its static parameters.

    Returns:
        Whether to save the result.

    Raises:
        Nothing.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 1, 4, (3, 3))
        >>> block = jax.checkpoint(lambda x: jnp.tanh(fc.conv(params, x)).sum(), policy=fc.checkpoint_policy)
        >>> jax.grad(block)(jnp.ones((1, 8, 8, 1))).shape
        (1, 8, 8, 1)
    """
    return primitive in PRIMITIVES or bool(jax.checkpoint_policies.checkpoint_dots(primitive, *operands, **params))


def _transpose(
    primitive: Primitive, to: str, cotangent: Array, a: Any, b: Any, *, form: Form, stack: int, out: Type
) -> Array:
    """Return the cotangent of one operand, which comes as a type: the map to it from the other two."""
    del out
    first, second, result = PRIMITIVES[primitive]
    values = {first: a, second: b, result: cotangent}
    other = next(each for each, roles in PRIMITIVES.items() if roles[2] == to)
    first, second, _ = PRIMITIVES[other]
    out = values[to].aval.strip_weak_type()
    return other.bind(values[first], values[second], form=form, stack=stack, out=out)


def _batch(
    primitive: Primitive, operands: Sequence[Array], dims: Sequence[Any], *, form: Form, stack: int, out: Type
) -> tuple[Array, int]:
    """Keep the new axis in the family.

    Where both operands are mapped, it goes to the front of both, on the stack. Where one is, it is folded into the
    index that this operand does not share with the other; as the faster one, so that the channels of a group stay
    together and an axis that is spread over devices stays so.

    Returns:
        The result and the place of the new axis in it.
    """
    if None not in dims:
        stacked = [jnp.moveaxis(each, dim, 0) for each, dim in zip(operands, dims, strict=True)]
        out = _retyped(out, (stacked[0].shape[0], *out.shape), (_spread(stacked[0], 0), *out.sharding.spec))
        return primitive.bind(*stacked, form=form, stack=stack + 1, out=out), 0
    mapped = 0 if dims[1] is None else 1
    own, others, result = (_INDICES[PRIMITIVES[primitive][i]] for i in (mapped, 1 - mapped, 2))
    (index,) = own.keys() - others.keys()
    axis, axis_out = (i % out.ndim if i < 0 else i + stack for i in (own[index], result[index]))
    size = operands[mapped].shape[dims[mapped]]
    folded = [_fold(each, dim, axis) if dim is not None else each for each, dim in zip(operands, dims, strict=True)]
    shape, spec = list(out.shape), list(out.sharding.spec)
    shape[axis_out] *= size
    spec[axis_out] = _spread(folded[mapped], axis)
    y = primitive.bind(*folded, form=form, stack=stack, out=_retyped(out, shape, spec))
    return _unfold(y, axis_out, size), 0


def _spread(array: Array, axis: int) -> Any:
    """Return the axes of the mesh over which an axis of an array is spread, by its type."""
    return jax.typeof(array).sharding.spec[axis]


def _retyped(out: Type, shape: Sequence[int], spec: Sequence[Any]) -> Type:
    return out.update(shape=tuple(shape), sharding=NamedSharding(out.sharding.mesh, PartitionSpec(*spec)))


def _fold(array: Array, dim: int, axis: int) -> Array:
    """Merge the axis `dim` into another, which is counted without it."""
    array = jnp.moveaxis(array, dim, 0)
    size, *shape = array.shape
    return jnp.moveaxis(array, 0, axis + 1).reshape(*shape[:axis], shape[axis] * size, *shape[axis + 1 :])


def _unfold(array: Array, axis: int, size: int) -> Array:
    """Take what was merged out again, to the front."""
    shape = array.shape
    return jnp.moveaxis(array.reshape(*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :]), axis + 1, 0)


def _taylor(primitive: Primitive, primals: Sequence[Array], series: Any, **params: Any) -> tuple[Array, list[Array]]:
    """Leibniz' rule for Taylor coefficients: the k-th of a product is the sum over i of the i-th and the (k-i)-th."""
    a, b = ([primal, *terms] for primal, terms in zip(primals, series, strict=True))
    first, *others = (
        reduce(operator.add, (primitive.bind(a[i], b[k - i], **params) for i in range(k + 1))) for k in range(len(a))
    )
    return first, others


def _lower(lower: Callable[..., Array], platform: str | None, context: Any, *operands: Any, **params: Any) -> Any:
    """Lower a map to the form that is chosen for it where the program is to run."""
    typed = any(kind != AxisType.Auto for aval in context.avals_in for kind in aval.sharding.mesh.axis_types)
    devices = getattr(context.module_context.axis_context, "num_devices", None)  # None inside of jax.shard_map
    where = Where(platform, devices, typed)
    return mlir.lower_fun(partial(lower, where=where), multiple_results=False)(context, *operands, **params)


def _define(primitive: Primitive, lower: Callable[..., Array]) -> None:
    first, second, _ = PRIMITIVES[primitive]
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(lambda *operands, out, **params: out)  # noqa: ARG005
    mlir.register_lowering(primitive, partial(_lower, lower, None))
    mlir.register_lowering(primitive, partial(_lower, lower, "cpu"), platform="cpu")
    ad.defbilinear(primitive, partial(_transpose, primitive, first), partial(_transpose, primitive, second))
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    jet_rules[primitive] = partial(_taylor, primitive)


_define(conv_p, _lowering.conv)
_define(conv_input_grad_p, _lowering.conv_input_grad)
_define(conv_kernel_grad_p, _lowering.conv_kernel_grad)

"""Convolution as a closed family of three bilinear maps.

A convolution is defined by a trilinear form of an image `x`, a kernel `w` and a result `g`:

    T(x, w, g) = sum over positions and taps of x[position * stride - lo + tap * dilation] . w[tap] . g[position]

`conv(x, w)` is the gradient of `T` with respect to `g`, `conv_input_grad(w, g)` the gradient with respect to `x`, and
`conv_kernel_grad(x, g)` the gradient with respect to `w`. So each map is bilinear, and its transposes are the others:

    conv(x, w) -> g             transposed by x: conv_input_grad(w, g)    by w: conv_kernel_grad(x, g)
    conv_input_grad(w, g) -> x  transposed by w: conv_kernel_grad(x, g)   by g: conv(x, w)
    conv_kernel_grad(x, g) -> w transposed by x: conv_input_grad(w, g)    by g: conv(x, w)

So derivatives of every order consist of these three maps.

Shapes, with `stack` leading axes of all three if each image has its own kernel:

    x (batch, *spatial, in)    w (*window, in // groups, out)    g (batch, *positions, out)
"""

import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.jet import jet_rules
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes, get_abstract_mesh, use_abstract_mesh

from .._common.mesh_axes import names_of, unless_used, varying_alike
from .._common.types import Array, DTypeLike
from . import forms as _forms
from .forms import PLATFORMS, Form, Type, Where

conv_p = Primitive("conv")
conv_input_grad_p = Primitive("conv_input_grad")
conv_kernel_grad_p = Primitive("conv_kernel_grad")

# For each map, its two operands and its result.
PRIMITIVES = {conv_p: ("x", "w", "g"), conv_input_grad_p: ("w", "g", "x"), conv_kernel_grad_p: ("x", "g", "w")}

# The axis of each index that an array shares with one of the others. Negative axes count from the end, others from the
# first axis after the stack.
_INDICES = {"x": {"batch": 0, "in": -1}, "w": {"in": -2, "out": -1}, "g": {"batch": 0, "out": -1}}


def conv(x: Array, w: Array, form: Form) -> Array:
    """Return the convolution of an image with a kernel."""
    x, w = varying_alike(x, w)
    out = _typed(x, w, form.result(x, w), form.accumulate_dtype or x.dtype, channels=_mesh_axes(w, -1))
    return conv_p.bind(x, w, form=form, stack=0, out=out)


def conv_input_grad(w: Array, g: Array, form: Form) -> Array:
    """Return the input gradient of a convolution, for the cotangent `g`."""
    w, g = varying_alike(w, g)
    out = _typed(g, w, form.image(g, w), w.dtype, channels=_mesh_axes(w, -2) if form.groups == 1 else None)
    return conv_input_grad_p.bind(w, g, form=form, stack=0, out=out)


def checkpoint_policy(primitive: Primitive, *operands: Any, **params: Any) -> bool:
    """Policy for `jax.checkpoint`: save the results of matrix products and convolutions, and recompute the rest.

    It extends `jax.checkpoint_policies.checkpoint_dots`, which does not know the convolutions of funcconv. Pass it as
    `jax.checkpoint(f, policy=fc.checkpoint_policy)`; JAX calls it for each operation of `f`.

    Args:
        primitive: the operation.
        *operands: the types of its operands.
        **params: its static parameters.

    Returns:
        Whether the result of the operation is saved.

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
    """Return the cotangent of the operand `to`, by the map of the family from the other two arrays."""
    del out
    first, second, result = PRIMITIVES[primitive]
    values = {first: a, second: b, result: cotangent}
    transposed = next(primitive for primitive, roles in PRIMITIVES.items() if roles[2] == to)
    first, second, _ = PRIMITIVES[transposed]
    out = values[to].aval.strip_weak_type()  # the operand to transpose is a placeholder that has only a type
    return transposed.bind(values[first], values[second], form=form, stack=stack, out=out)


def _batch(
    primitive: Primitive, operands: Sequence[Array], dims: Sequence[Any], *, form: Form, stack: int, out: Type
) -> tuple[Array, int]:
    """Batching rule of `jax.vmap`: the batched map is again a map of the family.

    If both operands have the new axis, it becomes a leading axis of both, the stack. If only one has it, it is merged
    into the axis of this operand that the other one does not share. It varies faster there, so that the channels of a
    group stay together and an axis that is sharded over devices stays sharded.

    Returns:
        The result and the position of the new axis in it.
    """
    if None not in dims:
        stacked = [jnp.moveaxis(operand, dim, 0) for operand, dim in zip(operands, dims, strict=True)]
        out = _retyped(out, (stacked[0].shape[0], *out.shape), (_mesh_axes(stacked[0], 0), *out.sharding.spec))
        return primitive.bind(*stacked, form=form, stack=stack + 1, out=out), 0
    mapped = 0 if dims[1] is None else 1
    own, others, result = (_INDICES[PRIMITIVES[primitive][i]] for i in (mapped, 1 - mapped, 2))
    (index,) = own.keys() - others.keys()  # "batch" for x and g, "in" or "out" for w
    axis, axis_out = (i % out.ndim if i < 0 else i + stack for i in (own[index], result[index]))
    size = operands[mapped].shape[dims[mapped]]
    merged = [
        operand if dim is None else _merge_axis(operand, dim, axis) for operand, dim in zip(operands, dims, strict=True)
    ]
    shape, spec = list(out.shape), list(out.sharding.spec)
    shape[axis_out] *= size
    spec[axis_out] = _mesh_axes(merged[mapped], axis)
    y = primitive.bind(*merged, form=form, stack=stack, out=_retyped(out, shape, spec))
    return _split_axis(y, axis_out, size), 0


def _mesh_axes(array: Array, axis: int) -> Any:
    """Return the mesh axes over which the type of an array shards one of its axes."""
    return jax.typeof(array).sharding.spec[axis]


def _typed(a: Array, w: Array, shape: Sequence[int], dtype: DTypeLike, channels: Any) -> Type:
    """Return the type of the result of a kernel and `a`, with its explicit sharding.

    The batch is sharded like the batch of `a`, and so are spatial axes whose new size the devices divide. The channels
    are sharded like the channels of the kernel, unless `a` is sharded over the same mesh axes already.
    """
    meshes = (jax.typeof(a).sharding.mesh, jax.typeof(w).sharding.mesh)
    mesh = next((mesh for mesh in meshes if not mesh.empty), None)
    out = jax.typeof(a).update(dtype=dtype, weak_type=False)
    if mesh is None:
        return out.update(shape=tuple(shape))
    spec = [_mesh_axes(a, axis) for axis in range(len(shape) - 1)]
    for axis in range(1, len(spec)):
        if shape[axis] % math.prod(mesh.shape[name] for name in names_of(spec[axis])):
            spec[axis] = None
    spec.append(unless_used(channels, spec))
    return _retyped(out, shape, spec, mesh)


def _retyped(out: Type, shape: Sequence[int], spec: Sequence[Any], mesh: Any = None) -> Type:
    sharding = NamedSharding(mesh or out.sharding.mesh, PartitionSpec(*spec))
    return out.update(shape=tuple(shape), sharding=sharding)


def _merge_axis(array: Array, dim: int, axis: int) -> Array:
    """Merge the axis `dim` into `axis`, which is counted without it. The merged axis varies faster."""
    array = jnp.moveaxis(array, dim, 0)
    size, *shape = array.shape
    return jnp.moveaxis(array, 0, axis + 1).reshape(*shape[:axis], shape[axis] * size, *shape[axis + 1 :])


def _split_axis(array: Array, axis: int, size: int) -> Array:
    """Undo `_merge_axis`, and move the merged axis to the front."""
    shape = array.shape
    return jnp.moveaxis(array.reshape(*shape[:axis], shape[axis] // size, size, *shape[axis + 1 :]), axis + 1, 0)


def _taylor(primitive: Primitive, primals: Sequence[Array], series: Any, **params: Any) -> tuple[Array, list[Array]]:
    """Rule of `jet`, by Leibniz: the k-th Taylor coefficient of a product is the sum over i of `a[i] * b[k - i]`."""
    a, b = ([primal, *terms] for primal, terms in zip(primals, series, strict=True))
    value, *coefficients = (
        reduce(operator.add, (primitive.bind(a[i], b[k - i], **params) for i in range(k + 1))) for k in range(len(a))
    )
    return value, coefficients


def _lower(lower: Callable[..., Array], platform: str | None, context: Any, *operands: Any, **params: Any) -> Any:
    """Lower a map to the form that is chosen for the platform and devices of the program."""
    out = params.pop("out")
    meshes = [aval.sharding.mesh for aval in (out, *context.avals_in)]  # an unsharded array has an empty mesh
    mesh = next((mesh for mesh in meshes if not mesh.empty), out.sharding.mesh)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = tuple(name for name, kind in kinds.items() if kind == AxisType.Explicit)
    where = Where(platform, *devices_of(context), typed=AxisType.Manual in kinds.values())

    def of_type(out: Type, *operands: Array) -> Array:
        return lower(*operands, out=out, where=where, **params)

    def automatic(*operands: Array) -> Array:
        return of_type(_retyped(out, out.shape, [None] * out.ndim, get_abstract_mesh()), *operands)

    if not explicit:
        return mlir.lower_fun(partial(of_type, out), multiple_results=False)(context, *operands)
    # Explicit axes are lowered like automatic ones, by XLA's partitioner; the type of the result gives its sharding.
    f = auto_axes(automatic, axes=explicit, out_sharding=NamedSharding(mesh, out.sharding.spec))
    with use_abstract_mesh(mesh):
        return mlir.lower_fun(f, multiple_results=False)(context, *operands)


def devices_of(context: Any) -> tuple[int | None, int | None]:
    """Return the devices that run a program, and the devices over which XLA may partition an array; None: not known."""
    axes = context.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):  # inside jax.shard_map
        return None, math.prod(size for name, size in axes.mesh.shape.items() if name not in axes.manual_axes)
    exported = context.module_context.lowering_parameters.for_export  # can be called on any number of devices
    return axes.num_devices, None if exported else axes.num_devices


def _define(primitive: Primitive, lower: Callable[..., Array]) -> None:
    """Register all rules of a primitive."""
    first, second, _ = PRIMITIVES[primitive]
    primitive.def_impl(partial(xla.apply_primitive, primitive))
    primitive.def_abstract_eval(lambda *operands, out, **params: out)  # noqa: ARG005 (the type is a parameter)
    mlir.register_lowering(primitive, partial(_lower, lower, None))
    for name, platform in PLATFORMS.items():
        mlir.register_lowering(primitive, partial(_lower, lower, platform), platform=name)
    ad.defbilinear(primitive, partial(_transpose, primitive, first), partial(_transpose, primitive, second))
    batching.primitive_batchers[primitive] = partial(_batch, primitive)
    jet_rules[primitive] = partial(_taylor, primitive)


_define(conv_p, _forms.conv)
_define(conv_input_grad_p, _forms.conv_input_grad)
_define(conv_kernel_grad_p, _forms.conv_kernel_grad)

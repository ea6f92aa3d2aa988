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

from .._common.mesh_axes import varying_alike
from .._common.types import Array, DTypeLike
from . import forms as _lowering
from .forms import Form, Type, Where

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
    out = _typed(x, w, form.result(x, w), form.accumulate_dtype or x.dtype, channels=_spread(w, -1))
    return conv_p.bind(x, w, form=form, stack=0, out=out)


def conv_input_grad(w: Array, g: Array, form: Form) -> Array:
    """Return the image to which the transpose takes the result back."""
    w, g = varying_alike(w, g)
    out = _typed(g, w, form.image(g, w), w.dtype, channels=_spread(w, -2) if form.groups == 1 else None)
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


def _typed(a: Array, w: Array, shape: Sequence[int], dtype: DTypeLike, channels: Any) -> Type:
    """Return the type of what a kernel makes of `a`, with the mesh axes over which explicit sharding spreads it.

    The batch is spread as that of `a`, and so are spatial axes where the devices divide the new size. The channels are
    spread as those of the kernel, unless `a` is spread over the same mesh axes already.
    """
    mesh = next((each.mesh for each in (jax.typeof(a).sharding, jax.typeof(w).sharding) if not each.mesh.empty), None)
    out = jax.typeof(a).update(dtype=dtype, weak_type=False)
    if mesh is None:
        return out.update(shape=tuple(shape))
    spec = [_spread(a, axis) for axis in range(len(shape) - 1)]
    for axis in range(1, len(spec)):
        if shape[axis] % math.prod(mesh.shape[name] for name in _names(spec[axis])):
            spec[axis] = None
    used = {name for entry in spec for name in _names(entry)}
    spec.append(None if used & {*_names(channels)} else channels)
    return _retyped(out, shape, spec, mesh)


def _names(entry: Any) -> tuple[str, ...]:
    """Return the mesh axes that an entry of a partition names."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _retyped(out: Type, shape: Sequence[int], spec: Sequence[Any], mesh: Any = None) -> Type:
    sharding = NamedSharding(mesh or out.sharding.mesh, PartitionSpec(*spec))
    return out.update(shape=tuple(shape), sharding=sharding)


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
    out = params.pop("out")
    meshes = [each.sharding.mesh for each in (out, *context.avals_in)]  # an array that is not placed has an empty one
    mesh = next((each for each in meshes if not each.empty), out.sharding.mesh)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    explicit = tuple(name for name, kind in kinds.items() if kind == AxisType.Explicit)
    where = Where(platform, *_devices(context), typed=AxisType.Manual in kinds.values())

    def of_type(out: Type, *operands: Array) -> Array:
        return lower(*operands, out=out, where=where, **params)

    def automatic(*operands: Array) -> Array:
        return of_type(_retyped(out, out.shape, [None] * out.ndim, get_abstract_mesh()), *operands)

    if not explicit:
        return mlir.lower_fun(partial(of_type, out), multiple_results=False)(context, *operands)
    # Explicit axes are left to XLA's partitioner, as automatic ones are; the type of the result says how it is spread.
    f = auto_axes(automatic, axes=explicit, out_sharding=NamedSharding(mesh, out.sharding.spec))
    with use_abstract_mesh(mesh):
        return mlir.lower_fun(f, multiple_results=False)(context, *operands)


def _devices(context: Any) -> tuple[int | None, int | None]:
    """Return how many devices run a program, and over how many of them XLA may spread an array; None: not known."""
    axes = context.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):  # inside of jax.shard_map
        return None, math.prod(size for name, size in axes.mesh.shape.items() if name not in axes.manual_axes)
    exported = context.module_context.lowering_parameters.for_export  # and may be called on more devices
    return axes.num_devices, None if exported else axes.num_devices


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

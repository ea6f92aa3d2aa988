"""Single position: one matrix product, if the image or the result has one position along each axis.

If the result has one position along an axis, each tap reads one input, and the product sums over the taps. If the image
has one, each tap contributes to one position of the result, and the product has columns for each tap. Either way, each
number of the kernel is used once for each image, so there are no windows to gather.
"""

import math
import string
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ...._common.types import Array, Precision, Shape
from ..form import Form, Type


def applies(form: Form) -> bool:
    """Return whether the image or the result has one position along each axis, and some tap is on the image."""
    return all(1 in (axis.size, axis.outputs) and axis.inside > 0 for axis in form.axes)


def conv(image: Array, kernel: Array, form: Form) -> Array:
    """Return the convolution. All maps expect a form without taps that only read padding."""
    out = jax.typeof(image).update(shape=form.result(image, kernel))
    return _product({"image": image, "kernel": kernel}, "result", out, form)


def input_grad(kernel: Array, g: Array, form: Form) -> Array:
    """Return the input gradient."""
    out = jax.typeof(g).update(shape=form.image(g, kernel))
    return _product({"kernel": kernel, "result": g}, "image", out, form)


def kernel_grad(image: Array, g: Array, form: Form) -> Array:
    """Return the kernel gradient."""
    out = jax.typeof(image).update(shape=form.kernel(image, g))
    return _product({"image": image, "result": g}, "kernel", out, form)


def _product(arrays: dict[str, Array], role: str, out: Type, form: Form) -> Array:
    """Return the array `role`, of type `out`, from the other two."""
    # Letters of the axes for einsum: b is the batch, g the groups, i and o the channels, and capitals are taps.
    taps = string.ascii_uppercase[: len(form.axes)]
    read, written = (
        "".join(letter for letter, axis in zip(taps, form.axes, strict=True) if (axis.outputs == 1) == is_read)
        for is_read in (True, False)
    )
    labels = {"image": f"b{read}gi", "kernel": f"{taps}igo", "result": f"b{written}go"}
    sizes: dict[str, Any] = {"g": form.groups}
    operands = {}
    for name, array in arrays.items():
        used = _used(array, name, form)
        sizes |= _sizes(used.shape, name, taps, labels[name], form)
        operands[name] = used.reshape([sizes[label] for label in labels[name]])
    if form.groups == 1:
        y = _matrix_product(operands, labels, form.precision)
    else:
        subscripts = f"{','.join(labels[name] for name in arrays)}->{labels[role]}"
        y = jnp.einsum(subscripts, *operands.values(), precision=form.precision)
    like = jax.eval_shape(lambda x: _used(x, role, form), out)
    return jax.linear_transpose(lambda x: _used(x, role, form), out)(y.reshape(like.shape))[0]  # type: ignore[no-any-return]


def _matrix_product(operands: dict[str, Array], labels: dict[str, str], precision: Precision) -> Array:
    """Return the product without groups as one of two matrices. XLA is slower for products of arrays with more axes.

    The image becomes a matrix `(b, read)`, the kernel `(read, written)` and the result `(b, written)`.
    """
    read, written = (labels[name][1:].replace("g", "") for name in ("image", "result"))
    shapes = {"image": ("b", read), "kernel": (read, written), "result": ("b", written)}
    matrices: dict[str, Array] = {}
    sizes: dict[str, Any] = {}
    for name, operand in operands.items():
        sizes |= dict(zip(labels[name], operand.shape, strict=True))
        rows, columns = shapes[name]
        operand = operand.squeeze(labels[name].index("g"))
        own = labels[name].replace("g", "")
        operand = operand.transpose([own.index(label) for label in rows + columns])
        matrices[name] = operand.reshape(math.prod(sizes[label] for label in rows), -1)
    missing = next(name for name in shapes if name not in operands)
    if missing == "result":
        y = jnp.dot(matrices["image"], matrices["kernel"], precision=precision)
    elif missing == "image":
        y = jnp.dot(matrices["result"], matrices["kernel"].T, precision=precision)
    else:
        y = jnp.dot(matrices["image"].T, matrices["result"], precision=precision)
    merged = "".join(shapes[missing])
    own = labels[missing].replace("g", "")
    return y.reshape([sizes[label] for label in merged]).transpose([merged.index(label) for label in own])


def _sizes(shape: Shape, role: str, taps: str, labels: str, form: Form) -> dict[str, Any]:
    """Return the size of each letter of an array with this shape."""
    *spatial, last = shape if role == "kernel" else shape[1:]
    sizes = dict(zip(taps, spatial, strict=False)) | {labels[-1]: last // form.groups}
    sizes = {label: size for label, size in sizes.items() if label in labels}
    return sizes | ({"i": shape[-2]} if role == "kernel" else {"b": shape[0]})


def _used(array: Array, role: str, form: Form) -> Array:
    """Return the entries of an array that take part, with spatial axes in the order of the taps.

    The map is linear; its transpose puts a result in its place, among zeros.
    """
    for i, axis in enumerate(form.axes, start=0 if role == "kernel" else 1):
        if axis.outputs == 1:
            if role == "image":  # tap t reads input t * dilation - lo
                array = lax.slice_in_dim(array, -axis.lo, axis.extent - axis.lo, axis.dilation, axis=i)
            continue
        # Tap t contributes to position (lo - t * dilation) / stride, if this is an integer. The first and the last do.
        common = math.gcd(axis.stride, axis.dilation)
        every, step = axis.stride // common, axis.dilation // common
        if role == "kernel":
            array = lax.slice_in_dim(array, 0, axis.window, every, axis=i)
        elif role == "result":
            last = axis.lo // axis.stride
            first = last - (axis.window - 1) // every * step
            array = lax.rev(lax.slice_in_dim(array, first, last + 1, step, axis=i), (i,))
    return array

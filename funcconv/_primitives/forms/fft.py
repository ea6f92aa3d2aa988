"""FFT: the three maps as products of spectra, which fast Fourier transforms compute.

On circles (see `circles.py`), each map is a convolution or a correlation, and so the product of the spectra of its
operands. A correlation needs the spectrum of the reversed second operand.

Rounding errors are relative to the norms of the operands, not to each number of the result. Infinities and NaNs spread
to all numbers that are computed from the same spectrum.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.types import Array, Precision, Shape
from ..._windows.pieces import Cut, loop_over, piece
from .circles import LABELS, Circle, arranged, read
from .form import Form, Type
from .problem import Problem

Begins: TypeAlias = dict[str, Any]  # the first index of a block along the axis of each label

_XLA_AXES = 3  # axes of one FFT of XLA
_BLOCK_NUMBERS = 2**18  # numbers in the spectra of a block, unless operands and result have more
# Up to this number of channels, products are summed elementwise, since XLA's complex matrix product is slower then.
_MOST_SUMMED_CHANNELS = 16
# Measured limits for the choice of this form. Other forms compute more operations a second, above all shifted sums and
# products of matrices with many channels.
_MANY_PRODUCTS = 2**25  # with fewer products, an FFT saves no time
_FEWER_OPERATIONS = 4  # an FFT must take this many times fewer operations than other forms,
_FEWER_THAN_SHIFTED_SUM = 8  # this many times for depthwise kernels,
_FEWER_PER_CHANNEL = 2  # and this many times per channel (geometric mean of input and output channels)


def conv(image: Array, kernel: Array, form: Form, *, stack: int, blocks: bool) -> Array:
    """Return the convolution.

    Args:
        image: `(*stack, batch, *spatial, in)`.
        kernel: `(*stack, *window, in // groups, out)`.
        form: the convolution.
        stack: number of leading axes along which each image has its own kernel.
        blocks: whether loops may compute the result block by block, to save memory.

    Returns:
        `(*stack, batch, *positions, out)`.
    """
    out = jax.typeof(image).update(shape=(*image.shape[: stack + 1], *form.positions, kernel.shape[-1]))
    return _product({"image": image, "kernel": kernel}, "result", out, form, stack=stack, blocks=blocks)


def input_grad(kernel: Array, g: Array, form: Form, *, stack: int, blocks: bool) -> Array:
    """Return the input gradient."""
    shape = (*g.shape[: stack + 1], *form.spatial, kernel.shape[-2] * form.groups)
    out = jax.typeof(g).update(shape=shape)
    return _product({"kernel": kernel, "result": g}, "image", out, form, stack=stack, blocks=blocks)


def kernel_grad(image: Array, g: Array, form: Form, *, stack: int, blocks: bool) -> Array:
    """Return the kernel gradient."""
    shape = (*image.shape[:stack], *form.window, image.shape[-1] // form.groups, g.shape[-1])
    out = jax.typeof(image).update(shape=shape)
    return _product({"image": image, "result": g}, "kernel", out, form, stack=stack, blocks=blocks)


def operations(problem: Problem) -> float:
    """Return an estimate of the additions and multiplications of real numbers that each of the three maps takes.

    The FFT of n numbers takes 2.5 n log2(n). There is one for each image and channel, each pair of channels of the
    kernel, and each result and channel. The product of two complex numbers and its addition to a sum take 8, for half
    of the n numbers of a spectrum.
    """
    n = math.prod(Circle.of(axis).length for axis in problem.form.axes)
    batch = problem.batch if isinstance(problem.batch, int) else 1
    inputs = problem.inputs * math.prod(axis.stride for axis in problem.form.axes)
    transforms = batch * inputs + inputs * problem.outputs + batch * problem.outputs
    return problem.form.groups * n * (2.5 * math.log2(n) * transforms + 4 * batch * inputs * problem.outputs)


def is_faster(problem: Problem) -> bool:
    """Return whether this form takes so few operations, compared with other forms, that it is faster on the CPU.

    Other forms take a multiplication and an addition for each tap of each window that is on the image.
    """
    if not problem.can_cut_batch or problem.products < _MANY_PRODUCTS:
        return False
    others = 2 * problem.products * problem.filled
    channels = math.sqrt(problem.inputs * problem.outputs)
    fewer = _FEWER_THAN_SHIFTED_SUM if problem.depthwise else _FEWER_OPERATIONS
    return others >= max(fewer, _FEWER_PER_CHANNEL * channels) * operations(problem)


def _product(arrays: dict[str, Array], role: str, out: Type, form: Form, *, stack: int, blocks: bool) -> Array:
    """Return the gradient of the trilinear form by the array `role`, of type `out`, from the other two arrays."""
    circles = tuple(map(Circle.of, form.axes))
    lengths = tuple(circle.length for circle in circles)
    operands = {name: arranged(array, name, form, stack) for name, array in arrays.items()}
    sizes = {label: size for name, x in operands.items() for label, size in zip(LABELS[name], x.shape, strict=False)}
    (summed,) = sizes.keys() - set(LABELS[role])
    numbers = sum(math.prod(size for size in x.shape if isinstance(size, int)) for x in (*arrays.values(), out))
    most = max(numbers, _BLOCK_NUMBERS) // math.prod(lengths)
    cuts = _cuts(sizes, summed, most if blocks else None)
    first, second = (
        _spectrum_of_blocks(x, name, cuts, lengths, reverse=reverse)
        for (name, x), reverse in zip(operands.items(), (False, role != "image"), strict=True)
    )
    is_real = not jnp.issubdtype(out.dtype, jnp.complexfloating)

    def spectrum(begins: Begins) -> Array:
        """Return the spectrum of a block of the result."""

        def term(at: Sequence[Any]) -> Array:
            begin = begins | {summed: at[0]}
            roles = tuple(arrays)
            return _summed_products(first(begin), second(begin), roles, summed, form.precision)

        if cuts[summed].pieces == 1:
            return term([0])
        total = jax.eval_shape(lambda: term([0]))
        return loop_over([cuts[summed]], lambda at, y: y + term(at), jnp.zeros(total.shape, total.dtype))

    def block(at: Sequence[Any]) -> Array:
        begins = dict(zip(LABELS[role], at, strict=True))
        return read(_inverse(spectrum(begins), lengths, is_real=is_real), role, circles)

    def put(at: list[Any], y: Array) -> Array:
        begins = (*at, *[0] * len(circles))
        return lax.dynamic_update_slice(y, block(at), begins, allow_negative_indices=False)

    own_cuts = [cuts[label] for label in LABELS[role]]
    if all(cut.pieces == 1 for cut in own_cuts):
        y = block([0] * len(own_cuts))
    else:
        shape = (*(sizes[label] for label in LABELS[role]), *(getattr(circle, role) for circle in circles))
        y = loop_over(own_cuts, put, jnp.zeros(shape, out.dtype))
    return jax.linear_transpose(lambda x: arranged(x, role, form, stack), out)(y)[0]  # type: ignore[no-any-return]


def _cuts(sizes: dict[str, Any], summed: str, most: int | None) -> dict[str, Cut]:
    """Return equal pieces of each axis such that the three spectra of a block have at most `most` channels in all.

    No transform is computed twice if groups or summed channels are cut, so these are cut first. Without a limit, and
    along axes of unknown size, there is one piece.
    """
    pieces = dict.fromkeys(sizes, 1)
    known = {label: size if isinstance(size, int) else 1 for label, size in sizes.items()}

    def left(label: str) -> int:
        return known[label] // pieces[label]

    def channels() -> int:
        return sum(math.prod(map(left, labels)) for labels in LABELS.values())

    while most is not None and channels() > most:
        label = next((label for label in ("g", summed) if left(label) > 1), max("bio", key=left))
        if left(label) == 1:
            break
        pieces[label] = next(n for n in range(pieces[label] + 1, known[label] + 1) if known[label] % n == 0)
    return {label: Cut(0, pieces[label], size // pieces[label]) for label, size in sizes.items()}


def _spectrum_of_blocks(
    x: Array, role: str, cuts: dict[str, Cut], lengths: Shape, *, reverse: bool
) -> Callable[[Begins], Array]:
    """Return a function that returns the spectrum of a block. If there is one block, its spectrum is computed once."""
    cut_axes = {axis: label for axis, label in enumerate(LABELS[role]) if cuts[label].pieces > 1}
    if not cut_axes:
        whole = _spectrum(x, lengths, reverse=reverse)
        return lambda _: whole

    def of_block(begins: Begins) -> Array:
        block = x
        for axis, label in cut_axes.items():
            block = piece(block, begins[label], cuts[label].size, axis)
        return _spectrum(block, lengths, reverse=reverse)

    return of_block


def _spectrum(x: Array, lengths: Shape, *, reverse: bool) -> Array:
    """Return the spectrum of an array, extended by zeros to `lengths` along its last axes; of real numbers one half.

    Args:
        x: the array.
        lengths: the lengths of the circles.
        reverse: whether to return the spectrum of the array with its indices negated.
    """
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        for axes in _axes(lengths):
            sizes = tuple(lengths[axis] for axis in axes)
            x = jnp.fft.ifftn(x, sizes, axes, "forward") if reverse else jnp.fft.fftn(x, sizes, axes)
        return x
    last, *others = _axes(lengths)
    x = jnp.fft.rfftn(x, tuple(lengths[axis] for axis in last), last)
    for axes in others:
        x = jnp.fft.fftn(x, tuple(lengths[axis] for axis in axes), axes)
    return jnp.conj(x) if reverse else x


def _inverse(x: Array, lengths: Shape, *, is_real: bool) -> Array:
    """Return the array that has this spectrum."""
    last, *others = _axes(lengths)
    for axes in reversed(others):
        x = jnp.fft.ifftn(x, axes=axes)
    return jnp.fft.irfftn(x, tuple(lengths[axis] for axis in last), last) if is_real else jnp.fft.ifftn(x, axes=last)


def _axes(lengths: Shape) -> list[tuple[int, ...]]:
    """Return the axes of the circles, counted from the end, in parts that one FFT of XLA can transform."""
    n = len(lengths)
    return [tuple(range(max(end - _XLA_AXES, -n), end)) for end in range(0, -n, -_XLA_AXES)]


def _summed_products(a: Array, b: Array, roles: tuple[str, ...], summed: str, precision: Precision) -> Array:
    """Return the products of two spectra, summed over the axis of the label that both have and the result does not."""
    a_labels, b_labels = (LABELS[role] for role in roles)
    size = a.shape[a_labels.index(summed)]
    if not isinstance(size, int) or size > _MOST_SUMMED_CHANNELS:
        labels = "".join(label for label in "bgio" if label != summed)
        return jnp.einsum(f"{a_labels}...,{b_labels}...->{labels}...", a, b, precision=precision)
    a, b = (
        jnp.expand_dims(x, [i for i, label in enumerate("bgio") if label not in labels])
        for x, labels in ((a, a_labels), (b, b_labels))
    )
    return (a * b).sum("bgio".index(summed))

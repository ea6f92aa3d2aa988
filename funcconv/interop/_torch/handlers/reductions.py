"""Operations that reduce axes, and products of matrices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Number
from .. import ops
from ..tensors import BATCH, Tensor
from ..translation import Translation, as_tuple
from .elementwise import binary

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


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
    op: Callable[..., Any], position: Callable[..., Any], translation: Translation, x: Tensor, *args: Any, **options: Any
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


def arg_extreme(op: Callable[..., Any], translation: Translation, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
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


# products ------------------------------------------------------------------------------------------------------


def matmul(translation: Translation, a: Tensor, b: Tensor) -> Tensor:
    """Translate a product of matrices, of which all leading axes are broadcast."""
    if b.rank == 1:
        return _squeezed(matmul(translation, a, b.with_axes([*b.axes, ()])), -1)
    if a.rank == 1:
        return _squeezed(matmul(translation, a.with_axes([(), *a.axes]), b), -2)
    rank = max(a.rank, b.rank)
    letters = _LETTERS[:rank - 2]
    left, right = letters[rank - a.rank :], letters[rank - b.rank :]
    return contracted(translation, [left + "YX", right + "XZ"], letters + "YZ", [a, b])


def _squeezed(x: Tensor, dim: int) -> Tensor:
    return x.with_axes([part for axis, part in enumerate(x.axes) if axis != dim + x.rank])


def contracted(translation: Translation, inputs: Sequence[str], output: str, operands: Sequence[Tensor]) -> Tensor:
    """Return sums of products in Einstein's notation for PyTorch's axes, computed on the stored axes as they are.

    Args:
        translation: the translation.
        inputs: the letters of each operand's axes; an axis of size 1 is broadcast.
        output: the letters of the result.
        operands: the operands.

    Returns:
        The result, stored with its axes in the order of `output`.
    """
    operands = _with_common_factors(translation, inputs, operands)
    stored_letters: dict[tuple[str, int], str] = {}
    sizes: dict[str, int] = {}
    batched: dict[str, tuple[int, ...]] = {}

    def letters_of(x: Tensor, letter: str, axis: int) -> list[tuple[int, str]]:
        pairs = []
        for k, i in enumerate(x.factors(axis)):
            name = stored_letters.setdefault((letter, k), _LETTERS[len(stored_letters) % len(_LETTERS)])
            sizes[name] = x.sizes[i]
            pairs.append((i, name))
        return pairs

    texts = []
    for x, text in zip(operands, inputs, strict=True):
        names: dict[int, str] = {}
        for axis, letter in enumerate(text):
            names |= letters_of(x, letter, axis)
            if BATCH in x.axes[axis]:
                kept = tuple(i for i in x.axes[axis] if i == BATCH or x.sizes[i] != 1)
                batched[letter] = kept
        texts.append("".join(names[i] for i in sorted(names)))
    if any(letter not in output for letter in batched):
        translation.refuse("it sums over the batch")
    result = ""
    axes: list[tuple[int, ...]] = []
    for letter in output:
        parts = [stored_letters[(letter, k)] for k in range(len(_LETTERS)) if (letter, k) in stored_letters]
        numbers = iter(range(len(result), len(result) + len(parts)))
        result += "".join(parts)
        pattern = batched.get(letter, (0,) * len(parts))
        axes.append(tuple(BATCH if i == BATCH else next(numbers) for i in pattern))
    arrays = []
    for x, text in zip(operands, texts, strict=True):
        kept_sizes = tuple(size for size in x.sizes if size != 1)
        arrays.append(x if kept_sizes == x.sizes else translation.compute(partial(ops.reshaped, shape=kept_sizes), (x,), kept_sizes, ()))
    op = partial(ops.einsum, subscripts=f"{','.join(texts)}->{result}")
    return translation.compute(op, arrays, tuple(sizes[name] for name in result), tuple(axes))


def _with_common_factors(translation: Translation, inputs: Sequence[str], operands: Sequence[Tensor]) -> list[Tensor]:
    """Merge the factors of those axes that have others in another operand."""
    result = list(operands)
    for letter in dict.fromkeys("".join(inputs)):
        places = [(n, text.index(letter)) for n, text in enumerate(inputs) if letter in text]
        divided = {
            tuple(BATCH if i == BATCH else result[n].sizes[i] for i in result[n].axes[axis] if i == BATCH or result[n].sizes[i] != 1)
            for n, axis in places
            if not result[n].is_unit(axis)
        }
        if len(divided) > 1:
            for n, axis in places:
                if not result[n].is_unit(axis):
                    result[n] = translation.simple(result[n], axis)
    return result


def einsum(translation: Translation, equation: str, operands: Sequence[Tensor], **options: Any) -> Tensor:
    del options
    equation = equation.replace(" ", "")
    if "..." in equation:
        translation.refuse("an ellipsis in einsum")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    if not arrow:
        right = "".join(sorted(letter for letter in set(left) - {","} if left.count(letter) == 1))
    if any(len(set(text)) != len(text) for text in inputs):
        translation.refuse("a diagonal in einsum")
    return contracted(translation, inputs, right, operands)


def addmm(translation: Translation, bias: Tensor, a: Tensor, b: Tensor, *, beta: Number = 1, alpha: Number = 1) -> Any:
    product: Any = matmul(translation, a, b)
    if alpha != 1:
        product = binary(jnp.multiply, translation, product, alpha)
    if beta != 1:
        bias = binary(jnp.multiply, translation, bias, beta)
    return binary(jnp.add, translation, product, bias)


def attention(
    translation: Translation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: Number = 0.0,
    is_causal: bool = False,
    *,
    scale: Number | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa or dropout_p:
        translation.refuse("grouped queries, or dropout inside of the attention")
    tensors = [translation.as_pytorch(x) for x in (query, key, value)]
    sizes = (*tensors[0].sizes[:-1], tensors[2].sizes[-1])
    if attn_mask is not None:
        # The mask is broadcast to (*batch, queries, keys).
        mask = attn_mask.with_axes([*((),) * (query.rank - attn_mask.rank), *attn_mask.axes])
        tensors.append(translation.as_pytorch(mask))
    op = partial(ops.attention, scale=scale, causal=bool(is_causal))
    return translation.compute(op, tensors, sizes, tensors[0].axes)


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
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot"), matmul),
    "einsum": einsum,
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "scaled_dot_product_attention": attention,
}

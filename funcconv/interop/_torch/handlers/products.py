"""Products of matrices and of tensors, and attention."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp

from ...._common.types import Number
from .. import ops
from ..tensors import BATCH, Tensor
from ..translation import Translation
from .elementwise import binary

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def matmul(translation: Translation, a: Tensor, b: Tensor) -> Tensor:
    """Translate a product of matrices, of which all leading axes are broadcast."""
    if b.rank == 1:
        return _squeezed(matmul(translation, a, b.with_axes([*b.axes, ()])), -1)
    if a.rank == 1:
        return _squeezed(matmul(translation, a.with_axes([(), *a.axes]), b), -2)
    rank = max(a.rank, b.rank)
    letters = _LETTERS[: rank - 2]
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
    for x in operands:
        kept_sizes = tuple(size for size in x.sizes if size != 1)
        arrays.append(
            x
            if kept_sizes == x.sizes
            else translation.compute(partial(ops.reshaped, shape=kept_sizes), (x,), kept_sizes, ())
        )
    op = partial(ops.einsum, subscripts=f"{','.join(texts)}->{result}")
    return translation.compute(op, arrays, tuple(sizes[name] for name in result), tuple(axes))


def _with_common_factors(translation: Translation, inputs: Sequence[str], operands: Sequence[Tensor]) -> list[Tensor]:
    """Merge the factors of those axes that have others in another operand."""
    result = list(operands)
    for letter in dict.fromkeys("".join(inputs)):
        places = [(n, text.index(letter)) for n, text in enumerate(inputs) if letter in text]
        divided = {
            tuple(
                BATCH if i == BATCH else result[n].sizes[i]
                for i in result[n].axes[axis]
                if i == BATCH or result[n].sizes[i] != 1
            )
            for n, axis in places
            if not result[n].is_unit(axis)
        }
        if len(divided) > 1:
            for n, axis in places:
                if not result[n].is_unit(axis):
                    result[n] = translation.one_factor(result[n], axis)
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
        if mask.batch_axis is None and query.batch_axis is not None and not mask.is_unit(query.batch_axis):
            translation.refuse("a mask that differs from example to example")
        tensors.append(translation.stored(mask, [axis for axis in range(query.rank) if axis != query.batch_axis]))
    op = partial(ops.attention, scale=scale, causal=bool(is_causal))
    return translation.compute(op, tensors, sizes, tensors[0].axes)


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "dot", "vdot"), matmul),
    "einsum": einsum,
    **dict.fromkeys(("addmm", "baddbmm"), addmm),
    "scaled_dot_product_attention": attention,
}

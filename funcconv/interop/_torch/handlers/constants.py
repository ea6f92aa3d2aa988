"""Arrays that depend on nothing, and operations without a result."""

from collections.abc import Callable
from functools import partial
from typing import Any

from .. import ops
from ..tensors import Tensor
from ..translation import SymbolicSize, Translation


def filled(value: Any, translation: Translation, *args: Any, **options: Any) -> Tensor:
    """Translate an array of one number; the exported program says its shape."""
    del args, options
    shape = translation.shape()
    sizes = tuple(dim.size for dim in shape if not dim.batched)
    return translation.constant(partial(ops.filled, shape=sizes, value=value, dtype=translation.dtype()), shape)


def full(translation: Translation, like: Any, value: Any, *args: Any, **options: Any) -> Tensor:
    del like
    return filled(_number(translation, value), translation, *args, **options)


def new_full(translation: Translation, like: Any, size: Any, value: Any, *args: Any, **options: Any) -> Tensor:
    del like, size
    return filled(_number(translation, value), translation, *args, **options)


def empty(translation: Translation, *args: Any, **options: Any) -> Tensor:
    """Translate an array without numbers. One that has any is not defined before it is written."""
    if all(dim.size for dim in translation.shape()):
        translation.refuse("its numbers are undefined; use torch.zeros instead")
    return filled(0, translation, *args, **options)


def scalar_tensor(translation: Translation, value: Any, *args: Any, **options: Any) -> Tensor:
    return filled(_number(translation, value), translation, *args, **options)


def _number(translation: Translation, value: Any) -> Any:
    if not isinstance(value, bool | int | float):
        translation.refuse(f"the value {value}, which depends on the batch size or on an input")
    return value


def arange(translation: Translation, *args: Any, **options: Any) -> Tensor:
    del options
    if any(isinstance(arg, SymbolicSize) for arg in args):
        translation.refuse("a range of the batch size")
    numbers = list(args)
    start, stop, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    op = partial(ops.counted, start=start, stop=stop, step=step, dtype=translation.dtype())
    return translation.constant(op, translation.shape())


def linspace(translation: Translation, start: Any, end: Any, steps: int, **options: Any) -> Tensor:
    del options
    op = partial(ops.spaced, start=start, stop=end, count=steps, dtype=translation.dtype())
    return translation.constant(op, translation.shape())


def eye(translation: Translation, rows: int, columns: Any = None, **options: Any) -> Tensor:
    del options
    size = columns if isinstance(columns, int) else rows
    op = partial(ops.identity, rows=rows, columns=size, dtype=translation.dtype())
    return translation.constant(op, translation.shape())


def meshgrid(translation: Translation, tensors: Any, *, indexing: str = "ij") -> Any:
    ranks = len(tensors)
    order = [1, 0, *range(2, ranks)] if indexing == "xy" and ranks > 1 else list(range(ranks))
    values = translation.operation.meta["val"]
    results = []
    for k, x in enumerate(tensors):
        axes: list[tuple[int, ...]] = [()] * ranks
        axes[order.index(k)] = x.axes[0] if x.rank else ()
        results.append(_expanded(translation, x.with_axes(axes), values[k]))
    return results


def _expanded(translation: Translation, x: Tensor, value: Any) -> Tensor:
    sizes = tuple(dim.size for dim in translation.shape(value))
    stored = translation.stored(x, list(range(x.rank)))
    return translation.compute(partial(ops.broadcast, shape=sizes), (stored,), sizes, stored.axes)


def nothing(translation: Translation, *args: Any, **options: Any) -> None:
    """Translate an assertion: the exported program has checked it."""
    del translation, args, options


HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros"), partial(filled, 0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), partial(filled, 1)),
    **dict.fromkeys(("full", "full_like"), full),
    **dict.fromkeys(("empty", "empty_like", "new_empty"), empty),
    "new_full": new_full,
    "scalar_tensor": scalar_tensor,
    "arange": arange,
    "linspace": linspace,
    "eye": eye,
    "meshgrid": meshgrid,
    **dict.fromkeys(
        (
            "_assert_tensor_metadata",
            "_assert_async",
            "_assert_scalar",
            "sym_constrain_range",
            "sym_constrain_range_for_size",
            "_set_grad_enabled",
        ),
        nothing,
    ),
}

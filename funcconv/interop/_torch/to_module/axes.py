"""Functions that move numbers, and products of arrays, by the names under which files know them.

In a graph they see one example. Here their arrays have `lead` batch axes in front, one or none, from which axes are
counted.
"""

import string
from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np

from .example_axes import axes_of, axis_of, of_rank
from .images import indices, torch_dtype, wide
from .lazy_torch import functional, torch
from .norms import directions

# axes ----------------------------------------------------------------------------------------------------------


def _concatenate(*xs: Any, axis: int, lead: int) -> Any:
    return torch.cat(xs, axis_of(axis, xs[0], lead))


def _concat(*xs: Any, lead: int) -> Any:
    return _concatenate(*xs, axis=-1, lead=lead)


def _reshaped(x: Any, shape: Any, *, lead: int) -> Any:
    return x.reshape(*x.shape[:lead], *(shape if isinstance(shape, tuple | list) else (shape,)))


def _ravel(x: Any, *, lead: int) -> Any:
    return x.flatten(lead) if x.ndim > lead else x.unsqueeze(-1)


def _transposed(x: Any, axes: Any = None, *, lead: int) -> Any:
    order = range(x.ndim - 1, lead - 1, -1) if axes is None else axes_of(axes, x, lead)
    return x.permute(*range(lead), *order)


def _swapped(x: Any, axis1: int, axis2: int, *, lead: int) -> Any:
    return x.transpose(axis_of(axis1, x, lead), axis_of(axis2, x, lead))


def _moved(x: Any, source: Any, destination: Any, *, lead: int) -> Any:
    return x.movedim(axes_of(source, x, lead), axes_of(destination, x, lead))


def _squeezed(x: Any, axis: Any = None, *, lead: int) -> Any:
    axes = [i for i in range(lead, x.ndim) if x.shape[i] == 1] if axis is None else axes_of(axis, x, lead)
    return x.squeeze(tuple(axes)) if axes else x


def _flipped(x: Any, axis: Any = None, *, lead: int) -> Any:
    return x.flip(axes_of(axis, x, lead))


def _flipped_axes(x: Any, *, axes: Any, lead: int) -> Any:
    return _flipped(x, axes, lead=lead)


def _to_last(x: Any, *, lead: int) -> Any:
    return x.movedim(lead, -1)


def _to_first(x: Any, *, lead: int) -> Any:
    return x.movedim(-1, lead)


def _part(x: Any, *, axis: int, start: int, stop: int, step: int = 1, lead: int) -> Any:
    return x[(slice(None),) * axis_of(axis, x, lead) + (slice(start, stop, step),)]


def _broadcast(x: Any, *, shape: Any, lead: int) -> Any:
    x = of_rank(x, len(shape) + lead, lead)
    return x.expand(*x.shape[:lead], *shape)


def _padded(x: Any, *, pairs: Any, value: Any, lead: int) -> Any:
    del lead  # pairs are given from the last axis on
    return functional.pad(x, [n for pair in reversed(pairs) for n in pair], value=value)


def _padded_by(x: Any, *, pairs: Any, mode: str, lead: int) -> Any:
    for i, pair in enumerate(pairs):
        if any(pair):
            places = np.pad(np.arange(x.shape[lead + i]), pair, mode)  # type: ignore[call-overload]
            x = x.index_select(lead + i, indices(places.tolist(), x))
    return x


def _windows(x: Any, *, axis: int, size: int, step: int, dilation: int = 1, lead: int) -> Any:
    axis = axis_of(axis, x, lead)
    count = (x.shape[axis] - dilation * (size - 1) - 1) // step + 1
    places = [step * i + dilation * tap for i in range(count) for tap in range(size)]
    return x.index_select(axis, indices(places, x)).unflatten(axis, (count, size))


def _rolled(x: Any, *, shifts: Any, axes: Any, lead: int) -> Any:
    return x.roll(shifts, axes_of(axes, x, lead))


def _taken(x: Any, index: Any, *, axis: int, lead: int) -> Any:
    axis = axis_of(axis, x, lead)
    index = torch.where(index < 0, index + x.shape[axis], index)
    if not lead:
        return (
            x.index_select(axis, index.flatten()).unflatten(axis, index.shape) if index.ndim else x.select(axis, index)
        )
    # (batch, before, axis, after), of which each example is indexed by itself
    places = index.flatten(1) if index.ndim > 1 else index.unsqueeze(-1)
    wanted = [*x.shape[:axis], places.shape[1], *x.shape[axis + 1 :]]
    y = x.gather(
        axis, places.reshape(-1, *[1] * (axis - 1), places.shape[1], *[1] * (x.ndim - axis - 1)).expand(wanted)
    )
    return y.unflatten(axis, index.shape[1:]) if index.ndim > 1 else y.squeeze(axis)


def _indexed(x: Any, *arrays: Any, pattern: Any, lead: int) -> Any:
    if lead:
        return torch.stack([_indexed(*one, pattern=pattern, lead=0) for one in zip(x, *arrays, strict=True)])
    given = iter(arrays)
    return x[tuple(next(given) if is_array else slice(None) for is_array in pattern)]


def _resampled(x: Any, *, axis: int, index: Any, weights: Any, lead: int) -> Any:
    axis = axis_of(axis, x, lead)
    total: Any = 0
    numbers = wide(x)
    for places, factors in zip(zip(*index, strict=True), zip(*weights, strict=True), strict=True):
        column = torch.tensor(factors, dtype=numbers.dtype, device=x.device)
        total = total + numbers.index_select(axis, indices(places, x)) * column.reshape(-1, *[1] * (x.ndim - axis - 1))
    return total.to(x.dtype)


def _repeated(x: Any, *, axis: int, index: Sequence[int], lead: int) -> Any:
    return x.index_select(axis_of(axis, x, lead), indices(index, x))


# products ------------------------------------------------------------------------------------------------------


def _einsum(*xs: Any, subscripts: str, lead: int) -> Any:
    if lead:
        inputs, _, output = subscripts.partition("->")
        letter = next(letter for letter in string.ascii_letters if letter not in subscripts)
        subscripts = ",".join(letter + part for part in inputs.split(",")) + f"->{letter}{output}"
    return torch.einsum(subscripts, *xs)


def _attention(query: Any, key: Any, value: Any, *mask: Any, scale: Any, causal: bool, lead: int) -> Any:
    scores = query @ key.transpose(-1, -2) * (1 / sqrt(query.shape[-1]) if scale is None else scale)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = torch.where(allowed, scores, -torch.inf)
    for given in mask:
        given = of_rank(given, scores.ndim, lead)
        scores = torch.where(given, scores, -torch.inf) if given.dtype == torch.bool else scores + given
    return torch.softmax(scores, -1) @ value


def _matmul(a: Any, b: Any, *, lead: int) -> Any:
    """Multiply as `jax.numpy.matmul`: a vector is a row on the left and a column on the right."""
    row, column = a.ndim == lead + 1, b.ndim == lead + 1
    a, b = a.unsqueeze(-2) if row else a, b.unsqueeze(-1) if column else b
    rank = max(a.ndim, b.ndim)
    y = of_rank(a, rank, lead) @ of_rank(b, rank, lead)
    y = y.squeeze(-1) if column else y
    return y.squeeze(-1 if column else -2) if row else y


def _dot(a: Any, b: Any, *, lead: int) -> Any:
    """Multiply as `jax.numpy.dot`: the last axis of one with the last but one, or the only one, of the other."""
    left, right = a.ndim - lead, b.ndim - lead
    if not left or not right:
        rank = max(left, right) + lead
        return of_rank(a, rank, lead) * of_rank(b, rank, lead)
    a_letters = string.ascii_lowercase[:left]
    b_letters = string.ascii_lowercase[left : left + right]
    summed = b_letters[-min(right, 2)]
    b_letters = b_letters.replace(summed, a_letters[-1])
    output = a_letters[:-1] + b_letters.replace(a_letters[-1], "")
    return _einsum(a, b, subscripts=f"{a_letters},{b_letters}->{output}", lead=lead)


def _weight_norm(direction: Any, length: Any, *, axis: int | None, lead: int) -> Any:
    axes = tuple(i for i in range(lead, direction.ndim) if axis is None or i != axis + lead)
    return directions(direction, axes) * of_rank(length, direction.ndim, lead)


# constants -----------------------------------------------------------------------------------------------------


def _filled(*, shape: Any, value: Any, dtype: Any, lead: int) -> Any:
    del lead
    return torch.full(shape, value, dtype=torch_dtype(dtype))


def _counted(*, start: Any, stop: Any, step: Any, dtype: Any, lead: int) -> Any:
    del lead
    return torch.arange(start, stop, step, dtype=torch_dtype(dtype))


def _spaced(*, start: Any, stop: Any, count: int, dtype: Any, lead: int) -> Any:
    del lead
    return torch.linspace(start, stop, count, dtype=torch_dtype(dtype))


def _identity(*, rows: int, columns: int, dtype: Any, lead: int) -> Any:
    del lead
    return torch.eye(rows, columns, dtype=torch_dtype(dtype))


def _listed(*, values: Any, shape: Any, dtype: Any, lead: int) -> Any:
    del lead
    return torch.tensor(np.array(values).tolist(), dtype=torch_dtype(dtype)).reshape(shape)


def _nothing(*, lead: int) -> Any:
    del lead
    return torch.zeros(())


AXES: dict[str, Callable[..., Any]] = {
    **{
        f"funcconv.torch.{function.__name__.strip('_')}": function
        for function in (
            _to_last,
            _to_first,
            _reshaped,
            _transposed,
            _concatenate,
            _part,
            _broadcast,
            _windows,
            _rolled,
            _taken,
            _indexed,
            _resampled,
            _repeated,
            _filled,
            _counted,
            _spaced,
            _identity,
            _listed,
            _nothing,
            _einsum,
            _attention,
            _weight_norm,
        )
    },
    "funcconv.torch.pad": _padded,
    "funcconv.torch.pad_by": _padded_by,
    "funcconv.torch.flipped": _flipped_axes,
    "funcconv.concat": _concat,
    "jax.numpy.reshape": _reshaped,
    "jax.numpy.ravel": _ravel,
    "jax.numpy.transpose": _transposed,
    "jax.numpy.swapaxes": _swapped,
    "jax.numpy.moveaxis": _moved,
    "jax.numpy.squeeze": _squeezed,
    "jax.numpy.flip": _flipped,
    "jax.numpy.dot": _dot,
    "jax.numpy.matmul": _matmul,
    "operator.matmul": _matmul,
}

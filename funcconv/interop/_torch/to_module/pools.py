"""Pools on tensors: the counterparts of `funcconv.pool`, `global_pool` and `adaptive_pool`."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from ...._ops.pooling.adaptive import adaptive_bins
from ...._windows.geometry import Axis, pad_modes, per_axis, resolve
from .images import Image, image, is_narrow, is_symmetric, padded, wide, windows
from .lazy_torch import functional, torch

_MOST_SPATIAL_AXES = 3  # of PyTorch's pools


class Reduction(NamedTuple):
    """The reduction of a window, with the options of `funcconv.pool`."""

    reduce: str | Callable[..., Any]
    ties: str
    p: Any
    temperature: Any

    @property
    def selects_first(self) -> bool:
        """Whether the result is one tap, the first of equal taps."""
        return self.reduce in ("max", "min") and self.ties == "first"

    def neutral(self, x: Any) -> Any:
        """Return the number that padding contains."""
        if self.reduce in ("max", "lse", "min", "median"):
            sign = -1 if self.reduce in ("max", "lse") else 1
            if x.is_floating_point():
                return sign * math.inf
            return torch.iinfo(x.dtype).min if sign < 0 else torch.iinfo(x.dtype).max
        return 1 if self.reduce == "prod" else 0

    def __call__(self, taps: Any, counts: Any) -> Any:
        """Return the reduced last axis; `counts` is how many of its taps take part."""
        if self.reduce in ("max", "min"):
            if self.ties == "split":
                return taps.amax(-1) if self.reduce == "max" else taps.amin(-1)
            return (taps.max(-1) if self.reduce == "max" else taps.min(-1)).values
        if not isinstance(self.reduce, str):
            return self.reduce(taps, axis=-1, lead=0)
        return _BY_NAME[self.reduce](self, wide(taps), counts).to(taps.dtype)


def _lp(reduction: Reduction, taps: Any, counts: Any) -> Any:
    del counts
    if reduction.p == math.inf:
        return Reduction("max", reduction.ties, 2, 1.0)(taps.abs(), None)
    return torch.linalg.vector_norm(taps, reduction.p, dim=-1)


def _lse(reduction: Reduction, taps: Any, counts: Any) -> Any:
    del counts
    return float(reduction.temperature) * torch.logsumexp(taps / float(reduction.temperature), -1)


def _median(reduction: Reduction, taps: Any, counts: Any) -> Any:
    """Return the lower median. Padding is infinite, so it is sorted last."""
    del reduction
    middle = (counts - 1) // 2
    ordered = torch.sort(taps, dim=-1, stable=True).values
    middle = middle.to(taps.device).expand(taps.shape[:-1]).unsqueeze(-1)
    value = ordered.gather(-1, middle).squeeze(-1)
    return torch.where(taps.isnan().any(-1), math.nan, value) if taps.is_floating_point() else value


_BY_NAME: dict[str, Callable[[Reduction, Any, Any], Any]] = {
    "sum": lambda _, taps, __: taps.sum(-1),
    "mean": lambda _, taps, counts: taps.sum(-1) / counts.to(taps),
    "prod": lambda _, taps, __: taps.prod(-1),
    "lp": _lp,
    "lse": _lse,
    "median": _median,
}


def pool(
    x: Any,
    window: Any = 2,
    *,
    reduce: Any = "max",
    stride: Any = None,
    pad_mode: Any = None,
    ties: str = "first",
    p: Any = 2,
    temperature: Any = 1.0,
    count_include_pad: bool = False,
    ceil_mode: bool = False,
    return_indices: bool = False,
    nan: str = "propagate",
    spatial: int | None = None,
    layout: str | None = None,
    **geometry: Any,
) -> Any:
    """Reduce each window of each channel, as `funcconv.pool` with the same options.

    Args:
        x: `(*batch, *spatial, channels)`, or an array of another layout.
        window: taps of a window.
        reduce: how to reduce a window; a function takes the taps and `axis=-1`.
        stride: step from one window to the next.
        pad_mode: what the padding contains.
        ties: where the derivative of a maximum goes if several taps are equal.
        p: exponent of `"lp"`.
        temperature: of `"lse"`.
        count_include_pad: whether a mean divides by the taps on the padding too.
        ceil_mode: whether a last window may extend beyond the padded image.
        return_indices: whether to return also where each maximum was found.
        nan: has no counterpart: PyTorch keeps NaNs, as both choices may.
        spatial: number of spatial axes.
        layout: order of the axes.
        **geometry: padding and dilation.

    Returns:
        The result in the layout of `x`; with the indices, a pair.
    """
    del nan
    inside = image("pool", x, len(window) if isinstance(window, Sequence) else spatial, layout)
    stride = window if stride is None else stride
    axes = resolve("pool", inside.sizes, window, stride=stride, ceil_mode=ceil_mode, **geometry)
    modes = pad_modes("pool", pad_mode, len(axes), optional=True)
    reduction = Reduction(reduce, ties, p, temperature)
    of_library = _of_library(
        inside.array, axes, modes, reduction, ceil_mode=ceil_mode, counts_padding=count_include_pad
    )
    if of_library is not None and not return_indices:
        return inside.restore(of_library())
    taps = windows(padded(inside.array, axes, modes, reduction.neutral(inside.array)), axes)
    if return_indices:
        # The mode "zeros" fills with 0, which would be the place of a number, so places are shifted meanwhile.
        numbers = padded(_numbers(inside) + 1, axes, modes, 0) - 1
        return _with_indices(inside, reduction, taps, windows(numbers, axes))
    counts = [
        _tap_counts(axis, counted=count_include_pad or mode is not None) for axis, mode in zip(axes, modes, strict=True)
    ]
    return inside.restore(reduction(taps, _product(counts)))


def _of_library(
    x: Any,
    axes: Sequence[Axis],
    modes: Sequence[str | None],
    reduction: Reduction,
    *,
    ceil_mode: bool,
    counts_padding: bool,
) -> Callable[[], Any] | None:
    """Return the pool of PyTorch with these options; None if it has none."""
    n = len(axes)
    options = {
        "kernel_size": [axis.window for axis in axes],
        "stride": [axis.stride for axis in axes],
        "padding": [axis.lo for axis in axes],
        "ceil_mode": ceil_mode,
    }
    if n > _MOST_SPATIAL_AXES or not is_symmetric(axes, modes, None) or not x.is_floating_point():
        return None
    if reduction.selects_first and all(axis.lo <= axis.extent // 2 for axis in axes):
        apply = getattr(functional, f"max_pool{n}d")
        options["dilation"] = [axis.dilation for axis in axes]
        return lambda: apply(x, **options) if reduction.reduce == "max" else -apply(-x, **options)
    if reduction.reduce == "mean" and all(axis.lo <= axis.window // 2 and axis.dilation == 1 for axis in axes):
        apply = getattr(functional, f"avg_pool{n}d")
        return partial(apply, x, **options, count_include_pad=counts_padding)
    return None


def _tap_counts(axis: Axis, *, counted: bool) -> list[int]:
    """Return how many taps of each window take part; with `counted`, those on the padding do."""
    first = -axis.lo if counted else max(-axis.lo, 0)
    stop = axis.size + (axis.hi if counted else min(axis.hi, 0))
    starts = [o * axis.stride - axis.lo for o in range(axis.outputs)]
    return [sum(first <= start + tap * axis.dilation < stop for tap in range(axis.window)) for start in starts]


def _product(counts: Sequence[Sequence[int]]) -> Any:
    """Return the number of taps of each window, the product over the axes."""
    total = torch.ones((), dtype=torch.int64)
    for count in counts:
        total = total.unsqueeze(-1) * torch.tensor(count)
    return total


def _numbers(inside: Image) -> Any:
    """Return the place of each position of an image in row-major order, `(1, 1, *spatial)`."""
    count = math.prod(inside.sizes)
    return torch.arange(count, device=inside.array.device).reshape(1, 1, *inside.sizes)


def _with_indices(inside: Image, reduction: Reduction, taps: Any, numbers: Any) -> Any:
    """Return the largest or smallest tap of each window, and its place."""
    value, tap = taps.max(-1) if reduction.reduce == "max" else taps.min(-1)
    places = numbers.expand(taps.shape).gather(-1, tap.unsqueeze(-1)).squeeze(-1)
    return inside.restore(value), inside.restore(places.to(torch.int32))


def global_pool(
    x: Any,
    reduce: Any = "mean",
    *,
    ties: str = "first",
    p: Any = 2,
    temperature: Any = 1.0,
    return_indices: bool = False,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Reduce all spatial axes of each channel, as `funcconv.global_pool` with the same options.

    Args:
        x: `(*batch, *spatial, channels)`, or an array of another layout.
        reduce: how to reduce.
        ties: where the derivative of a maximum goes if several numbers are equal.
        p: exponent of `"lp"`.
        temperature: of `"lse"`.
        return_indices: whether to return also where each maximum was found.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        `(*batch, channels)`; with the indices, a pair.
    """
    inside = image("global_pool", x, spatial, layout)
    reduction = Reduction(reduce, ties, p, temperature)
    taps = inside.array.flatten(2)
    if return_indices:
        return _with_indices(inside, reduction, taps, _numbers(inside).flatten(2))
    return inside.restore(reduction(taps, torch.tensor(taps.shape[-1])))


def adaptive_pool(
    x: Any,
    output_size: Any,
    reduce: Any = "mean",
    *,
    ties: str = "first",
    p: Any = 2,
    temperature: Any = 1.0,
    return_indices: bool = False,
    spatial: int | None = None,
    layout: str | None = None,
) -> Any:
    """Pool the spatial axes to given sizes, as `funcconv.adaptive_pool` with the same options.

    Args:
        x: `(*batch, *spatial, channels)`, or an array of another layout.
        output_size: spatial sizes of the result.
        reduce: how to reduce each bin.
        ties: where the derivative of a maximum goes if several numbers are equal.
        p: exponent of `"lp"`.
        temperature: of `"lse"`.
        return_indices: whether to return also where each maximum was found.
        spatial: number of spatial axes.
        layout: order of the axes.

    Returns:
        The result in the layout of `x`; with the indices, a pair.
    """
    op = "adaptive_pool"
    inside = image(op, x, len(output_size) if isinstance(output_size, Sequence) else spatial, layout)
    n = len(inside.sizes)
    requested = output_size if isinstance(output_size, Sequence) else (output_size,) * n
    given = [size if output is None else output for size, output in zip(inside.sizes, requested, strict=True)]
    outputs = per_axis(op, "output_size", given, n, least=1)
    reduction = Reduction(reduce, ties, p, temperature)
    array = inside.array
    is_float = array.is_floating_point() and n <= _MOST_SPATIAL_AXES
    if reduce == "mean" and is_float:
        y = getattr(functional, f"adaptive_avg_pool{n}d")(wide(array) if is_narrow(array) else array, outputs)
        return inside.restore(y.to(array.dtype))
    if reduction.selects_first and is_float and not return_indices:
        sign = 1 if reduce == "max" else -1
        return inside.restore(sign * getattr(functional, f"adaptive_max_pool{n}d")(sign * array, outputs))
    numbers = _numbers(inside)
    values, places = [], []
    bins = itertools.product(*(adaptive_bins(*sizes) for sizes in zip(inside.sizes, outputs, strict=True)))
    for one in bins:
        part = (..., *(slice(start, stop) for start, stop in one))
        taps = array[part].flatten(2)
        if return_indices:
            value, tap = taps.max(-1) if reduce == "max" else taps.min(-1)
            places.append(numbers[part].flatten(2).expand(taps.shape).gather(-1, tap.unsqueeze(-1)).squeeze(-1))
        else:
            value = reduction(taps, torch.tensor(taps.shape[-1]))
        values.append(value)
    y = torch.stack(values, -1).unflatten(-1, outputs)
    if not return_indices:
        return inside.restore(y)
    return inside.restore(y), inside.restore(torch.stack(places, -1).unflatten(-1, outputs).to(torch.int32))

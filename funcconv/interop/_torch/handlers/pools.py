"""Pools, and the enlarging and reducing of images."""

from collections.abc import Callable
from functools import partial
from math import floor
from typing import Any

from ...._graph.declare.layers import Pool
from ...._ops.adaptive import adaptive_pool
from .. import ops
from ..tensors import Tensor
from ..translation import PendingRow, Translation, as_tuple

_CUBIC = -0.75  # the parameter a of PyTorch's cubic kernel (Keys, 1981)


def _image(translation: Translation, x: Tensor, spatial: int) -> Tensor:
    """Store `(batch, channels, *spatial)`, or what has fewer axes in front, with the channels last."""
    if x.is_weight:
        translation.refuse("of a weight")
    return translation.channels_last(x, spatial)


def max_pool(
    spatial: int,
    translation: Translation,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Tensor:
    options = {"dilation": as_tuple(dilation, spatial), "ceil_mode": ceil_mode}
    return _pool(translation, x, spatial, kernel_size, stride, padding, **options)


def max_pool_with_indices(spatial: int, translation: Translation, x: Tensor, *args: Any, **options: Any) -> Any:
    _refuse_indices(translation)
    return (max_pool(spatial, translation, x, *args, **options), None)


def _refuse_indices(translation: Translation) -> None:
    if any(item.args[1] != 0 and item.users for item in translation.operation.users):
        translation.refuse("the indices of a pool, which a graph does not have; compute without them")


def avg_pool(
    spatial: int,
    translation: Translation,
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Tensor:
    if divisor_override is not None:
        translation.refuse("divisor_override")
    options = {"reduce": "mean", "ceil_mode": ceil_mode, "count_include_pad": count_include_pad}
    return _pool(translation, x, spatial, kernel_size, stride, padding, **options)


def _pool(
    translation: Translation, x: Tensor, spatial: int, kernel_size: Any, stride: Any, padding: Any, **options: Any
) -> Tensor:
    x = _image(translation, x, spatial)
    window = as_tuple(kernel_size, spatial)
    stride = window if stride in (None, [], ()) else as_tuple(stride, spatial)  # PyTorch's default in its spellings
    layer = Pool(window, stride=stride, padding=as_tuple(padding, spatial), **options)
    return _image_row(translation, PendingRow(translation.new_name("pool"), None, (x.source,), layer=layer), x)


def _image_row(translation: Translation, row: PendingRow, x: Tensor) -> Tensor:
    channels, *sizes = (dim.size for dim in translation.shape()[1:])
    return translation.add(row, (*x.sizes[: translation.extra(x)], *sizes, channels), x.axes)


def adaptive(reduce: str, spatial: int, translation: Translation, x: Tensor, output_size: Any) -> Any:
    del output_size  # None keeps a size; the exported program has the numbers
    x = _image(translation, x, spatial)
    value = translation.operation.meta["val"]
    shape = translation.shape(value[0] if isinstance(value, list | tuple) else value)
    sizes = tuple(dim.size for dim in shape[2:])
    op = partial(adaptive_pool, output_size=sizes, reduce=reduce)
    y = translation.compute(op, (x,), (*x.sizes[: translation.extra(x)], *sizes, x.sizes[-1]), x.axes)
    if not isinstance(value, list | tuple):
        return y
    _refuse_indices(translation)
    return (y, None)


# resampling ----------------------------------------------------------------------------------------------------


def _factors(factors: Any, count: int) -> list[Any]:
    return [None] * count if factors is None else list(as_tuple(factors, count))


def _scale(size: int, new_size: int, factor: Any, *, align_corners: bool) -> float:
    """Return the distance of neighbouring samples, in places of the old axis."""
    if align_corners:
        return (size - 1) / (new_size - 1) if new_size > 1 else 0.0
    return 1 / factor if factor else size / new_size


def nearest(
    offset: float, translation: Translation, x: Tensor, output_size: Any = None, *factors: Any, **options: Any
) -> Tensor:
    """Translate an enlargement by the nearest neighbour, whose samples lie at `offset` in each place."""
    del output_size
    given = factors if factors else tuple(options.values())
    listed = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    shape = translation.shape()
    spatial = len(shape) - 2
    for axis, factor in zip(range(2, 2 + spatial), _factors(listed or None, spatial), strict=True):
        size, new_size = x.size(axis), shape[axis].size
        scale = _scale(size, new_size, factor, align_corners=False)
        index = tuple(min(floor((i + offset) * scale), size - 1) for i in range(new_size))
        x = _along(translation, x, axis, new_size, partial(ops.repeated, index=index))
    return x


def weighted(
    cubic: bool,
    translation: Translation,
    x: Tensor,
    output_size: Any,
    align_corners: bool,
    *factors: Any,
    **options: Any,
) -> Tensor:
    """Translate a linear or cubic interpolation, axis by axis."""
    del output_size
    given = factors if factors else tuple(options.values())
    listed = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    shape = translation.shape()
    spatial = len(shape) - 2
    taps = _cubic_taps if cubic else _linear_taps
    for axis, factor in zip(range(2, 2 + spatial), _factors(listed or None, spatial), strict=True):
        size, new_size = x.size(axis), shape[axis].size
        scale = _scale(size, new_size, factor, align_corners=align_corners)
        rows = [taps(i * scale if align_corners else (i + 0.5) * scale - 0.5, size) for i in range(new_size)]
        index, weights = tuple(row[0] for row in rows), tuple(row[1] for row in rows)
        x = _along(translation, x, axis, new_size, partial(ops.resampled, index=index, weights=weights))
    return x


def _along(translation: Translation, x: Tensor, axis: int, new_size: int, op: partial[Any]) -> Tensor:
    x = translation.simple(x, axis)
    (stored,) = x.axes[axis]
    sizes = (*x.sizes[:stored], new_size, *x.sizes[stored + 1 :])
    return translation.compute(partial(op, axis=stored), (x,), sizes, x.axes)


def _linear_taps(place: float, size: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    place = max(place, 0.0)
    low = min(int(place), size - 1)
    part = min(max(place - low, 0.0), 1.0)
    return (low, min(low + 1, size - 1)), (1 - part, part)


def _cubic_taps(place: float, size: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    low = floor(place)
    t = place - low

    def near(d: float) -> float:
        return ((_CUBIC + 2) * d - (_CUBIC + 3)) * d * d + 1

    def far(d: float) -> float:
        return ((_CUBIC * d - 5 * _CUBIC) * d + 8 * _CUBIC) * d - 4 * _CUBIC

    weights = (far(t + 1), near(t), near(1 - t), far(2 - t))
    return tuple(min(max(low + k, 0), size - 1) for k in (-1, 0, 1, 2)), weights


HANDLERS: dict[str, Callable[..., Any]] = {}
for _n, _linear in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    HANDLERS |= {
        f"max_pool{_n}d": partial(max_pool, _n),
        f"max_pool{_n}d_with_indices": partial(max_pool_with_indices, _n),
        f"avg_pool{_n}d": partial(avg_pool, _n),
        f"adaptive_avg_pool{_n}d": partial(adaptive, "mean", _n),
        f"_adaptive_avg_pool{_n}d": partial(adaptive, "mean", _n),
        f"adaptive_max_pool{_n}d": partial(adaptive, "max", _n),
        f"upsample_nearest{_n}d": partial(nearest, 0.0),
        f"_upsample_nearest_exact{_n}d": partial(nearest, 0.5),
        f"upsample_{_linear}": partial(weighted, False),
    }
HANDLERS["upsample_bicubic2d"] = partial(weighted, True)

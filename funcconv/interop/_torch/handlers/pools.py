"""Pools, and the enlarging and reducing of images."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...._graph.declare.layers import Pool
from ...._ops.pooling.adaptive import adaptive_pool
from ...._ops.resampling.resize import resize
from ..tensors import Tensor
from ..translation import PendingRow, Translation, as_tuple


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


def nearest(
    method: str, translation: Translation, x: Tensor, output_size: Any = None, *factors: Any, **options: Any
) -> Tensor:
    del output_size
    return _resized(translation, x, (*factors, *options.values()), method=method)


def interpolated(
    method: str,
    antialias: bool,
    translation: Translation,
    x: Tensor,
    output_size: Any,
    align_corners: bool,
    *factors: Any,
    **options: Any,
) -> Tensor:
    del output_size
    given = (*factors, *options.values())
    return _resized(translation, x, given, method=method, align_corners=align_corners, antialias=antialias)


def _resized(translation: Translation, x: Tensor, factors: Sequence[Any], **options: Any) -> Tensor:
    """Translate a resizing; `factors` are PyTorch's factors of the axes, one by one or in a list, or None."""
    shape = translation.shape()
    sizes = tuple(dim.size for dim in shape[2:])
    listed = factors[0] if len(factors) == 1 and isinstance(factors[0], list | tuple) else factors
    scales = tuple(factor for factor in listed if factor is not None)
    target = {"scale": as_tuple(scales, len(sizes))} if scales else {"size": sizes}
    if (x.batch_axis or 0) > 1:
        translation.refuse("along the batch axis")
    in_front = [axis for axis in (0, 1) if axis != x.batch_axis]
    x = translation.stored(x, [*in_front[:-1], *range(2, x.rank), in_front[-1]])
    op = partial(resize, **target, **options, spatial=len(sizes))
    return translation.compute(op, (x,), (*x.sizes[: -len(sizes) - 1], *sizes, x.sizes[-1]), x.axes)


HANDLERS: dict[str, Callable[..., Any]] = {}
for _n, _linear in ((1, "linear1d"), (2, "bilinear2d"), (3, "trilinear3d")):
    HANDLERS |= {
        f"max_pool{_n}d": partial(max_pool, _n),
        f"max_pool{_n}d_with_indices": partial(max_pool_with_indices, _n),
        f"avg_pool{_n}d": partial(avg_pool, _n),
        f"adaptive_avg_pool{_n}d": partial(adaptive, "mean", _n),
        f"_adaptive_avg_pool{_n}d": partial(adaptive, "mean", _n),
        f"adaptive_max_pool{_n}d": partial(adaptive, "max", _n),
        f"upsample_nearest{_n}d": partial(nearest, "nearest"),
        f"_upsample_nearest_exact{_n}d": partial(nearest, "nearest-exact"),
        f"upsample_{_linear}": partial(interpolated, "linear", False),
    }
HANDLERS |= {
    "upsample_bicubic2d": partial(interpolated, "cubic", False),
    "_upsample_bilinear2d_aa": partial(interpolated, "linear", True),
    "_upsample_bicubic2d_aa": partial(interpolated, "cubic", True),
}

"""Sizes of the images that a convolution maps to given positions, in integers only."""

import operator

from .._common.errors import FuncconvError
from .._common.types import Padding, Shape, Sizes
from .geometry import SAME_SIZE, padding_pair, per_axis


def transposed_sizes(
    op: str,
    outputs: Shape,
    window: Shape,
    *,
    size: Sizes | None,
    output_padding: Sizes | None,
    stride: Sizes,
    padding: Padding,
    dilation: Sizes,
) -> Shape:
    """Return the spatial sizes of the image that a convolution with these options maps to `outputs` positions.

    A stride above 1 maps several sizes to the same positions. `size` selects one, and `output_padding` gives its
    difference from the smallest. The default is the smallest, or `outputs * stride` for the paddings in `SAME_SIZE`. As
    in PyTorch, `output_padding` can be as large as `dilation - 1`; the convolution then has more windows.
    """
    n = len(window)
    if 0 in outputs:
        msg = f"{op}: spatial axis {outputs.index(0)} of the input is empty; its sizes are {tuple(outputs)}"
        raise FuncconvError(msg)
    if size is not None and output_padding is not None:
        msg = f"{op}: size and output_padding say the same thing, the size of the result; pass only one of them"
        raise FuncconvError(msg)
    strides = per_axis(op, "stride", stride, n, least=1)
    dilations = per_axis(op, "dilation", dilation, n, least=1)
    extents = tuple(1 + (k - 1) * d for k, d in zip(window, dilations, strict=True))
    smallest = tuple(_smallest(op, padding, i, n, count, extents[i], strides[i]) for i, count in enumerate(outputs))
    if size is not None:
        sizes = per_axis(op, "size", size, n, least=1)
    elif output_padding is not None:
        extra = per_axis(op, "output_padding", output_padding, n, least=0)
        sizes = tuple(map(operator.add, smallest, extra))
    elif padding in SAME_SIZE:
        sizes = tuple(map(operator.mul, outputs, strides))
    else:
        sizes = tuple(max(least, 1) for least in smallest)
    # The padding of SAME and SAME_LOWER depends on the size, so more than stride - 1 would change the positions.
    exceeds_stride = output_padding is not None and padding not in ("SAME", "SAME_LOWER")
    for i, (chosen, least, count, step) in enumerate(zip(sizes, smallest, outputs, strides, strict=True)):
        most = least + (max(step, dilations[i]) if exceeds_stride else step) - 1
        if most < 1:
            msg = (
                f"{op}: no image has {count} windows on spatial axis {i} with the padding {padding!r}: it crops all"
                "; crop less"
            )
            raise FuncconvError(msg)
        if exceeds_stride and not max(least, 1) <= chosen <= most:
            msg = (
                f"{op}: output_padding on spatial axis {i} can be {max(1 - least, 0)} to {most - least}, below the "
                f"larger of stride and dilation and so that a position is left; got {chosen - least}"
            )
            raise FuncconvError(msg)
        if not max(least, 1) <= chosen <= most:
            msg = (
                f"{op}: the result on spatial axis {i} can have {max(least, 1)} to {most} positions, those that the "
                f"convolution maps to the {count} given; got {chosen}"
            )
            raise FuncconvError(msg)
    return sizes


def _smallest(op: str, padding: Padding, axis: int, n: int, outputs: int, extent: int, stride: int) -> int:
    """Return the smallest size that has `outputs` windows. It can be below 1."""
    if padding in SAME_SIZE:
        return (outputs - 1) * stride + 1
    lo, hi = padding_pair(op, padding, axis, n, 1, extent, stride)  # the other paddings do not depend on the size
    return (outputs - 1) * stride + extent - lo - hi

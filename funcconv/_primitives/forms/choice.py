"""The choice of a form: the first row of a table whose condition holds.

The choice depends on the geometry, the dtype, and the platform, devices and libraries of the compiled program.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import stride_phases as _phases
from .problem import Problem

_FEW_PRODUCTS = 2**15  # up to so many, no form saves time, and XLA's own compiles fastest
_LARGE_KERNEL_TAPS = 64  # more are not unrolled into a slice each


class Row(NamedTuple):
    """A form, the condition for it, and the reason that `explain` shows."""

    form: str
    applies: Callable[[Problem], bool]
    why: str


def _xla(applies: Callable[[Problem], bool], why: str) -> Row:
    """Return a row for XLA's own form, which is skipped if XLA's partitioner would compute it wrongly."""
    return Row("lax", lambda p: not p.partitioned_wrongly and applies(p), why)


def _always(problem: Problem) -> bool:
    del problem
    return True


# The rows that the three tables share come first in each.
_STACK = Row("windows", lambda p: p.stack > 0, "each image has its own kernel: one batched product of gathered windows")
_ELSEWHERE = _xla(lambda p: p.where.platform != "cpu", "XLA's own form is fast on this platform")
# Inside jax.shard_map the loops of the other forms would mix types that vary over devices with types that do not.
_TYPED = _xla(lambda p: p.where.typed, "inside jax.shard_map, where XLA's own form has the sharding rules")
_DTYPE = _xla(
    lambda p: not jnp.issubdtype(p.dtype, jnp.inexact) or p.form.accumulate_dtype is not None,
    "integers, or an accumulate_dtype: only XLA's own form sums in another dtype",
)
_LITTLE = _xla(lambda p: isinstance(p.batch, int) and p.products <= _FEW_PRODUCTS, "small: nothing to gain")
_DEPTHWISE = "depthwise: a sum of shifted slices, where XLA has slow loops"
_LARGE_DEPTHWISE = "depthwise with many taps: a sum of shifted slices, block by block of the kernel"
_SLICES = "groups on several devices, where XLA's own form is wrong: a product for each tap"
_POINTWISE = "one tap: a matrix product"
_GROUPS = Row("groups", lambda p: p.form.groups > 1, "block-diagonal groups, where XLA has slow loops")
_DEFAULT = Row("lax", _always, "XLA's own form is fast")

CONV = (
    _STACK,
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    _LITTLE,
    _xla(lambda p: p.is_for_onednn and p.taps > 1, "oneDNN computes it"),
    # An input gradient computes all stride phases of one kernel, so their taps count together.
    Row(
        "taps",
        lambda p: p.depthwise and p.taps * p.phases <= _LARGE_KERNEL_TAPS * (1 if p.has_many_axes else 2),
        _DEPTHWISE,
    ),
    Row("rows", lambda p: p.depthwise and not p.has_one_axis, _LARGE_DEPTHWISE),
    _GROUPS,
    Row("product", lambda p: p.taps == 1 and not (p.has_one_axis and p.dtype == np.float32), _POINTWISE),
    Row(
        "blocks",
        lambda p: p.has_one_axis and p.dtype == np.float64 and p.can_cut_batch,
        "one axis in float64, where XLA has slow loops: blocked im2col",
    ),
    Row("blocks", lambda p: p.prefers_blocks, "small image or result, or few channels: blocked im2col"),
    Row(
        "planes",
        lambda p: p.has_many_axes and p.can_cut_batch and p.has_many_planes,
        "planes as channels of a convolution over one axis less: XLA is fast for up to two axes",
    ),
    Row("depth", lambda p: p.has_many_axes, "a sum of convolutions over one axis less: XLA is fast for up to two axes"),
    Row(
        "longer",
        lambda p: p.is_slow_unpadded or p.is_slow_padded,
        "XLA's own form with an extra row, since it is slow for this shape",
    ),
    _DEFAULT,
)

INPUT_GRAD = (
    _STACK,
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    _LITTLE,
    _xla(lambda p: _phases.too_many(p.form), "too many phases of stride and dilation"),
    Row("phases", _always, "a convolution of stride 1 for each phase of the stride"),
)

KERNEL_GRAD = (
    _STACK,
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    _LITTLE,
    # The other forms have loops, which JAX cannot type inside jax.shard_map.
    Row("slices", lambda p: p.partitioned_wrongly and p.where.typed, _SLICES),
    Row(
        "slices",
        lambda p: p.partitioned_wrongly and p.where.platform != "cpu" and p.taps <= 2 * _LARGE_KERNEL_TAPS,
        _SLICES,
    ),
    Row("taps", lambda p: p.depthwise, _DEPTHWISE),
    _xla(lambda p: not p.can_cut_batch, "the batch is symbolic or sharded, so it is not computed in blocks"),
    _GROUPS,
    Row("product", lambda p: p.taps == 1, _POINTWISE),
    Row(
        "turned",
        lambda p: p.prefers_exchanged_axes,
        "XLA's own form with batch and channels exchanged: many taps, small arrays or much padding",
    ),
    Row("mixed", lambda p: p.cheapest_gathering == "mixed", "blocked products of gathered windows of both operands"),
    Row("exchanged", lambda p: p.cheapest_gathering == "exchanged", "blocked products of gathered cotangent windows"),
    Row("blocks", _always, "blocked im2col: products of gathered image windows"),
)

CHOICES = {"conv": CONV, "conv_input_grad": INPUT_GRAD, "conv_kernel_grad": KERNEL_GRAD}


def choose(table: tuple[Row, ...], problem: Problem) -> Row:
    """Return the first row of the table that applies."""
    return next(row for row in table if row.applies(problem))

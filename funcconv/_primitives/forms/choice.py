"""The choice of a form: the measured one, or else the first row of a table whose condition holds.

The choice depends on the geometry, the dtype, and the platform, devices and libraries of the compiled program.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import fft as _fft
from . import stride_phases as _phases
from .candidates import candidates
from .measured import Key
from .problem import Problem
from .products import single_position as _single_position

_FEW_PRODUCTS = 2**15  # up to this number no form saves time, and XLA's own form compiles fastest
_MANY_OUTPUTS = 8  # of each channel of a depthwise kernel with three axes: one shape, which took 2 to 6 times as long
_LARGE_KERNEL_TAPS = 64  # kernels with more taps are not unrolled into one slice for each tap


class Row(NamedTuple):
    """A form, the condition for it, and the reason that `explain` shows."""

    form: str
    applies: Callable[[Problem], bool]
    why: str


def _xla(applies: Callable[[Problem], bool], why: str) -> Row:
    """Return a row for XLA's own form, which is skipped if XLA's partitioner would compute it wrongly."""
    return Row("lax", lambda problem: not problem.partitioned_wrongly and applies(problem), why)


def _always(problem: Problem) -> bool:
    del problem
    return True


# The rows that the three tables share come first in each.
_FFT = Row("fft", lambda problem: problem.form.implementation == "fft", 'implementation="fft"')
_STACK = Row(
    "batched_product",
    lambda problem: problem.stack > 0,
    "each image has its own kernel: one batched product of gathered windows",
)
_ELSEWHERE = _xla(lambda problem: problem.where.platform != "cpu", "XLA's own form is fast on this platform")
# Inside jax.shard_map the loops of the other forms would mix types that vary over devices with types that do not.
_TYPED = _xla(lambda problem: problem.where.typed, "inside jax.shard_map, where XLA's own form has the sharding rules")
_DTYPE = _xla(
    lambda problem: not jnp.issubdtype(problem.dtype, jnp.inexact) or problem.form.accumulate_dtype is not None,
    "integers or an accumulate_dtype, which XLA's own form supports",
)
_LITTLE = _xla(
    lambda problem: isinstance(problem.batch, int) and problem.products <= _FEW_PRODUCTS, "small: nothing to gain"
)
_LARGE_WINDOW = Row(
    "fft", _fft.is_faster, "large windows: products of spectra, which take many times fewer operations than other forms"
)
_ONE_POSITION = Row(
    "single_position",
    lambda problem: problem.taps > 1 and _single_position.applies(problem.form),
    "one position of the image or the result along each axis: a matrix product",
)
# Convolutions that XLA computes slowly on a GPU, measured on an H200 (benchmarks/results). cuDNN computes all others.
_GPU_DEPTHWISE = Row(
    "shifted_sum",
    lambda problem: problem.alone_on_gpu and problem.depthwise and problem.taps <= _LARGE_KERNEL_TAPS,
    "depthwise: a sum of shifted slices, in 0.1 to 0.7 of the time of XLA's own form on a GPU",
)
_GPU_ONE_POSITION = Row(
    "single_position",
    lambda problem: problem.alone_on_gpu and problem.form.groups == 1 and _ONE_POSITION.applies(problem),
    "one position of the image or the result along each axis: a matrix product",
)
_DEPTHWISE = "depthwise: a sum of shifted slices, where XLA has slow loops"
_LARGE_DEPTHWISE = "depthwise with many taps: a sum of shifted slices, block by block of the kernel"
_SLICES = "groups on several devices, where XLA's own form is wrong: a product for each tap"
_POINTWISE = "one tap: a matrix product"
_GROUPS = Row(
    "block_diagonal_groups", lambda problem: problem.form.groups > 1, "block-diagonal groups, where XLA has slow loops"
)
_DEFAULT = Row("lax", _always, "XLA's own form is fast")

CONV = (
    _FFT,
    _STACK,
    _GPU_ONE_POSITION,
    _GPU_DEPTHWISE,
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    # Such as one sample of a stream: calling the library takes longer than the product.
    _ONE_POSITION._replace(
        applies=lambda problem: _LITTLE.applies(problem) and _ONE_POSITION.applies(problem) and problem.form.groups == 1
    ),
    _LITTLE,
    _LARGE_WINDOW,
    # Large windows that cover the image are as fast in other forms, which sum their products.
    _ONE_POSITION._replace(
        applies=lambda problem: (
            _ONE_POSITION.applies(problem) and problem.form.groups == 1 and math.prod(problem.form.positions) > 1
        )
    ),
    _xla(lambda problem: problem.is_for_onednn and problem.taps > 1, "oneDNN computes it"),
    _xla(lambda problem: problem.has_fast_groups, "groups that XLA computes fast"),
    # An input gradient computes all stride phases of one kernel, so their taps count together.
    Row(
        "shifted_sum",
        lambda problem: (
            problem.depthwise
            and problem.taps * problem.phases <= _LARGE_KERNEL_TAPS * (1 if problem.has_many_axes else 2)
        ),
        _DEPTHWISE,
    ),
    Row("shifted_sum_by_rows", lambda problem: problem.depthwise and not problem.has_one_axis, _LARGE_DEPTHWISE),
    _GROUPS,
    Row(
        "matrix_product",
        lambda problem: problem.taps == 1 and not (problem.has_one_axis and problem.dtype == np.float32),
        _POINTWISE,
    ),
    Row(
        "blocked_im2col",
        lambda problem: problem.has_one_axis and problem.dtype == np.float64 and problem.can_cut_batch,
        "one axis in float64, where XLA has slow loops: blocked im2col",
    ),
    Row(
        "blocked_im2col",
        lambda problem: problem.prefers_blocks,
        "small image or result, or few channels: blocked im2col",
    ),
    Row(
        "planes",
        lambda problem: problem.has_many_axes and problem.can_cut_batch and problem.has_many_planes,
        "planes as channels of a convolution over one axis less: XLA is fast for up to two axes",
    ),
    Row(
        "sum_of_planes",
        lambda problem: problem.has_many_axes,
        "a sum of convolutions over one axis less: XLA is fast for up to two axes",
    ),
    Row(
        "lax_with_extra_row",
        lambda problem: problem.is_slow_unpadded or problem.is_slow_padded,
        "XLA's own form with an extra row, since it is slow for this shape",
    ),
    _DEFAULT,
)

INPUT_GRAD = (
    _FFT,
    _STACK,
    _GPU_ONE_POSITION,
    _GPU_DEPTHWISE._replace(
        form="stride_phases",
        applies=lambda problem: _GPU_DEPTHWISE.applies(problem) and not problem.form.strided,
        why="depthwise: a convolution of the cotangents, which is a sum of shifted slices",
    ),
    Row(
        "stride_phases",
        lambda problem: (
            problem.alone_on_gpu
            and problem.form.strided
            and problem.form.groups == 1
            and not _phases.too_many(problem.form)
        ),
        "a convolution of stride 1 for each phase of the stride: XLA multiplies zeros on some GPUs",
    ),
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    _LITTLE,
    _LARGE_WINDOW,
    _ONE_POSITION,
    _xla(lambda problem: _phases.too_many(problem.form), "too many phases of stride and dilation"),
    _xla(
        lambda problem: (
            problem.form.groups > 1 and problem.taps == 1 and not problem.form.strided and problem.has_xla_path
        ),
        "groups with one tap, which XLA computes fast",
    ),
    _xla(lambda problem: problem.mostly_pads_cotangents, "few cotangents: XLA skips the padding around them"),
    Row("stride_phases", _always, "a convolution of stride 1 for each phase of the stride"),
)

KERNEL_GRAD = (
    _FFT,
    _STACK,
    _GPU_ONE_POSITION,
    Row(
        "product_per_tap",
        lambda problem: _GPU_DEPTHWISE.applies(problem) and problem.dilated,
        "depthwise and dilated, where XLA is slow on a GPU: a sum of products for each tap",
    ),
    Row(
        "blocked_im2col",
        lambda problem: problem.alone_on_gpu and problem.dilated and problem.form.groups == 1,
        "dilated, where XLA is slow on a GPU: blocked im2col",
    ),
    _ELSEWHERE,
    _TYPED,
    _DTYPE,
    _LITTLE,
    _LARGE_WINDOW,
    _ONE_POSITION,
    # The other forms have loops, which JAX cannot type inside jax.shard_map.
    Row("product_per_tap", lambda problem: problem.partitioned_wrongly and problem.where.typed, _SLICES),
    Row(
        "product_per_tap",
        lambda problem: (
            problem.partitioned_wrongly and problem.where.platform != "cpu" and problem.taps <= 2 * _LARGE_KERNEL_TAPS
        ),
        _SLICES,
    ),
    Row(
        "shifted_sum",
        lambda problem: problem.depthwise and not (problem.has_many_axes and problem.outputs >= _MANY_OUTPUTS),
        _DEPTHWISE,
    ),
    _xla(
        lambda problem: not problem.can_cut_batch, "the batch is symbolic or sharded, so it is not computed in blocks"
    ),
    _GROUPS,
    Row("matrix_product", lambda problem: problem.taps == 1, _POINTWISE),
    Row(
        "exchanged_axes",
        lambda problem: problem.prefers_exchanged_axes,
        "XLA's own form with batch and channels exchanged: many taps, small arrays or much padding",
    ),
    Row(
        "blocked_im2col_of_both",
        lambda problem: problem.cheapest_gathering == "blocked_im2col_of_both",
        "blocked products of gathered windows of both operands",
    ),
    Row(
        "blocked_im2col_of_cotangents",
        lambda problem: problem.cheapest_gathering == "blocked_im2col_of_cotangents",
        "blocked products of gathered cotangent windows",
    ),
    Row("blocked_im2col", _always, "blocked im2col: products of gathered image windows"),
)

CHOICES = {"conv": CONV, "conv_input_grad": INPUT_GRAD, "conv_kernel_grad": KERNEL_GRAD}


_NAMES = {id(table): name for name, table in CHOICES.items()}

# `measure` sets this to a list. `choose` then appends each problem and the name of its map to the list.
chosen: ContextVar[list[tuple[str, Problem]] | None] = ContextVar("chosen", default=None)


def choose(table: tuple[Row, ...], problem: Problem) -> Row:
    """Return the measured form of a problem if there is one, or the first row of the table that applies."""
    name, measured = _NAMES[id(table)], problem.form.measured
    if (problems := chosen.get()) is not None:
        problems.append((name, problem))
    if measured is not None and problem.where.alone and problem.where.platform == measured.platform:
        form = measured.form(Key.of(name, problem))
        if form in candidates(name, problem):
            return Row(form, _always, "measured to be the fastest")
    return next(row for row in table if row.applies(problem))

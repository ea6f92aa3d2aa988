"""The forms that are correct for a problem, from which a measurement may choose."""

import jax.numpy as jnp

from . import fft as _fft
from . import stride_phases as _phases
from .problem import Problem
from .products import single_position as _single_position

_MOST_UNROLLED_TAPS = 256  # taps of a kernel; a form with one slice for each tap becomes a program of this length


def candidates(name: str, problem: Problem) -> tuple[str, ...]:
    """Return the forms in which a problem can be computed, on one device of any platform.

    They differ in time, in memory and in the last digits of their results. Forms whose programs would become very large
    are left out.

    Args:
        name: of the map: `"conv"`, `"conv_input_grad"` or `"conv_kernel_grad"`.
        problem: the problem.

    Returns:
        The names. There is only one if the operands allow no other form.
    """
    if problem.form.implementation is not None:
        return (problem.form.implementation,)
    if problem.stack:
        return ("batched_product",)
    if not jnp.issubdtype(problem.dtype, jnp.inexact) or problem.form.accumulate_dtype is not None:
        return ("lax",)
    if not isinstance(problem.batch, int):
        return ()
    # The errors of an FFT are relative to the norms of its operands, so it must not replace other forms at any size.
    names = ["lax", *_CANDIDATES[name](problem)]
    names += ["single_position"] if _single_position.applies(problem.form) else []
    return (*names, *(["fft"] if _fft.is_faster(problem) else []))


def _convs(problem: Problem) -> list[str]:
    form, n = problem.form, len(problem.form.axes)
    names: list[str] = []
    if form.groups > 1:
        names.append("block_diagonal_groups")
        if problem.depthwise and problem.taps <= _MOST_UNROLLED_TAPS:
            names.append("shifted_sum")
        if problem.depthwise and n > 1:
            names.append("shifted_sum_by_rows")
        return names
    names.append("blocked_im2col")
    if problem.taps == 1:
        names.append("matrix_product")
    if n > 1 and form.axes[0].window > 1:
        names += ["planes", "sum_of_planes"]
    if form.overlapping is not None:
        names.append("lax_with_extra_row")
    return names


def _input_grads(problem: Problem) -> list[str]:
    return [] if _phases.too_many(problem.form) else ["stride_phases"]


def _kernel_grads(problem: Problem) -> list[str]:
    form = problem.form
    names: list[str] = []
    if form.groups > 1:
        names.append("block_diagonal_groups")
        if problem.depthwise:
            names.append("shifted_sum")
        if problem.taps <= _MOST_UNROLLED_TAPS:
            names.append("product_per_tap")
        return names
    names += ["exchanged_axes", "blocked_im2col"]
    if problem.taps == 1:
        names.append("matrix_product")
    if form.axes[0].stride == 1:
        names.append("blocked_im2col_of_both")
    if not form.strided:
        names.append("blocked_im2col_of_cotangents")
    return names


_CANDIDATES = {"conv": _convs, "conv_input_grad": _input_grads, "conv_kernel_grad": _kernel_grads}

"""Which form a map of a convolution is computed in: the first row of its table that applies.

The choice depends on the geometry, the dtype, and where and with what the program is to run.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from . import stride_phases as _phases
from .problem import Problem

_TINY = 2**15  # products; below it nothing is gained, and what is compiled should be short
_UNROLLED = 64  # taps of a kernel that is not large


class Row(NamedTuple):
    """A form, when it is taken, and why."""

    form: str
    applies: Callable[[Problem], bool]
    why: str


def _xla(applies: Callable[[Problem], bool], why: str) -> Row:
    """Return a row that leaves the map to XLA, unless XLA would spread it over devices wrongly."""
    return Row("lax", lambda p: not p.wrongly_spread and applies(p), why)


_STACK = Row("windows", lambda p: p.stack > 0, "each image has a kernel of its own: one batched product")
_ELSEWHERE = _xla(lambda p: p.where.platform != "cpu", "XLA for this platform is fast")
_TYPED = _xla(lambda p: p.where.typed, "types say what differs from device to device: XLA's own has rules for them")
_DTYPE = _xla(
    lambda p: not jnp.issubdtype(p.dtype, jnp.inexact) or p.form.accumulate_dtype is not None,
    "sums in a dtype of their own",
)
_LITTLE = _xla(lambda p: isinstance(p.batch, int) and p.products <= _TINY, "little to compute")
_DEPTHWISE = "a channel to a group: a sum of slices, where XLA has slow loops"
_ROWS = "a channel to a group, and many taps: sums of slices, some rows of the kernel after the others"
_SLICES = "groups on many devices, which XLA's own spreads wrongly: a product for each tap"
_POINTWISE = "one tap: a product of matrices"
_GROUPS = Row("groups", lambda p: p.form.groups > 1, "bundles of groups, where XLA has slow loops")
_DEFAULT = Row("lax", lambda p: True, "XLA's own is fast")  # noqa: ARG005

CONV = (
    _STACK, _ELSEWHERE, _TYPED, _DTYPE, _LITTLE,
    _xla(lambda p: p.offered and p.taps > 1, "oneDNN has it"),
    Row("taps", lambda p: p.depthwise and p.taps * p.phases <= _UNROLLED * (1 if p.deep else 2), _DEPTHWISE),
    Row("rows", lambda p: p.depthwise and not p.line, _ROWS),
    _GROUPS,
    Row("product", lambda p: p.taps == 1 and not (p.line and p.dtype == np.float32), _POINTWISE),
    Row("blocks", lambda p: p.line and p.dtype == np.float64 and p.countable, "one axis, where XLA has slow loops"),
    Row("blocks", lambda p: p.short, "a small image or result, or few channels: products of windows, block by block"),
    Row("planes", lambda p: p.deep and p.countable and p.tall, "planes side by side: XLA is fast in two axes"),
    Row("depth", lambda p: p.deep, "taps along the first axis added up: XLA is fast in two axes"),
    Row("longer", lambda p: p.bare or p.halting, "one line more, which leads XLA to a faster way"),
    _DEFAULT,
)  # fmt: skip

INPUT_GRAD = (
    _STACK, _ELSEWHERE, _TYPED, _DTYPE, _LITTLE,
    _xla(lambda p: _phases.too_many(p.form), "too many phases of stride and dilation"),
    Row("phases", lambda p: True, "a convolution of stride one for each phase of the stride"),  # noqa: ARG005
)  # fmt: skip

KERNEL_GRAD = (
    _STACK, _ELSEWHERE, _TYPED, _DTYPE, _LITTLE,
    Row("slices", lambda p: p.wrongly_spread and p.where.typed, _SLICES),  # the others have loops, and JAX types these
    Row("slices", lambda p: p.wrongly_spread and p.where.platform != "cpu" and p.taps <= 2 * _UNROLLED, _SLICES),
    Row("taps", lambda p: p.depthwise, _DEPTHWISE),
    _xla(lambda p: not p.countable, "the batch is not to be cut into blocks"),
    _GROUPS,
    Row("product", lambda p: p.taps == 1, _POINTWISE),
    Row("turned", lambda p: p.direct, "many taps, little in all or much padding: XLA's, batch and channels exchanged"),
    Row("mixed", lambda p: p.gathering == "mixed", "products of gathered rows of both, block by block"),
    Row("exchanged", lambda p: p.gathering == "exchanged", "products of gathered cotangents, block by block"),
    Row("blocks", lambda p: True, "products of gathered rows, block by block"),  # noqa: ARG005
)  # fmt: skip

CHOICES = {"conv": CONV, "conv_input_grad": INPUT_GRAD, "conv_kernel_grad": KERNEL_GRAD}


def choose(table: tuple[Row, ...], problem: Problem) -> Row:
    """Return the row of the table that is taken."""
    return next(row for row in table if row.applies(problem))

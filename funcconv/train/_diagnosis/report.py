"""What `diagnose` found: numbers that are not finite, and the operations that returned the first of them."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..._common.types import Shape


@dataclass(frozen=True)
class Numbers:
    """A summary of an array."""

    name: str  # its path in the state or the batch, or its place among the operands of an operation
    dtype: str
    shape: Shape
    nan: int  # how many numbers are NaN
    infinite: int  # how many are infinite
    smallest: float | None  # of the finite numbers; None if there are none, or if they are complex
    largest: float | None

    def __str__(self) -> str:
        size = math.prod(self.shape)
        counts = ((self.nan, "NaN"), (self.infinite, "infinite"))
        parts = [f"{count:,} of {size:,} {kind}" for count, kind in counts if count]
        if self.smallest is not None:
            parts.append(f"from {self.smallest:.4g} to {self.largest:.4g}")
        return f"{self.name}: " + ", ".join([f"{self.dtype}{list(self.shape)}", *parts])


@dataclass(frozen=True)
class Cause:
    """An operation that returned a NaN or an infinity which none of its operands had."""

    operation: str
    node: str
    part: str
    line: str
    passes: tuple[int, ...]
    operands: tuple[Numbers, ...]
    results: tuple[Numbers, ...]

    def __str__(self) -> str:
        where = f"in node {self.node!r}" if self.node else "outside of a named node"
        passes = "".join(f", pass {number} of a loop" for number in self.passes)
        lines = [f"{self.operation} {where}{passes}, in {self.part}" + (f" ({self.line})" if self.line else "")]
        return "\n    ".join([*lines, *map(str, self.operands), *map(str, self.results)])


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """Which numbers of a training step are not finite, and the operations from which they come. `diagnose` makes it.

    Attributes:
        step: the number of the step, from 1; None if the state does not have one.
        results: the names of the results of the step that are not finite, such as `"loss"`, `"grad_norm"` or
            `"params/conv1/kernel"`. Entries of the state that were not finite before the step are left out.
        before: a summary of each entry of the state and the batch that is not finite before the step. It has the
            attributes `name`, `dtype`, `shape`, `nan` and `infinite` (two counts), `smallest` and `largest` (of the
            finite numbers).
        causes: the operations that returned a NaN or an infinity which none of their operands had, and on which
            `results` depend, in the order of the program; at most three. Each has these attributes: `operation`; `node`
            (the name of the node of a graph, or of a `jax.named_scope`; else empty); `part` (`"the loss"`, `"the
            gradient"` or `"the update"`); `line` (of your code, if it is known); `passes` (the numbers of the passes of
            the loops around it); `operands` and `results`, which are summaries.

    Example:
        >>> import funcconv as fc, jax.numpy as jnp
        >>> found = fc.train.diagnose(lambda state, batch: (state, {"loss": jnp.log(batch).sum()}), {}, jnp.zeros(2))
        >>> found.finite, found.results, found.causes[0].operation
        (False, ('loss',), 'log')
    """

    step: int | None
    results: tuple[str, ...]
    before: tuple[Numbers, ...]
    causes: tuple[Cause, ...]

    @property
    def finite(self) -> bool:
        """Whether the step has returned only finite numbers, but for those of the state that it has not changed."""
        return not self.results

    def __str__(self) -> str:
        title = "the step" if self.step is None else f"step {self.step}"
        if self.finite:
            lines = [f"{title}: all results are finite"]
        else:
            lines = [f"{title}: {', '.join(self.results)} {'are' if len(self.results) > 1 else 'is'} not finite"]
        if self.before:
            lines += ["before the step, these are not finite:", *(f"    {numbers}" for numbers in self.before)]
        lines += [f"{'then' if i else 'first'}: {cause}" for i, cause in enumerate(self.causes)]
        return "\n".join(lines)

    __repr__ = __str__


def summarized(name: str, value: Any) -> Numbers:
    """Return the summary of an array or a number."""
    dtype, shape = jnp.result_type(value), jnp.shape(value)
    if not jnp.issubdtype(dtype, jnp.number):  # a truth value or a random key
        return Numbers(name, str(dtype), shape, 0, 0, None, None)
    array = np.asarray(value)
    is_complex = jnp.issubdtype(dtype, jnp.complexfloating)
    wide = array.astype(np.complex128 if is_complex else np.float64)
    nan, infinite = np.isnan(wide), np.isinf(wide)
    finite = wide[~(nan | infinite)]
    has_ends = finite.size and not is_complex  # complex numbers have no order
    ends = (float(finite.min()), float(finite.max())) if has_ends else (None, None)
    return Numbers(name, str(dtype), shape, int(nan.sum()), int(infinite.sum()), *ends)

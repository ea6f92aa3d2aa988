"""Which form each convolution and pool of a program is computed in, and why."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from .._common.types import Shape
from . import conv as _family
from . import select as _select
from .forms import CHOICES, Problem, Where, choose


class Explained(NamedTuple):
    """One convolution or pool, or several that are alike."""

    map: str  # "conv", "conv_input_grad" or "conv_kernel_grad"; of a max or min pool "extreme", "pick" or "place"
    form: str  # in which it is computed
    why: str
    image: Shape
    kernel: Shape  # or a window
    stride: Shape
    dilation: Shape
    groups: int
    times: int  # how often it is computed; once for each pass of a `scan`, once in all for a `while_loop`
    flops: int  # of one of them: two for each tap of each window, taps that none has on the image aside; of a pool one
    bytes: int  # of the operands and the result of one of them


class Explanation(tuple[Explained, ...]):
    """What `explain` found, in order of first use; printed, it is a table."""

    __slots__ = ()

    @property
    def flops(self) -> int:
        """Of all convolutions."""
        return sum(row.flops * row.times for row in self)

    def __str__(self) -> str:
        """Return the table."""
        head = ("map", "image", "kernel", "stride", "groups", "times", "MFLOP", "MB", "form", "why")
        rows = [head, *(_cells(row) for row in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)


def explain(f: Callable[..., Any], *args: Any, platform: str | None = None) -> Explanation:
    """Say in which form each convolution and each max or min pool of a function is computed, and why.

    The function is traced, not run; what no result needs is left out. To see derivatives, ask about them:
    `explain(jax.grad(loss), params)`.

    Args:
        f: a function of arrays or trees of them.
        *args: what it is called with; `jax.ShapeDtypeStruct` will do.
        platform: `"cpu"`, `"gpu"` or `"tpu"`; None is that of JAX's default backend.

    Returns:
        A tuple of `Explained`, in order of first use, those that are alike as one; it prints as a table. Not in it
        is what is traced to operations of JAX alone: convolutions with `implementation="lax"`, other pools, and
        derivatives of pools whose windows do not overlap.

    Raises:
        Nothing but what tracing `f` raises.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 32, 32, (3, 3), groups=32, bias=False)
        >>> loss = lambda params: fc.conv(params, jnp.ones((8, 28, 28, 32)), groups=32).sum()
        >>> [(row.map, row.form) for row in fc.explain(jax.value_and_grad(loss), params, platform="cpu")]
        [('conv', 'taps'), ('conv_kernel_grad', 'taps')]
    """
    where = Where("cpu" if (platform or jax.default_backend()) == "cpu" else None)
    found: Counter[Explained] = Counter()
    traced = jax.make_jaxpr(f)(*args).jaxpr
    used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    for eqn, times in _of_interest(used, 1):
        pool = eqn.primitive in _select.FORMS
        found[_explained_pool(eqn) if pool else _explained(eqn, where)] += times
    return Explanation(row._replace(times=times) for row, times in found.items())


def _of_interest(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Return the convolutions and pools of a traced program and of those within it, each with how often it runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive in _family.PRIMITIVES or eqn.primitive in _select.FORMS:
            yield eqn, times
        passes = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in core.jaxprs_in_params(eqn.params):
            yield from _of_interest(getattr(inner, "jaxpr", inner), times * passes)


def _explained(eqn: Any, where: Where) -> Explained:
    form, stack = eqn.params["form"], eqn.params["stack"]
    types = [*(operand.aval for operand in eqn.invars), eqn.outvars[0].aval]
    parts = dict(zip(_family.PRIMITIVES[eqn.primitive], types, strict=True))
    image, kernel = parts["x"], parts["w"]
    problem = Problem.of(form, image.shape, kernel.shape, kernel.dtype, stack, where)
    row = choose(CHOICES[eqn.primitive.name], problem)
    return Explained(
        eqn.primitive.name, row.form, row.why, image.shape, kernel.shape,
        tuple(axis.stride for axis in form.axes), tuple(axis.dilation for axis in form.axes), form.groups, 1,
        2 * problem.products * math.prod(image.shape[:stack]), sum(each.size * each.dtype.itemsize for each in types),
    )  # fmt: skip


def _explained_pool(eqn: Any) -> Explained:
    axes, number = eqn.params["axes"], len(eqn.params["axes"])
    types = [*(operand.aval for operand in eqn.invars), eqn.outvars[0].aval]
    image, windows = (types[-1], types[0]) if eqn.primitive is _select.place_p else (types[0], types[-1])
    batch = math.prod(image.shape[: -number - 1])
    window = tuple(axis.window for axis in axes)
    return Explained(
        eqn.primitive.name, *_select.FORMS[eqn.primitive], (batch, *image.shape[-number - 1 :]),
        window, tuple(axis.stride for axis in axes), tuple(axis.dilation for axis in axes), image.shape[-1], 1,
        math.prod(window) * windows.size, sum(each.size * each.dtype.itemsize for each in types),
    )  # fmt: skip


def _cells(row: Explained) -> tuple[str, ...]:
    image, kernel, stride = ("x".join(map(str, sizes)) for sizes in (row.image, row.kernel, row.stride))
    amounts = (f"{row.flops / 1e6:.1f}", f"{row.bytes / 1e6:.2f}")
    return row.map, image, kernel, stride, str(row.groups), str(row.times), *amounts, row.form, row.why

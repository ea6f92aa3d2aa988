"""`explain`: the form of each convolution and pool of a program, and the reason for it."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.interpreters import partial_eval

from .._common.types import Shape
from . import conv as _conv
from . import select as _select
from .extreme import chosen_form
from .forms import CHOICES, Problem, Where, choose


class Explained(NamedTuple):
    """One convolution or pool, or several equal ones."""

    map: str  # "conv", "conv_input_grad" or "conv_kernel_grad"; for a max or min pool "extreme", "pick" or "place"
    form: str  # how it is computed
    why: str  # the reason for this form
    image: Shape
    kernel: Shape  # or the window of a pool
    stride: Shape
    dilation: Shape
    groups: int
    times: int  # how often it is computed; each pass of a `scan` counts, and a `while_loop` counts as one pass
    flops: int  # of one convolution: two per tap of each window, without taps that are only on padding; of a pool one
    bytes: int  # of the operands and the result of one convolution or pool


class Explanation(tuple[Explained, ...]):
    """The result of `explain`: a tuple of `Explained` in order of first use, which prints as a table."""

    __slots__ = ()

    @property
    def flops(self) -> int:
        """The number of operations of all convolutions and pools."""
        return sum(row.flops * row.times for row in self)

    def __repr__(self) -> str:
        """Return the table, which is also shown at the prompt."""
        return str(self)

    def __str__(self) -> str:
        """Return the table."""
        head = ("map", "image", "kernel", "stride", "groups", "times", "MFLOP", "MB", "form", "why")
        rows = [head, *(_cells(row) for row in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
        return "\n".join(lines)


def explain(f: Callable[..., Any], *args: Any, platform: str | None = None) -> Explanation:
    """Show how each convolution and each max or min pool of a function is computed, and why.

    The function is traced, not run. Operations that no result needs are left out. To see derivatives, pass a
    derivative: `explain(jax.grad(loss), params)`.

    Args:
        f: a function of arrays or trees of arrays.
        *args: its arguments. `jax.ShapeDtypeStruct` can replace an array.
        platform: `"cpu"`, `"gpu"` or `"tpu"`. Default: None, the platform of JAX's default backend.

    Returns:
        A tuple of `Explained`, in order of first use, with one entry for equal operations. It prints as a table. An
        entry has `map` (`"conv"`, `"conv_input_grad"` or `"conv_kernel_grad"`; for a pool `"extreme"`, `"pick"` or
        `"place"`), `form`, `why` (the reason for the form), the shapes `image` and `kernel`, `stride`, `dilation`,
        `groups`, `times` (how often it is computed), and `flops` and `bytes` of one operation.

        It does not contain operations that are traced to `jax.lax` alone: convolutions with `implementation="lax"`,
        other pools, and derivatives of pools whose windows do not overlap.

    Raises:
        Nothing, except for errors that `f` raises.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> params = fc.init_conv(jax.random.key(0), 32, 32, (3, 3), groups=32, bias=False)
        >>> loss = lambda params: fc.conv(params, jnp.ones((8, 28, 28, 32)), groups=32).sum()
        >>> [(row.map, row.form) for row in fc.explain(jax.value_and_grad(loss), params, platform="cpu")]
        [('conv', 'shifted_sum'), ('conv_kernel_grad', 'shifted_sum')]
    """
    where = Where(platform or jax.default_backend())
    counts: Counter[Explained] = Counter()
    traced = jax.make_jaxpr(f)(*args).jaxpr
    used, _ = partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))
    for eqn, times in convs_and_pools(used, 1):
        is_pool = eqn.primitive in _select.FORMS
        counts[_explained_pool(eqn, where) if is_pool else _explained_conv(eqn, where)] += times
    return Explanation(row._replace(times=times) for row, times in counts.items())


def convs_and_pools(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Return the convolutions and pools of a traced program and its inner programs, and how often each runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive in _conv.PRIMITIVES or eqn.primitive in _select.FORMS:
            yield eqn, times
        passes = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in core.jaxprs_in_params(eqn.params):
            yield from convs_and_pools(getattr(inner, "jaxpr", inner), times * passes)


def _explained_conv(eqn: Any, where: Where) -> Explained:
    form, stack = eqn.params["form"], eqn.params["stack"]
    types = [*(operand.aval for operand in eqn.invars), eqn.outvars[0].aval]
    by_role = dict(zip(_conv.PRIMITIVES[eqn.primitive], types, strict=True))
    image, kernel = by_role["x"], by_role["w"]
    problem = Problem.of(form, image.shape, kernel.shape, kernel.dtype, stack, where)
    row = choose(CHOICES[eqn.primitive.name], problem)
    return Explained(
        map=eqn.primitive.name,
        form=row.form,
        why=row.why,
        image=image.shape,
        kernel=kernel.shape,
        stride=tuple(axis.stride for axis in form.axes),
        dilation=tuple(axis.dilation for axis in form.axes),
        groups=form.groups,
        times=1,
        flops=2 * problem.products * math.prod(image.shape[:stack]),
        bytes=_bytes(types),
    )


def _explained_pool(eqn: Any, where: Where) -> Explained:
    axes = eqn.params["axes"]
    types = [*(operand.aval for operand in eqn.invars), eqn.outvars[0].aval]
    # `place` maps windows to an image, the others an image to windows.
    image, windows = (types[-1], types[0]) if eqn.primitive is _select.place_p else (types[0], types[-1])
    batch = math.prod(image.shape[: -len(axes) - 1])
    window = tuple(axis.window for axis in axes)
    form, why = _select.FORMS[eqn.primitive]
    if eqn.primitive is _select.extreme_p:
        keeps_nans = eqn.params["keeps_nans"]
        form, why = chosen_form(image, axes, eqn.params["measured"], where.platform, keeps_nans=keeps_nans)
    return Explained(
        map=eqn.primitive.name,
        form=form,
        why=why,
        image=(batch, *image.shape[-len(axes) - 1 :]),
        kernel=window,
        stride=tuple(axis.stride for axis in axes),
        dilation=tuple(axis.dilation for axis in axes),
        groups=image.shape[-1],  # each channel is pooled separately
        times=1,
        flops=math.prod(window) * windows.size,
        bytes=_bytes(types),
    )


def _bytes(types: list[Any]) -> int:
    return sum(aval.size * aval.dtype.itemsize for aval in types)


def _cells(row: Explained) -> tuple[str, ...]:
    image, kernel, stride = ("x".join(map(str, sizes)) for sizes in (row.image, row.kernel, row.stride))
    amounts = (f"{row.flops / 1e6:.1f}", f"{row.bytes / 1e6:.2f}")
    return row.map, image, kernel, stride, str(row.groups), str(row.times), *amounts, row.form, row.why

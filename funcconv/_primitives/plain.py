"""Programs without funcconv's primitives, for converters that know only operations of `jax.lax`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

from .._common.traced_programs import called
from .._common.types import Array
from .._windows.geometry import Axis
from .._windows.taps import fold, merge
from . import conv as _conv
from . import forms as _forms
from . import place as _place
from . import select as _select
from . import take as _take


def plain(f: Callable[..., Any], *types: Any) -> Callable[..., list[Any]]:
    """Return the same function as operations of `jax.lax` that converters support.

    Convolutions along one or two axes become XLA's own, and those along more axes become sums of these. Max and min
    pools become maxima of slices. Calls are inlined, and operations that no result needs are left out. Loops are not
    changed. A result that is an argument or another result is copied, because converters give each value one name.

    Args:
        f: a function of arrays.
        *types: the types of its arguments.

    Returns:
        A function that returns the leaves of the result of `f`.
    """
    traced = jax.make_jaxpr(f)(*types)
    replaced = jax.make_jaxpr(lambda *xs: _copied(_evaluate(traced.jaxpr, traced.consts, xs), xs))(*types)
    used, _ = partial_eval.dce_jaxpr(replaced.jaxpr, [True] * len(replaced.jaxpr.outvars), instantiate=True)
    return core.jaxpr_as_fun(core.ClosedJaxpr(used, replaced.consts))  # type: ignore[no-any-return]


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a traced program with some of its operations replaced."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands, inner, name = [read(atom) for atom in eqn.invars], called(eqn), eqn.primitive.name
        results: Sequence[Any]
        if inner is not None:
            results = _evaluate(inner, (), operands)
        elif eqn.primitive in _REPLACED_PRIMITIVES:  # the replacement can contain calls, which are inlined as well
            replacement = jax.make_jaxpr(partial(_REPLACED_PRIMITIVES[eqn.primitive], **eqn.params))(*operands)
            results = _evaluate(replacement.jaxpr, replacement.consts, operands)
        elif name in _REPLACED_LAX:
            results = [_REPLACED_LAX[name](*operands, **eqn.params)]
        else:
            bound = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = bound if eqn.primitive.multiple_results else [bound]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _copied(results: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Return the results, with copies of those that are arguments or earlier results."""
    named = {id(arg) for arg in args}
    copied = []
    for result in results:
        copied.append(jnp.array(result, copy=True) if id(result) in named else result)
        named.add(id(result))
    return copied


def _extreme(x: Array, *, axes: tuple[Axis, ...], reduce: str, **_: Any) -> Array:
    """Return the largest or smallest tap of each window."""
    combine = lax.max if reduce == "max" else lax.min
    for i, axis in enumerate(reversed(axes), start=2):
        x = fold(combine, x, x.ndim - i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return x


def _pad(x: Array, value: Array, *, padding_config: Sequence[tuple[int, int, int]]) -> Array:
    """Return the padded array. With a symbolic size it is a concatenation, since jax2onnx cannot pad it.

    ONNX cannot pad between the numbers of an axis either, so each number becomes a row that ends with its padding.
    """
    if all(isinstance(size, int) for size in x.shape) and not any(inside for *_, inside in padding_config):
        return lax.pad(x, value, padding_config)
    for axis, (lo, hi, inside) in enumerate(padding_config):
        if inside:
            gaps = lax.broadcast(value, (*x.shape[: axis + 1], inside, *x.shape[axis + 1 :]))
            rows = lax.concatenate([lax.expand_dims(x, (axis + 1,)), gaps], axis + 1)
            x = lax.slice_in_dim(merge(rows, axis, 2), 0, -inside, axis=axis)  # no gap after the last number
        if min(lo, hi) < 0:
            x = lax.slice_in_dim(x, max(-lo, 0), x.shape[axis] - max(-hi, 0), axis=axis)
        before, after = (
            [lax.broadcast(value, (*x.shape[:axis], n, *x.shape[axis + 1 :]))] if n > 0 else [] for n in (lo, hi)
        )
        x = lax.concatenate([*before, x, *after], axis)
    return x


def _concatenate(*parts: Array, dimension: int) -> Array:
    """Concatenate without empty parts, whose sizes jax2onnx gets wrong."""
    not_empty = [part for part in parts if part.shape[dimension] != 0] or parts[:1]
    return lax.concatenate(not_empty, dimension)


_REPLACED_PRIMITIVES: dict[core.Primitive, Callable[..., Array]] = {
    _conv.conv_p: _forms.named_conv,
    _conv.conv_input_grad_p: _forms.named_input_grad,
    _select.extreme_p: _extreme,
    _take.take_p: _take.taken,
    _place.put_p: _place.placed,
}
_REPLACED_LAX: dict[str, Callable[..., Array]] = {"pad": _pad, "concatenate": _concatenate}

"""Programs without what is funcconv's own in them, for converters that know operations of `jax.lax` alone."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

from .._common.traced_programs import called
from .._common.types import Array
from .._windows.geometry import Axis
from .._windows.taps import fold
from . import conv as _family
from . import forms as _lowering
from . import place as _placement
from . import select as _select
from . import take as _take


def plain(f: Callable[..., Any], *types: Any) -> Callable[..., list[Any]]:
    """Return a function of the same arrays in operations of `jax.lax`, in a program that converters read well.

    Convolutions along one or two axes are XLA's, along more they are sums of such; maxima and minima of windows are
    those of slices. Calls are opened, and what no result needs is left out. Nothing is done inside of loops.

    Args:
        f: a function of arrays.
        *types: the types of its arguments.

    Returns:
        A function that gives the leaves of what `f` gives.
    """
    traced = jax.make_jaxpr(f)(*types)
    said = jax.make_jaxpr(lambda *xs: _evaluate(traced.jaxpr, traced.consts, xs))(*types)
    used, _ = partial_eval.dce_jaxpr(said.jaxpr, [True] * len(said.jaxpr.outvars), instantiate=True)
    return core.jaxpr_as_fun(core.ClosedJaxpr(used, said.consts))  # type: ignore[no-any-return]


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a traced program by other operations."""
    values: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands, inner, name = [read(atom) for atom in eqn.invars], called(eqn), eqn.primitive.name
        results: Sequence[Any]
        if inner is not None:
            results = _evaluate(inner, (), operands)
        elif eqn.primitive in _OWN:
            said = jax.make_jaxpr(partial(_OWN[eqn.primitive], **eqn.params))(*operands)
            results = _evaluate(said.jaxpr, said.consts, operands)
        elif name in _OTHER:
            results = [_OTHER[name](*operands, **eqn.params)]
        else:
            bound = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = bound if eqn.primitive.multiple_results else [bound]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _extreme(x: Array, *, axes: tuple[Axis, ...], reduce: str, **_: Any) -> Array:
    """Return the largest or smallest tap of each window."""
    further = lax.max if reduce == "max" else lax.min
    for i, axis in enumerate(reversed(axes), start=2):
        x = fold(further, x, x.ndim - i, axis.window, axis.stride, axis.dilation, axis.outputs)
    return x


def _pad(x: Array, value: Array, *, padding_config: Sequence[tuple[int, int, int]]) -> Array:
    """Return the padded array; where a size is symbolic, which jax2onnx cannot pad, as a concatenation."""
    if all(isinstance(size, int) for size in x.shape) or any(inside for *_, inside in padding_config):
        return lax.pad(x, value, padding_config)
    for axis, (lo, hi, _) in enumerate(padding_config):
        if min(lo, hi) < 0:
            x = lax.slice_in_dim(x, max(-lo, 0), x.shape[axis] - max(-hi, 0), axis=axis)
        parts = [
            x if n is None else lax.broadcast(value, (*x.shape[:axis], n, *x.shape[axis + 1 :]))
            for n in (lo, None, hi) if n is None or n > 0
        ]  # fmt: skip
        x = lax.concatenate(parts, axis)
    return x


def _concatenate(*parts: Array, dimension: int) -> Array:
    """Return the parts together without those that are empty, of which jax2onnx mistakes the sizes."""
    kept = [part for part in parts if part.shape[dimension] != 0] or parts[:1]
    return lax.concatenate(kept, dimension)


_OWN: dict[core.Primitive, Callable[..., Array]] = {
    _family.conv_p: _lowering.named_conv,
    _family.conv_input_grad_p: _lowering.named_input_grad,
    _select.extreme_p: _extreme,
    _take.take_p: _take.taken,
    _placement.put_p: _placement.placed,
}
_OTHER: dict[str, Callable[..., Array]] = {"pad": _pad, "concatenate": _concatenate}

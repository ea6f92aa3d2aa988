"""Functions of arrays on masked inputs: ops of the library, functions with a parameter `mask`, and others."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._ops.conv import conv
from ..._ops.conv_transpose import conv_transpose
from ..._ops.masks import Masked, conv_mask
from ..._ops.norms.group import group_norm, instance_norm
from ..._ops.norms.layer import layer_norm, rms_norm
from ..._ops.norms.response import local_response_norm
from ..._ops.pooling.adaptive import adaptive_pool
from ..._ops.pooling.global_pool import global_pool
from ..._ops.pooling.pool import pool
from ..._ops.resampling.pixels import pixel_shuffle
from ..._ops.resampling.resize import resize
from ..declare.function import Function
from ..declare.node import Item
from .by_position import acts_by_position
from .values import hidden, unmasked

_NORMS = (group_norm, instance_norm, layer_norm, local_response_norm, rms_norm)


def masked_function(op: Function, entry: Any, xs: Sequence[Any], mask: Array, batch: Shape) -> Any:
    """Return the value of a function, `Masked` if positions are left; None if it would mix real and masked ones."""
    if isinstance(op.op, Item):
        (x,) = xs
        return Masked(op.op(x.x), x.mask)
    if op.batched:
        return None
    function, options = _function_and_options(op.op)
    if function in _RULES or function in (pixel_shuffle, resize):
        check_channels_last(op, options.get("layout"))
    if _takes_mask(op.op):
        y = _with_mask(op, entry, xs, mask, batch)
        rule = _RULES.get(function)
        if rule is None:  # a function of the user's, which says itself what is masked
            return hidden(y) if isinstance(y, Masked) else y
        left = rule(entry, mask, len(batch), unmasked(xs[0]), options)
        return y if left is None else Masked(y, left)
    factors = _enlarging(function, options, mask.ndim - len(batch))
    if factors is not None:
        return Masked(op.apply(entry, *map(unmasked, xs), batch=batch), _repeated(mask, factors, len(batch)))
    if acts_by_position(op, entry, xs, mask.ndim - len(batch), batch):
        return hidden(Masked(op.apply(entry, *map(unmasked, xs), batch=batch), mask))
    return None


def check_channels_last(op: Any, layout: str | None) -> None:
    """Refuse another order of axes: the mask has the first axes of an array, which must be its positions."""
    if layout is not None and not layout.endswith("C"):
        msg = (
            f"{op!r} has layout={layout!r}, but masked inputs of a graph must have their channels last. Declare the "
            "input as (*spatial, channels), and leave layout out"
        )
        raise FuncconvError(msg)


def _function_and_options(op: Callable[..., Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function of a partial application, and its arguments by name."""
    args: tuple[Any, ...] = ()
    keywords: dict[str, Any] = {}
    while isinstance(op, partial):
        args, keywords = (*op.args, *args), op.keywords | keywords
        op = op.func
    return op, keywords


def _parameters(op: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        return inspect.signature(op).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return {}


def _takes_mask(op: Callable[..., Any]) -> bool:
    parameter = _parameters(op).get("mask")
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY and parameter.default is None


def _with_mask(op: Function, entry: Any, xs: Sequence[Any], mask: Array, batch: Shape) -> Any:
    """Call a function with a parameter `mask`, mapped over the batch axes."""
    spatial = {"spatial": mask.ndim - len(batch)} if "spatial" in _parameters(op.op) else {}

    def one(mask: Array, *xs: Any) -> Any:
        return op.op(*((entry,) if op.parametric else ()), *xs, mask=mask, **spatial)

    for _ in batch:
        one = jax.vmap(one)
    return one(mask, *map(unmasked, xs))


def _enlarging(function: Callable[..., Any], options: Mapping[str, Any], spatial: int) -> Shape | None:
    """Return how many positions an op makes of each one along each axis, None if it does something else."""
    factor = None
    if function is pixel_shuffle:
        factor = options["factor"]
    if function is resize and options.keys() <= {"scale", "method"} and options.get("method", "nearest") == "nearest":
        factor = options.get("scale")
    factors: Any = tuple(factor) if isinstance(factor, Sequence) else (factor,) * spatial
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in factors)
    return factors if whole and len(factors) == spatial else None


def _repeated(mask: Array, factors: Shape, batch: int) -> Array:
    for axis, factor in enumerate(factors, start=batch):
        mask = jnp.repeat(mask, factor, axis)
    return mask


# Rules: the mask of the result from the parameters, the mask, the number of batch axes, the input and the options; None
# if no positions are left.


def _same(entry: Any, mask: Array, batch: int, x: Any, options: Mapping[str, Any]) -> Array:
    del entry, batch, x, options
    return mask


def _none_left(entry: Any, mask: Array, batch: int, x: Any, options: Mapping[str, Any]) -> None:
    del entry, mask, batch, x, options


def _pooled(entry: Any, mask: Array, batch: int, x: Any, options: Mapping[str, Any]) -> Array:
    del entry, x
    window = options.get("window", 2)
    names = ("stride", "padding", "dilation", "ceil_mode")
    given = {name: options[name] for name in names if options.get(name) is not None}
    return conv_mask(mask, window, **{"stride": window} | given, spatial=mask.ndim - batch)


def _convolved(
    entry: Any, mask: Array, batch: int, x: Any, options: Mapping[str, Any], *, transpose: bool = False
) -> Array:
    del batch, x
    names = ("stride", "padding", "dilation", "renormalize", "size", "output_padding")
    given = {name: options[name] for name in names if name in options}
    return conv_mask(mask, entry["kernel"].shape[:-2], transpose=transpose, **given)


_RULES: dict[Callable[..., Any], Callable[..., Array | None]] = {
    **dict.fromkeys(_NORMS, _same),
    global_pool: _none_left,
    adaptive_pool: _none_left,
    pool: _pooled,
    conv: _convolved,
    conv_transpose: partial(_convolved, transpose=True),
}

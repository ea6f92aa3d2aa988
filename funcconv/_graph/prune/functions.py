"""Where a function of arrays takes channels: its program is followed with their numbers in place of values."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from ..._common.errors import FuncconvError
from ..._common.traced_programs import ELEMENTWISE, REDUCED, called
from ..declare.function import Function
from ..declare.inference import remembered, spec
from ..declare.readings import check_readings
from .channels import Channels


class _UnknownError(Exception):
    """An operation for which there is no rule."""


def of_function(
    op: Function, entry: Any, entry_channels: Any, specs: Sequence[Any], xs: Sequence[np.ndarray], channels: Channels
) -> np.ndarray | None:
    """Return the channels of a function's value along its last axis, None if they are mixed.

    Args:
        op: the function.
        entry: the shapes of its parameters.
        entry_channels: for each of these, the channels along the last axis.
        specs: the shapes of its inputs, for one example.
        xs: the channels of its inputs, along their last axes.
        channels: all channels; those that meet in an operation on single elements are joined.
    """
    try:
        program = jax.make_jaxpr(partial(op.apply, batch=()))(entry, *specs)
        arrays = [*jax.tree.leaves(entry_channels), *xs]
        given = [np.broadcast_to(own, var.aval.shape) for own, var in zip(arrays, program.jaxpr.invars, strict=True)]
        results = _run(program.jaxpr, given, channels)
    except _UnknownError:
        return None if op.parametric else _by_channel(op, specs, xs, channels)
    return along_last_axis(results[0]) if len(results) == 1 else None


def along_last_axis(channels: np.ndarray) -> np.ndarray | None:
    """Return the channels of an array along its last axis, None if other axes have different ones."""
    if not channels.ndim:
        return None
    rows = channels.reshape(-1, channels.shape[-1])
    return rows[0] if len(rows) and (rows == rows[0]).all() else None


def _run(jaxpr: Any, xs: Sequence[np.ndarray], channels: Channels) -> list[np.ndarray]:
    """Return the channels of a program's results, as arrays of their shapes."""
    known: dict[Any, np.ndarray] = dict(zip(jaxpr.invars, xs, strict=True))

    def read(var: Any) -> np.ndarray:
        if not isinstance(var, core.Literal) and var in known:
            return known[var]
        return np.zeros(var.aval.shape, int)  # a constant

    for eqn in jaxpr.eqns:
        operands, shapes = [read(var) for var in eqn.invars], [var.aval.shape for var in eqn.outvars]
        inner = called(eqn)
        if inner is not None:
            results = _run(inner, operands, channels)
        elif not any(operand.any() for operand in operands):
            results = [np.zeros(shape, int) for shape in shapes]
        else:
            results = _rule(eqn.primitive.name)(eqn, operands, channels)
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _rule(name: str) -> Callable[[Any, Sequence[np.ndarray], Channels], list[np.ndarray]]:
    if name in ELEMENTWISE:
        return _elementwise
    if name in REDUCED:
        return _reduced
    if name in _MOVES:
        return _moved
    raise _UnknownError(name)


def _elementwise(eqn: Any, operands: Sequence[np.ndarray], channels: Channels) -> list[np.ndarray]:
    shape = eqn.outvars[0].aval.shape
    first, *others = (operand for operand in operands if operand.shape == shape and operand.any())
    if any(operand.any() for operand in operands if operand.shape != shape):
        raise _UnknownError
    for other in others:
        channels.join(first, other)
        first = np.where(first, first, other)
    return [first] * len(eqn.outvars)


def _reduced(eqn: Any, operands: Sequence[np.ndarray], channels: Channels) -> list[np.ndarray]:
    del channels
    axes = eqn.params.get("axes", eqn.params.get("dimensions"))
    if len(operands) != len(eqn.outvars) or axes is None:
        raise _UnknownError
    results = []
    for operand in operands:
        reduced = operand.min(axes, initial=np.iinfo(int).max) if operand.size else operand
        if (reduced != operand.max(axes, initial=0)).any():  # channels are added up
            raise _UnknownError
        results.append(reduced)
    return results


def _moved(eqn: Any, operands: Sequence[np.ndarray], channels: Channels) -> list[np.ndarray]:
    if eqn.primitive.name == "broadcast_in_dim":
        operands = [_kept_if_spread(eqn, operands[0], channels)]
    return _MOVES[eqn.primitive.name](eqn, *operands)


def _kept_if_spread(eqn: Any, operand: np.ndarray, channels: Channels) -> np.ndarray:
    """Note that a channel that is spread over the last axis is none there, as the channel of a gate for all others."""
    shape, axes = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    last = operand.shape[-1] if axes and axes[-1] == len(shape) - 1 else 1
    if not shape or last == shape[-1]:
        return operand
    channels.keep(operand, "is spread over other channels")
    return np.zeros_like(operand)


def _reshaped(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    return [x.reshape(eqn.outvars[0].aval.shape)]


def _broadcast(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    shape, sizes = eqn.params["shape"], dict(zip(eqn.params["broadcast_dimensions"], x.shape, strict=True))
    return [np.broadcast_to(x.reshape([sizes.get(axis, 1) for axis in range(len(shape))]), shape)]


def _sliced(eqn: Any, x: np.ndarray) -> list[np.ndarray]:
    starts, limits = eqn.params["start_indices"], eqn.params["limit_indices"]
    return [x[tuple(map(slice, starts, limits, eqn.params["strides"] or [None] * x.ndim))]]


def _padded(eqn: Any, x: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    if value.any() or min(low for sides in eqn.params["padding_config"] for low in sides) < 0:
        raise _UnknownError
    padded = np.zeros(eqn.outvars[0].aval.shape, int)
    sides = zip(eqn.params["padding_config"], x.shape, strict=True)
    padded[tuple(slice(low, low + size * (between + 1), between + 1) for (low, _, between), size in sides)] = x
    return [padded]


# Operations that move numbers, and so channels.
_MOVES: dict[str, Callable[..., list[np.ndarray]]] = {
    "reshape": _reshaped,
    "squeeze": _reshaped,
    "transpose": lambda eqn, x: [x.transpose(eqn.params["permutation"])],
    "rev": lambda eqn, x: [np.flip(x, eqn.params["dimensions"])],
    "concatenate": lambda eqn, *xs: [np.concatenate(xs, eqn.params["dimension"])],
    "split": lambda eqn, x: np.split(x, np.cumsum(eqn.params["sizes"])[:-1], eqn.params["axis"]),
    "slice": _sliced,
    "broadcast_in_dim": _broadcast,
    "pad": _padded,
}


def _by_channel(op: Function, specs: Sequence[Any], xs: Sequence[np.ndarray], channels: Channels) -> np.ndarray | None:
    """Return the channels of the value of a function that acts on each channel by itself, None if it does not.

    Then it gives the same if it is called on one channel at a time. This is checked once for each function and shape by
    its traced programs; programs that differ are run on random inputs.
    """
    count = max(len(x) for x in xs)
    over = [len(x) == count for x in xs]
    if not all(len(x) == 1 for x, own in zip(xs, over, strict=True) if not own):
        return None
    if not remembered(op, f"by channel {over}", tuple(specs), lambda: _acts_by_channel(op, specs, over)):
        return None
    first, *others = (x for x, own in zip(xs, over, strict=True) if own)
    for other in others:
        channels.join(first, other)
    for x, own in zip(xs, over, strict=True):
        if not own:
            channels.keep(x, "is spread over other channels")
    return first


def _acts_by_channel(op: Function, specs: Sequence[Any], over: Sequence[bool]) -> bool:
    others = [x for x, own in zip(specs, over, strict=True) if not own]
    rests = [x.update(shape=x.shape[:-1]) for x, own in zip(specs, over, strict=True) if own]

    def whole(others: Any, *channels: Any) -> Any:
        """Call the function on arrays whose channels are their first axis."""
        own, plain = iter(channels), iter(others)
        count = channels[0].shape[0]
        y = op.apply(None, *(jnp.moveaxis(next(own), 0, -1) if is_own else next(plain) for is_own in over), batch=())
        if not hasattr(y, "shape") or y.shape[-1:] != (count,):
            msg = f"the result has other channels than {count}"
            raise FuncconvError(msg)
        return jnp.moveaxis(y, -1, 0)

    def one(others: Any, *channels: Any) -> Any:
        return whole(others, *(channel[None] for channel in channels))[0]

    try:
        few = [rest.update(shape=(3, *rest.shape)) for rest in rests]
        jax.eval_shape(whole, others, *few)
        return check_readings(repr(op), one, whole, jax.tree.map(spec, others), rests)
    except Exception:  # of a function that takes no such arrays, or the results differ
        return False

"""Checks of the arguments and results of a loss function, made while a step is traced."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array

_SIGNATURE = "loss(params, batch, *, key, state)"
# A metric with one of these names would replace the one of the step or of the record.
_OWN_METRICS = ("loss", "grad_norm", "skipped", "step")


def check_signature(loss: Callable[..., Any]) -> None:
    """Refuse a loss that cannot be called as a step calls it."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):  # some callables, such as those written in C, have no known signature
        return
    try:
        signature.bind(None, None, key=None, state=None)
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        msg = (
            f"train: the loss is called as {_SIGNATURE}; {name}{signature} does not fit: {error}. Give it these "
            "parameters, or wrap it in a function that has them"
        )
        raise FuncconvError(msg) from None


def value_and_metrics(returned: Any, *, has_aux: bool) -> tuple[Array, dict[str, Any]]:
    """Return the scalar and the dict that a loss returned; refuse anything else."""
    metrics: Any = {}
    if has_aux:
        if not (isinstance(returned, tuple | list) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            msg = (
                f"train: with has_aux=True {_SIGNATURE} must return a scalar and a dict; got {_described(returned)}. "
                "Return (loss, {}) if there are no metrics"
            )
            raise FuncconvError(msg)
        returned, metrics = returned
    elif isinstance(returned, tuple | list):
        hint = "; pass has_aux=True to make_step for a scalar and a dict"
        msg = f"train: {_SIGNATURE} must return a scalar; got {_described(returned)}{hint}"
        raise FuncconvError(msg)
    if (
        not _is_array(returned)
        or jnp.shape(returned) != ()
        or not jnp.issubdtype(jnp.result_type(returned), jnp.floating)
    ):
        msg = (
            f"train: {_SIGNATURE} must return a scalar of a floating dtype, a mean over the batch; "
            f"got {_described(returned)}"
        )
        raise FuncconvError(msg)
    for name, metric in metrics.items():
        if name in _OWN_METRICS:
            msg = f"train: the loss returned a metric {name!r}, which the step or `fit` reports itself; rename it"
            raise FuncconvError(msg)
        if name != "state" and not all(map(_is_array, jax.tree.leaves(metric))):
            msg = (
                f"train: the metrics of the loss must be numbers; {name!r} is {_described(metric)}. "
                "Leave it out, or return numbers"
            )
            raise FuncconvError(msg)
    return jnp.asarray(returned), dict(metrics)


def check_state(old: Any, new: Any) -> None:
    """Refuse a state of the model with other entries, shapes or dtypes than the one before, as `scan` would."""
    structures = [str(jax.tree.structure(state)) for state in (old, new)]
    if structures[0] != structures[1]:
        msg = (
            f'train: the loss must return a "state" with the entries that it was given, {structures[0]}; '
            f"got {structures[1]}. Return the state that graph.apply returned"
        )
        raise FuncconvError(msg)
    for (path, old_leaf), new_leaf in zip(jax.tree.leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if _described(old_leaf) != _described(new_leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            msg = (
                f'train: the loss must return a "state" with the shapes and dtypes that it was given; '
                f"{name!r} was {_described(old_leaf)}; got {_described(new_leaf)}. Cast or reshape it to the old one"
            )
            raise FuncconvError(msg)


def _is_array(value: Any) -> bool:
    try:
        jnp.result_type(value)
    except TypeError:
        return False
    # `result_type` also accepts names of dtypes, their classes, and None.
    return not isinstance(value, str | type) and value is not None


def _described(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of ({', '.join(map(_described, value))})"
    if not jax.tree_util.all_leaves([value]) or not _is_array(value):
        return f"a {type(value).__name__}"
    return f"{jnp.result_type(value)} of shape {jnp.shape(value)}"

"""Checks of the arguments and results of a loss function, made while a step is traced."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array
from .described import described, is_array
from .totals import Weighted, checked_total, is_total

_SIGNATURE = "loss(params, batch, *, key, state)"
# A metric with one of these names would replace the one of the step or of the record.
_OWN_METRICS = ("loss", "grad_norm", "skipped", "step")


def takes_average(loss: Callable[..., Any]) -> bool:
    """Return whether a loss has a parameter `average` without a default, for the average of the parameters."""
    try:
        parameter = inspect.signature(loss).parameters.get("average")
    except (TypeError, ValueError):  # some callables, such as those written in C, have no known signature
        return False
    # With a default, it is an option of the loss that only has the same name.
    return parameter is not None and parameter.default is parameter.empty


def check_signature(loss: Callable[..., Any], average: Mapping[str, Any]) -> None:
    """Refuse a loss that cannot be called as a step calls it, with the argument `average` if there is one."""
    try:
        signature = inspect.signature(loss)
    except (TypeError, ValueError):
        return
    if takes_average(loss) and not average:
        msg = (
            "train: the loss has a parameter average, but no average of the parameters is kept. Pass ema=0.99 or "
            'average="mean" to make_step'
        )
        raise FuncconvError(msg)
    try:
        signature.bind(None, None, key=None, state=None, **average)
    except TypeError as error:
        name = getattr(loss, "__name__", type(loss).__name__)
        msg = (
            f"train: the loss is called as {_SIGNATURE}; {name}{signature} does not fit: {error}. Give it these "
            "parameters, or wrap it in a function that has them"
        )
        raise FuncconvError(msg) from None


def value_and_metrics(returned: Any, *, has_aux: bool) -> tuple[Array | Weighted, dict[str, Any]]:
    """Return the scalar or `Weighted` and the dict that a loss returned; refuse anything else."""
    metrics: Any = {}
    if has_aux:
        if not (isinstance(returned, tuple | list) and len(returned) == 2 and isinstance(returned[1], Mapping)):
            msg = (
                f"train: with has_aux=True {_SIGNATURE} must return a scalar and a dict; got {described(returned)}. "
                "Return (loss, {}) if there are no metrics"
            )
            raise FuncconvError(msg)
        returned, metrics = returned
    elif isinstance(returned, tuple | list):
        hint = (
            "; pass has_aux=True to make_step for a scalar and a dict, or return train.Weighted(sum, weight) for a sum "
            "and its weight"
        )
        msg = f"train: {_SIGNATURE} must return a scalar; got {described(returned)}{hint}"
        raise FuncconvError(msg)
    metrics = {name: _checked_metric(name, metric) for name, metric in metrics.items()}
    if isinstance(returned, Weighted):
        return checked_total(returned, "the loss", is_loss=True), metrics
    if (
        not is_array(returned)
        or jnp.shape(returned) != ()
        or not jnp.issubdtype(jnp.result_type(returned), jnp.floating)
    ):
        msg = (
            f"train: {_SIGNATURE} must return a scalar of a floating dtype, a mean over the batch; "
            f"got {described(returned)}"
        )
        raise FuncconvError(msg)
    return jnp.asarray(returned), metrics


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
        if described(old_leaf) != described(new_leaf):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            msg = (
                f'train: the loss must return a "state" with the shapes and dtypes that it was given; '
                f"{name!r} was {described(old_leaf)}; got {described(new_leaf)}. Cast or reshape it to the old one"
            )
            raise FuncconvError(msg)


def _checked_metric(name: str, metric: Any) -> Any:
    if name in _OWN_METRICS:
        msg = f"train: the loss returned a metric {name!r}, which the step or `fit` reports itself; rename it"
        raise FuncconvError(msg)
    if name == "state":
        return metric
    metric = jax.tree.map(
        lambda leaf: checked_total(leaf, f"the metric {name!r}") if is_total(leaf) else leaf, metric, is_leaf=is_total
    )
    if not all(map(is_array, jax.tree.leaves(metric))):
        msg = (
            f"train: the metrics of the loss must be numbers; {name!r} is {described(metric)}. "
            "Leave it out, or return numbers"
        )
        raise FuncconvError(msg)
    return metric

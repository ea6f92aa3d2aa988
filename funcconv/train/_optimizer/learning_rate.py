"""The learning rate of a step, where the optimizer and its state say it without doubt."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax

from ..._common.types import Array
from .groups import Optimizer
from .lookahead import WithSlow

_LINE_SEARCHES = (optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState)
_INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)


def learning_rates(optimizer: Optimizer, lr_factors: Mapping[str, float], before: Any, after: Any) -> dict[str, Array]:
    """Return the learning rates of a step by the names of their metrics, without those that are not known.

    Args:
        optimizer: as the user gave it.
        lr_factors: factors of the updates by patterns.
        before: the state of the optimizer before the step.
        after: its state after the step.

    Returns:
        `{"learning_rate": ...}`; with patterns, one for each, such as `"learning_rate/trunk/*"`.
    """
    if isinstance(optimizer, Mapping):
        rates = {
            f"learning_rate/{name}": _rate(group, *(state.inner_states[name].inner_state for state in (before, after)))
            for name, group in optimizer.items()
        }
    elif (rate := _rate(optimizer, before, after)) is not None and lr_factors:
        rates = {f"learning_rate/{name}": rate * factor for name, factor in lr_factors.items()}
    else:
        rates = {"learning_rate": rate}
    return {name: jnp.asarray(rate, jnp.float32) for name, rate in rates.items() if rate is not None}


def _rate(optimizer: optax.GradientTransformation, before: Any, after: Any) -> Any:
    """Return minus the product of the factors by which an optimizer scales its updates at last; None if unknown."""
    if isinstance(after, WithSlow):
        before, after = before.inner, after.inner
    factors, _ = _last_factors(optimizer.update, before, after)
    rate = -math.prod(factors)
    if all(isinstance(factor, int | float) for factor in factors):
        # Some optimizers use their learning rate in another place, and only change the sign at last.
        only_sign = all(abs(factor) == 1 for factor in factors)
        return None if only_sign or rate <= 0 else rate
    return rate


def _last_factors(update: Callable[..., Any], before: Any, after: Any) -> tuple[list[Any], bool]:
    """Return the factors by which the last parts of an optimizer scale the updates, and whether it does nothing else.

    Functions of optax are recognized by their names and their closed-over variables. If another version of optax has
    other names, fewer factors are found, so that the learning rate is not known.

    Args:
        update: of the optimizer.
        before: the state of the optimizer before the step.
        after: its state after the step.
    """
    if isinstance(after, _INJECTED):
        return ([-after.hyperparams["learning_rate"]] if "learning_rate" in after.hyperparams else []), False
    if isinstance(after, _LINE_SEARCHES):
        return [after.learning_rate], True
    if isinstance(after, optax.contrib.ReduceLROnPlateauState):
        return [after.scale], True
    name, variables = _name_and_variables(update)
    if name == "with_extra_args_support" and "tx" in variables:
        return _last_factors(variables["tx"].update, before, after)
    if name == "identity":
        return [], True
    if name == "scale" and "step_size" in variables:
        return [variables["step_size"]], True
    if name == "scale_by_schedule" and "step_size_fn" in variables:
        return [variables["step_size_fn"](before.count)], True
    parts: list[tuple[Any, Any, Any]] = []
    if name == "chain" and "update_fns" in variables:
        parts = list(zip(variables["update_fns"], before, after, strict=True))
    elif name == "named_chain" and "transforms" in variables:
        parts = [(transform.update, before[key], after[key]) for key, transform in variables["transforms"]]
    factors: list[Any] = []
    for part in reversed(parts):
        of_part, only_scales = _last_factors(*part)
        factors += of_part
        if not only_scales:
            return factors, False
    return factors, bool(parts)


def _name_and_variables(function: Any) -> tuple[str, dict[str, Any]]:
    """Return the function of optax that made a function, such as `"chain"`, and the closed-over variables by name."""
    if not getattr(function, "__module__", "").startswith("optax.") or not hasattr(function, "__code__"):
        return "", {}
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return function.__qualname__.split(".<locals>")[0], dict(zip(function.__code__.co_freevars, cells, strict=True))

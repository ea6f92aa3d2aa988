"""Optimizers and learning rates for groups of parameters, which are chosen by patterns of their paths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import optax

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of
from .lookahead import WithSlow, states_of, with_slow_params

# Optimizers that compute the next parameters from their own last updates. A factor would make these wrong.
_OWN_UPDATES = {
    WithSlow: "lookahead",
    optax.contrib.ScheduleFreeState: "schedule_free",
    optax.contrib.MechanicState: "mechanize",
    optax.ScaleByZoomLinesearchState: "a line search",
    optax.ScaleByBacktrackingLinesearchState: "a line search",
}

Optimizer: TypeAlias = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


def transform_of(optimizer: Optimizer, lr_factors: Mapping[str, float]) -> optax.GradientTransformationExtraArgs:
    """Return one optimizer of all trained parameters.

    Args:
        optimizer: an optimizer, or one for each pattern; the first matching pattern counts.
        lr_factors: the factor of the updates for each pattern; the first matching pattern counts. Empty: no factors.
    """
    if isinstance(optimizer, Mapping):
        patterns = tuple(optimizer)
        groups = {pattern: with_slow_params(optimizer[pattern]) for pattern in patterns}
        # A line search of one group gets the gradient of its parameters only.
        transform = optax.partition(
            groups, lambda params: labels(params, patterns, "optimizer"), mask_compatible_extra_args=True
        )
    else:
        transform = with_slow_params(optimizer)
    return _with_factors(transform, lr_factors) if lr_factors else transform


def check_optimizer(optimizer: Any, lr_factors: Any) -> None:
    """Refuse optimizers and factors of the wrong type or out of range."""
    optimizers = optimizer if isinstance(optimizer, Mapping) else {None: optimizer}
    if not optimizers:
        msg = 'train: optimizer is an empty dict. Write for example {"*": optax.adam(1e-3)}'
        raise FuncconvError(msg)
    for pattern, value in optimizers.items():
        # Not all are a `GradientTransformation`: `optax.MultiSteps` is a class of its own.
        if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
            name = "optimizer" if pattern is None else f"optimizer[{pattern!r}]"
            number = isinstance(value, int | float)
            hint = '. Factors of the learning rate are lr_factors={"trunk/*": 0.1, "*": 1.0}' if number else ""
            msg = f"train: {name} must be an optax optimizer, such as optax.adam(1e-3); got {value!r}{hint}"
            raise FuncconvError(msg)
    if not isinstance(lr_factors, Mapping):
        msg = f'train: lr_factors must be a dict such as {{"trunk/*": 0.1, "*": 1.0}}; got {lr_factors!r}'
        raise FuncconvError(msg)
    if isinstance(optimizer, Mapping) and lr_factors:
        msg = "train: lr_factors need one optimizer; with a dict of optimizers, each one has its own learning rate"
        raise FuncconvError(msg)
    for pattern, factor in lr_factors.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            msg = f"train: lr_factors[{pattern!r}] must be a finite number of at least 0; got {factor!r}"
            raise FuncconvError(msg)


def labels(params: Any, patterns: Sequence[str], option: str) -> Any:
    """Return the first matching pattern of each parameter.

    Args:
        params: a tree of the trained parameters.
        patterns: of their paths.
        option: the name of the option that has the patterns, for messages.

    Raises:
        FuncconvError: if no pattern matches a parameter, or a pattern is the first one of no parameter.
    """
    first: dict[str, str | None] = {}
    for path, _ in jax.tree.leaves_with_path(params):
        name = path_of(path)
        first[name] = next((pattern for pattern in patterns if meets(name, pattern)), None)
    shown = ", ".join(map(repr, patterns))
    if missing := [name for name, pattern in first.items() if pattern is None]:
        msg = (
            f"train: no pattern of {option} matches {', '.join(map(repr, missing))}; the patterns are {shown}. Add "
            "another pattern; '*' as the last one matches all others"
        )
        raise FuncconvError(msg)
    if unused := [pattern for pattern in patterns if pattern not in first.values()]:
        pairs = ", ".join(f"{name!r} ({pattern!r})" for name, pattern in first.items())
        msg = (
            f"train: {', '.join(map(repr, unused))} of {option} is the first matching pattern of no trained parameter; "
            f"the parameters, with their patterns, are {pairs}. Remove it, or put it before the more general ones"
        )
        raise FuncconvError(msg)
    return jax.tree.map_with_path(lambda path, _: first[path_of(path)], params)


def _with_factors(
    transform: optax.GradientTransformationExtraArgs, factors: Mapping[str, float]
) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer whose updates are multiplied by the factor of the first matching pattern."""

    def init(params: Any) -> Any:
        labels(params, tuple(factors), "lr_factors")
        state = transform.init(params)
        names = [name for kind, name in _OWN_UPDATES.items() if states_of(state, kind)]
        # Without opaque_mode, SAM keeps the parameters from before its last update.
        names += ["sam without opaque_mode"] * any(
            s.cache is not None for s in states_of(state, optax.contrib.SAMState)
        )
        if names:
            msg = (
                f"train: lr_factors multiply the updates of the optimizer, but {names[0]} continues from its own "
                'updates. Pass one optimizer for each pattern, such as optimizer={"trunk/*": ..., "*": ...}'
            )
            raise FuncconvError(msg)
        return state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        names = labels(updates, tuple(factors), "lr_factors")
        updates, state = transform.update(updates, state, params, **extra_args)
        return jax.tree.map(lambda name, leaf: factors[name] * leaf, names, updates), state

    return optax.GradientTransformationExtraArgs(init, update)

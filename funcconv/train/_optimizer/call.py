"""Call an optimizer with those extra arguments that it accepts."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import jax
import optax


def update_with(
    transform: optax.GradientTransformationExtraArgs,
    gradients: Any,
    state: Any,
    params: Any,
    offered: Mapping[str, Any],
) -> tuple[Any, Any]:
    """Return the updates and the next state of an optimizer.

    Most optimizers ignore extra arguments that they do not use. Some, such as `optax.contrib.sam`, raise `TypeError`
    for them, also if they are a part of `optax.chain`. These get the largest set of arguments that they accept.

    Args:
        transform: the optimizer.
        gradients: a tree like the parameters.
        state: of the optimizer.
        params: the parameters.
        offered: the extra arguments, by name.
    """

    def update(extra_args: Mapping[str, Any]) -> tuple[Any, Any]:
        updates, new_state = transform.update(gradients, state, params, **extra_args)
        return updates, new_state

    def accepts(extra_args: Mapping[str, Any]) -> bool:
        try:
            jax.eval_shape(lambda: update(extra_args))
        except TypeError:
            return False
        return True

    try:
        return update(offered)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error).lower():
            raise
        for count in reversed(range(len(offered))):
            for names in combinations(offered, count):
                accepted = {name: offered[name] for name in names}
                if accepts(accepted):
                    return update(accepted)
        raise

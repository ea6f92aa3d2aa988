"""The parameters that an evaluation should use."""

from contextlib import suppress
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..._common.errors import FuncconvError
from .._optimizer.lookahead import WithSlow, states_of
from .._state import State
from .._step.frozen import masked_like, with_frozen

_KINDS = (WithSlow, optax.contrib.ScheduleFreeState, optax.contrib.SAMState)


def eval_params(state: State) -> Any:
    """Return the parameters to evaluate: the average of the parameters, or those that the optimizer evaluates.

    - If `make_step` keeps an average (`ema=` or `average="mean"`), it is `State.ema`.
    - `optax.contrib.schedule_free` computes gradients at points between two sequences. The parameters to evaluate are
      the averaged sequence, `optax.contrib.schedule_free_eval_params`.
    - `optax.lookahead` has fast parameters, which are `State.params`, and slow ones, which are evaluated.
    - `optax.contrib.sam` without `opaque_mode` perturbs the parameters in some steps. The parameters from before the
      perturbation are evaluated.
    - Otherwise it is `State.params`.

    The optimizer may be a part of another one, such as `optax.chain`, or of a dict of optimizers. Frozen parameters,
    and parameters of other optimizers, are as they are in `State.params`.

    Args:
        state: of a step that `make_step` returned.

    Returns:
        A tree like `state.params`.

    Raises:
        FuncconvError: if the state has an average and its optimizer has parameters to evaluate, so that it is not clear
            which of them to return; or if the optimizer keeps its parameters in another form, as in `optax.flatten`.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp, optax
        >>> def loss(params, batch, *, key, state):
        ...     return jnp.square(params["w"] - batch).mean()
        >>> init, step = fc.train.make_step(loss, optax.lookahead(optax.sgd(0.25), sync_period=2, slow_step_size=0.5))
        >>> state = init({"w": jnp.zeros(())}, jax.random.key(0))
        >>> state, _ = step(state, jnp.ones(3))
        >>> float(state.params["w"]), float(fc.train.eval_params(state)["w"])
        (0.5, 0.0)
    """
    parts = _evaluated(state.optimizer, state.params)
    if state.ema is not None:
        if parts:
            msg = (
                "eval_params: the state has an average, and its optimizer has parameters to evaluate too. Use "
                "state.ema for the average, or make the step without ema= and average="
            )
            raise FuncconvError(msg)
        return state.ema
    params = state.params
    for part in parts:
        params = with_frozen(part, params)
    return params


def _evaluated(optimizer_state: Any, params: Any) -> list[Any]:
    """Return trees of parameters to evaluate; parameters that belong to other optimizers are masked."""
    parts = []
    for node in states_of(optimizer_state, _KINDS):
        if isinstance(node, WithSlow):
            parts.append(node.slow)
        elif isinstance(node, optax.contrib.ScheduleFreeState):
            own_params = _own(params, node.z)
            evaluated = optax.contrib.schedule_free_eval_params(node, own_params)
            parts.append(jax.tree.map(lambda leaf, old: leaf.astype(old.dtype), evaluated, own_params))
        elif node.cache is not None:
            own_params = _own(params, node.cache)
            is_perturbed = node.steps_since_sync > 0
            parts.append(jax.tree.map(partial(jnp.where, is_perturbed), node.cache, own_params))
        else:
            parts += _evaluated((node.opt_state, node.adv_state), params)
    return parts


def _own(params: Any, part: Any) -> Any:
    """Return the parameters that an optimizer has in its state `part`; the others are masked."""
    # A flat array in `part` is a prefix of any tree, so the structures are compared too.
    with suppress(ValueError):
        own = masked_like(params, part)
        if str(jax.tree.structure(own)) == str(jax.tree.structure(part)):
            return own
    msg = (
        "eval_params: the optimizer keeps its parameters in another form than the state, so they cannot be returned. "
        "Use the optimizer without wrappers that change trees, such as optax.flatten"
    )
    raise FuncconvError(msg)

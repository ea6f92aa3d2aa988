"""Lookahead, whose parameters are pairs, as an optimizer of plain parameters."""

import logging
from typing import Any, NamedTuple

import jax
import optax


class WithSlow(NamedTuple):
    """The state of lookahead together with its slow parameters. The parameters of the state are the fast ones."""

    slow: Any
    inner: Any


def states_of(tree: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    """Return the nodes of some types in the state of an optimizer, without those inside of another one."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kinds))
    return [node for node in nodes if isinstance(node, kinds)]


def with_slow_params(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer; if it is `optax.lookahead`, its state has the slow parameters.

    `optax.lookahead` updates pairs of fast and slow parameters, but only the fast ones have gradients. With the slow
    ones in its state, it is used like any other optimizer.
    """
    transform = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        # Lookahead takes plain parameters for the fast ones, but logs a warning.
        log = logging.getLogger("absl")
        log.addFilter(_is_other_message)
        try:
            state = transform.init(params)
        finally:
            log.removeFilter(_is_other_message)
        return WithSlow(params, state) if states_of(state, optax.LookaheadState) else state

    def update(updates: Any, state: Any, params: Any = None, **extra_args: Any) -> tuple[Any, Any]:
        if not isinstance(state, WithSlow):
            updates_and_state: tuple[Any, Any] = transform.update(updates, state, params, **extra_args)
            return updates_and_state
        pair: Any = optax.LookaheadParams(fast=params, slow=state.slow)
        update_pair, inner = transform.update(updates, state.inner, pair, **extra_args)
        return update_pair.fast, WithSlow(optax.apply_updates(state.slow, update_pair.slow), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_other_message(record: logging.LogRecord) -> bool:
    return "no attribute `fast`" not in record.getMessage()

"""The arguments of optimizers that evaluate the loss themselves, such as line searches and SAM."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ...._common.types import Array
from ..._state import State
from ..frozen import masked_like, with_frozen
from ..gradient import gradient
from ..options import StepOptions
from ..sums import clipped, like, scale_and_norm, widened
from ..totals import Weighted


class Callbacks:
    """The loss of a step and its gradient, as functions of the trained parameters.

    They use the batch, the key, the state of the model and the options of the step. The next state of the model is that
    of the step.

    Args:
        options: of the step.
        state: before the step.
        batch: a tree of arrays.
        factor: the scale of the loss.

    Attributes:
        called: whether the optimizer has called one of the functions.
    """

    def __init__(self, options: StepOptions, state: State, batch: Any, factor: Any) -> None:
        self._options, self._state, self._batch, self._factor = options, state, batch, factor
        self.called = False

    def offered(self) -> dict[str, Any]:
        """Return the functions by the names under which optimizers take them."""
        value, objective = self._value(is_clipped=True), self._value(is_clipped=False)

        # A line search passes on all extra arguments that this function can take, and may refuse any others.
        def value_fn(params: Any, grad_fn: Any = None, obj_fn: Any = None) -> Array:
            del grad_fn, obj_fn
            self.called = True
            return value(params)  # type: ignore[no-any-return]

        def grad_fn(params: Any, *_: Any) -> Any:
            self.called = True
            return like(self._gradient(params, is_clipped=True)[0], params)

        def obj_fn(params: Any) -> Array:
            self.called = True
            return objective(params)  # type: ignore[no-any-return]

        return {"value_fn": value_fn, "grad_fn": grad_fn, "obj_fn": obj_fn}

    def _value(self, *, is_clipped: bool) -> Any:
        """Return the loss as a function of the trained parameters, whose derivative is the gradient of a step."""

        @jax.custom_jvp
        def value(params: Any) -> Array:
            return self._gradient(params, is_clipped=False)[1]

        @value.defjvp
        def derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Array, Array]:
            gradients, loss = self._gradient(*primals, is_clipped=is_clipped)
            changes = jax.tree.map(lambda a, b: (a * b).sum().real.astype(loss.dtype), gradients, widened(*tangents))
            return loss, jnp.stack(jax.tree.leaves(changes)).sum()

        return value

    def _gradient(self, params: Any, *, is_clipped: bool) -> tuple[Any, Array]:
        """Return the gradient, in float32 for parameters of 16 bits, and the loss.

        An optimizer of a group of parameters passes these, with all others masked.
        """
        state = replace(self._state, params=with_frozen(params, self._state.params))
        gradients, loss, _, _ = gradient(self._options, state, self._batch, self._factor)
        gradients = jax.tree.map(lambda leaf: leaf / jnp.asarray(self._factor, leaf.dtype), gradients)
        if is_clipped and self._options.clip is not None:
            gradients = clipped(gradients, self._options.clip, *scale_and_norm(gradients))
        return masked_like(gradients, params), loss.mean if isinstance(loss, Weighted) else loss

"""The gradient of the loss on a batch, computed at once or in micro-batches."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..._common.dtypes import wide
from ..._common.types import Array
from .._distributed.partition import spread_batch
from .._state import State
from .compute_dtypes import cast_parameters
from .frozen import next_model, trained, with_frozen
from .inputs import cast_inputs
from .loss import check_signature, check_state, value_and_metrics
from .options import StepOptions
from .parameters.average import average_argument
from .sums import widened
from .totals import Weighted, divisor, means, over_micro_batches


def gradient(
    options: StepOptions, state: State, batch: Any, factor: Any
) -> tuple[Any, Array | Weighted, dict[str, Any], Any]:
    """Return the gradient of the scaled loss, the loss, its metrics, and the next state of the model.

    Args:
        options: of the step.
        state: before the step.
        batch: a tree of arrays.
        factor: the scale of the loss.

    Returns:
        `(gradients, loss, metrics, model)`. Gradients of 16-bit parameters are in float32, and still multiplied by
        `factor`. The loss is a `Weighted` if the user's function returned one.
    """
    key = jax.random.fold_in(state.key, state.step)
    if options.accumulate > 1:
        return _accumulated(options, state, batch, key, factor)
    gradients, (loss, metrics, model) = _differentiated(options, state, batch, key, state.model, factor)
    gradients = widened(gradients)
    if isinstance(loss, Weighted):
        gradients = _divided(_multiplied(gradients, loss.weight), loss.weight)
    return gradients, loss, means(metrics), model


def _accumulated(
    options: StepOptions, state: State, batch: Any, key: Array, factor: Any
) -> tuple[Any, Array | Weighted, dict[str, Any], Any]:
    """Return what `gradient` returns, as means over micro-batches that are computed one after the other."""
    count = options.accumulate
    # Each device has consecutive examples. Micro-batch i has every count-th of them, from i on, so that each device
    # computes its own share of each micro-batch, without communication.
    columns = jax.tree.map(lambda x: x.reshape(len(x) // count, count, *x.shape[1:]), batch)

    def add(carry: tuple[Any, Any], i: Array) -> tuple[tuple[Any, Any], Any]:
        total, model = carry
        micro_batch = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False), columns)
        if options.auto_mesh is not None:
            micro_batch = spread_batch(micro_batch, options.auto_mesh)
        micro_key = jax.random.fold_in(key, i)
        gradients, (loss, metrics, model) = _differentiated(options, state, micro_batch, micro_key, model, factor)
        gradients = widened(gradients)
        if isinstance(loss, Weighted):
            gradients = _multiplied(gradients, loss.weight)
        return (jax.tree.map(jnp.add, total, gradients), model), (loss, metrics)

    zero = jax.tree.map(jnp.zeros_like, widened(trained(state.params, options.frozen)))
    (total, model), (losses, metrics) = lax.scan(add, (zero, state.model), jnp.arange(count))
    if isinstance(losses, Weighted):
        loss = over_micro_batches(losses)
        return _divided(total, loss.weight), loss, means(over_micro_batches(metrics)), model
    # Checkpoints record a digest of the traced program, which depends on the order of these operations.
    mean_gradients, mean_loss = jax.tree.map(lambda gradient: gradient / count, total), losses.mean()
    return mean_gradients, mean_loss, means(over_micro_batches(metrics)), model


def _differentiated(
    options: StepOptions, state: State, batch: Any, key: Array, model: Any, factor: Any
) -> tuple[Any, tuple[Array | Weighted, dict[str, Any], Any]]:
    """Return the gradient of the scaled loss by the trained parameters, and the loss, its metrics and the next model.

    The gradient of a `Weighted` is that of its mean. If its weight is 0, it is that of its sum.

    Args:
        options: of the step.
        state: before the step.
        batch: a batch or micro-batch.
        key: of this batch.
        model: the state of the model before this batch.
        factor: the scale of the loss.
    """

    def scaled_loss(trained_params: Any, params: Any, batch: Any, key: Array, model: Any, factor: Any) -> Any:
        check_signature(options.loss, average)
        params = with_frozen(trained_params, params)
        if options.compute_dtype is not None:
            params = cast_parameters(params, options.compute_dtype)
            batch = cast_inputs(batch, options.compute_dtype, options.inputs)
        returned = options.loss(params, batch, key=key, state=model, **average)
        loss, metrics = value_and_metrics(returned, has_aux=options.has_aux)
        new_model = metrics.pop("state", model)
        check_state(model, new_model)
        new_model = next_model(model, new_model, params, options.frozen)
        if isinstance(loss, Weighted):
            # Divided before it is differentiated, because in 16 bits the gradient of a large sum could overflow.
            mean = loss.sum / lax.stop_gradient(divisor(loss.weight)).astype(loss.sum.dtype)
            return mean * jnp.asarray(factor, mean.dtype), (loss, metrics, new_model)
        loss = loss.astype(wide(loss.dtype))
        return loss * jnp.asarray(factor, loss.dtype), (loss, metrics, new_model)

    average = average_argument(options, state)
    trained_params = trained(state.params, options.frozen)
    return jax.grad(scaled_loss, has_aux=True)(trained_params, state.params, batch, key, model, factor)  # type: ignore[no-any-return]


def _multiplied(gradients: Any, weight: Array) -> Any:
    """Return the gradient of a sum from that of its mean. As there, the weight is a constant."""
    return jax.tree.map(lambda leaf: leaf * lax.stop_gradient(divisor(weight)).astype(leaf.dtype), gradients)


def _divided(gradients: Any, weight: Array) -> Any:
    """Return the gradient of a mean from that of the sum. A derivative of the step also depends on the weight."""
    return jax.tree.map(lambda leaf: leaf / divisor(weight).astype(leaf.dtype), gradients)

"""Recompute the statistics of batch norms for other parameters, such as an average over the steps of training."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.patterns import path_of
from ..._common.types import Array


def update_norms(apply: Callable[[Any, Any, Any], Any], params: Any, model: Any, batches: Iterable[Any]) -> Any:
    """Recompute the running statistics of batch norms, as means over batches.

    The running statistics in `State.model` are those of the parameters during training. For an average of the
    parameters, compute them again, like `torch.optim.swa_utils.update_bn` does. The new mean and variance of each batch
    norm are the means of those of all batches; each batch has the same weight, and `momentum` has no effect.

    Args:
        apply: a function `apply(params, model, batch)` that evaluates the model in training mode and returns its next
            state, for example `lambda params, model, batch: graph.apply(params, model, batch["image"], train=True)[1]`.
            It is compiled.
        params: the parameters, such as `fc.train.eval_params(state)`.
        model: the state of the model, such as `state.model`. The entries of a batch norm are those called `"mean"` and
            `"var"` in one dict; its `"count"` begins at 0. Other entries are passed from batch to batch.
        batches: an iterable over batches that ends, such as a list of the batches of one epoch.

    Returns:
        The new state of the model.

    Raises:
        FuncconvError: if there are no batches, the model has no batch norm, or `apply` does not update the statistics
            of a batch norm, for example because it does not pass `train=True`, or it returns another tree.

    Example:
        >>> import funcconv as fc, jax, jax.numpy as jnp
        >>> x = fc.Input("x", (1,))
        >>> graph = fc.Graph(x, fc.BatchNorm(momentum=0.5)(x))
        >>> params, model = graph.init(jax.random.key(0)), graph.init_state()
        >>> apply = lambda params, model, x: graph.apply(params, model, x, train=True)[1]
        >>> model = fc.train.update_norms(apply, params, model, [jnp.array([[1.0], [3.0]]), jnp.array([[5.0], [7.0]])])
        >>> float(model["batch_norm1"]["mean"][0]), float(model["batch_norm1"]["var"][0])
        (4.0, 2.0)
    """
    norms = _batch_norms(model)
    means = _statistics(model, [f"{norm}{name}" for norm in norms for name in ("mean", "var")])
    means = counts = jax.tree.map(jnp.zeros_like, means)
    steps = {f"{norm}count" for norm in norms}
    model = jax.tree.map_with_path(lambda path, leaf: jnp.zeros_like(leaf) if path_of(path) in steps else leaf, model)
    update = jax.jit(lambda *args: _with_batch(apply, *args))
    for batch in batches:
        means, counts, model = update(params, means, counts, model, batch)
    if not norms or (unchanged := [name for name, count in counts.items() if not jnp.all(count > 0)]):
        what = f"{', '.join(map(repr, unchanged))} did not change" if norms else "the model has no batch norm"
        msg = (
            f"update_norms: {what}. Pass at least one batch, a state with entries 'mean' and 'var', and a function "
            "that returns the next state in training mode, such as graph.apply(..., train=True)[1]"
        )
        raise FuncconvError(msg)
    return _with_statistics(model, means)


def _with_batch(
    apply: Callable[[Any, Any, Any], Any],
    params: Any,
    means: dict[str, Array],
    counts: dict[str, Array],
    model: Any,
    batch: Any,
) -> tuple[dict[str, Array], dict[str, Array], Any]:
    """Return the means over one more batch, how many batches they are over, and the next model."""

    def next_statistics(statistics: dict[str, Array]) -> tuple[dict[str, Array], Any]:
        new_model = apply(params, _with_statistics(model, statistics), batch)
        structures = [str(jax.tree.structure(tree)) for tree in (model, new_model)]
        if structures[0] != structures[1]:
            msg = f"update_norms: apply must return the next state, {structures[0]}; got {structures[1]}"
            raise FuncconvError(msg)
        return _statistics(new_model, means), new_model

    # Running statistics are `share * old + (1 - share) * those of the batch`. From 0, they are the second term alone;
    # and their derivative is the share, in float32, which gives about 6 digits of the mean for a momentum of 0.9.
    zeros, ones = (jax.tree.map(f, means) for f in (jnp.zeros_like, jnp.ones_like))
    new, shares, new_model = jax.jvp(next_statistics, (zeros,), (ones,), has_aux=True)
    for name, share in shares.items():
        is_updated = share != 1
        of_batch = new[name] / jnp.where(is_updated, 1 - share, 1)
        count = counts[name] + is_updated.astype(share.dtype)
        change = jnp.where(is_updated, (of_batch - means[name]) / jnp.maximum(count, 1), 0)
        means, counts = means | {name: means[name] + change}, counts | {name: count}
    return means, counts, new_model


def _batch_norms(model: Any) -> list[str]:
    """Return the paths of the entries that have a mean and a variance, such as `"trunk/batch_norm1/"`."""
    names = [path_of(path) for path, _ in jax.tree.leaves_with_path(model)]
    owners = dict.fromkeys(name.removesuffix("mean") for name in names if name.rpartition("/")[2] == "mean")
    return [owner for owner in owners if f"{owner}var" in names]


def _statistics(model: Any, names: Iterable[str]) -> dict[str, Array]:
    leaves = {path_of(path): leaf for path, leaf in jax.tree.leaves_with_path(model)}
    return {name: leaves[name] for name in names}


def _with_statistics(model: Any, statistics: dict[str, Array]) -> Any:
    return jax.tree.map_with_path(lambda path, leaf: statistics.get(path_of(path), leaf), model)

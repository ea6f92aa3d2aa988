"""What is attributed: one number for each example, from the outputs of a graph or a channel of a node."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._common.dtypes import wide
from .._common.errors import FuncconvError
from .._common.types import Array, Shape
from .._graph.declare.function import Function
from .._graph.declare.inference import spec
from .._graph.declare.readings import check_readings
from .._graph.evaluate.call import number_of
from .._graph.use.graph import Graph
from .._graph.use.structure import from_parts

Of: TypeAlias = Callable[[Any], Any] | tuple[str, Any]
Select: TypeAlias = Callable[[Any, Shape], Array]  # from outputs and batch axes to numbers (*batch)

_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)  # sizes of batches; an axis of the outputs may have some of them


def with_target(graph: Graph, of: Of, method: str) -> tuple[Graph, Select]:
    """Return the graph whose outputs are needed, and the function of these outputs that is attributed.

    Args:
        graph: a graph.
        of: a function of the outputs, or a pair of a node and a channel.
        method: the public function, for messages.

    Raises:
        FuncconvError: if `of` is neither, or there is no such node.
    """
    is_pair = isinstance(of, tuple) and len(of) == 2 and isinstance(of[0], str)
    if not (is_pair or callable(of) or isinstance(of, Function)):
        msg = f'{method}: of must be a function of the outputs, or a node and a channel as in ("conv1", 5); got {of!r}'
        raise FuncconvError(msg)
    if isinstance(of, tuple):
        node, channel = of
        results, tree = (number_of(graph, node, method),), jax.tree.structure(0)
        parts = (graph._signature, graph._keys, graph._rows, results, tree, graph._name, graph._places)
        return from_parts(type(graph), *parts), partial(_of_channel, method, node, channel)
    batched = of.batched if isinstance(of, Function) else None  # fc.node(f, batched=True)
    function = of.op if isinstance(of, Function) else of
    return graph, partial(_of_function, method, function, batched=batched)


def _of_channel(method: str, node: str, channel: Any, value: Any, batch: Shape) -> Array:
    """Return the sum of a channel of a value over all positions."""
    if not jax.tree_util.all_leaves([value]) or value.ndim <= len(batch):
        shape = jax.tree.map(jnp.shape, value)
        msg = f"{method}: the value of node {node!r} must be (*batch, *positions, channels); got {shape}"
        raise FuncconvError(msg)
    channels, number = value.shape[-1], jnp.asarray(channel)
    if not jnp.issubdtype(number.dtype, jnp.integer) or number.shape not in ((), batch):
        msg = (
            f"{method}: the channel of node {node!r} must be an integer, or integers {batch}, one for each example; "
            f"got {number.dtype}{list(number.shape)}"
        )
        raise FuncconvError(msg)
    if not isinstance(channel, jax.core.Tracer):
        given = np.asarray(channel)
        if ((given < -channels) | (given >= channels)).any():
            msg = f"{method}: node {node!r} has {channels} channels, 0 to {channels - 1}; got {given.tolist()}"
            raise FuncconvError(msg)
    index = jnp.broadcast_to(number, batch).reshape(batch + (1,) * (value.ndim - len(batch)))
    chosen = jnp.take_along_axis(value, index, axis=-1)  # NaN where a traced number is not that of a channel
    return _checked(method, chosen.astype(wide(chosen.dtype)).sum(range(len(batch), value.ndim)), batch)


def _of_function(method: str, of: Callable[[Any], Any], outputs: Any, batch: Shape, *, batched: bool | None) -> Array:
    """Return the numbers of a function that is written for the outputs of one example, or for those of a batch."""
    if not batch and not batched:
        return _checked(method, of(outputs), batch)
    if batched is None:
        one = jax.tree.map(lambda y: spec(y).update(shape=y.shape[len(batch) :]), outputs)
        batched = _is_written_for_a_batch(of, one)
    if batched:
        size = math.prod(batch)
        numbers = of(jax.tree.map(lambda y: y.reshape(size, *y.shape[len(batch) :]), outputs))
        return _checked(method, numbers, (size,)).reshape(batch)
    for _ in batch:
        of = jax.vmap(of)
    return _checked(method, of(outputs), batch)


def _is_written_for_a_batch(of: Callable[[Any], Any], one: Any) -> bool:
    """Return whether a function returns no number for one example; refuse one that returns others for a batch."""
    if not _returns(of, one, ()):
        return True
    sizes = {size for leaf in jax.tree.leaves(one) for size in leaf.shape}
    size = next((size for size in _PRIMES if size not in sizes), max(sizes, default=1) + 1)
    if _returns(of, jax.tree.map(lambda leaf: leaf.update(shape=(size, *leaf.shape)), one), (size,)):
        check_readings("of", lambda _, y: of(y), lambda _, y: of(y), None, (one,))
    return False


def _returns(of: Callable[[Any], Any], y: Any, shape: Shape) -> bool:
    try:
        with jax.numpy_rank_promotion("allow"):  # one of the meanings may promote ranks, and the other not
            result = jax.eval_shape(of, y)
    except Exception:  # the function is the user's: whatever it raises, it is not written for this
        return False
    return jax.tree_util.all_leaves([result]) and result.shape == shape


def _checked(method: str, numbers: Any, shape: Shape) -> Array:
    """Return numbers in the dtype of sums; refuse another shape, or what is not real and floating."""
    is_array = jax.tree_util.all_leaves([numbers]) and hasattr(numbers, "dtype")
    if not is_array or numbers.shape != shape or not jnp.issubdtype(numbers.dtype, jnp.floating):
        got = f"{numbers.dtype}{list(numbers.shape)}" if is_array else f"a {type(numbers).__name__}"
        msg = (
            f"{method}: of must give one real floating number for each example, {shape}; got {got}. Select one number, "
            "for example of=lambda y: y[3] for the outputs of one example, or of=lambda y: y[:, 3] for those of a batch"
        )
        raise FuncconvError(msg)
    return jnp.asarray(numbers).astype(wide(numbers.dtype))

"""The next positions of all values of a graph, and what is kept of them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..._common.types import Array, Shape
from ..._windows.masks import zero_masked
from ..evaluate.call import mode_of
from ..infer.check_parameters import checked_entries
from ..infer.init import entry_shapes
from ..infer.rows import in_node, row_value
from ..name.flatten import Row
from ..repeat.layer import one_copy
from .flow import Flow
from .kept import Kept, nothing_kept
from .plan import Plan
from .rules import Chunk


class Signal(NamedTuple):
    """What is known of the signal when a chunk arrives."""

    samples: Array  # how many came before the chunk
    batch: Shape
    ended: bool  # whether it has ended before the chunk


def first_kept(plan: Plan, inputs: Sequence[Any], params: Any, batch: Shape) -> dict[str, Any]:
    """Return what is kept before the first chunk: of the values, and of those inside of copies, with an axis of copies.

    Args:
        plan: of the graph.
        inputs: the shapes and dtypes of its inputs.
        params: its parameters.
        batch: the batch axes of the signal.
    """
    specs, copies = list(inputs), dict[str, Any]()
    for row, entry in zip(plan.graph._rows, entry_shapes(plan.graph, params), strict=True):
        xs = [specs[i] for i in row.inputs]
        if row.op.copies:
            one = first_kept(plan.copies[row.name][0], xs, one_copy(entry) or {}, batch)
            copies[row.name] = jax.tree.map(partial(_repeated, row.op.copies), one)
        specs.append(row_value(row, entry, xs))
    return {"kept": nothing_kept(specs, plan.kept, batch), "copies": copies}


def _repeated(n: int, leaf: Array) -> Array:
    return jnp.broadcast_to(leaf, (n, *leaf.shape))


def advance(
    plan: Plan,
    kept: Mapping[str, Any],
    params: Any,
    state: Any,
    chunks: Sequence[Array],
    signal: Signal,
    delays: Mapping[str, Any] | None = None,
) -> tuple[list[Array], dict[str, Any]]:
    """Return all new positions of all values, and what is kept.

    Args:
        plan: of the graph.
        kept: what was kept before.
        params: the parameters.
        state: the state.
        chunks: the new positions of the inputs.
        signal: what is known of the signal.
        delays: of the values, where they are not those of the plan, in one copy of a block.
    """
    axis, flows = len(signal.batch), plan.flows
    if delays is not None:
        flows = [flow._replace(delay=delays["values"][i]) for i, flow in enumerate(flows)]
    old = Kept(kept["kept"], signal.batch)
    values: list[Array] = []
    known: list[Array] = []  # the values, behind their kept positions

    def append(x: Array) -> None:
        flow, count = flows[len(values)], plan.kept[len(values)]
        if signal.ended or delays is not None or flow.delay:  # otherwise all new positions exist
            mask = _exist(signal, flow, 0, x.shape[axis])
            x = zero_masked(x, mask.reshape(mask.shape + (1,) * (x.ndim - axis - 1)))
        values.append(x)
        known.append(old.with_old(x, count) if count else x)

    for x in chunks:
        append(x)
    states, copies = mode_of(plan.graph, state).states, dict[str, Any]()
    rows = zip(plan.graph._rows, plan.stages, checked_entries(plan.graph, params), strict=True)
    for row, stage, entry in rows:
        own_state = states.get(str(row.params)) if row.op.stateful else None
        if row.op.copies:
            inner = delays and delays["copies"][row.name]
            x = values[row.inputs[0]]
            y, copies[row.name] = _in_copies(
                plan.copies[row.name], kept["copies"][row.name], entry or {}, own_state or {}, x, signal, inner
            )
            append(y)
            continue
        pairs = list(zip(row.inputs, stage.kept, strict=True))
        xs = [lax.slice_in_dim(known[i], plan.kept[i] - count, None, axis=axis) for i, count in pairs]
        masks = [partial(_exist, signal, flows[i], -count, values[i].shape[axis]) for i, count in pairs]
        append(_computed(row, stage, Chunk(entry, own_state, xs, masks, signal.batch)))
    return values, {"kept": old.following(), "copies": copies}


def _computed(row: Row, stage: Any, chunk: Chunk) -> Any:
    return in_node(row, lambda: stage.compute(chunk))


def _exist(signal: Signal, flow: Flow, first: int, last: int) -> Array:
    """Return which positions of a value exist, of those from `first` to `last`, counted from the new ones."""
    number = jnp.arange(first, last, dtype=jnp.int32)
    delivered = signal.samples * flow.rate.numerator // flow.rate.denominator
    begun: Array = number + delivered >= flow.delay
    return begun & (number < flow.left) if signal.ended else begun


def _in_copies(
    plans: Sequence[Plan], kept: Any, params: Any, state: Any, x: Array, signal: Signal, delays: Any
) -> tuple[Array, Any]:
    """Return the new positions of the last copy of a block, and what is kept in all of them."""
    if delays is None and any(flow.delay for plan in plans for inner in plan.with_inner for flow in inner.flows):
        delays = _delays_of_copies(plans)

    def step(x: Array, copy: Any) -> tuple[Array, Any]:
        params, state, kept, own_delays = copy
        values, kept = advance(plans[0], kept, params, state, [x], signal, own_delays)
        return values[plans[0].graph._results[0]], kept

    return lax.scan(step, x, (params, state, kept, delays), length=len(plans))


def _delays_of_copies(plans: Sequence[Plan]) -> dict[str, Any]:
    """Return the delays of the values in each copy, and of those within, with an axis of copies."""
    own = [
        {
            "values": np.array([flow.delay for flow in plan.flows], np.int32),
            "copies": {name: _delays_of_copies(inner) for name, inner in plan.copies.items()},
        }
        for plan in plans
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *own)  # type: ignore[no-any-return]

"""Whether a function computes each position of its masked inputs from that position alone."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..._common.errors import FuncconvError
from ..._common.types import Array, Shape
from ..._ops.masks import Masked
from ..declare.function import Function
from ..declare.inference import remembered, spec
from ..declare.known_functions import is_elementwise
from ..declare.readings import check_readings


def acts_by_position(op: Function, entry: Any, xs: Sequence[Any], spatial: int, batch: Shape) -> bool:
    """Return whether a function acts on each position of its masked inputs by itself.

    Args:
        op: the function.
        entry: its parameters.
        xs: its inputs, some of them `Masked`.
        spatial: the number of spatial axes of the masks.
        batch: the batch axes, which are in front of all inputs.
    """
    masked = [isinstance(x, Masked) for x in xs]
    specs = [jax.tree.map(lambda leaf: _example(leaf, batch), x.x if isinstance(x, Masked) else x) for x in xs]
    return is_by_position(op, jax.tree.map(spec, entry), specs, masked, spatial)


def is_by_position(op: Function, entry: Any, specs: Sequence[Any], over: Sequence[bool], spatial: int) -> bool:
    """Return whether a function of one example acts on each position by itself.

    Then it gives the same if it is called on one position at a time. As for batches, this is checked once for each
    function and shape by its traced programs; programs that differ are run on random inputs. A function that cannot be
    called on one position, or on a line of positions, mixes positions.

    Args:
        op: the function.
        entry: the shapes and dtypes of its parameters.
        specs: the shapes and dtypes of its inputs, for one example.
        over: which inputs have the positions; the others are the same for all positions.
        spatial: the number of axes of positions, which are the first ones of these inputs.
    """
    with_positions = [x for x, has_positions in zip(specs, over, strict=True) if has_positions]
    ranks = {len(leaf.shape) for leaf in jax.tree.leaves(with_positions)}
    if op.batched or min(ranks) < spatial:
        return False
    if not op.parametric and is_elementwise(op.op) and len(ranks) == 1 and all(over):
        return True

    def check() -> bool:
        return all(_acts_along(op, entry, specs, over, axis, spatial) for axis in range(spatial))

    return bool(remembered(op, f"by position {list(over)} {spatial}", (entry, specs), check))


def _acts_along(
    op: Function, entry: Any, specs: Sequence[Any], masked: Sequence[bool], axis: int, spatial: int
) -> bool:
    """Return whether the function acts on each position of a line of positions by itself."""
    others = [x for x, is_masked in zip(specs, masked, strict=True) if not is_masked]
    rests = [jax.tree.map(lambda leaf: _without(leaf, spatial), x) for x, own in zip(specs, masked, strict=True) if own]

    def on(given: Any, positions: Sequence[Any], line: Shape) -> Any:
        """Call the function on arrays with these spatial axes."""
        entry, others = given
        own, plain = iter(positions), iter(others)
        xs = [next(own) if is_masked else next(plain) for is_masked in masked]
        y = op.apply(entry, *xs, batch=())
        if any(leaf.shape[:spatial] != line for leaf in jax.tree.leaves(y)):
            msg = f"the result has other positions than {line}: {jax.tree.map(jnp.shape, y)}"
            raise FuncconvError(msg)
        return y

    def one(given: Any, *rests: Any) -> Any:
        line = (1,) * spatial
        y = on(given, [jax.tree.map(lambda leaf: leaf.reshape(line + leaf.shape), rest) for rest in rests], line)
        return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[spatial:]), y)

    def whole(given: Any, *rests: Any) -> Any:
        size = jax.tree.leaves(rests)[0].shape[0]
        line = (1,) * axis + (size,) + (1,) * (spatial - axis - 1)
        y = on(given, [jax.tree.map(lambda leaf: leaf.reshape(line + leaf.shape[1:]), rest) for rest in rests], line)
        return jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[spatial:]), y)

    try:
        lines = [jax.tree.map(lambda leaf: leaf.update(shape=(3, *leaf.shape)), rest) for rest in rests]
        jax.eval_shape(whole, (entry, others), *lines)
    except Exception:  # of a function that takes no such arrays
        return False
    try:
        return check_readings(repr(op), one, whole, (entry, others), rests)
    except FuncconvError:  # the results differ
        return False


def _example(leaf: Array, batch: Shape) -> Any:
    return spec(leaf).update(shape=leaf.shape[len(batch) :])


def _without(leaf: Any, spatial: int) -> Any:
    return leaf.update(shape=leaf.shape[spatial:])

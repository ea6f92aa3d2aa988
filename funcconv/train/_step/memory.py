"""Memory that a compiled step may overwrite: it must not belong to the caller, or to what the caller kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..._common.types import Array


def copied(tree: Any) -> Any:
    """Return a tree of JAX arrays that share their memory with no other array.

    JAX may use the memory of a NumPy array instead of copying it, and may read it after a call has returned. A compiled
    step overwrites the memory of its state. So arrays of a caller are copied before they become a state.
    """
    return jax.tree.map(_copied, tree)


def copied_batch(batch: Any) -> Any:
    """Return a batch with copies of its NumPy arrays, because an iterator may refill them before a step reads them."""
    return jax.tree.map(lambda leaf: np.array(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)


def lent(tree: Any) -> Any:
    """Return the tree with new array objects that share the memory of the old ones."""
    return jax.tree.map(_lent, tree)


def taken_back(tree: Any) -> Any:
    """Return the tree with a copy of each array whose memory another array uses, and the others as they are.

    Call it on a tree after a user's function got `lent(tree)`. If the function kept an array, the next step overwrites
    the copy instead of it. If it kept nothing, nothing is copied.
    """
    leaves = jax.tree.leaves(tree)
    own_ids = {id(array) for leaf in leaves for array in (leaf, *_pieces(leaf))}
    platforms = {device.platform for leaf in leaves for device in leaf.devices()}
    try:
        used = {
            address
            for platform in platforms
            for array in jax.live_arrays(platform)  # type: ignore[no-untyped-call]
            if id(array) not in own_ids
            for address in _addresses(array)
        }
        return jax.tree.map(lambda leaf: leaf if used.isdisjoint(_addresses(leaf)) else _copied(leaf), tree)
    except jax.errors.JaxRuntimeError:  # not every platform gives addresses
        return copied(tree)


def _copied(leaf: Any) -> Array:
    if not isinstance(leaf, jax.Array):
        leaf = np.array(leaf)
    if _is_key(leaf):
        return jnp.copy(leaf)
    # With a dtype the type is strong, as in the result of a step. A weak type would compile the step twice.
    return jnp.array(leaf, jnp.result_type(leaf), copy=True)


def _lent(leaf: Array) -> Array:
    if _is_key(leaf):
        return jnp.copy(leaf)  # a few bytes
    pieces = [jax.device_put(piece, piece.sharding) for piece in _pieces(leaf)]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, pieces)


def _pieces(leaf: Array) -> list[Array]:
    """Return the parts of an array on the devices of this process."""
    return [] if _is_key(leaf) else [shard.data for shard in leaf.addressable_shards]


def _addresses(leaf: Array) -> list[int]:
    return [piece.unsafe_buffer_pointer() for piece in _pieces(leaf) if piece.size]


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))

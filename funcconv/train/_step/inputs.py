"""Which entries of a batch are the model's inputs, and their cast to the dtype that the model computes in."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import SequenceKey

from ..._common.errors import FuncconvError
from ..._common.patterns import meets, path_of
from .compute_dtypes import ALL, dtype_of

_INPUTS = frozenset({"x", "input", "inputs", "image", "images"})
_TARGETS = frozenset({"y", "target", "targets", "label", "labels"})


def cast_inputs(batch: Any, compute_dtype: Any, inputs: Sequence[str] | Mapping[str, Any] | None) -> Any:
    """Return the batch with the model's inputs in another dtype. Targets and all other entries stay as they are.

    Args:
        batch: a tree of arrays.
        compute_dtype: the dtype of the inputs that are floating numbers, or a dict of patterns, in which `"*"` has it.
        inputs: patterns of the paths of the inputs, or a dict from these patterns to dtypes. With None, the inputs are
            the entries with names in `_INPUTS`, the first entry of a tuple, or a batch that is a single array. Targets
            are the entries with names in `_TARGETS` and the second entry of a pair.

    Raises:
        FuncconvError: if a pattern matches no entry, or `inputs` is None and a floating entry has another name.
    """
    dtype = compute_dtype.get(ALL) if isinstance(compute_dtype, Mapping) else compute_dtype
    entries = [(path, path_of(path)) for path, leaf in jax.tree.leaves_with_path(batch) if _is_float(leaf)]
    if inputs is None:
        is_input_by_path = {name: _by_convention(path, batch) for path, name in entries}
        unknown_paths = [name for name, is_input in is_input_by_path.items() if is_input is None]
        if unknown_paths:
            msg = (
                f"train: compute_dtype={jnp.dtype(dtype).name} casts the model's inputs and no targets, but which is "
                f"{', '.join(map(repr, unknown_paths))} of the batch? Name the inputs in make_step, such as "
                f"inputs={unknown_paths[0]!r}, or inputs=() for none; the floating entries are "
                f"{', '.join(repr(name) for _, name in entries)}"
            )
            raise FuncconvError(msg)
        dtype_by_path = {name: dtype for name, is_input in is_input_by_path.items() if is_input}
    else:
        paths = [path_of(path) for path, _ in jax.tree.leaves_with_path(batch)]
        for pattern in inputs:
            if not any(meets(name, pattern) for name in paths):
                msg = f"train: inputs={pattern!r} is no entry of the batch, which has {', '.join(map(repr, paths))}"
                raise FuncconvError(msg)
        dtypes = inputs if isinstance(inputs, Mapping) else dict.fromkeys(inputs, dtype)
        dtype_by_path = {name: dtype_of(name, dtypes) for _, name in entries}

    def cast_leaf(path: Sequence[Any], leaf: Any) -> Any:
        if not _is_float(leaf):
            return leaf
        # With a dtype of its own, a target that `jnp.full` made is not promoted to the dtype of the model's outputs.
        own = dtype_by_path.get(path_of(path))
        return jnp.asarray(leaf, jnp.result_type(leaf) if own is None else own)

    return jax.tree.map_with_path(cast_leaf, batch)


def _by_convention(path: Sequence[Any], batch: Any) -> bool | None:
    """Return whether an entry is an input, by its first known name or its position; None if neither decides."""
    if not path:
        return True
    if isinstance(path[0], SequenceKey):
        return True if path[0].idx == 0 else False if len(batch) == 2 else None
    for key in path:
        name = path_of((key,)).lower()  # such as the attribute or key `Image`
        if name in _INPUTS | _TARGETS:
            return name in _INPUTS
    return None


def _is_float(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))
